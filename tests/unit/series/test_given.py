"""--series with -, a pipe or an address."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from harness import files, limits
from harness.errors import UsageError
from harness.series import given

PATCH = b"--- a/sys/x.c\n+++ b/sys/x.c\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(given, "_read", {})


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_is_read_once_and_can_be_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standard_input(monkeypatch, PATCH)
    first, second = given.paths(["-", "-"])
    assert first == second
    assert first.read_bytes() == PATCH
    assert first.name.startswith("stdin-")
    assert first.stat().st_mode & 0o777 == 0o600
    assert given.paths(["-"]) == (first,)


def test_what_came_in_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, PATCH)
    (one,) = given.paths(["-"])
    monkeypatch.setattr(given, "_read", {})
    standard_input(monkeypatch, PATCH + b"\n")
    (other,) = given.paths(["-"])
    assert one != other
    assert one.read_bytes() == PATCH


def test_a_pipe_is_stored_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(PATCH,))
    writer.start()
    (path,) = given.paths([str(pipe)])
    writer.join()
    assert path.read_bytes() == PATCH
    assert path.name.startswith("pipe-")
    with pytest.raises(UsageError, match=r"patch\.refresh changes the files of a series"):
        given.require_files([str(pipe)], "patch.refresh")


def test_files_and_folders_are_left_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert given.absolute_paths(["x", "no/such", "./-"]) == (
        tmp_path / "x",
        tmp_path / "no/such",
        tmp_path / "-",
    )
    assert given.paths(["x"]) == (Path("x"),)
    assert not (tmp_path / "cache").exists()


def test_nothing_came(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, b"")
    with pytest.raises(UsageError, match=r"--series -: it was empty; .*before the \|"):
        given.paths(["-"])
    with pytest.raises(UsageError, match="--series /dev/null: it was empty"):
        given.paths(["/dev/null"])


def test_what_is_written_to_is_named() -> None:
    given.require_files(["x", "./-"], "patch.refresh")
    with pytest.raises(UsageError, match=r"--series -: patch\.refresh changes the files"):
        given.require_files(["x", "-"], "patch.refresh")


def test_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    try:
        monkeypatch.setattr("sys.stdin", os.fdopen(os.dup(theirs)))
        with pytest.raises(UsageError, match=r"a terminal; .*git format-patch --stdout BASE \|"):
            given.paths(["-"])
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "PATCH_BYTES", 100)
    assert limits.PATCH_BYTES > 1 << 20
    with pytest.raises(UsageError, match="it has more than 100 B"):
        given.paths(["/dev/zero"])


@pytest.mark.parametrize(
    ("address", "fetched"),
    [
        ("https://example.org/x.patch", "https://example.org/x.patch"),
        ("https://github.com/o/r/pull/7", "https://github.com/o/r/pull/7.patch"),
        ("https://github.com/o/r/commit/abc12", "https://github.com/o/r/commit/abc12.patch"),
        ("HTTP://example.org/a?b&c", "'HTTP://example.org/a?b&c'"),
    ],
)
def test_an_address_is_refused_with_the_command_that_fetches_it(address: str, fetched: str) -> None:
    with pytest.raises(UsageError) as refused:
        given.paths([address])
    assert f"curl -fLO {fetched}, or" in refused.value.message
    assert f"curl -fL {fetched} | ./inv TASK --series -" in refused.value.message


def test_prune_removes_what_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, PATCH)
    given.paths(["-"])
    assert given.forget_stored() == len(PATCH)
    assert not list((files.cache_dir() / "given").iterdir())
    assert given.forget_stored() == 0
