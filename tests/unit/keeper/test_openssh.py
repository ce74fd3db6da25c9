"""OpenSSH's programs get into a guest that stays, wherever its files are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sshd import Sshd

from harness.cli import shells
from harness.errors import CannotError
from harness.keeper import Record, openssh
from harness.keeper.record import Process

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH is not installed")
NAMES = ["plain", 'a "b" c', "100% %h", "$HOME ${HOME}", "~root", "a\\b", "x;y&z`id`", "a\nb", "#"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    running = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield running
    running.stop()


@pytest.fixture(params=NAMES)
def record(server: Sshd, tmp_path: Path, request: pytest.FixtureRequest) -> Record:
    """A guest whose run's folder and key have an odd name."""
    folder = tmp_path / request.param
    folder.mkdir()
    key = folder / "key"
    shutil.copy(server.key, key)
    owner = Process.of(os.getpid())
    assert owner is not None
    address = server.address()
    return Record(
        "odd", folder, owner, ssh_port=address.port, user=address.user,
        private_key=str(key), host_key=address.host_key,
    )  # fmt: skip


def run(
    words: list[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env={**os.environ, **(more or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_inv_ssh_gets_in(record: Record) -> None:
    words, environment = shells.ssh_command(record, ["echo", "inside"], terminal=False)
    done = run(words, environment)
    assert (done.stdout, done.stderr) == ("inside\n", "")


def test_another_program_gets_in_by_the_file(record: Record) -> None:
    openssh.write_config(record)
    config = record.run_dir / openssh.CONFIG
    if "\n" in str(record.run_dir) or "${" in str(record.run_dir):
        assert not config.exists()
        return
    assert config.stat().st_mode & 0o777 == 0o600
    done = run(["ssh", "-F", str(config), "odd", "echo inside"])
    assert (done.stdout, done.stderr) == ("inside\n", "")


def test_without_openssh_the_package_is_named(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shells, "OPENSSH", "there-is-no-such-program")
    with pytest.raises(CannotError, match=r"\./inv setup installs it \(Debian's openssh-client\)"):
        shells.ssh(record, ["id"])
