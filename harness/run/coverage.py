"""`inv verify --coverage`: finds the lines of the patch that the checks ran.

The counters are read after every check that sent a command to the guest, and added up, so that the
counts before a panic or before the module was loaded again are not lost.  Lines that ran after the
last reading are not counted if the guest then breaks, or if a check unloads the module.  The
library and the programs count in files of the guest, so a program may end in any way.
"""

from __future__ import annotations

import array
import difflib
import functools
import re
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

import pytest

from harness import files, progress
from harness.bhyve.vmm import Vmm, compile_counters
from harness.build import bmake, sandbox, targets
from harness.build import coverage as counters
from harness.build.builder import Build
from harness.build.parts import MODULE
from harness.build.sandbox import Sandbox
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, WorkbenchError
from harness.guest.transcript import NO_EVIDENCE
from harness.report import coverage as report
from harness.report.coverage import Changed, Coverage, Family, File, Line
from harness.run.plugin import EVIDENCE
from harness.run.workbench import Workbench
from harness.series import staging

PROPERTY = "coverage"
_LIMIT_S = 300.0
_AROUND = 3

Lines = Mapping[str, Mapping[int, int]]
"""Path in the tree -> line -> how often it ran."""
Counts = dict[str, "array.array[int]"]
"""The counters of each part of the build."""

# $1 the build's folder, then the counting programs.  What has counted since the last time is copied
# while it goes on counting, and named.
READ = f"""
set -e
cd "$1"; shift
./counters >counters.bin
for name; do
    new="$name{counters.COUNTERS_SUFFIX}"
    if [ -e "$new" ] && ! cmp -s "$new" "$name.read"; then cp "$new" "$name.read"; echo "$name"; fi
done
"""


class Collector:
    """A pytest plugin that reads the counters after checks; `bench` runs the counting module.

    `trouble` says why counters could not be read, if that happened.
    """

    def __init__(self, bench: Workbench, sysroot: Path) -> None:
        self._bench = bench
        self._sysroot = sysroot
        self._last: Counts = {}
        self.total: Counts = {}
        self.families: dict[str, Counts] = {}
        self._installed = (0, "")
        self.trouble = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Read the counters after a check and its teardown, if it sent a command to the guest.

        Of many checks only the first does, and the others look at its output.
        """
        done = yield
        if item.stash.get(EVIDENCE, NO_EVIDENCE).count:
            self.take(family(item.nodeid))
        return done

    def take(self, family: str) -> None:
        """Add the counts since the last reading to `family` and to the total."""
        module = self._bench.module
        if module is None or module.running is not module.built.build:
            return
        try:
            now = self._read(module.vmm)
        except (GuestError, OSError) as error:
            self.trouble = str(error)
            return
        for part, new in now.items():
            ran = _since(self._last.get(part), new)
            _add(self.total, part, ran)
            _add(self.families.setdefault(family, {}), part, ran)
        self._last |= now

    def _read(self, bhyve: Vmm) -> Counts:
        """The counters of the module, and of the library and programs that ran since the last
        time.
        """
        guest = bhyve.guest
        # A guest that broke was replaced by a new one, in which no module is loaded.
        place = (self._bench.breaks, bhyve.home)
        if self._installed != place:
            self._last = {}
            program = compile_counters(bhyve.build, self._sysroot)
            guest.put(program, f"{bhyve.home}/counters", mode=0o755)
            self._installed = place
        names = (it.name for it in bhyve.build.counting)
        counted = guest.script(READ, bhyve.home, *names).stdout.split()
        now = {MODULE: self._values(bhyve, "counters.bin")}
        return now | {name: self._values(bhyve, f"{name}.read") for name in counted}

    def _values(self, bhyve: Vmm, name: str) -> array.array[int]:
        local = self._bench.run_dir / "counters.bin"
        bhyve.guest.ssh.get(f"{bhyve.home}/{name}", local, bhyve.guest.deadline())
        values = array.array("Q")
        values.frombytes(local.read_bytes())
        return values


def _since(before: array.array[int] | None, now: array.array[int]) -> array.array[int]:
    if before is None or any(new < old for new, old in zip(now, before, strict=True)):
        # The module was loaded again, and counts from zero.
        return now
    return array.array("Q", (new - old for new, old in zip(now, before, strict=True)))


def _add(counts: Counts, part: str, more: array.array[int]) -> None:
    old = counts.get(part)
    counts[part] = (
        more if old is None else array.array("Q", (a + b for a, b in zip(old, more, strict=True)))
    )


def family(nodeid: str) -> str:
    """The family of a check: its file, and its FAMILY if a parametrized check is FAMILY.CASE.

    vmunit has one file of checks with two dozen families.
    """
    path, _, name = nodeid.partition("::")
    file = Path(path).stem.removeprefix("test_")
    group, point, _ = name.partition("[")[2].partition(".")
    return f"{file}.{group}" if point and group.isidentifier() else file


# The kernel's parts of bhyve; then those for passthrough, for snapshots, and for the other vendor's
# processors.
_BHYVE = re.compile(r"sys/(?:amd64/vmm|dev/vmm)/")
_PASSTHROUGH = re.compile(r"/(?:ppt|iommu|vtd|amdvi\w*|ivrs_drv|ivhd_if|vmm_snapshot)\.[ch]$")
_MAKERS = {"intel": re.compile(r"/amd/|/svm\w*\.[ch]$"), "amd": re.compile(r"/intel/")}


def scoped(path: str, vendor: str) -> bool:
    """Whether a guest with this processor can reach the lines of a file."""
    other = _MAKERS.get(vendor)
    return bool(_BHYVE.match(path)) and not (
        _PASSTHROUGH.search(path) or (other and other.search(path))
    )


def _ran(lines: Lines) -> set[tuple[str, int]]:
    return {(path, line) for path, it in lines.items() for line, times in it.items() if times}


def gather(
    lines: Mapping[str, Lines],
    families: Mapping[str, Lines],
    changed: Mapping[str, tuple[int, ...]],
    texts: Mapping[str, list[str]],
    vendor: str,
) -> Coverage:
    """The coverage of the patch, of each file and by each family.

    `lines` has those of each part of the build, `families` those of all parts together; `texts`
    has the changed files.
    """
    every = together(lines.values())
    files = tuple(
        File(path, sum(map(bool, it.values())), len(it), part == MODULE and scoped(path, vendor),
             part)
        for part, paths in lines.items()
        for path, it in sorted(paths.items())
    )  # fmt: skip
    per = {name: _ran(it) for name, it in families.items()}
    seen = Counter(it for ran in per.values() for it in ran)
    groups = tuple(
        Family(name, len(ran), sum(seen[it] == 1 for it in ran))
        for name, ran in sorted(per.items())
    )
    shown = tuple(
        _changed(path, numbers, every[path], texts[path])
        for path, numbers in sorted(changed.items())
    )
    count = sum(it.count for it in shown)
    of_patch = (
        f"{sum(it.ran for it in shown)} of {count} changed lines ran"
        if count
        else "no changed line contains code"
    )
    of_parts = []
    for part in lines:
        own = [it for it in files if it.part == part]
        hit, all_lines = sum(it.ran for it in own), sum(it.count for it in own)
        of_parts.append(f"{hit} of {all_lines} lines of {part}")
    inner = [it for it in files if it.scoped]
    hit, reachable = sum(it.ran for it in inner), sum(it.count for it in inner)
    return Coverage(
        f"{of_patch}; {', '.join(of_parts)} did",
        f"of sys/amd64/vmm and sys/dev/vmm, without passthrough, snapshots and code for "
        f"other processors: {hit} of {reachable} lines ran ({100 * hit / max(reachable, 1):.1f} %)",
        shown,
        files,
        groups,
    )


def together(parts: Iterable[Lines]) -> dict[str, dict[int, int]]:
    """The lines of several parts: a file that two parts are made from ran as often as in both."""
    found: dict[str, dict[int, int]] = {}
    for lines in parts:
        for path, counts in lines.items():
            mine = found.setdefault(path, {})
            for line, times in counts.items():
                mine[line] = mine.get(line, 0) + times
    return found


def _changed(
    path: str, numbers: tuple[int, ...], lines: Mapping[int, int], text: list[str]
) -> Changed:
    near = {line + step for line in numbers for step in range(-_AROUND, _AROUND + 1)}
    missed = [it for it in numbers if not lines[it]]
    return Changed(
        path,
        len(numbers) - len(missed),
        len(numbers),
        spans(missed),
        tuple(
            Line(it, text[it - 1], lines.get(it), it in numbers)
            for it in sorted(near)
            if 1 <= it <= len(text)
        ),
    )


def finish(bench: Workbench, collector: Collector) -> Coverage:
    """Write the collected counts to coverage.txt, .json and .lcov in the run's folder.

    Raises CannotError if no counters were read, or if LLVM's tools are missing.
    """
    built, series = bench.build, bench.series
    if not collector.total:
        raise CannotError(f"no counters were read: {collector.trouble or 'no check ran'}")
    lcov = {part: export(built, part, it) for part, it in collector.total.items()}
    # A part that no check ran has lines, too.
    for part in (it.name for it in built.counting):
        if part not in lcov:
            lcov[part] = export(built, part, None)
    lines = {part: by_line(it) for part, it in lcov.items()}
    families = {
        name: together(by_line(export(built, part, it)) for part, it in counts.items())
        for name, counts in collector.families.items()
    }
    every = together(lines.values())
    pages: dict[str, list[str]] = {}
    changed: dict[str, tuple[int, ...]] = {}
    if series is not None:
        source = bench.booted.imaged.source
        with staging.staged(series, source) as (patched, _):
            for path in sorted(set(series.touched) & every.keys()):
                pages[path] = _text(patched / path)
                new = changed_lines(_text(source / path), pages[path])
                changed[path] = tuple(it for it in new if it in every[path])
    vendor = bench.properties.get("processor", "")
    found = gather(lines, families, changed, pages, vendor)
    files.write_atomic(bench.run_dir / "coverage.lcov", "".join(lcov.values()))
    files.write_atomic(bench.run_dir / "coverage.txt", report.text(found))
    report.save(found, bench.run_dir)
    return found


def conclude(bench: Workbench, collector: Collector) -> None:
    """Report the coverage; a failure to read it does not change the verdict."""
    try:
        found = finish(bench, collector)
    except WorkbenchError as error:
        bench.properties[PROPERTY] = f"not known: {error.message}"
    else:
        bench.properties[PROPERTY] = f"{found.summary}; {found.scope}"
        if collector.trouble:
            bench.properties[PROPERTY] += f"; some counters were not read: {collector.trouble}"
    where = bench.run_dir / "coverage.txt"
    progress.say(f"coverage: {bench.properties[PROPERTY]}; see {where}")


# The same file is asked about for each family of checks, and a build never changes.
_functions = functools.cache(counters.functions)


def export(built: Build, part: str, values: array.array[int] | None) -> str:
    """The counters of a part as LCOV; None stands for zeros.

    LLVM's tools run in a sandbox, because what was built is not trusted.
    """
    symbols = targets.symbols_of(built.folder / part)
    toolchain = bmake.find_toolchain()
    known = _functions(symbols)
    data = values.tobytes() if values is not None else bytes(counters.length_bytes(known))
    with tempfile.TemporaryDirectory(prefix="vmm-coverage-") as name:
        work = Path(name)
        (work / "text").write_text(counters.profile(known, data))
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
                str(symbols),
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
    """The counts of an LCOV file, with paths as in the tree."""
    found: dict[str, dict[int, int]] = {}
    lines: dict[int, int] = {}
    for row in lcov.splitlines():
        kind, _, rest = row.partition(":")
        if kind == "SF":
            lines = found.setdefault(_in_tree(rest), {})
        elif kind == "DA":
            line, count = (int(it) for it in rest.split(",")[:2])
            lines[line] = lines.get(line, 0) + count
    # The headers of the sysroot are not the tree's.
    return {path: lines for path, lines in found.items() if lines and not path.startswith("/")}


def _in_tree(path: str) -> str:
    for link, place in (("/machine/", "sys/amd64/include/"), ("/x86/", "sys/x86/include/")):
        if path.startswith("/usr/obj/") and link in path:
            return place + path.rpartition(link)[2]
    return path.removeprefix("/usr/src/")


def changed_lines(before: list[str], after: list[str]) -> list[int]:
    """The numbers of the lines of `after` that are new or differ from `before`."""
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
    """Line numbers in short form: 3-5, 9."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
