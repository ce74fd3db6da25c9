"""Disks, source trees and sysroots to import, and a preparation that boots nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from harness.errors import GuestError, UsageError, WorkbenchError
from harness.image import check, store
from harness.image.model import ImageRecord, Imported, Prepared
from harness.image.obtain import Files, import_files
from harness.machine import Backend

MIB = 1 << 20

NEWVERS = 'TYPE="FreeBSD"\nREVISION="{}"\nBRANCH="RELEASE-p1"\n'

PARAM = "#undef __FreeBSD_version\n#define __FreeBSD_version 1501000\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no way to FreeBSD's servers."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_MIRROR", "http://127.0.0.1:1/")
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


class Preparer:
    """Stands for the first boot: copies the disk, or fails if the test says so."""

    def __init__(self, error: WorkbenchError | KeyboardInterrupt | None = None) -> None:
        self.seen: list[Imported] = []
        self.error = error

    def __call__(
        self, imported: Imported, folder: Path, _backend: Backend, live: store.Live
    ) -> Prepared:
        self.seen.append(imported)
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "boot").mkdir()
        (folder / "boot" / "console.log").write_text("login: ")
        live("booting")
        if isinstance(self.error, GuestError):
            raise GuestError(f"it broke; see {folder / 'boot' / 'console.log'}")
        if self.error:
            raise self.error
        (folder / "disk.raw").write_bytes(imported.disk.read_bytes() + b"prepared")
        (folder / "id_ed25519").write_text("secret")
        return Prepared(
            disk_raw=folder / "disk.raw",
            private_key=folder / "id_ed25519",
            host_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43,
            osversion=1501000,
            uname="FreeBSD 15.1-RELEASE",
            changes=("a change",),
        )


def make_disk(path: Path, mark: bytes = b"") -> Path:
    path.write_bytes((mark.ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0"))
    return path


SYSROOT = ("usr/include/sys/param.h", "usr/lib/crt1.o", "usr/lib/libc.so")


def make_source(top: Path, revision: str = "15.1") -> Path:
    major, _, minor = revision.partition(".")
    number = int(major) * 100_000 + int(minor) * 1_000
    for name, text in (
        ("sys/conf/newvers.sh", NEWVERS.format(revision)),
        ("sys/sys/param.h", f"#define __FreeBSD_version {number}\n"),
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def make_sysroot(top: Path) -> Path:
    for name in (*SYSROOT, "lib/libc.so.7", "bin/sh"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(PARAM if name.endswith("param.h") else "x")
    return top


def pack(path: Path, tree: Path, inside: str) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        tar.add(tree, inside)
    return path


def bring(brought: Files, preparer: Preparer | None = None) -> ImageRecord | None:
    return import_files("15.1", brought, backend="tcg", preparer=preparer or Preparer())


def bring_disk(path: Path, preparer: Preparer | None = None) -> ImageRecord:
    record = bring(Files(disk=make_disk(path)), preparer)
    assert record is not None
    return record


def wrong(brought: Files, cache: Path) -> str:
    """The line with which an import is refused; nothing was prepared or noted."""
    preparer = Preparer()
    with pytest.raises(UsageError) as caught:
        bring(brought, preparer)
    assert preparer.seen == []
    assert not (cache / "images/15.1/trees.json").exists()
    assert "\n" not in caught.value.message
    return caught.value.message


def findings(release: str = "15.1") -> dict[str, tuple[bool, str, str]]:
    return {it.what: (it.ok, it.evidence, it.remedy) for it in check.release(release)}
