"""Finds the general checks to run first on a patch: those that test the files that it changes.

This only changes the order.  If none of these checks fails, all others run as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNIT = "test_vmunit.py::test_vmunit["

# A file's path, and its checks: families of vmunit, or FILE or FILE::NAME of other checks.
_LOOKED_AT: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"vmm_instruction_emul", ("emul", "paging")),
    (r"x86\.c", ("cpuid", "msr")),
    (r"(vlapic|vmm_lapic)", ("lapic", "smp", "interrupt", "timer", "sleep", "msr")),
    (r"vioapic", ("ioapic",)),
    (r"vatpic", ("pic",)),
    (r"(vatpit|vpmtmr)", ("timer",)),
    (r"vhpet", ("hpet", "timer")),
    (r"vrtc", ("rtc",)),
    (r"(vmx|svm)_msr", ("msr",)),
    (r"/(intel|amd)/", ("exception", "instruction", "state", "interrupt", "capability", "msr")),
    (r"vmm_stat", ("statistic",)),
    (r"vmm_mem\.", ("memory", "library")),
    (r"vmm_(dev|vm)\b", ("access", "end", "stuck", "test_host.py", "memory", "capability", "wear")),
    (r"vmm/vmm\.c", ("exception", "end", "stuck", "sleep", "smp", "statistic", "state", "memory")),
    (r"vmm_ioport|vmm_host", ("instruction", "state", "timer")),
    (r"lib/libvmmapi", ("library", "state", "memory", "capability", "end")),
    (r"usr\.sbin/bhyve", ("test_bhyveunit.py", "test_platform.py", "test_l2.py", "test_host.py")),
)


def related(touched: Iterable[str]) -> tuple[str, ...]:
    """Beginnings of the names of checks that test these files, the closest first."""
    found: list[str] = []
    for path in touched:
        for pattern, names in _LOOKED_AT:
            if re.search(pattern, path):
                found += [name if ".py" in name else f"{_UNIT}{name}." for name in names]
    return tuple(dict.fromkeys(found))
