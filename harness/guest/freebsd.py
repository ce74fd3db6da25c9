"""FreeBSD inside a machine: wait for it, run commands, read sysctls and modules, shut it down."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from harness.checked import HostKey, Line, User
from harness.deadline import Deadline
from harness.errors import GuestError, GuestPanic, GuestRebooted, MachineDied, WaitTimeout
from harness.guest.ssh import Result, Ssh, succeeded
from harness.guest.ssh_connect import Address, SshRefused
from harness.guest.transcript import Asked, Transcript
from harness.machine import Machine

_BOOT_S = 50.0
COMMAND_S = 20.0
"""How long a command may take at native speed, unless its caller knows better."""
_SHUTDOWN_S = 20.0
_STEP_S = 0.5
# Statically linked programs start in a quarter of the time; the second form of date is for a guest
# other than FreeBSD (the stand-in).
_WAKE = (
    'PATH=/rescue:$PATH; { date -f %s "$1" || date -s "@$1"; } >/dev/null 2>&1 '
    "&& exec cat >/dev/random"
)
_ENTROPY_BYTES = 4096


@dataclass(frozen=True)
class Access:
    """The access to a prepared image: the user's key, and the host key that identifies the image.

    `announces` is the line that its console shows once sshd listens; empty if there is none.
    """

    private_key: Path
    host_key: HostKey
    user: User = "root"
    announces: Line = ""


@dataclass(frozen=True)
class Kld:
    """A loaded kernel module or the kernel: a line of kldstat -v."""

    name: str
    path: str
    size_bytes: int
    address: int = 0


class Guest:
    """A FreeBSD that runs in `machine`; every wait ends immediately if the machine ends or panics.

    The default time limits are scaled to the machine's speed.
    """

    transcript: Transcript | None = None
    """Called with each command, if the commands are to be recorded."""

    given_up: str = ""
    """The reason why no more commands are sent: the guest broke, or the run was interrupted.
    Clean-up after that must not wait for a guest that hangs.
    """

    _runner_source: Path | None = None
    runner = ""
    """Where it has the program that runs its commands (runner.c); empty while it has none."""

    def __init__(self, machine: Machine, access: Access) -> None:
        self.machine = machine
        self.access = access
        self._ssh: Ssh | None = None
        self._boots: int | None = None

    def use_runner(self, program: Path, remote: str) -> None:
        """Have commands run by `program` (runner.c compiled for the guest), put there as `remote`.

        A command then costs a third of what it costs with a channel of its own.  The next command
        starts the program, and sends it if the guest does not have it.
        """
        self.runner, self._runner_source = remote, program
        if self._ssh is not None and self._ssh.runner != remote:
            self._ssh.runner, self._ssh.runner_source = remote, program

    def forget_runner(self) -> None:
        """Have each command take a channel of its own: the program may not be there any more."""
        self.runner = ""
        if self._ssh is not None:
            self._ssh.runner = ""

    def deadline(self, native_s: float = COMMAND_S) -> Deadline:
        """A deadline for work that takes `native_s` seconds at native speed."""
        return Deadline.scaled(native_s, self.machine.traits.time_scale)

    def wait_ready(self, deadline: Deadline | None = None, from_mark: int = 0) -> None:
        """Wait until a command can be run over SSH.

        If the image announces its sshd, wait for that line on the console, after `from_mark`,
        before anything is sent to the guest: if a packet arrives while the driver sets up Bochs's
        network card, the card loses its ring, and the guest its network.

        Raises WaitTimeout with the end of the console, or GuestPanic, MachineDied or SshRefused as
        soon as waiting is useless.
        """
        limit = deadline or self.deadline(_BOOT_S)
        self.disconnect()
        with self.machine.booting():
            self._wait_up(limit, from_mark)

    def _wait_up(self, limit: Deadline, from_mark: int) -> None:
        if self.access.announces:
            self.machine.console.talk(from_mark).expect_any(
                [self.access.announces], "the guest's line that sshd is up", limit
            )
        self.enter(limit, listening=bool(self.access.announces))

    def enter(self, deadline: Deadline | None = None, *, listening: bool = True) -> None:
        """Connect to a guest whose sshd is known to be up; raises the errors of `wait_ready`."""
        limit = deadline or self.deadline()
        self._connect(limit, listening)
        self.must(["true"], limit)

    def wake(self, deadline: Deadline) -> None:
        """Connect to a resumed guest, set its clock, and give it new randomness.

        The clock is set to the second, as date(1) can.  Raises the errors of `wait_ready`.
        """
        self._connect(deadline)
        command = ["/bin/sh", "-c", _WAKE, "wake", f"{time.time() + 0.5:.0f}"]
        self.must(command, deadline, stdin=os.urandom(_ENTROPY_BYTES))

    def _connect(self, limit: Deadline, listening: bool = True) -> None:
        forward = self.machine.forward
        if forward is None:
            raise RuntimeError("the machine has no network")
        access = self.access
        address = Address(
            forward.port, access.private_key, access.host_key, access.user, network_of=forward.pid
        )
        self.disconnect()
        # While we wait for it, a guest may boot any number of times.
        self._boots = None
        self._ssh = Ssh(address, self._watch, self._heard, self.runner, self._runner_source)
        try:
            self._ssh.connect(limit, listening=listening)
        except WaitTimeout as error:
            raise WaitTimeout(
                f"{self.machine.spec.name}: {error.message}; the console's log is "
                f"{self.machine.console.log}",
                detail=self.machine.console.tail(),
            ) from error
        self._boots = self.machine.boots

    def _heard(self, asked: Asked) -> None:
        if self.transcript is not None:
            self.transcript.hear(asked)

    def _watch(self) -> None:
        self.machine.check()
        if self._boots not in (None, self.machine.boots):
            raise GuestRebooted(
                f"{self.machine.spec.name} rebooted by itself: everything loaded and "
                f"running there is "
                f"gone; the console's log is {self.machine.console.log}",
                detail=self.machine.console.tail(),
            )

    @property
    def ssh(self) -> Ssh:
        """The connection, made again if it was interrupted; GuestRebooted if it leads to a new
        boot.
        """
        if self.given_up:
            raise GuestError(f"no more commands are sent to the guest: {self.given_up}")
        if self._ssh is None:
            raise RuntimeError("the guest was not waited for")
        if not self._ssh.connected:
            self._ssh.connect(self.deadline(), listening=True)
        return self._ssh

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as this side knows."""
        return self._ssh is not None and self._ssh.connected

    def run(
        self, command: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b""
    ) -> Result:
        """Run a command; returns its Result, with any exit code."""
        return self.ssh.run(command, deadline or self.deadline(), stdin=stdin)

    def must(
        self, command: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b""
    ) -> str:
        """Run a command that must exit with 0; returns its standard output."""
        return succeeded(self.run(command, deadline, stdin=stdin)).stdout

    def script(
        self, text: str, *arguments: str, deadline: Deadline | None = None, check: bool = True
    ) -> Result:
        """Run a /bin/sh script; CommandFailed unless it exits 0 or `check` is off."""
        result = self.ssh.script(text, deadline or self.deadline(), arguments)
        return succeeded(result) if check else result

    def put(self, local: Path, remote: str, mode: int = 0o644) -> None:
        """Copy a file into the guest."""
        self.ssh.put(local, remote, self.deadline(), mode)

    def sysctl(self, name: str) -> str | None:
        """A sysctl's value as text, or None if there is no such sysctl."""
        result = self.run(["sysctl", "-n", name])
        if result.ok:
            return result.stdout.removesuffix("\n")
        if "unknown oid" in result.stderr:
            return None
        raise GuestError(f"sysctl {name}: {result.stderr.strip()}")

    def number(self, name: str) -> int:
        """A sysctl whose value is a number; GuestError if it is not."""
        return self.numbers(name)[0]

    def numbers(self, *names: str) -> tuple[int, ...]:
        """Several such sysctls, read by one command."""
        said = self.must(["sysctl", "-n", *names]).split()
        if len(said) != len(names) or not all(_NUMBER.fullmatch(word) for word in said):
            raise GuestError(
                f"sysctl {' '.join(names)}: the guest answers {' '.join(said)[:100]!r}, "
                f"but "
                f"{len(names)} whole number{'s are' if len(names) > 1 else ' is'} expected"
            )
        return tuple(map(int, said))

    def exists(self, path: str) -> bool:
        """Whether a path exists in the guest."""
        return self.run(["test", "-e", path]).ok

    def klds(self) -> list[Kld]:
        """The output of kldstat -v as data, the kernel first."""
        return parse_kldstat(self.must(["kldstat", "-v"]))

    def dmesg(self, deadline: Deadline | None = None) -> list[str]:
        """The kernel's message buffer, a line each."""
        return self.must(["dmesg"], deadline).splitlines()

    def shut_down(self, deadline: Deadline | None = None) -> None:
        """Power off and wait for the emulator's end; WaitTimeout if it does not end."""
        limit = deadline or self.deadline(_SHUTDOWN_S)
        # The connection may close before the command's exit code arrives.
        with contextlib.suppress(GuestError):
            self.run(["shutdown", "-p", "now"], limit.at_most(30))
        self.disconnect()
        # After a panic during the shutdown the machine still runs.
        while self.machine.wait_ended(limit.at_most(_STEP_S)) is None:
            self.machine.console.check_panic()
            if limit.expired:
                raise WaitTimeout(
                    f"{self.machine.spec.name} did not power off within {limit.limit_s:.0f} s; the "
                    f"console's log is {self.machine.console.log}",
                    detail=self.machine.console.tail(),
                )
        if not self.machine.powered_off():
            self.machine.check()

    def reboot(self, deadline: Deadline | None = None) -> None:
        """Reboot and wait until the new system answers."""
        limit = deadline or self.deadline(_BOOT_S + _SHUTDOWN_S)
        before = self.must(["sysctl", "-n", "kern.boottime"])
        mark = self.machine.console.mark
        with contextlib.suppress(GuestError):
            self.run(["shutdown", "-r", "now"], limit.at_most(30))
        self.disconnect()
        while True:
            # The old system may still answer once or twice, and then close the connection.
            try:
                self.wait_ready(limit, mark)
                if self.must(["sysctl", "-n", "kern.boottime"], limit) != before:
                    return
            except (GuestPanic, MachineDied, WaitTimeout, SshRefused):
                raise
            except GuestError:
                self.machine.check()
            self.disconnect()
            if limit.expired:
                raise WaitTimeout(
                    f"{self.machine.spec.name} did not reboot within {limit.limit_s:.0f} s; the "
                    f"console's log is {self.machine.console.log}",
                    detail=self.machine.console.tail(),
                )
            time.sleep(0.5)

    def disconnect(self) -> None:
        """Close the connection; the guest continues."""
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.disconnect()


# At most as many digits as 128 bits have; Python refuses to parse much longer ones.
_NUMBER = re.compile(r"-?[0-9]{1,39}")
_KLD = re.compile(r"^\s*\d+\s+\d+\s+0x([0-9a-f]+)\s+([0-9a-f]+)\s+(\S+)\s+\((.+)\)\s*$")


def parse_kldstat(text: str) -> list[Kld]:
    """The files that `kldstat -v` lists; sizes there are hexadecimal."""
    matches = (_KLD.match(line) for line in text.splitlines())
    return [Kld(m[3], m[4], int(m[2], 16), int(m[1], 16)) for m in matches if m]
