"""Building in a guest: what goes in, who builds, and what comes back.

The scripts that a guest's /bin/sh would run are run here, with Debian's bmake and clang behind the
names that FreeBSD's have.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeGuest
from faketree import make_tree
from test_build import TWO, series_of

from harness import debian, keeper
from harness.build import bmake, builder, targets
from harness.build import in_guest as guestbuild
from harness.build.in_guest import GuestBuilder
from harness.build.job import Job
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError, UsageError
from harness.guest.freebsd import Access
from harness.guest.ssh import Result
from harness.image import store
from harness.image.model import ImageRecord
from harness.machine import Backend
from harness.run.persistent_session import AttachedSession

pytestmark = pytest.mark.skipif(
    debian.clang_version() is None, reason="clang and lld are not installed"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    return ImageRecord(
        "15.1", "/d", "raw", "", tmp_path / "disk", 1, "ab" * 32,
        Access(tmp_path / "key", ""), 1501000, "", "", 4,
    )  # fmt: skip


class LocalGuest(FakeGuest):
    """Runs scripts here; its second disk is a file, its compiler Debian's."""

    def __init__(self, disk: Path, shims: Path) -> None:
        super().__init__({"sysctl -n kern.disks": (0, "vtbd1 vtbd0\n", "")})
        self._disk = disk
        self._shims = shims
        shims.mkdir()
        tools = bmake.find_toolchain()
        target = "x86_64-unknown-freebsd15.1"
        # What FreeBSD's sys.mk sets, which the tree of one file lacks.
        settings = ["MACHINE=amd64", "MACHINE_ARCH=amd64", "MACHINE_CPUARCH=amd64", "LD=ld"]
        self._shim("make", f'exec bmake "$@" {" ".join(settings)}')
        self._shim("cc", f'exec {tools.tool("clang")} --target={target} "$@"')
        self._shim("ld", f'exec {targets.linker(tools)} "$@"')
        for name in ("objcopy", "nm", "strip"):
            self._shim(name, f'exec {tools.tool(f"llvm-{name}")} "$@"')
        self._shim("sysctl", "echo 2")

    def _shim(self, name: str, line: str) -> None:
        (self._shims / name).write_text(f"#!/bin/sh\n{line}\n")
        (self._shims / name).chmod(0o755)

    def script(
        self, text: str, *arguments: str, deadline: Deadline | None = None, check: bool = True
    ) -> Result:
        words = [str(self._disk) if it == "/dev/vtbd1" else it for it in arguments]
        done = subprocess.run(
            ["sh", "-s", "--", *words],
            input=text,
            capture_output=True,
            text=True,
            env={"PATH": f"{self._shims}:{os.environ['PATH']}", "MAKEFLAGS": ""},
        )
        assert not check or done.returncode == 0, done.stderr
        return Result("script", done.returncode, done.stdout, done.stderr, seconds=0.1)

    @property
    def ssh(self) -> SimpleNamespace:  # type: ignore[override]
        return SimpleNamespace(get=lambda remote, local, _limit: shutil.copy(remote, local))


@pytest.fixture
def played(
    tmp_path: Path, record: ImageRecord, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], GuestBuilder]:
    """A builder whose guest is this machine."""
    place = tmp_path / "place"
    monkeypatch.setattr(guestbuild, "_PLACE", str(place))

    def module(_self: GuestBuilder, job: Job) -> Path:
        disk = guestbuild.pack(job)
        shims = tmp_path / "shims"
        shutil.rmtree(shims, ignore_errors=True)
        return guestbuild.build_in(LocalGuest(disk, shims), job, disk.stat().st_size)

    monkeypatch.setattr(GuestBuilder, "_module", module)
    return lambda: GuestBuilder(record, Backend("tcg"), tmp_path / "run")


def test_the_module_is_the_guests_and_exports_what_the_hosts_does(
    tmp_path: Path, played: Callable[[], GuestBuilder]
) -> None:
    tree = make_tree(tmp_path / "the source")
    series = series_of(tmp_path, TWO)
    hosts = builder.build(tree, None, series, "15.1")
    guests = builder.build(tree, None, series, "15.1", in_guest=played())
    assert guests.key != hosts.key
    assert guestbuild.exports(guests.module) == guestbuild.exports(hosts.module) != frozenset()
    assert guests.compiler.startswith("guest abab")
    # The patch went in, and no path of where it was built came out.
    assert (tmp_path / "place/src/sys/dev/vmm/vmm.h").read_text() == TWO
    assert str(tmp_path).encode() not in guests.module.read_bytes()
    again = builder.build(tree, None, series, "15.1", in_guest=played())
    assert again.cached


def test_a_host_without_a_compiler_gets_the_module_alone(
    tmp_path: Path, played: Callable[[], GuestBuilder], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(tmp_path / "source")
    find = bmake.find_toolchain

    def none() -> bmake.Toolchain:
        # The fake guest needs one nevertheless.
        if (tmp_path / "place").exists() or not asked:
            asked.append(1)
            raise CannotError("clang not found; run ./inv setup")
        return find()

    asked: list[int] = []
    monkeypatch.setattr(bmake, "find_toolchain", none)
    made = builder.build(tree, None, None, "15.1", in_guest=played())
    assert made.module.is_file()
    assert (made.library, made.tool) == (None, None)
    assert "run ./inv setup" in dict(made.not_built)["libvmmapi"]
    asked.clear()
    with pytest.raises(CannotError, match=r"clang not found; run \./inv setup"):
        builder.build(tree, None, None, "15.1")


def test_code_that_does_not_compile_in_the_guest(
    tmp_path: Path, played: Callable[[], GuestBuilder]
) -> None:
    tree = make_tree(tmp_path / "source")
    series = series_of(tmp_path, "#define NUMBER wrong wrong\n")
    with pytest.raises(PatchError, match=r"does not build in the guest: sys/.*error: ") as caught:
        builder.build(tree, None, series, "15.1", in_guest=played())
    assert str(tmp_path / "place") not in caught.value.detail


def test_the_disk_is_a_tar_of_whole_sectors_without_links(
    tmp_path: Path, played: Callable[[], GuestBuilder], monkeypatch: pytest.MonkeyPatch
) -> None:
    disks: list[Path] = []

    def keep(_self: GuestBuilder, job: Job) -> Path:
        disks.append(Path(shutil.copy(guestbuild.pack(job), tmp_path / "disk.tar")))
        raise CannotError("enough")

    monkeypatch.setattr(GuestBuilder, "_module", keep)
    with pytest.raises(CannotError, match="enough"):
        builder.build(make_tree(tmp_path / "s"), None, None, "15.1", in_guest=played())
    assert disks[0].stat().st_size % (1 << 20) == 0
    with tarfile.open(disks[0]) as tar:
        names = {it.name: it for it in tar}
    assert all(it.isreg() or it.isdir() for it in names.values())
    assert {"src/sys/modules/vmm/Makefile", "options/opt_global.h"} <= set(names)


def test_an_image_without_a_compiler_says_so(record: ImageRecord) -> None:
    guest = FakeGuest({"which": (1, "", ""), "which make": (0, "/usr/bin/make", "")})
    with pytest.raises(CannotError, match=r"\(/d\) has no cc, ld; use --builder host, or import"):
        guestbuild.require_compiler(guest, record)
    guestbuild.require_compiler(FakeGuest({"which": (0, "/usr/bin/x", "")}), record)


def compile_object(folder: Path, name: str, symbols: Sequence[str]) -> Path:
    source = folder / f"{name}.c"
    source.write_text("".join(f"int {symbol}(void) {{ return 1; }}\n" for symbol in symbols))
    subprocess.run(["gcc", "-c", "-o", folder / f"{name}.o", source], check=True)
    return folder / f"{name}.o"


def test_modules_that_differ_in_what_they_export(tmp_path: Path) -> None:
    one = compile_object(tmp_path, "one", ["vmm_a", "vmm_b"])
    two = compile_object(tmp_path, "two", ["vmm_b", "vmm_c"])
    assert guestbuild.exports(one) == {"vmm_a", "vmm_b"}
    guestbuild.require_same_exports(one, one)
    with pytest.raises(PatchError, match=r"only the host's has vmm_c; only the guest's has vmm_a"):
        guestbuild.require_same_exports(one, two)
    (tmp_path / "noise").write_text("noise")
    with pytest.raises(PatchError, match="not a valid ELF file"):
        guestbuild.exports(tmp_path / "noise")


def test_who_builds(record: ImageRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(asked: str, backend: str = "kvm") -> GuestBuilder | None:
        return guestbuild.choose(asked, record, Backend(backend, "amd"), tmp_path)

    assert choose("auto") is None
    assert choose("host") is None
    assert choose("guest") == GuestBuilder(record, Backend("kvm", "amd"), tmp_path)
    assert choose("guest", "bochs") == GuestBuilder(record, Backend("tcg"), tmp_path)
    monkeypatch.setattr(debian, "clang_version", lambda: None)
    assert choose("auto") == choose("guest")
    assert choose("host") is None
    with pytest.raises(UsageError, match="--builder gast: it must be one of auto, host, guest"):
        choose("gast")


def test_another_image_is_another_compiler(record: ImageRecord, tmp_path: Path) -> None:
    other = dataclasses.replace(record, disk_sha256="cd" * 32)
    builders = [GuestBuilder(it, Backend("tcg"), tmp_path) for it in (record, other)]
    assert builders[0].identity != builders[1].identity


@pytest.mark.parametrize("asked", ["host", "auto", "guest"])
def test_for_a_guest_that_is_up_nothing_has_to_be_decided(
    asked: str, record: ImageRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`inv reload` builds without having asked what this machine can do."""
    seen: list[GuestBuilder | None] = []

    def fake(*_given: object, in_guest: GuestBuilder | None, **_more: object) -> builder.Build:
        seen.append(in_guest)
        raise PatchError("seen")

    monkeypatch.setattr(builder, "build", fake)
    known = dataclasses.replace(record, source=tmp_path)
    monkeypatch.setattr(store, "find", lambda _release: known)
    monkeypatch.setattr(store, "source", lambda _release: tmp_path)
    kept = keeper.Record("guest", tmp_path, keeper.record.Process(1, ""), "ready", backend="kvm")
    session = AttachedSession(kept, stock=True, builder=asked)
    with pytest.raises(PatchError, match="seen"):
        session.make(session.to_image())
    assert [made.backend.name if made else None for made in seen] == [
        "tcg" if asked == "guest" else None
    ]
