"""The Invoke task for measuring; tasks.py takes it in."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import defaults
from harness.bench import NAMES
from harness.cli.program import run_task


@task(
    iterable=["only"],
    help={
        "only": f"one bench (may be given again): {', '.join(NAMES)}; default: all",
        "release": "the FreeBSD release to boot, where it is prepared; else the stand-in",
        "backend": "auto (default: QEMU), kvm, tcg or bochs",
        "rounds": "how often each is measured (default: the bench's own)",
        "json": "print what was measured as JSON",
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
    """Measure what the workbench costs, as ratios: ./inv bench [boot|harness|ssh|build|...]."""
    from harness import debian
    from harness.bench import run as benches

    debian.ensure()
    return benches.run(only, release, backend, rounds, json)
