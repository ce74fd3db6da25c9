"""Which lines of the patch the checks ran: `inv verify --coverage`.

The module's counters are read after every check and added up, so that what ran before a panic or
before the module was loaded again is not lost.  What a check ran in the moments before the guest
broke, or between the last reading and an unloading inside a check, is not seen.
"""

from __future__ import annotations

import array
import difflib
import html
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import files, progress
from harness.bhyve.vmm import Vmm, compile_counters
from harness.build import bmake, coverage, sandbox
from harness.build.builder import Build
from harness.build.sandbox import Sandbox
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, WorkbenchError
from harness.run.session import Workbench
from harness.series import staging
from harness.series.load import Series

PROPERTY = "coverage"
_LIMIT_S = 300.0
_SHOWN_FILES = 40
_AROUND = 3

Lines = Mapping[str, Mapping[int, int]]
"""Path in the tree -> line -> how often it ran."""


class Collector:
    """A pytest plugin that reads the counters after each check; `bench` runs the counting module.

    `trouble` says why counters could not be read, if ever.
    """

    def __init__(self, bench: Workbench, sysroot: Path) -> None:
        self._bench = bench
        self._sysroot = sysroot
        self._last: array.array[int] | None = None
        self.total: array.array[int] | None = None
        self.families: dict[str, array.array[int]] = {}
        self._installed = (0, "")
        self.trouble = ""

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Read them once a check was torn down."""
        self.take(Path(nodeid.partition("::")[0]).stem.removeprefix("test_"))

    def take(self, family: str) -> None:
        """Add what ran since the last reading to `family` and to the total."""
        bhyve = self._bench.vmm
        if bhyve is None or self._bench.running is not self._bench.build:
            return
        try:
            now = self._read(bhyve)
        except (GuestError, OSError) as error:
            self.trouble = str(error)
            return
        before, self._last = self._last, now
        if before is None or any(new < old for new, old in zip(now, before, strict=True)):
            # The module was loaded again, and counts from zero.
            before = array.array("Q", bytes(8 * len(now)))
        ran = array.array("Q", (new - old for new, old in zip(now, before, strict=True)))
        self.total = _sum(self.total, ran)
        self.families[family] = _sum(self.families.get(family), ran)

    def _read(self, bhyve: Vmm) -> array.array[int]:
        guest, program = bhyve.guest, f"{bhyve.home}/counters"
        # A guest that broke has another in its place, with nothing in it.
        place = (self._bench.breaks, bhyve.home)
        if self._installed != place:
            guest.put(compile_counters(bhyve.build, self._sysroot), program, mode=0o755)
            self._installed = place
        guest.script('"$1" >"$1.bin"', program)
        local = self._bench.run_dir / "counters.bin"
        guest.ssh.get(f"{program}.bin", local, guest.deadline())
        values = array.array("Q")
        values.frombytes(local.read_bytes())
        return values


def _sum(one: array.array[int] | None, other: array.array[int]) -> array.array[int]:
    if one is None:
        return other
    return array.array("Q", (a + b for a, b in zip(one, other, strict=True)))


@dataclass(frozen=True)
class Covered:
    """What ran: of the lines that a patch changed, and of the whole module, by file and family.

    Numbers are of lines that the compiler made code of.
    """

    changed: Mapping[str, tuple[int, ...]]
    lines: Lines
    families: Mapping[str, int]

    def ran(self, path: str) -> list[int]:
        """The changed lines of a file that ran."""
        return [it for it in self.changed[path] if self.lines[path][it]]

    @property
    def summary(self) -> str:
        """One line for the report."""
        ran = sum(len(self.ran(path)) for path in self.changed)
        count = sum(map(len, self.changed.values()))
        of_patch = f"{ran} of {count} changed lines ran" if count else "no changed line makes code"
        hit = sum(1 for lines in self.lines.values() for times in lines.values() if times)
        every = sum(map(len, self.lines.values()))
        return f"{of_patch}; {hit} of {every} lines of vmm.ko did"

    def text(self) -> str:
        """All of it for people."""
        found = [self.summary, "", "changed lines that did not run:"]
        for path in sorted(self.changed):
            missed = [it for it in self.changed[path] if not self.lines[path][it]]
            found.append(f"  {path}: {spans(missed) or 'none'}")
        found += ["", "all lines, by file:"]
        for path, lines in sorted(self.lines.items()):
            hit = sum(1 for times in lines.values() if times)
            found.append(f"  {100 * hit / len(lines):5.1f}% {hit:5} of {len(lines):5}  {path}")
        found += ["", "all lines, by the checks' file:"]
        found += [f"  {count:5}  {name}" for name, count in sorted(self.families.items())]
        return "\n".join(found) + "\n"


def finish(bench: Workbench, collector: Collector, series: Series | None) -> Covered:
    """Make coverage.txt, .html and .lcov in the run's folder of what was collected.

    CannotError when nothing was read, or LLVM's tools are missing.
    """
    built, source = bench.build, bench.record.source if bench.record else None
    if collector.total is None or built is None or built.symbols is None or source is None:
        raise CannotError(f"no counters were read: {collector.trouble or 'no check ran'}")
    lcov = export(built, collector.total)
    lines = by_line(lcov)
    families = {
        name: sum(1 for it in by_line(export(built, values)).values() for n in it.values() if n)
        for name, values in collector.families.items()
    }
    pages: dict[str, list[str]] = {}
    changed: dict[str, tuple[int, ...]] = {}
    if series is not None:
        with staging.staged(series, source) as (patched, _):
            for path in sorted(set(series.touched) & lines.keys()):
                pages[path] = _text(patched / path)
                new = changed_lines(_text(source / path), pages[path])
                changed[path] = tuple(it for it in new if it in lines[path])
    found = Covered(changed, lines, families)
    files.write_atomic(bench.run_dir / "coverage.lcov", lcov)
    files.write_atomic(bench.run_dir / "coverage.txt", found.text())
    files.write_atomic(bench.run_dir / "coverage.html", page(found, pages))
    return found


def conclude(bench: Workbench, collector: Collector, series: Series | None) -> None:
    """Say what was covered, in the report too; trouble with it is no verdict on the patch."""
    try:
        found = finish(bench, collector, series)
    except WorkbenchError as error:
        bench.properties[PROPERTY] = f"not known: {error.message}"
    else:
        bench.properties[PROPERTY] = found.summary
        if collector.trouble:
            bench.properties[PROPERTY] += f"; some was not read: {collector.trouble}"
    where = bench.run_dir / "coverage.txt"
    progress.say(f"coverage: {bench.properties[PROPERTY]}; see {where}")


def export(built: Build, counters: array.array[int]) -> str:
    """The counters as LCOV, by LLVM's tools in a sandbox: the module's file is a stranger's."""
    assert built.symbols
    toolchain = bmake.find_toolchain()
    known = coverage.functions(built.symbols)
    with tempfile.TemporaryDirectory(prefix="vmm-coverage-") as name:
        work = Path(name)
        (work / "text").write_text(coverage.profile(known, counters.tobytes()))
        fence = Sandbox(
            sandbox.find(built.sandboxed),
            work,
            reads=(built.folder,),
            writes=(work,),
            tools=toolchain.programs(),
        )
        said = ""
        text, merged = (fence.inside(work / it) for it in ("text", "merged"))
        for command in (
            [toolchain.tool("llvm-profdata"), "merge", text, "-o", merged],
            [
                toolchain.tool("llvm-cov"),
                "export",
                "-format=lcov",
                f"-instr-profile={merged}",
                str(built.symbols),
            ],
        ):
            done = fence.run(command, work, Deadline.after(_LIMIT_S))
            if not done.ok:
                why = (done.stderr.strip().splitlines() or [f"exit code {done.code}"])[-1]
                raise CannotError(
                    f"the coverage cannot be read: {Path(command[0]).name}: {why}",
                    detail=done.stderr,
                )
            said = done.stdout
    return said


def by_line(lcov: str) -> dict[str, dict[int, int]]:
    """LCOV's counts, with paths as in the tree."""
    found: dict[str, dict[int, int]] = {}
    lines: dict[int, int] = {}
    for row in lcov.splitlines():
        kind, _, rest = row.partition(":")
        if kind == "SF":
            lines = found.setdefault(_in_tree(rest), {})
        elif kind == "DA":
            line, count = (int(it) for it in rest.split(",")[:2])
            lines[line] = lines.get(line, 0) + count
    return {path: lines for path, lines in found.items() if lines}


def _in_tree(path: str) -> str:
    for link, place in (("/machine/", "sys/amd64/include/"), ("/x86/", "sys/x86/include/")):
        if path.startswith("/usr/obj/") and link in path:
            return place + path.rpartition(link)[2]
    return path.removeprefix("/usr/src/")


def changed_lines(before: list[str], after: list[str]) -> list[int]:
    """The numbers of the lines of `after` that are new or other than in `before`."""
    found: list[int] = []
    for kind, _, _, start, end in difflib.SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        if kind in ("replace", "insert"):
            found += range(start + 1, end + 1)
    return found


def _text(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def spans(numbers: Iterable[int]) -> str:
    """Numbers in a few words: 3-5, 9."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


_HEAD = """<!doctype html><meta charset="utf-8"><title>Coverage</title><style>
body { font: 14px sans-serif; margin: 2em } pre { line-height: 1.3; background: #f7f7f7 }
.ran { background: #c9efc9 } .missed { background: #f6c5c5 } .new { font-weight: bold }
</style>
"""


def page(found: Covered, texts: Mapping[str, list[str]]) -> str:
    """The changed lines and those around them, coloured by whether they ran."""
    parts = [_HEAD, f"<h1>{html.escape(found.summary)}</h1>"]
    parts.append("<p>Green ran, red did not, plain is no code. Changed lines are bold.</p>")
    for path, text in list(texts.items())[:_SHOWN_FILES]:
        ran, changed = len(found.ran(path)), set(found.changed[path])
        parts.append(f"<h2>{html.escape(path)}: {ran} of {len(changed)}</h2><pre>")
        near = {line + step for line in changed for step in range(-_AROUND, _AROUND + 1)}
        last = 0
        for number in sorted(it for it in near if 1 <= it <= len(text)):
            if number != last + 1 and last:
                parts.append("...")
            last = number
            times = found.lines[path].get(number)
            kind = "" if times is None else "ran" if times else "missed"
            kind += " new" if number in changed else ""
            count = "" if times is None else str(times)
            line = html.escape(text[number - 1])
            parts.append(f'<span class="{kind.strip()}">{number:6} {count:>9}  {line}</span>')
        parts.append("</pre>")
    return "\n".join(parts) + "\n"
