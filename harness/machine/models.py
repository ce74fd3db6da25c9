"""The processor models that emulators are given."""

from __future__ import annotations

BOCHS_MODEL = "broadwell_ult"
"""The processor model Bochs is run with.

Of those that have all vmm.ko asks for it advertises the lowest frequency: FreeBSD takes its early
delays from that number, and each is spent in instructions.
"""
