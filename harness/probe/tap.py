"""Parses the probe's report: TAP version 13 over a serial line.

Only complete lines count, so a truncated line is never misread.  Output of a BIOS before the first
TAP line is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_TEST = re.compile(
    r"(?P<not>not )?ok (?P<number>\d+) - (?P<name>[\w.]+): (?P<what>.*?)"
    r"(?P<optional> # TODO optional)?"
)
_PLAN = re.compile(r"1\.\.(\d+)")
_NOT_RUN = "not run: needs "
_VERDICT = "verdict "
_COST = re.compile(r"cpuid_roundtrip_cycles (.*)")


@dataclass(frozen=True)
class Test:
    """One line: the name of a capability or step, and the notes printed below it.

    `optional` says that nothing depends on it.
    """

    number: int
    name: str
    what: str
    held: bool
    optional: bool = False
    notes: tuple[str, ...] = ()

    # Otherwise pytest would take the class for a test case.
    __test__ = False

    @property
    def needs(self) -> str:
        """The failed test that prevented this one; empty if this one ran."""
        for note in self.notes:
            if note.startswith(_NOT_RUN):
                return note.removeprefix(_NOT_RUN)
        return ""


@dataclass(frozen=True)
class Report:
    """The complete report of the probe.

    `comments` are the lines before the plan (processor, capability registers), `verdict` the values
    of its closing line, empty when it never came; `followed` is how many of the tests came after
    it; `bail` the reason if it stopped early.
    """

    plan: int | None = None
    tests: tuple[Test, ...] = ()
    comments: tuple[str, ...] = ()
    bail: str | None = None
    verdict: Mapping[str, str] = field(default_factory=dict)
    followed: int = 0

    @property
    def problem(self) -> str:
        """Why this report is incomplete; empty if it is complete."""
        if self.bail is not None:
            return f"it stopped early: {self.bail}"
        if self.plan is None:
            return "it printed nothing" if not self.comments else "it ended before its first test"
        if [test.number for test in self.tests] != list(range(1, len(self.tests) + 1)):
            return "its tests are not numbered in order"
        if len(self.tests) - self.followed + self._announced != self.plan:
            return f"it ended after {len(self.tests)} of {self.plan} tests"
        if not self.verdict:
            return "it ended before its verdict"
        failed = sum(not test.held and not test.optional for test in self.tests)
        if self.verdict.get("failed") != str(failed):
            counted = self.verdict.get("failed", "nothing")
            return f"its verdict counts {counted} failed, its lines {failed}"
        return ""

    @property
    def unanswered(self) -> int:
        """How many of the lines that follow the verdict never came: the machine hung there."""
        return max(0, self._announced - self.followed)

    @property
    def _announced(self) -> int:
        after = self.verdict.get("after", "")
        return int(after) if after.isdigit() else 0

    @property
    def missing(self) -> tuple[Test, ...]:
        """The required tests that failed, in order."""
        return tuple(test for test in self.tests if not test.held and not test.optional)

    @property
    def first_missing(self) -> Test | None:
        """The first required test that ran and failed, which causes all other failures."""
        ran = [test for test in self.missing if not test.needs]
        return next(iter(ran or self.missing), None)

    @property
    def cost_cycles(self) -> Mapping[str, int]:
        """The CPUID round trip in cycles of the time-stamp counter: median, min, p90, max, samples.

        It is empty if it was not measured.
        """
        for test in self.tests:
            for note in test.notes:
                match = _COST.fullmatch(note)
                if match:
                    return {key: int(text) for key, text in _pairs(match.group(1)).items()}
        return {}


def parse(text: str) -> Report:
    """Find the report in all output of the serial line; never raises."""
    lines = text.replace("\r", "").split("\n")[:-1]
    starts = [number for number, line in enumerate(lines) if line.endswith("TAP version 13")]
    if not starts:
        return Report()
    plan: int | None = None
    bail: str | None = None
    verdict: Mapping[str, str] = {}
    comments: list[str] = []
    tests: list[Test] = []
    notes: list[list[str]] = []
    before = 0
    # After a reset the report begins again; the last beginning counts.
    for line in lines[starts[-1] + 1 :]:
        if line.startswith("Bail out!"):
            bail = line.removeprefix("Bail out!").strip()
            break
        if match := _PLAN.fullmatch(line):
            plan = int(match.group(1))
        elif match := _TEST.fullmatch(line):
            tests.append(
                Test(
                    number=int(match["number"]),
                    name=match["name"],
                    what=match["what"],
                    held=match["not"] is None,
                    optional=match["optional"] is not None,
                )
            )
            notes.append([])
        elif line.startswith("# "):
            comment = line.removeprefix("# ")
            if comment.startswith(_VERDICT):
                verdict = _pairs(comment.removeprefix(_VERDICT))
                before = len(tests)
                if not verdict.get("after", "").isdigit():
                    break
                continue
            (notes[-1] if notes else comments).append(comment)
    results = tuple(
        Test(**{**vars(test), "notes": tuple(below)})
        for test, below in zip(tests, notes, strict=True)
    )
    followed = len(tests) - before if verdict else 0
    return Report(plan, results, tuple(comments), bail, verdict, followed)


def _pairs(text: str) -> dict[str, str]:
    """Parse `a=1 b=2` to a dictionary; words without `=` are ignored."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)
