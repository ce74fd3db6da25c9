"""Archives made to get out of their folder, to fill the disk or to be believed half."""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import limits
from harness.errors import CannotError
from harness.image.unpack import Unpacked, unpack

DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
STEPS = "abcdefghijklmnop"
SECTOR = 512


def add(
    tar: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: Any
) -> None:
    data: bytes = more.pop("data", b"")
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    info.mode = more.pop("mode", 0o755)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def packed(path: Path, build: Callable[[tarfile.TarFile], None], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        build(tar)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "room" / "out"
    folder.mkdir(parents=True)
    return folder


def run(path: Path, out: Path, **options: Any) -> Unpacked:
    return unpack(path, out, lambda _line: None, **options)


def refused(path: Path, out: Path, said: str, **options: Any) -> str:
    with pytest.raises(CannotError, match=said) as caught:
        run(path, out, **options)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 600
    # Whatever was tried, it stayed inside.
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return caught.value.message


def beyond_path_max(tar: tarfile.TarFile, room: int, tail: str) -> None:
    """Links within links, on a way longer than PATH_MAX, which a text is not resolved beyond."""
    folder = "d" * min(247, room // len(STEPS) - 1)
    path = ""
    for step in STEPS:
        add(tar, os.path.join(path, folder), DIR)
        add(tar, os.path.join(path, step), LINK, folder)
        path = os.path.join(path, folder)
    link = "/".join(STEPS) + "/" + "l" * 254
    add(tar, link, LINK, "../" * len(STEPS))
    add(tar, "escape", LINK, link + "/.." + tail)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("of_a_system", [True, False])
def test_a_way_longer_than_the_kernel_resolves(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, bounded: bool, of_a_system: bool
) -> None:
    """CVE-2025-4517's trick; without the bound on paths the descriptors alone have to hold."""
    if not bounded:
        monkeypatch.setattr(limits, "PATH_BYTES", 1 << 20)
        monkeypatch.setattr(limits, "PATH_PARTS", 1 << 20)

    def build(tar: tarfile.TarFile) -> None:
        beyond_path_max(tar, 4095 - len(str(out)) - 20, "")
        add(tar, "escape/PWNED", data=b"written outside")

    path = packed(tmp_path / "a.tar", build)
    refused(
        path, out, "longer than any path" if bounded else "through a link", of_a_system=of_a_system
    )


def test_a_link_by_a_way_longer_than_the_kernel_resolves_is_seen(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written through it here: the last pass alone has to find where it leads."""
    monkeypatch.setattr(limits, "PATH_BYTES", 1 << 20)
    (out.parent / "secret").write_text("not yours")

    def build(tar: tarfile.TarFile) -> None:
        folder = "d" * 200
        way = "/".join([folder] * 18)
        add(tar, way, DIR)
        for step in range(18):
            add(tar, "/".join([*[folder] * step, "s"]), LINK, folder)
        add(tar, f"{way}/up", LINK, "../" * 18)
        add(tar, "out", LINK, way + "/up/../secret")

    path = packed(tmp_path / "a.tar", build)
    with pytest.raises(CannotError, match="is a link out of its folder"):
        run(path, out)


def test_a_link_is_never_written_through(tmp_path: Path, out: Path) -> None:
    """Not even one that stays inside: a later member could turn it."""

    def build(tar: tarfile.TarFile) -> None:
        add(tar, "d/e", DIR)
        add(tar, "up", LINK, "d/e")
        add(tar, "up/fine", data=b"x")

    assert "through a link" in refused(packed(tmp_path / "a.tar", build), out, "refused: 'up/fine'")
    assert list((out / "d/e").iterdir()) == []


@pytest.mark.parametrize(
    ("members", "said"),
    [
        # A hard link to a link is that link at another place, from where it leads elsewhere.
        (
            [("a/b/c", DIR, ""), ("a/b/c/L", LINK, "../../../x"), ("L", HARD, "a/b/c/L")],
            "not a file",
        ),
        ([("a", HARD, "b")], "not a file of the archive"),
        ([("d", DIR, ""), ("a", HARD, "d")], "not a file of the archive"),
        # The link was good when it was made; what it leads through was turned afterwards.
        (
            [("a/b", DIR, ""), ("s", LINK, "a/b"), ("L", LINK, "s/../../x"), ("s", LINK, ".")],
            "is a link out of its folder",
        ),
        # What is missing now may be made later.
        ([("L", LINK, "missing/../../x")], "is a link out of its folder"),
        ([("f", tarfile.REGTYPE, ""), ("L", LINK, "f/../../x")], "is a link out of its folder"),
        ([("L", LINK, "")], "is a link to a path that FreeBSD cannot have"),
        ([("L", LINK, "x" * 2000)], "is a link to a path that FreeBSD cannot have"),
        ([("d", DIR, ""), ("d", tarfile.REGTYPE, "")], "takes the place of a folder"),
        ([("f", tarfile.REGTYPE, ""), ("f/g", tarfile.REGTYPE, "")], "below a file"),
        ([(".", LINK, "/etc")], "has no name"),
        ([("", tarfile.REGTYPE, "")], "has no name"),
        ([("/".join("d" * 600), tarfile.REGTYPE, "")], "longer than any path"),
        ([("n" * 300, tarfile.REGTYPE, "")], "longer than any path"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, out: Path, members: list[tuple[str, bytes, str]], said: str
) -> None:
    def build(tar: tarfile.TarFile) -> None:
        for name, kind, link in members:
            add(tar, name, kind, link)

    path = packed(tmp_path / "a.tar", build, format=tarfile.PAX_FORMAT)
    refused(path, out, said)


def test_links_that_lead_nowhere_or_round_stay(tmp_path: Path, out: Path) -> None:
    def build(tar: tarfile.TarFile) -> None:
        add(tar, "round", LINK, "round")
        add(tar, "a", LINK, "b")
        add(tar, "b", LINK, "a")
        add(tar, "nowhere", LINK, "not/here")
        add(tar, "d/up", LINK, "../round/../d")

    assert run(packed(tmp_path / "a.tar", build), out) == Unpacked(5)


@pytest.mark.parametrize("time", ["inf", "nan", "-1", "1e30", "1e400", "x", ""])
def test_an_invalid_time_is_left_out(tmp_path: Path, out: Path, time: str) -> None:
    def build(tar: tarfile.TarFile) -> None:
        add(tar, "f", data=b"x", pax_headers={"mtime": time})

    run(packed(tmp_path / "a.tar", build, format=tarfile.PAX_FORMAT), out)
    assert 0 <= (out / "f").stat().st_mtime < limits.LATEST_TIME_S


def test_modes_are_no_more_than_a_file_needs(tmp_path: Path, out: Path) -> None:
    modes = {"suid": 0o6777, "private": 0o600, "none": 0, "tool": 0o755, "open": 0o666}

    def build(tar: tarfile.TarFile) -> None:
        for name, mode in modes.items():
            add(tar, name, data=b"x", mode=mode)

    run(packed(tmp_path / "a.tar", build), out)
    assert {name: (out / name).stat().st_mode & 0o7777 for name in modes} == {
        "suid": 0o755, "private": 0o600, "none": 0o600, "tool": 0o755, "open": 0o644,
    }  # fmt: skip


def old_sparse(name: str, length: int) -> bytes:
    """A member of GNU's old form of sparse files: a header alone, of a file with one hole."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = (b"0" * 11 + b"\0") * 2
    block[482] = 0
    block[483:495] = b"\x80" + length.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_lengths_are_compared_with_the_room_first(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,536 bytes that say they are a TiB, and a member of 3 GiB, write not one byte."""
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1 << 30))
    path = tmp_path / "sparse.tar"
    path.write_bytes(old_sparse("s", 1 << 40) + bytes(2 * SECTOR))
    refused(path, out, r"needs 1024\.5 GiB")
    info = tarfile.TarInfo("big")
    info.size = 3 << 30
    with lzma.open(tmp_path / "big.txz", "wb", preset=0) as stream:
        stream.write(info.tobuf())
    refused(tmp_path / "big.txz", out, r"needs 3\.5 GiB")
    assert list(out.iterdir()) == []


def test_a_sparse_file_stays_sparse(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "sparse.tar"
    path.write_bytes(old_sparse("s", 32 << 20) + bytes(2 * SECTOR))
    run(path, out)
    assert (out / "s").stat().st_size == 32 << 20
    assert (out / "s").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_is_not_read(tmp_path: Path, out: Path, kind: bytes) -> None:
    """Its header says 700 MiB, but it contains nothing: reserving 700 MiB would fail the test."""
    info = tarfile.TarInfo("././@Header")
    info.type, info.size = kind, 700 << 20
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(4 * SECTOR))
    assert "headers are longer than" in refused(path, out, "not an archive, or it is damaged")


def test_headers_without_end_are_not_read(tmp_path: Path, out: Path) -> None:
    """Global headers one after the other, none of them long."""
    record = b"17 comment=abcdef\n"[:17] + b"\n"
    info = tarfile.TarInfo("pax_global_header")
    info.type, info.size = tarfile.XGLTYPE, len(record)
    block = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(SECTOR, b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(block * 5000 + bytes(2 * SECTOR))
    refused(path, out, "not an archive, or it is damaged")


def test_too_many_members(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARCHIVE_MEMBERS", 10)

    def build(tar: tarfile.TarFile) -> None:
        for number in range(11):
            add(tar, str(number))

    refused(packed(tmp_path / "a.tar", build), out, "more than 10 members")


def test_no_room_for_more_files(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = SimpleNamespace(f_files=100, f_favail=12, f_bavail=1 << 40, f_blocks=1 << 40)
    room.f_bfree, room.f_frsize = 1 << 40, 4096
    monkeypatch.setattr(os, "statvfs", lambda _path: room)
    refused(packed(tmp_path / "a.tar", lambda tar: add(tar, "f")), out, "no room for more files")


def test_an_archive_without_end(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARCHIVE_PLAIN_BYTES", 4 << 20)
    info = tarfile.TarInfo("passed-over")
    info.size = 1 << 40
    with lzma.open(tmp_path / "a.txz", "wb", preset=0) as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.write(bytes(8 << 20))
    refused(tmp_path / "a.txz", out, "longer than", only=("wanted",))
    path = packed(tmp_path / "b.tar", lambda tar: add(tar, "f"))
    path.write_bytes(path.read_bytes() + bytes(limits.ARCHIVE_TAIL_BYTES + (1 << 20)))
    monkeypatch.setattr(limits, "ARCHIVE_PLAIN_BYTES", 64 << 30)
    refused(path, out, "padding does not end")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: 3 * SECTOR],  # the second member's header is missing
        lambda data: data[: 2 * SECTOR] + b"garbage!" * 64 + data[3 * SECTOR :],
        lambda data: data[: 2 * SECTOR + 100],
        lambda data: data + b"more",
        lambda data: data[:-10240] + data[:SECTOR] * 2,
        lambda data: data[: SECTOR + 100],
        lambda _data: b"",
        lambda _data: b"not a tar" * 1000,
    ],
)
def test_half_an_archive_is_none(
    tmp_path: Path, out: Path, damage: Callable[[bytes], bytes]
) -> None:
    """A plain tar has no checksum of the whole: its end mark and every header have to be there."""

    def build(tar: tarfile.TarFile) -> None:
        add(tar, "one", data=b"1")
        add(tar, "two", data=b"2")

    path = packed(tmp_path / "a.tar", build)
    data = path.read_bytes()[: 4 * SECTOR] + bytes(2 * SECTOR)
    path.write_bytes(data)
    assert run(path, out).members == 2
    path.write_bytes(damage(data))
    (out / "one").unlink()
    (out / "two").unlink()
    refused(path, out, "not an archive, or it is damaged")


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,10,5,10", "GNU.sparse.size": "100"},
        {"GNU.sparse.map": "0,-10", "GNU.sparse.size": "100"},
        {"GNU.sparse.map": "90,20", "GNU.sparse.size": "100"},
        {"GNU.sparse.map": "x", "GNU.sparse.size": "100"},
        {"GNU.sparse.size": "x"},
        {"GNU.sparse.realsize": "1" * 5000},
        {"size": "-512"},
        {"size": "1" * 5000, "path": "a"},
        {"hdrcharset": "nonsense", "path": "é"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
    ],
)
def test_forged_headers_end_in_a_line(tmp_path: Path, out: Path, headers: dict[str, str]) -> None:
    def build(tar: tarfile.TarFile) -> None:
        add(tar, "f", data=b"x" * 20, pax_headers=headers)

    path = packed(tmp_path / "a.tar", build, format=tarfile.PAX_FORMAT)
    try:
        run(path, out)
    except CannotError as error:
        assert "damaged" in error.message or "needs" in error.message  # noqa: PT017
    assert all(it.stat().st_size <= 20 for it in out.iterdir())


def test_what_a_guest_sends_is_taken_without_what_leads_out(tmp_path: Path, out: Path) -> None:
    """An archive of no system: links of its machine and devices are left out, and named."""

    def build(tar: tarfile.TarFile) -> None:
        add(tar, ".", DIR)
        add(tar, "./core", data=b"crash")
        add(tar, "./last", LINK, "core")
        add(tar, "./time", LINK, "/usr/share/zoneinfo/UTC")
        add(tar, "./up", LINK, "../../secret")
        add(tar, "./pipe", tarfile.FIFOTYPE)
        add(tar, "./again", HARD, "./core")

    came = run(packed(tmp_path / "a.tar", build), out, of_a_system=False)
    assert came.members == 4
    assert sorted(it.name for it in out.iterdir()) == ["again", "core", "last"]
    assert len(came.left_out) == 3
    assert all(part in " ".join(came.left_out) for part in ("'./time'", "'up'", "'./pipe'"))


def test_xz_is_read_as_xz_reads_it(tmp_path: Path, out: Path) -> None:
    plain = packed(tmp_path / "a.tar", lambda tar: add(tar, "f", data=os.urandom(5000)))
    data = plain.read_bytes()
    one, two = lzma.compress(data[:4000]), lzma.compress(data[4000:])
    path = tmp_path / "a.txz"
    for padding in (0, 4, 8, 4096, 3 << 20):
        path.write_bytes(one + bytes(padding) + two + bytes(padding))
        assert run(path, out).members == 1
    for wrong in (
        one + bytes(3) + two,
        one + two + bytes(5),
        one + two + b"garbage",
        one + two + bytes(8) + b"\xfd7zX",
        one + bytes(8) + two[:-9],
        one + bytes(8) + two[:3],
        one,
    ):
        path.write_bytes(wrong)
        refused(path, out, "not an archive, or it is damaged")


def test_an_xz_stream_that_wants_all_memory(tmp_path: Path, out: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    data = bytearray(lzma.compress(b"x" * 100, filters=filters))
    # The block's header says how large the dictionary is; 40 means 4 GiB - 1.
    at = data.index(bytes([0x21, 0x01, 0x00]), 12)
    data[at + 2] = 40
    size = (data[12] + 1) * 4
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(bytes(data[12 : 12 + size - 4])))
    path = tmp_path / "a.txz"
    path.write_bytes(bytes(data))
    refused(path, out, "[Mm]emory")
