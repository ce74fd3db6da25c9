"""The cost of VM exits: parsing the program's lines, ratios of pairs, and what counts as slower."""

from __future__ import annotations

import pytest

from harness.bhyve import exits
from harness.errors import CannotError, GuestError

LINES = "nothing 20 20 25 400 3\ncpuid 1020 1000 1100 400 401\nport 2020 2020 2020 100 100\n"


def costs(cpuid: int, nothing: int = 20) -> exits.Costs:
    return exits.parse(f"nothing {nothing} 0 0 9 0\ncpuid {cpuid + nothing} 0 0 9 9\n")


def test_lines_become_costs_without_the_clock() -> None:
    found = exits.net(exits.parse(LINES))
    assert found["cpuid"] == exits.Cost(1000, 980, 1080, 400, 401)
    assert str(found["port"]) == "2,000 cycles (2,000 to 2,000)"
    assert set(found) == {"cpuid", "port"}


@pytest.mark.parametrize("text", ["cpuid 1 2 3 4\n", "cpuid 1 2 3 4 x\n", "\n", "Killed\n"])
def test_what_is_no_line_is_named(text: str) -> None:
    with pytest.raises(GuestError, match="the benchmark program printed"):
        exits.parse(LINES + text)


def test_a_ratio_is_of_pairs() -> None:
    stock = [costs(1000), costs(2000), costs(1000)]
    patched = [costs(1300), costs(2400), costs(1200)]
    found = exits.ratios(stock, patched)["cpuid"]
    assert (found.median, found.low, found.high) == (1.2, 1.2, 1.3)
    assert str(found) == "1.200 (1.200 to 1.300), stock 1,000, patched 1,300 cycles"
    assert found.exceeds(1.1)
    assert not found.exceeds(1.2)


def test_one_slow_pair_is_an_accident() -> None:
    found = exits.ratios([costs(1000)] * 3, [costs(5000), costs(1000), costs(5000)])["cpuid"]
    assert not found.exceeds(1.1)
    assert exits.ratios([costs(1000)] * 2, [costs(5000)] * 2)["cpuid"].exceeds(1.1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="1 measurements on stock and 0 on the patches"):
        exits.ratios([costs(1000)], [])
    with pytest.raises(ValueError, match="cpuid costs 0 cycles on stock"):
        exits.ratios([costs(0)], [costs(1)])


def test_without_a_sysroot_nothing_is_compiled(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CannotError, match="import them"):
        exits.compile_bench(None, tmp_path, None, "15.1")  # type: ignore[arg-type]
