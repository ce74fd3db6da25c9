"""The connection to a guest's sshd: a port of the emulator, in the emulator's own network.

The emulators' user networks can only forward TCP ports.  A port on this machine's loopback is open
to all its users: they lack the guest's key, but with some idle connections they can block all
others.  So an emulator runs in a network namespace of its own, where no other user reaches its
port; its user enters that namespace and gets a connected socket (enter_network.py).  If the machine
forbids this, the port is on this machine's loopback.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import process, surroundings
from harness.deadline import Deadline
from harness.errors import CannotError

PRIVATE_PORT = 2222
"""The forwarded port in an emulator's own network, where every port is free."""

_HOST = "127.0.0.1"
_ENTER = Path(__file__).with_name("enter_network.py")
_LIMIT_S = 30.0
# The variable with ssh's ProxyCommand, so that no name must be quoted for a shell.
_COMMAND = "VMM_WORKBENCH_ENTER"


@dataclass(frozen=True)
class Forward:
    """A port on 127.0.0.1, in the network of process `pid` or (None) in this machine's."""

    port: int
    pid: int | None = None

    def __str__(self) -> str:
        return f"{_HOST}:{self.port}" if self.pid is None else "a private network"

    def connect(self, timeout_s: float) -> socket.socket:
        """A connected socket; OSError if the connection fails, or if the emulator has ended."""
        if self.pid is None:
            return socket.create_connection((_HOST, self.port), timeout_s)
        near, far = socket.socketpair()
        with near:
            near.settimeout(timeout_s)
            with far:
                # Not by process.run: its standard output is a socket that carries a descriptor.
                child = subprocess.Popen(
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=far.fileno(),
                    stderr=subprocess.PIPE,
                )
            try:
                _, descriptors, _, _ = socket.recv_fds(near, 1, 1)
                if descriptors:
                    return socket.socket(fileno=descriptors[0])
                said = child.communicate(timeout=timeout_s)[1].decode(errors="replace").strip()
                raise OSError(child.returncode, said)
            except subprocess.TimeoutExpired as error:
                raise TimeoutError("no answer") from error
            finally:
                child.kill()
                child.wait()
                assert child.stderr is not None
                child.stderr.close()

    def command(self) -> list[str]:
        """The program that connects there and passes on the socket; none for this machine's
        network.
        """
        if self.pid is None:
            return []
        return [*_entry(), "connect", str(self.pid), str(self.port)]

    def for_openssh(self) -> tuple[dict[str, str], dict[str, str]]:
        """The options with which OpenSSH's client connects there, and the environment for them."""
        if self.pid is None:
            return {}, {}
        names = {f"{_COMMAND}_{number}": word for number, word in enumerate(self.command())}
        line = " ".join(f'"${name}"' for name in names)
        options = {"ProxyCommand": line, "ProxyUseFdpass": "yes"}
        # ssh runs it with the user's own shell, which may have other rules of quoting.
        return options, {**names, "SHELL": "/bin/sh"}


def fenced(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in a network of its own, as the same process."""
    return [*_entry(), "run", *command]


# What a setting has to be for namespaces to be made by anybody: its file, what forbids, the remedy.
_SWITCHES = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)


def namespace_remedy(settings: Path = Path("/proc/sys")) -> str:
    """The remedy if the machine forbids user namespaces."""
    here = surroundings.look()
    for name, forbids, allows in _SWITCHES:
        with contextlib.suppress(OSError):
            if (settings / name).read_text().strip() == forbids:
                command = f"sysctl {name.replace('/', '.')}={allows}"
                return f"{here.on_kernel(command)} allows it"
    if here.container:
        return (
            "allow user namespaces here: start the container with --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined"
        )
    return "allow user namespaces here (in a container: --security-opt seccomp=unconfined)"


@functools.cache
def unavailable() -> str:
    """Why an emulator can have no network of its own here; the caller adds the remedy.

    Empty if it can.  This is tried once.
    """
    try:
        done = process.run(fenced(["true"]), Deadline.after(_LIMIT_S))
    except CannotError as error:
        return error.message
    if done.ok:
        return ""
    said = (done.stderr.strip().splitlines() or [f"exit code {done.code}"])[-1]
    return f"this machine forbids it ({said.replace(': ', ', ')})"


def _entry() -> list[str]:
    return [sys.executable, "-I", "-S", os.fspath(_ENTER)]
