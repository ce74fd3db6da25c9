"""`inv bench`: what the workbench costs, as ratios measured side by side on one machine.

Each bench alternates between what is compared (A, B, A, B, ...) and compares medians, so that what
else the machine does meanwhile meets both.  Nothing here is a test: a slow machine is no failure.
"""

from __future__ import annotations

NAMES = ("boot", "harness", "ssh", "build", "parallel", "bochs")
"""What `inv bench` can measure; `harness.bench.run.BENCHES` has each of them."""
