"""The known differences between releases: which checks fail on stock FreeBSD of an older one."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from harness.bhyve import bhyveunit, differences, vmunit
from harness.errors import UsageError
from harness.files import PROJECT

GOOD = """
[[difference]]
before = "15.0"
cases = ["emul.test_f6_*", "platform.virtio"]
reason = "it is not emulated"
"""


def test_a_difference_concerns_older_releases_and_its_cases_only(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(GOOD)
    known = differences.read(path)
    why = "it is not emulated (before FreeBSD 15.0)"
    for release in ("14.2-STABLE", "14.4", "13.2"):
        assert differences.reason(release, "emul.test_f6_numbers_16", known) == why
        assert differences.reason(release, "platform.virtio", known) == why
        assert differences.reason(release, "emul.test_f7_numbers_16", known) == ""
    for release in ("15.0", "15.1", "16.0-CURRENT"):
        assert differences.reason(release, "emul.test_f6_numbers_16", known) == ""


def test_cases_that_harm_the_guest_are_not_run_on_that_release(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(GOOD + GOOD.replace("emul.test_f6_*", "end.*") + "harms = true\n")
    known = differences.read(path)
    cases = ["end.halts", "emul.test_f6_numbers_16", "platform.virtio", "end.empty"]
    assert differences.harmful("14.4", cases, known) == (
        "end.halts",
        "platform.virtio",
        "end.empty",
    )
    assert differences.harmful("15.0", cases, known) == ()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        GOOD + "more = 1",
        GOOD + 'harms = "yes"',
        GOOD.replace("15.0", "soon"),
        GOOD.replace("it is not emulated", ""),
        GOOD.replace('["emul.test_f6_*", "platform.virtio"]', '"emul.*"'),
        GOOD.replace('"platform.virtio"', "5"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        differences.read(path)


def test_the_newest_release_has_none_and_each_name_is_a_check() -> None:
    """A misspelt name would excuse nothing, and one that is too wide would excuse everything."""
    rom = (PROJECT / "tests/guest/test_platform.py").read_text(encoding="utf-8")
    claims = {f"platform.{name}" for name in re.findall(r"\"(\w+)\"", rom)}
    parts = "".join(it.read_text(encoding="utf-8") for it in bhyveunit.SOURCES.glob("test_*.c"))
    units = set(re.findall(r"^\t\{ \"(\w+\.\w+)\",", parts, re.M))
    cases = {*vmunit.read_list(), *claims, *units}
    for known in differences.read():
        for pattern in known.cases:
            found = fnmatch.filter(cases, pattern)
            assert 1 <= len(found) <= 20, pattern
            assert not any(known.concerns("15.1", case) for case in found)
