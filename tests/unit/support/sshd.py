"""A real sshd on 127.0.0.1, run as the user who runs the tests, for the tests of harness.ssh."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from harness.debian import search_path
from harness.guest.keys import make_key
from harness.guest.ssh_connect import Address
from harness.machine.base import free_port

_TRIES = 5


@dataclass
class Sshd:
    """A server with a host key of its own that lets in one key."""

    folder: Path
    port: int = 0
    more: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        host = self.folder / "host_key"
        self.host_key = " ".join(make_key(host, "host").split()[:2])
        self.key = self.folder / "id"
        (self.folder / "authorized").write_text(make_key(self.key, "test") + "\n")
        self.user = pwd.getpwuid(os.getuid()).pw_name

    def start(self) -> Sshd:
        if os.geteuid() == 0:
            # Debian's own service makes this folder; without it sshd refuses to run as root.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(_TRIES):
            self.port = self.port or free_port()
            self._write_settings()
            program = shutil.which("sshd", path=search_path())
            assert program, "sshd is not installed; run ./inv setup"
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    [program, "-D", "-e", "-f", self.folder / "config"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._answers():
                return self
            self.port = 0
        raise AssertionError((self.folder / "log").read_text())

    def _write_settings(self) -> None:
        settings = {
            **self.more,
            "ListenAddress": "127.0.0.1",
            "Port": self.port,
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "authorized",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "UseDNS": "no",
            "MaxStartups": "100",
            # bash reads ~/.bashrc when sshd starts it: nothing of the user's is to be run.
            "SetEnv": f"HOME={self.folder}",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        (self.folder / "config").write_text(text)

    def _answers(self) -> bool:
        assert self.process is not None
        until = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                    if line.recv(4) == b"SSH-":
                        return True
            except OSError:
                time.sleep(0.02)
        self.stop()
        return False

    def address(self, key: Path | None = None, host_key: str = "") -> Address:
        return Address(
            port=self.port,
            private_key=key or self.key,
            host_key=host_key or self.host_key,
            user=self.user,
        )

    def stop(self) -> None:
        """End the server and its sessions."""
        if self.process is None:
            return
        family = []
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue

    def sessions(self) -> list[psutil.Process]:
        """The server's children: one and more for each connection."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def __enter__(self) -> Sshd:
        return self.start()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()
