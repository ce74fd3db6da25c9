"""Building an untrusted patch: what its Makefiles and its sources can reach."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faketree import MODULE_MK, content, diff, mail, make_series, make_tree

from harness import debian, files, limits
from harness.build import builder, sandbox, workdir
from harness.build.job import Job, Made
from harness.build.sandbox import Sandbox
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError, UsageError
from harness.series import load
from harness.series.load import Series

pytestmark = [
    pytest.mark.skipif(debian.clang_version() is None, reason="clang and lld are not installed"),
    pytest.mark.skipif(bool(sandbox.unavailable()), reason=f"no sandbox: {sandbox.unavailable()}"),
]

HEADER = "sys/dev/vmm/vmm.h"
MAKEFILE = "sys/modules/vmm/Makefile"
ODD_NAMES = (
    "with blank", 'quo"te', "apos'trophe", "colon:x", "per%cent", "and&", "semi;colon", "a$HOME",
    "new\nline", "back\\slash", "#hash", "${SRCTOP}", "$(HOME)", "~tilde", "[br]*?", "-dash", "a=b",
    "ümlaut", "bad\udcff", "comma,x", "<b>", "`id`", "{a,b}", "!x", "(x)", "tab\tx",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src")


def series_of(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> Series:
    tmp_path.mkdir(exist_ok=True)
    data = mail(diff(tmp_path, dict(before), dict(after)))
    return load.load_series(make_series(tmp_path / "topic", {"1.patch": data}), "15.1")


def making(tmp_path: Path, shell: str) -> Series:
    """A series whose Makefile runs shell words before the compiler, whatever they come to."""
    lines = "".join(f"\t-@{line}\n" for line in shell.replace("$", "$$").splitlines())
    changed = MODULE_MK.replace("all:\n", f"all:\n{lines}")
    return series_of(tmp_path, {MAKEFILE: MODULE_MK}, {MAKEFILE: changed})


def run(tmp_path: Path, tree: Path, shell: str) -> str:
    """What the words printed in a build that ended well."""
    return builder.build(tree, None, making(tmp_path, shell), "15.1").log.read_text()


def test_a_makefile_writes_nowhere_but_among_its_objects(
    tmp_path: Path, tree: Path, cache: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("the user's")
    cache.mkdir()
    (cache / "image").write_text("an image")
    before = content(tree)
    words = [f"rm -rf {home}/* {cache}/image {tree}/sys", f"mkdir -p {cache}/builds/x"]
    words += [f"echo x >>{place}" for place in (home / "file", tree / HEADER, cache / "image")]
    words += ["echo x >/workbench/src/sys/dev/vmm/vmm.h", "echo x >/workbench/build.log"]
    words += ["echo x >/usr/bin/x", "echo x >/x", "echo x >/dev/shm/x", "echo x >/dev/x"]
    run(tmp_path, tree, "\n".join(words))
    assert content(tree) == before
    assert (home / "file").read_text() == "the user's"
    assert (cache / "image").read_text() == "an image"
    assert not (cache / "builds/x").exists()


def test_a_makefile_does_not_see_the_user_s_files(tmp_path: Path, tree: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    log = run(
        tmp_path,
        tree,
        f"cat {secret} /etc/passwd /etc/shadow\nls -d {Path.home()} /root /home /var /run /work",
    )
    assert "hunter2\n" not in log
    assert "root:x:" not in log
    assert log.count("No such file or directory") >= 8


def test_a_makefile_does_not_see_the_environment(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    log = run(
        tmp_path,
        tree,
        "env\nfor p in self 1 2 $PPID; do tr '\\0' '\\n' </proc/$p/environ; done\nls /proc",
    )
    assert "hunter2" not in log
    assert "HOME=/nonexistent" in log
    assert "ls: cannot access '/proc'" in log


def test_a_makefile_has_no_network(tmp_path: Path, tree: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        bash = f"bash -c 'echo x >/dev/tcp/127.0.0.1/{port} && echo CONNECTED'"
        assert subprocess.run(["sh", "-c", bash], check=False).returncode == 0
        log = run(tmp_path, tree, bash)
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()
    # The word is in the command that make prints, so a line of its own is meant.
    assert "\nCONNECTED" not in log


def test_a_makefile_reaches_no_other_process_and_leaves_none(tmp_path: Path, tree: Path) -> None:
    other = subprocess.Popen(["sleep", "600"])
    marker = f"6{os.getpid()}"
    try:
        run(
            tmp_path,
            tree,
            f"kill -9 {other.pid}\nsetsid nohup sleep {marker} >/dev/null 2>&1 &",
        )
        with pytest.raises(PatchError, match=r"vmm\.ko does not build"):
            builder.build(tree, None, series_of(tmp_path / "again", *killing()), "15.1")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert not [it for it in command_lines() if marker in it]


def killing() -> tuple[dict[str, str], dict[str, str]]:
    return {MAKEFILE: MODULE_MK}, {MAKEFILE: "all:\n\t@kill -9 -1\n"}


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return found


def test_a_killed_harness_leaves_no_process(tmp_path: Path, tree: Path, cache: Path) -> None:
    marker = f"7{os.getpid()}"
    (tree / MAKEFILE).write_text(f"all:\n\t@echo --- x ---\n\tsetsid sleep {marker}\n")
    code = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom harness.build import builder\n"
        "def seen(line):\n    if line.endswith(': x'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "builder.build(Path(sys.argv[1]), None, None, '15.1', progress=seen)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tree], cwd=files.PROJECT, check=False)
    assert done.returncode == -signal.SIGKILL
    limit = Deadline.after(30)
    while [it for it in command_lines() if marker in it] and not limit.expired:
        time.sleep(0.05)
    assert not limit.expired
    # The folder's lock is released, and the next build uses the folder.
    with workdir.claim(cache / "builds") as shop:
        assert shop.folder.name == "0"


@pytest.mark.parametrize("how", ["include", "incbin", "embed"])
def test_a_source_cannot_include_a_user_s_file(tmp_path: Path, tree: Path, how: str) -> None:
    """No Makefile is touched; the compiler's complaint, or the module, would hold the secret."""
    secret = tmp_path / "token"
    secret.write_text("ghp_TheUsersToken\n")
    line = {
        "include": f'#include "{secret}"\n',
        "incbin": f'__asm__(".incbin \\"{secret}\\"");\n',
        "embed": f'#include "{os.path.relpath(secret, tree / "sys/dev/vmm")}"\n',
    }[how]
    series = series_of(
        tmp_path,
        {HEADER: "#define NUMBER 1\n"},
        {HEADER: f"#define NUMBER 1\n{line}"},
    )
    with pytest.raises(PatchError, match=r"vmm\.ko does not build") as caught:
        builder.build(tree, None, series, "15.1")
    assert "TheUsers" not in caught.value.message + caught.value.detail


def test_a_check_s_program_cannot_include_a_user_s_file(tmp_path: Path, tree: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("ghp_TheUsersToken\n")
    header = f'#define NUMBER 1\n#ifdef CHECK\n#include "{secret}"\n#endif\n'
    series = series_of(tmp_path, {HEADER: "#define NUMBER 1\n"}, {HEADER: header})
    sysroot = tmp_path / "sysroot"
    for name in ("usr/include/sys/param.h", "usr/lib/crt1.o", "usr/lib/libc.so"):
        (sysroot / name).parent.mkdir(parents=True, exist_ok=True)
        (sysroot / name).touch()
    built = builder.build(tree, None, series, "15.1")
    source = tmp_path / "own" / "ask.c"
    source.parent.mkdir()
    source.write_text('#define CHECK\n#include <dev/vmm/vmm.h>\n#include "near.h"\n')
    (source.parent / "near.h").write_text("void _start(void);\n")
    with pytest.raises(PatchError, match=r"ask does not compile: .*file not found") as caught:
        builder.compile_program(built, [source], sysroot=sysroot, libraries=(), flags=["-nostdlib"])
    assert "TheUsers" not in caught.value.message + caught.value.detail


def test_what_a_makefile_leaves_in_the_module_s_place_is_not_followed(
    tmp_path: Path, tree: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("ghp_TheUsersToken\n")
    out = "/workbench/obj/workbench/src/amd64.amd64/sys/modules/vmm"
    changed = f"all:\n\tmkdir -p {out}\n\tln -s {secret} {out}/vmm.ko\n"
    series = series_of(tmp_path, {MAKEFILE: MODULE_MK}, {MAKEFILE: changed})
    with pytest.raises(PatchError, match="made no plain file"):
        builder.build(tree, None, series, "15.1")


def test_a_stranger_s_series_cannot_reach_the_cache_of_others(
    tmp_path: Path, tree: Path, cache: Path
) -> None:
    stock = builder.build(tree, None, None, "15.1")
    before = content(cache / "ccache") if (cache / "ccache").exists() else {}
    run(tmp_path, tree, "env\nfind /workbench/ccache -type f | while read f; do echo x >$f; done")
    assert (content(cache / "ccache") if before else {}) == before
    assert stock.module.is_file()


def test_endless_output_and_a_killed_make_end(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.build import bmake

    monkeypatch.setattr(bmake, "_LIMIT_S", 1.0)
    series = series_of(tmp_path, {MAKEFILE: MODULE_MK}, {MAKEFILE: "all:\n\t@yes\n"})
    with pytest.raises(PatchError, match="bwrap did not end within 1 s"):
        builder.build(tree, None, series, "15.1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")
@pytest.mark.parametrize(
    "fills",
    [
        "while :; do head -c 1M /dev/zero >>/workbench/obj/big; sleep .01; done",
        "cd /workbench/obj; i=0; while :; do i=$((i+1)); echo >$i; done",
    ],
)
def test_a_makefile_cannot_fill_the_disk(
    tmp_path: Path, tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fills: str
) -> None:
    monkeypatch.setattr(limits, "BUILD_LEAVES_BYTES", 96 << 20)
    monkeypatch.setattr(limits, "BUILD_LEAVES_FILES", 30_000)
    cache.mkdir(mode=0o700)
    room = ["-o", "size=256m,nr_inodes=60000,mode=0700"]
    subprocess.run(["mount", "-t", "tmpfs", *room, "tmpfs", cache], check=True)
    try:
        with pytest.raises(CannotError, match="the build almost filled this disk"):
            builder.build(tree, None, making(tmp_path, fills), "15.1")
        disk = os.statvfs(cache)
        assert disk.f_bavail > disk.f_blocks * 0.9, "and what it wrote is gone"
        assert disk.f_favail > 50_000
        builder.build(tree, None, None, "15.1")
    finally:
        subprocess.run(["umount", "-l", cache], check=True)


@pytest.mark.parametrize("name", ODD_NAMES, ids=[ascii(it) for it in ODD_NAMES])
def test_odd_paths_do_no_harm(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of the cache and of the source tree; and the place makes no difference to the bytes."""
    # It logs the lock's name, and pytest-xdist cannot pass on one that is no UTF-8.
    caplog.set_level(logging.WARNING, "filelock")
    tree = make_tree(tmp_path / name / "tree")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / name / "cache"))
    built = builder.build(tree, None, None, "15.1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "plain"))
    plain = builder.build(make_tree(tmp_path / "tree"), None, None, "15.1")
    assert built.digests == plain.digests


def test_a_tree_of_links_is_built(tmp_path: Path) -> None:
    real = make_tree(tmp_path / "real")
    made = tmp_path / "links"
    subprocess.run(["cp", "-rs", real, made], check=True)
    (made / "share/mk").rename(tmp_path / "mk")
    (made / "share/mk").symlink_to("../../mk")
    assert builder.build(made, None, None, "15.1").module.is_file()


def test_without_a_sandbox_only_plain_paths_are_taken(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not builder.build(tree, None, None, "15.1", sandboxed=False).sandboxed
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "my cache"))
    with pytest.raises(
        UsageError, match=r"my cache/builds' has characters that make cannot handle"
    ):
        builder.build(tree, None, None, "15.1", sandboxed=False)


def test_where_there_is_none_nothing_is_built(
    tree: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    made: list[Job] = []

    def maker(job: Job) -> Made:
        made.append(job)
        raise AssertionError("it was built")

    monkeypatch.setattr(sandbox, "unavailable", lambda: "this machine forbids it")
    with pytest.raises(CannotError, match=r"this machine forbids it; or give --no-sandbox"):
        builder.build(tree, None, None, "15.1", maker=maker)
    assert not made
    assert builder.build(tree, None, None, "15.1", sandboxed=False).module.is_file()


def test_a_missing_or_forbidden_bubblewrap_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    sandbox.unavailable.cache_clear()
    try:
        assert sandbox.unavailable() == "bubblewrap is not installed: run ./inv setup"
        forbidden = tmp_path / "bwrap"
        forbidden.write_text("#!/bin/sh\necho 'bwrap: No permissions' >&2\nexit 1\n")
        forbidden.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda _name: str(forbidden))
        sandbox.unavailable.cache_clear()
        assert "forbids it (bwrap, No permissions): " in sandbox.unavailable()
    finally:
        sandbox.unavailable.cache_clear()


def test_a_tool_of_the_user_s_own_is_found_and_nothing_beside_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "secret").write_text("x")
    tool = home / "bin" / "tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    (tmp_path / "work").mkdir()
    fence = Sandbox(sandbox.find(), tmp_path / "work", tools=(tool,))
    done = fence.run(["tool"], fence.work, Deadline.after(30))
    assert done.stdout == "found\n"
    assert not fence.run(["cat", str(home / "secret")], fence.work, Deadline.after(30)).ok


def test_it_works_as_an_ordinary_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests run as one")
    words = Sandbox(sandbox.find(), Path("/usr/share")).command(["id", "-u"], Path("/usr/share"))
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "65534\n", "")


def test_many_at_once(tmp_path: Path) -> None:
    """Each build has a folder and a sandbox of its own."""
    trees = [make_tree(tmp_path / str(number)) for number in range(4)]
    made: list[builder.Build] = []
    threads = [
        threading.Thread(target=lambda it=it: made.append(builder.build(it, None, None, "15.1")))
        for it in trees
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({it.build_id for it in made}) == 1
    assert len(made) == 4
