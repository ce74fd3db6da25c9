"""The series as files: complete, in git's form, with little of FreeBSD in them, and linted."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from email import message_from_string
from pathlib import Path

import pytest
import series_source as source

ALL = sorted(it for it in source.PATCHES.glob("*/*.patch") if it.parent.name != "mutants")
by_name = pytest.mark.parametrize("patch", ALL, ids=lambda p: f"{p.parent.name}/{p.name}")
by_release = pytest.mark.parametrize("release", source.RELEASES)


@by_release
def test_a_series_names_what_is_there(release: str) -> None:
    names = source.patches(release)
    assert [name for name in names if not name.is_file()] == []
    numbers = [int(name.name[:4]) for name in names]
    assert numbers == sorted(set(numbers))


def test_every_patch_is_in_a_series() -> None:
    assert {path for release in source.RELEASES for path in source.patches(release)} == set(ALL)


def test_what_is_common_is_in_more_than_one_series() -> None:
    for patch in ALL:
        users = [release for release in source.RELEASES if patch in source.patches(release)]
        assert len(users) > 1 if patch.parent.name == "common" else users == [patch.parent.name]


def test_no_patch_changes_the_date_of_a_manual_that_is_there() -> None:
    """The committer sets the date, and the line differs between releases."""
    for patch in ALL:
        assert not re.search(r"^-\.Dd ", patch.read_text(), re.MULTILINE), patch


def test_the_first_patch_is_small_and_complete() -> None:
    """The account, with its manual and test, is less than 200 lines in all."""
    for release in source.RELEASES:
        first = source.patches(release)[0]
        paths = re.findall(r"^diff --git a/(\S+) ", first.read_text(), re.MULTILINE)
        changed = sum(
            len(re.findall(r"^(?:\+(?!\+\+)|-(?!--))", source.hunks(first, path), re.MULTILINE))
            for path in paths
        )
        assert changed < 200
        assert "sys/dev/vmm/vmm_acct.c" in paths
        assert "share/man/man4/vmm.4" in paths
        assert "tests/sys/vmm/vmm_mem_test.c" in paths


def test_the_first_patches_leave_nothing_of_a_step_behind() -> None:
    """What one step calls is there in that step: no name is used before it is added."""
    for release in source.RELEASES:
        first, second = source.patches(release)[:2]
        assert "vmm_acct_busy" not in first.read_text()
        assert "vmm_acct_alloc(" not in first.read_text()
        memory = [
            source.hunks(patch, path)
            for patch in (first, second)
            for path in ("sys/dev/vmm/vmm_mem.c", "sys/amd64/vmm/vmm.c")
            if f"b/{path}\n" in patch.read_text()
        ]
        assert len(memory) == 2
        assert "+		vmm_acct_release(seg->len, seg->sysmem);" in memory[0]
        assert "-		vmm_acct_release(seg->len, seg->sysmem);" in memory[1]


def test_a_patch_rewrites_little_of_those_before_it() -> None:
    """A reviewer reads a line once: a patch takes out few lines that one before it has added.

    Those are: the two functions' linkage and prototypes when 0002 calls them from another one, a
    comment, a list's last line that gets a comma, and the argument that 0011 adds.
    """
    for release in source.RELEASES:
        added: set[tuple[str, str]] = set()
        for patch in source.patches(release):
            taken = []
            for path in re.findall(r"^diff --git a/(\S+) ", patch.read_text(), re.MULTILINE):
                lines = source.hunks(patch, path).split("\n@@", 1)[1].splitlines()
                taken += [line for line in lines if line[:1] == "-" and (path, line[1:]) in added]
                added |= {(path, line[1:]) for line in lines if line[:1] == "+"}
            assert len(taken) <= (8 if patch.name.startswith("0002") else 2), (patch.name, taken)


@by_release
def test_the_account_compiles_after_each_patch(release: str) -> None:
    """A search for the patch that broke something (git bisect) may stop at any of them."""
    assert [name[:4] for name in source.compile_steps(release)][:4] == [
        f"{number:04}" for number in range(1, 5)
    ]


def test_tests_are_built_where_there_is_a_vmm_alone() -> None:
    """MK_BHYVE is yes on armv7, i386 and powerpc, which have neither vmm.h nor libvmmapi."""
    condition = '.if ${MK_BHYVE} != "no" && exists(${SRCTOP}/sys/${MACHINE}/include/vmm.h)'
    for release in source.RELEASES:
        first, *rest = (
            source.hunks(patch, "tests/sys/vmm/Makefile")
            for patch in source.patches(release)
            if "b/tests/sys/vmm/Makefile" in patch.read_text()
        )
        guard = first.index("+" + condition)
        assert guard < first.index("+ATF_TESTS_C+=	vmm_mem_test") < first.index("+.endif")
        for hunks in rest:
            assert ".if" not in hunks
            assert not re.search(r"^\+ATF_TESTS_C\+=", hunks, re.MULTILINE)


@pytest.mark.skipif(shutil.which("bmake") is None, reason="bmake is not installed")
@by_release
def test_make_agrees_where_tests_and_vmmls_are_built(release: str, tmp_path: Path) -> None:
    for machine in ("amd64", "arm64"):
        (tmp_path / "sys" / machine / "include").mkdir(parents=True)
        (tmp_path / "sys" / machine / "include" / "vmm.h").touch()
    for path, variable, wanted in (
        ("tests/sys/vmm/Makefile", "ATF_TESTS_C", "vmm_mem_test"),
        ("usr.sbin/Makefile", "SUBDIR.yes", "vmmls"),
    ):
        lines = [
            line[1:]
            for patch in source.patches(release)
            if f"b/{path}\n" in patch.read_text()
            for line in source.hunks(patch, path).splitlines()
            if re.match(r"\+(?!\+\+|\.include)", line)
        ]
        makefile = tmp_path / "Makefile"
        makefile.write_text("\n".join([*lines, "all:", ""]))
        built = {
            (machine, bhyve): subprocess.run(
                [
                    *("bmake", "-f", str(makefile), "-V", variable),
                    *(f"MK_BHYVE={bhyve}", f"MACHINE={machine}", f"SRCTOP={tmp_path}"),
                ],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            for machine in ("amd64", "arm64", "arm", "i386", "powerpc")
            for bhyve in ("yes", "no")
        }
        assert [machine for (machine, bhyve), names in built.items() if wanted in names] == [
            "amd64",
            "arm64",
        ]


def test_the_cleanup_of_a_test_does_not_load_the_module() -> None:
    """vm_open() and bhyvectl load it where it is not."""
    top = source.tree("15.1")
    text = (top / "tests/sys/vmm/vmm_mem_test.c").read_text()
    functions = re.findall(r"^(?:create|destroy)_vm\(void\)\n\{.*?^\}", text, re.M | re.S)
    assert len(functions) == 2
    for function in functions:
        opened = re.search(r"\bvm_(open|create)\(", function)
        assert opened is not None
        assert function.index('modfind("vmm")') < opened.start()
    shell = (top / "tests/sys/vmm/vmmls_test.sh").read_text()
    functions = re.findall(r"^(?:create|destroy)_vms?\(\)\n\{.*?^\}", shell, re.M | re.S)
    assert len(functions) == 2
    for function in functions:
        assert function.index("kldstat -q -m vmm") < function.index("bhyvectl --vm")


@by_name
def test_a_patch_is_a_message(patch: Path) -> None:
    text = patch.read_text()
    assert re.match(r"From [0-9a-f]{40} Mon Sep 17 00:00:00 2001\n", text)
    message = message_from_string(text.split("\n", 1)[1])
    assert all(message[header] for header in ("From", "Date", "Subject"))
    subject = re.sub(r"\s+", " ", message["Subject"])
    assert re.fullmatch(r"\[PATCH\] [\w./]+(\(\d\))?: [A-Z].*[^.]", subject)
    assert len(subject) <= len("[PATCH] ") + 68
    body, _ = str(message.get_payload()).split("\n---\n", 1)
    assert re.search(r"^Signed-off-by: .+ <.+@.+>$", body, re.MULTILINE)
    assert max(map(len, body.split("Signed-off-by")[0].splitlines())) <= 75


@by_name
def test_a_patch_sums_up_its_own_lines(patch: Path) -> None:
    """What stands after the message, before the first hunk, is what git would say of the patch."""
    said = re.search(r"^ (\d+) files? changed(.*)$", patch.read_text(), re.MULTILINE)
    assert said is not None
    paths = re.findall(r"^diff --git a/(\S+) ", patch.read_text(), re.MULTILINE)
    body = [source.hunks(patch, path).split("\n@@", 1)[1] for path in paths]
    count = {
        sign: sum(len(re.findall(rf"^{re.escape(sign)}", text, re.MULTILINE)) for text in body)
        for sign in "+-"
    }
    shown = {sign: re.search(rf"(\d+) \w+\({re.escape(sign)}\)", said[2]) for sign in "+-"}
    assert int(said[1]) == len(paths)
    assert {sign: int(it[1]) if it else 0 for sign, it in shown.items()} == count


@by_name
def test_a_patch_quotes_no_more_than_it_needs(patch: Path) -> None:
    changed = False
    run = 0
    for line in patch.read_text().split("\ndiff --git ", 1)[1].splitlines():
        if line.startswith(" "):
            run += 1
            assert run <= 4, "more than two lines of context on either side"
        else:
            run = 0
            changed = changed or line.startswith("+")
    assert changed


@by_name
def test_added_lines_are_clean(patch: Path) -> None:
    for line in patch.read_text().splitlines():
        if not line.startswith("+") or line.startswith("+++ "):
            continue
        assert line == line.rstrip()
        assert len(line[1:].expandtabs(8)) <= 80


@by_release
def test_new_files_say_whose_they_are(release: str) -> None:
    top = source.tree(release)
    added = [path for patch in source.patches(release) for path in source.added_files(patch)]
    assert added
    for path in added:
        if Path(path).name not in ("Makefile", "Makefile.depend"):
            head = (top / path).read_text()[:300]
            assert "SPDX-License-Identifier: BSD-2-Clause" in head, path
            assert "Copyright (c) 2026 The vmm-workbench authors" in head, path


@by_release
def test_manuals_have_no_lint(release: str) -> None:
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("mandoc is not installed")
    top = source.tree(release)
    manuals = [str(path) for path in top.rglob("*.[1-9]")]
    assert manuals
    result = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", *manuals],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == ""


@by_release
def test_libvmmapi_returns_the_sysctls_or_minus_one(release: str) -> None:
    program = source.compile_libvmmapi(release)

    def run(**env: str) -> list[str]:
        result = subprocess.run(
            [program], env={**os.environ, **env}, capture_output=True, text=True, check=True
        )
        return result.stdout.splitlines()

    env = {"SHIM_ALLOCATED": "4096", "SHIM_DEVICE": "512", "SHIM_TOTAL": "8192", "SHIM_FREE": "0"}
    assert run(**env) == ["4096", "512", "8192", "0"]
    none = f"errno {errno.ENOENT}"
    assert run(SHIM_TOTAL="1") == [none, none, "1", none]
