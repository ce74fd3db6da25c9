"""ATF programs: their listings, their verdicts, kyua's words, and the script that runs a case."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.bhyve import atf
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError
from harness.guest.freebsd import Guest
from harness.guest.ssh import Result

LISTING = """\
Content-Type: application/X-atf-tp; version="1"

ident: plain
descr: It is: this

ident: careful
has.cleanup: true
require.user: root
require.kmods: vmm nmdm
timeout: 20
"""


def test_a_listing_is_read_with_its_metadata() -> None:
    plain, careful = atf.parse_listing(LISTING)
    assert (plain.name, plain.metadata) == ("plain", {"descr": "It is: this"})
    assert plain.timeout_s == 300
    assert (careful.name, careful.timeout_s) == ("careful", 20)
    assert careful.metadata["require.kmods"] == "vmm nmdm"


@pytest.mark.parametrize("text", ["", "ident: x\n", "usage: x [-l]\n\nident: x\n"])
def test_what_is_no_listing_is_an_error(text: str) -> None:
    with pytest.raises(GuestError, match="list of cases is not in"):
        atf.parse_listing(text)


def said(code: int, written: str) -> Result:
    return Result("x", 0, f"exit {code}\n{written}\n--- output\nwords\n", "", 0.1)


@pytest.mark.parametrize(
    ("code", "written", "verdict"),
    [
        (0, "passed", "p:c passed"),
        (0, "skipped: vmm is not loaded", "p:c skipped: vmm is not loaded"),
        (1, "failed: 1 != 2", "p:c failed: 1 != 2"),
        (1, "failed: of two\nlines", "p:c failed: of two lines"),
        (0, "expected_failure: known", "p:c expected_failure: known"),
        (3, "expected_exit(3): known", "p:c expected_failure: known"),
        (0, "failed: it says", "p:c broken: says failed, but exited with 0"),
        (1, "passed", "p:c broken: says passed, but exited with 1"),
        (134, "", "p:c broken: exited with 134 and left no result"),
        (1, "whatever", "p:c broken: exited with 1 and left no result"),
        (124, "passed", "p:c broken: it took too long"),
    ],
)
def test_result_and_exit_code_have_to_agree(code: int, written: str, verdict: str) -> None:
    results = atf.judge("p", "c", said(code, written))
    assert str(results) == verdict
    assert results.detail == "words\n"


def test_kyuas_words_are_read() -> None:
    text = """\
vmm_cred_jail:vmm_cred_jail_host  ->  skipped: vmm is not loaded  [0.103s]
vmm_mem_test:account  ->  passed  [0.021s]
vmm_mem_test:limit  ->  failed: 4096 != get("x") (0x1000 != 0)  [0.004s]

Results saved to results.db
1/3 passed (0 broken, 1 failed, 1 skipped)
"""
    assert [str(it) for it in atf.parse_kyua(text)] == [
        "vmm_cred_jail:vmm_cred_jail_host skipped: vmm is not loaded",
        "vmm_mem_test:account passed",
        'vmm_mem_test:limit failed: 4096 != get("x") (0x1000 != 0)',
    ]
    with pytest.raises(GuestError, match="no verdict"):
        atf.parse_kyua("kyua: E: Load of 'Kyuafile' failed")


def test_a_makefile_is_read() -> None:
    found = atf.read_makefile(
        "PACKAGE=\ttests\nATF_TESTS_SH+=\tone two \\\n\tthree\n# ATF_TESTS_C+= no\n"
        '.if ${MK_BHYVE} != "no"\nATF_TESTS_C+=\tfour\nLIBADD.four=\tvmmapi\n.endif\n'
        "${PACKAGE}FILES+=\tutils.subr\n"
    )
    assert found["ATF_TESTS_SH"] == ("one", "two", "three")
    assert found["ATF_TESTS_C"] == ("four",)
    assert found["LIBADD.four"] == ("vmmapi",)
    assert found["PACKAGEFILES"] == ("utils.subr",)


PROGRAM = r"""#!/bin/sh
while getopts lr:s:v: option; do
    case $option in
    l) printf 'Content-Type: application/X-atf-tp; version="1"\n\n'
       printf 'ident: holds\nhas.cleanup: true\n\nident: fails\n\nident: hangs\ntimeout: 1\n\n'
       printf 'ident: dies\n\nident: wants\nrequire.progs: sh no-such-program\n'
       exit 0 ;;
    r) result=$OPTARG ;;
    s) folder=$OPTARG ;;
    esac
done
shift $((OPTIND - 1))
echo "in $(basename "$(dirname "$PWD")")"
case $1 in
holds) command -v neighbour >/dev/null && echo passed >"$result" ;;
holds:cleanup) echo "cleaned" >"$folder/cleaned" ;;
fails) echo "failed: it is so" >"$result"; exit 1 ;;
hangs) sleep 30 ;;
dies) kill -ABRT $$ ;;
esac
"""


class Local:
    """This machine in a guest's place."""

    def __init__(self, path: str) -> None:
        self.path = path

    def deadline(self, native_s: float = 20) -> Deadline:
        return Deadline.after(native_s)

    def _call(self, command: list[str], text: str = "") -> Result:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": self.path},
        )
        return Result(command[0], done.returncode, done.stdout, done.stderr, 0.0)

    def run(self, command: list[str], **_more: Any) -> Result:
        return self._call(command)

    def must(self, command: list[str], **_more: Any) -> str:
        return self._call(command).stdout

    def script(self, text: str, *arguments: str, **_more: Any) -> Result:
        return self._call(["/bin/sh", "-s", "--", *arguments], text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "program").write_text(PROGRAM)
    (folder / "neighbour").write_text("#!/bin/sh\n")
    for name in ("program", "neighbour"):
        (folder / name).chmod(0o755)
    return folder


def test_every_case_is_run_in_a_folder_of_its_own(home: Path) -> None:
    guest = cast(Guest, Local("/usr/bin:/bin"))
    verdicts = atf.run(guest, str(home), atf.Program("program", of_series=False))
    assert [str(it) for it in verdicts] == [
        "program:holds passed",
        "program:fails failed: it is so",
        "program:hangs broken: it took too long",
        "program:dies broken: exited with 134 and left no result",
        "program:wants skipped: it needs the program no-such-program",
    ]
    assert verdicts[1].detail == "in home\n"
    assert (home / "cleaned").read_text() == "cleaned\n"
    assert [path.name for path in home.iterdir() if path.is_dir()] == []


def test_a_sysroot_without_atf_is_not_the_patch_s_fault(tmp_path: Path) -> None:
    """It is no failure: the checks are not run, with this reason."""
    build = SimpleNamespace(release="15.1")
    with pytest.raises(CannotError, match=r"lacks usr/include/atf-c\.h, .*WITHOUT_TESTS"):
        atf.install(None, "/home", tmp_path, None, build, tmp_path)  # type: ignore[arg-type]
