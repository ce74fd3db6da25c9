"""Builds FreeBSD's own tests of vmm and those that a series adds, and runs them in the guest.

They are ATF programs (atf(7)): each lists its cases with `-l`, runs one at a time, and writes the
result to a file.  If the guest has kyua(1), kyua runs them; otherwise only ATF's own libraries are
needed, which are part of the base system.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from harness.build.builder import Build, compile_program
from harness.errors import CannotError, GuestError
from harness.guest.freebsd import Guest
from harness.guest.ssh import Result
from harness.image import store
from harness.series import staging
from harness.series.load import Series

FOLDER = "tests/sys/vmm"
Outcome = Literal["passed", "failed", "skipped", "broken", "expected_failure"]

_USER = "nobody"
_TIMEOUT_S = 300.0
_COMMAND_S = 20.0
_TIMED_OUT = 124
_ATF_SH = b"#! /usr/libexec/atf-sh\n"
# 15.1's vmm_cred_jail.sh lacks a bracket, so the shell finds no such command, takes that for "the
# device is not there", and every case is skipped.
_SLIP = re.compile(rb"^(\s*if ! )(-c \S+)(; then)$", re.M)


@dataclass(frozen=True)
class Program:
    """A test program; `of_series` if the series adds it.

    `corrected` marks a copy with a fix for the mistake that makes all its cases skip themselves.
    """

    name: str
    of_series: bool
    corrected: bool = False


@dataclass(frozen=True)
class Case:
    """A test case as its program describes it; `metadata` by ATF's names, like `require.user`."""

    name: str
    metadata: Mapping[str, str]

    @property
    def timeout_s(self) -> float:
        """Its time limit on a real machine; ATF's 0 (no limit) is replaced by a limit."""
        return float(self.metadata.get("timeout", "0")) or _TIMEOUT_S


@dataclass(frozen=True)
class Verdict:
    """The result of a case; `reason` is the case's own text."""

    program: str
    case: str
    outcome: Outcome
    reason: str = ""
    detail: str = ""

    def __str__(self) -> str:
        said = f"{self.program}:{self.case} {self.outcome}"
        return f"{said}: {self.reason}" if self.reason else said


_NEEDED = ("usr/include/atf-c.h", "usr/lib/libprivateatf-c.so")
# A program's listing consists of blocks of `name: value`; the first block is its header.
_LISTING = 'application/X-atf-tp; version="1"'
_ASSIGNMENT = re.compile(r"^([\w.]+)\s*\+?=\s*(.*)$")
_RESULT = re.compile(r"^(passed|skipped|failed|expected_\w+)(?:\(\d+\))?(?::\s*(.*))?$", re.S)
_KYUA = re.compile(
    r"^(\S+?):(\S+)\s+->\s+(passed|failed|skipped|broken|expected_failure)"
    r"(?:: (.*?))?\s+\[[\d.]+s\]$"
)


def install(
    guest: Guest, home: str, tree: Path, series: Series | None, build: Build, sysroot: Path
) -> tuple[Program, ...]:
    """Build the programs of tests/sys/vmm with the series applied, and copy them into the guest.

    They go to `home`, where the build's library and command are.  Raises PatchError if one does not
    compile, CannotError if the sysroot lacks the libraries for them.
    """
    if missing := [path for path in _NEEDED if not (sysroot / path).exists()]:
        raise CannotError(
            f"the sysroot lacks {', '.join(missing)}, which FreeBSD's own tests are built with (a "
            "world made WITHOUT_TESTS); import one that has it: "
            + store.trees_line(build.release, sysroot=True)
        )
    before = read_makefile(_text(tree / FOLDER / "Makefile"))
    with _staged(tree, series) as folder, tempfile.TemporaryDirectory(prefix="vmm-atf-") as made:
        makefile = read_makefile(_text(folder / "Makefile"))
        own = {*_names(before, "ATF_TESTS_C"), *_names(before, "ATF_TESTS_SH")}
        programs = []
        for name in _names(makefile, "ATF_TESTS_C"):
            libraries = ("privateatf-c", *_names(makefile, f"LIBADD.{name}"))
            source = folder / f"{name}.c"
            program = compile_program(
                build, [source], sysroot=sysroot, name=name, libraries=libraries
            )
            guest.put(program, f"{home}/{name}", mode=0o755)
            programs.append(Program(name, name not in own))
        for name in _names(makefile, "ATF_TESTS_SH"):
            text = _ATF_SH + (folder / f"{name}.sh").read_bytes()
            programs.append(Program(name, name not in own))
            _put_script(guest, Path(made) / name, text, home)
            if (corrected := _SLIP.sub(rb"\1[ \2 ]\3", text)) != text:
                programs.append(Program(f"{name}_corrected", name not in own, corrected=True))
                _put_script(guest, Path(made) / f"{name}_corrected", corrected, home)
        for name in _names(makefile, "PACKAGEFILES"):
            guest.put(folder / name, f"{home}/{name}")
        return tuple(programs)


def _put_script(guest: Guest, local: Path, text: bytes, home: str) -> None:
    local.write_bytes(text)
    guest.put(local, f"{home}/{local.name}", mode=0o755)


@contextmanager
def _staged(tree: Path, series: Series | None) -> Iterator[Path]:
    """The tree's tests with the series applied."""
    if series is None:
        yield tree / FOLDER
        return
    with staging.staged(series, tree) as (changed, _):
        for path in (tree / FOLDER).iterdir():
            copy = changed / FOLDER / path.name
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        yield changed / FOLDER


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def read_makefile(text: str) -> dict[str, tuple[str, ...]]:
    """The words assigned to each variable of a test Makefile; conditions are assumed to be true."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.replace("\\\n", " ").replace("${PACKAGE}", "PACKAGE").splitlines():
        match = _ASSIGNMENT.match(line.split("#", 1)[0].strip())
        if match:
            found[match[1]] = (*found.get(match[1], ()), *match[2].split())
    return found


def _names(makefile: Mapping[str, tuple[str, ...]], variable: str) -> tuple[str, ...]:
    return makefile.get(variable, ())


def run(guest: Guest, home: str, program: Program) -> tuple[Verdict, ...]:
    """Run every case of a program that `install` copied into the guest, one after another."""
    if guest.run(["which", "kyua"]).ok:
        return _run_by_kyua(guest, home, program)
    listing = guest.must([f"{home}/{program.name}", "-s", home, "-l"])
    return tuple(_run_case(guest, home, program, case) for case in parse_listing(listing))


def parse_listing(text: str) -> tuple[Case, ...]:
    """Parse a program's output for `-l`; GuestError if it is not a listing of ATF's."""
    first, *blocks = text.strip().split("\n\n")
    if first.strip() != f"Content-Type: {_LISTING}":
        raise GuestError("the test program's list of cases is not in ATF's form", detail=text)
    cases = []
    for block in blocks:
        lines = (line.partition(": ") for line in block.splitlines())
        metadata = {name: value for name, _, value in lines}
        cases.append(Case(metadata.pop("ident"), metadata))
    return tuple(cases)


# $1 folder, $2 program, $3 case, $4 seconds, $5 root or unprivileged, $6 whether it has a cleanup;
# the other arguments are its requirements.  Prints the result file between two marks, then the
# output.
_RUN = r"""
home=$1 program=$2 case=$3 limit=$4 user=$5 cleanup=$6
shift 6
for need; do
    what=${need#*:}
    case $need in
    require.kmods:*) kldstat -q -m "$what" || missing="$missing the module $what" ;;
    require.progs:*) command -v "$what" >/dev/null || missing="$missing the program $what" ;;
    require.files:*) test -e "$what" || missing="$missing the file $what" ;;
    esac
done
work=$(mktemp -d "$home/atf.XXXXXX") && cd "$work" || exit 1
chmod 777 .
PATH=$home:$PATH HOME=$work
export PATH HOME
if [ -n "${missing:-}" ]; then
    echo "skipped: it needs$missing" >result
    code=0
else
    set -- timeout -k 10 "$limit" "$home/$program" -s "$home" -v unprivileged_user=nobody
    if [ "$user" = unprivileged ]; then
        su -m nobody -c "$* -r $work/result $case" >out 2>&1 </dev/null
    else
        "$@" -r "$work/result" "$case" >out 2>&1 </dev/null
    fi
    code=$?
    [ "$cleanup" = true ] && "$@" "$case:cleanup" >>out 2>&1 </dev/null
fi
echo "exit $code"
cat result 2>/dev/null
echo "--- output"
tail -c 4000 out 2>/dev/null
cd / && rm -rf "$work"
exit 0
"""


def _run_case(guest: Guest, home: str, program: Program, case: Case) -> Verdict:
    metadata = case.metadata
    needs = [
        f"{kind}:{what}"
        for kind in ("require.kmods", "require.progs", "require.files")
        for what in metadata.get(kind, "").split()
    ]
    # The guest's clock may run faster than ours, but not slower by more than the machine's scale.
    limit_s = guest.deadline(case.timeout_s).limit_s
    user = metadata.get("require.user", "root")
    cleanup = metadata.get("has.cleanup", "false")
    said = guest.script(
        _RUN, home, program.name, case.name, f"{limit_s:.0f}", user, cleanup, *needs,
        deadline=guest.deadline(2 * case.timeout_s + _COMMAND_S),
    )  # fmt: skip
    return judge(program.name, case.name, said)


def judge(program: str, case: str, said: Result) -> Verdict:
    """A case's verdict from its result file and its exit code, which must agree."""
    head, _, detail = said.stdout.partition("--- output\n")
    first, _, written = head.partition("\n")
    code = int(first.removeprefix("exit "))
    match = _RESULT.match(written.strip())
    if code == _TIMED_OUT:
        return Verdict(program, case, "broken", "it took too long", detail)
    if match is None:
        return Verdict(program, case, "broken", f"exited with {code} and left no result", detail)
    word, reason = match[1], " ".join((match[2] or "").split())
    if word.startswith("expected_"):
        return Verdict(program, case, "expected_failure", reason, detail)
    if (word == "failed") == (code == 0):
        return Verdict(program, case, "broken", f"says {word}, but exited with {code}", detail)
    return Verdict(program, case, cast(Outcome, word), reason, detail)


_KYUA_RUN = r"""
work=$(mktemp -d "$1/kyua.XXXXXX") && cd "$work" || exit 1
printf 'syntax(2)\ntest_suite("FreeBSD")\natf_test_program{name="%s"}\n' "$2" >"$1/Kyuafile"
PATH=$1:$PATH HOME=$work kyua -v test_suites.FreeBSD.unprivileged_user="$3" \
    test -k "$1/Kyuafile" -r "$work/results.db"
code=$?
cd / && rm -rf "$work"
[ "$code" -le 1 ]
"""


def _run_by_kyua(guest: Guest, home: str, program: Program) -> tuple[Verdict, ...]:
    said = guest.script(
        _KYUA_RUN, home, program.name, _USER, deadline=guest.deadline(2 * _TIMEOUT_S)
    )
    return parse_kyua(said.stdout)


def parse_kyua(text: str) -> tuple[Verdict, ...]:
    """The verdicts in the output of `kyua test`; GuestError if there is none."""
    found = [match for line in text.splitlines() if (match := _KYUA.match(line))]
    if not found:
        raise GuestError("kyua gave no verdict", detail=text)
    return tuple(Verdict(m[1], m[2], cast(Outcome, m[3]), m[4] or "") for m in found)
