"""What a guest's tar may do to the host when a folder is copied out of it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from harness import limits
from harness.cli import guest_commands
from harness.deadline import Deadline
from harness.errors import CannotError
from harness.guest.ssh_exec import TooMuchOutput


class Guest:
    """A guest whose tar prints what it pleases, as much as it may."""

    def __init__(self, printed: bytes) -> None:
        self.printed = printed
        self.ssh = SimpleNamespace(save=self.save)
        self.most_bytes = -1

    def save(
        self, command: Sequence[str], out: IO[bytes], _deadline: Deadline, most_bytes: int
    ) -> None:
        assert command == ["tar", "-C", "/var/crash", "-cf", "-", "."]
        self.most_bytes = most_bytes
        if len(self.printed) > most_bytes:
            raise TooMuchOutput("it printed too much")
        out.write(self.printed)

    def deadline(self, native_s: float = 1.0) -> Deadline:
        return Deadline.after(native_s)


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o644
            if kind == tarfile.REGTYPE:
                info.size = len(text)
            else:
                info.linkname = text
            tar.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def pull(guest: Any, target: Path) -> str:
    return guest_commands._pull_folder(guest, "/var/crash", target, lambda _line: None)


FILE, LINK = tarfile.REGTYPE, tarfile.SYMTYPE


def test_what_leads_out_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = tar_of(
        (".", tarfile.DIRTYPE, ""),
        ("./core", FILE, "crash"),
        ("./last", LINK, "core"),
        ("./passwd", LINK, "/etc/passwd"),
        ("./up", LINK, "../../x"),
        ("./pipe", tarfile.FIFOTYPE, ""),
        *((f"./{number}", tarfile.CHRTYPE, "") for number in range(20)),
    )
    note = pull(Guest(printed), tmp_path / "in" / "crash")
    assert sorted(path.name for path in (tmp_path / "in/crash").iterdir()) == ["core", "last"]
    assert note.endswith("23 left out")
    said = capsys.readouterr().err
    assert said.count("left out: ") == 11
    assert "13 more" in said
    assert "passwd" in said


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", FILE, "x")],
        [("/tmp/evil", FILE, "x")],  # noqa: S108
        [("a", LINK, ".."), ("a/evil", FILE, "x")],
        [("a/b", tarfile.DIRTYPE, ""), ("l", LINK, "a/b"), ("l/../../../evil", FILE, "x")],
        [("l", LINK, "."), ("l/evil", FILE, "x")],
    ],
)
def test_a_tar_that_writes_outside_brings_nothing(
    tmp_path: Path, members: list[tuple[str, bytes, str]]
) -> None:
    target = tmp_path / "in" / "crash"
    target.mkdir(parents=True)
    (target / "mine").write_text("x")
    with pytest.raises(CannotError, match="the guest's tar of /var/crash: refused"):
        pull(Guest(tar_of(*members)), target)
    # What was there before is there still, and nothing else.
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["crash"]
    assert [path.name for path in target.iterdir()] == ["mine"]


@pytest.mark.parametrize("printed", [b"", b"not a tar" * 500, tar_of(("a", FILE, "x" * 999))[:900]])
def test_what_is_no_whole_tar_brings_nothing(tmp_path: Path, printed: bytes) -> None:
    with pytest.raises(CannotError, match="it is not an archive, or it is damaged or truncated"):
        pull(Guest(printed), tmp_path / "crash")
    assert list(tmp_path.iterdir()) == []


def test_no_more_comes_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = limits.LEAST_FREE_BYTES + 1000
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=free))
    guest = Guest(bytes(2000))
    with pytest.raises(TooMuchOutput):
        pull(guest, tmp_path / "crash")
    assert guest.most_bytes == 1000
    assert list(tmp_path.iterdir()) == []
