"""The Invoke task that measures times."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import backends, defaults
from harness.bench import NAMES
from harness.cli.program import run_task


@task(
    iterable=["only"],
    help={
        "only": f"one bench (may be given again): {', '.join(NAMES)}; default: all",
        "release": "the FreeBSD release to boot, if it is prepared; else the stand-in",
        "backend": backends.listed(first="auto (default: QEMU)"),
        "rounds": "how often each bench is measured (default: the bench's own number)",
        "json": "print the measurements as JSON",
    },
)
@run_task
def bench(
    _context: Context,
    only: list[str],
    release: str = defaults.RELEASE,
    backend: str = "auto",
    rounds: int = 0,
    json: bool = False,
) -> int:
    """Compare the times that the workbench takes: ./inv bench [boot|harness|ssh|build|...]."""
    from harness import debian
    from harness.bench import run as benches

    debian.ensure()
    return benches.run(only, release, backend, rounds, json)
