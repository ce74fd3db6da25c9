"""The Invoke namespace: collects every task of `./inv` from the module of its group."""

from __future__ import annotations

from invoke.collection import Collection

from harness.cli.bench import bench
from harness.cli.develop import docs, lint, run_tests
from harness.cli.guest import GUEST_TASKS
from harness.cli.image import IMAGE_TASKS
from harness.cli.machine import MACHINE_TASKS
from harness.cli.matrix import matrix
from harness.cli.patch import PATCH_TASKS, build
from harness.cli.series import SERIES_TASKS, topic_new
from harness.cli.verify import mutation, show_report, verify

namespace = Collection(
    verify,
    matrix,
    mutation,
    show_report,
    *GUEST_TASKS,
    *SERIES_TASKS,
    *MACHINE_TASKS,
    build,
    bench,
    run_tests,
    lint,
    docs,
)
namespace.add_collection(Collection("topic", topic_new))
namespace.add_collection(Collection("patch", *PATCH_TASKS))
namespace.add_collection(Collection("image", *IMAGE_TASKS))
