"""Malicious archives and good ones."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import CannotError
from harness.image.unpack import unpack

Member = tuple[str, bytes, str]


def archive(path: Path, *members: Member, mode: str = "w:xz") -> Path:
    """Members are (name, kind, content or target); kinds as tarfile's."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o4755
            info.mtime = 1_000_000_000
            if kind == tarfile.REGTYPE:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
            else:
                info.linkname = text
                tar.addfile(info)
    return path


def file(name: str, text: str = "x") -> Member:
    return (name, tarfile.REGTYPE, text)


def link(name: str, target: str) -> Member:
    return (name, tarfile.SYMTYPE, target)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "room" / "out"
    folder.mkdir(parents=True)
    return folder


def run(path: Path, out: Path, only: tuple[str, ...] = ()) -> list[str]:
    unpack(path, out, lambda _line: None, only=only)
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if not p.is_dir())


def test_an_ordinary_system(tmp_path: Path, out: Path) -> None:
    path = archive(
        tmp_path / "base.txz",
        (".", tarfile.DIRTYPE, ""),
        ("./usr/lib", tarfile.DIRTYPE, ""),
        file("./lib/libc.so.7", "library"),
        link("./usr/lib/libc.so.7", "../../lib/libc.so.7"),
        link("./usr/lib/absolute.so", "/lib/libc.so.7"),
        ("./usr/lib/hard.so", tarfile.LNKTYPE, "./lib/libc.so.7"),
        file("./etc/passwd", "root"),
    )
    assert run(path, out) == [
        "etc/passwd",
        "lib/libc.so.7",
        "usr/lib/absolute.so",
        "usr/lib/hard.so",
        "usr/lib/libc.so.7",
    ]
    assert (out / "usr/lib/absolute.so").readlink() == Path("../../lib/libc.so.7")
    assert (out / "usr/lib/hard.so").samefile(out / "lib/libc.so.7")
    assert (out / "lib/libc.so.7").stat().st_mode & 0o7777 == 0o755
    assert (out / "lib/libc.so.7").stat().st_mtime == 1_000_000_000


def test_only_what_is_wanted(tmp_path: Path, out: Path) -> None:
    path = archive(
        tmp_path / "base.txz",
        file("./usr/include/a.h"),
        file("./usr/includes/b.h"),
        file("./bin/sh"),
        ("./usr/lib/other-name", tarfile.LNKTYPE, "./bin/sh"),
        (("./dev/null"), tarfile.CHRTYPE, ""),
    )
    assert run(path, out, ("usr/include", "usr/lib")) == ["usr/include/a.h"]


def test_a_later_member_replaces_an_earlier_one(tmp_path: Path, out: Path) -> None:
    path = archive(tmp_path / "a.tar", file("a", "1"), link("b", "a"), file("b", "2"), mode="w")
    assert run(path, out) == ["a", "b"]
    assert (out / "a").read_text() == "1"
    assert (out / "b").read_text() == "2"


@pytest.mark.parametrize(
    "members",
    [
        [file("../evil")],
        [file("a/../../evil")],
        [file("/evil")],
        [link("a", ".."), file("a/evil")],
        [link("a", "../..")],
        [link("b/a", "../../outside")],
        [link("a", "b/c/../../.."), file("evil")],
        [link("a/deep", "x"), link("b", "a/../../evil")],
        [("a", tarfile.LNKTYPE, "../../secret")],
        [("a", tarfile.LNKTYPE, "/etc/passwd")],
        [("a", tarfile.CHRTYPE, "")],
        [("a", tarfile.BLKTYPE, "")],
        [("a", tarfile.FIFOTYPE, "")],
    ],
)
def test_nothing_gets_out(tmp_path: Path, out: Path, members: list[Member]) -> None:
    (tmp_path / "secret").write_text("kept")
    path = archive(tmp_path / "evil.txz", *members)
    with pytest.raises(CannotError, match="refused: "):
        run(path, out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("mode", ["w:xz", "w:gz"])
@pytest.mark.parametrize("damage", [lambda d: d[:-5], lambda d: d[:60], lambda _d: b"<html>"])
def test_a_damaged_archive(
    tmp_path: Path, out: Path, damage: Callable[[bytes], bytes], mode: str
) -> None:
    path = archive(tmp_path / "a.txz", file("a", os.urandom(5000).hex()), mode=mode)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CannotError, match="it is not an archive, or it is damaged or truncated"):
        run(path, out)


def test_no_room(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.txz", file("a"))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("U", (), {"free": 1000})())
    with pytest.raises(CannotError, match="needs 512"):
        run(path, out)
