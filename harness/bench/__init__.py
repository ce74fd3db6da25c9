"""`inv bench`: the time that the workbench takes, as ratios measured together on one machine.

Each bench alternates between the compared things (A, B, A, B, ...) and compares medians, so that
other work on the machine affects both.  A bench is not a test: a slow machine is no failure.
"""

from __future__ import annotations

NAMES = (
    "boot", "harness", "ssh", "build", "parallel", "bochs", "tcg", "guests", "mutation", "checks",
)  # fmt: skip
"""The names of all benches; `harness.bench.run.BENCHES` has their functions."""
