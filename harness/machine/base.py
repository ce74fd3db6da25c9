"""A virtual computer, independent of its emulator.

Everything above this package uses `Machine`; only `backend` says which emulator it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness import progress
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, MachineDied
from harness.machine.boot_watch import BootWatch
from harness.machine.console import Console
from harness.machine.forward import PRIVATE_PORT, Forward, fenced, unavailable
from harness.machine.spec import Spec, Traits

_PORT_TRIES = 5
# An emulator may be stopped for a moment; after this time waiting is useless.
_STOPPED_S = 5.0
_TAIL_BYTES = 1 << 18


class PortTaken(MachineDied):
    """Another process took the port between our check and the emulator's bind."""


class Machine(ABC):
    """One virtual computer: started once, stopped once, with its console always logged.

    Use it as a context manager: leaving the block ends the emulator in any case.
    """

    traits: Traits

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.ssh_port: int | None = None
        self.private = False
        self._console: Console | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped_since_s = 0.0
        self._boot_watch: BootWatch | None = None

    @property
    def backend(self) -> str:
        """kvm, tcg or bochs."""
        return self.traits.backend

    @property
    def console(self) -> Console:
        """The serial line; only a started machine has one."""
        if self._console is None:
            raise RuntimeError("the machine was not started")
        return self._console

    @property
    def panicked(self) -> bool:
        """Whether the guest's kernel reported a panic; False before the start."""
        return self._console is not None and self._console.panicked

    @property
    def boots(self) -> int:
        """A number that grows each time the guest boots again, for whatever reason."""
        return self._console.boots if self._console is not None else 0

    @property
    def pid(self) -> int | None:
        """The emulator's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def forward(self) -> Forward | None:
        """The address of the guest's sshd; None if no port is forwarded."""
        if self.ssh_port is None:
            return None
        # No process has the number 0: an emulator that has ended has no port on this machine.
        return Forward(self.ssh_port, (self.pid or 0) if self.private else None)

    @property
    def exit_code(self) -> int | None:
        """The emulator's exit code once it has ended (negative: the signal that ended it)."""
        return self._process.poll() if self._process else None

    @property
    def resets(self) -> int:
        """The number of the guest's resets since it started, as far as the emulator reports
        them.
        """
        return 0

    def screen(self) -> list[str]:
        """The lines of the guest's text screen up to the last that is not empty.

        None if it has no screen, or the screen shows graphics.
        """
        return []

    @contextlib.contextmanager
    def booting(self) -> Iterator[None]:
        """During the wait for a boot: every check also notices a guest that will not come up.

        Raises GuestError if it has stopped at a prompt on its screen or resets again and again,
        CannotError if it asks for a login only on its screen.
        """
        self._boot_watch = BootWatch(
            self.spec.name, self.console, self.screen, lambda: self.resets, self.last_words
        )
        try:
            yield
        finally:
            self._boot_watch = None

    @abstractmethod
    def command(self) -> list[str]:
        """The emulator's command line, as it is run or would be run."""

    def reads(self) -> dict[str, str]:
        """The files in the run folder that the command line names and the emulator reads."""
        return {}

    @abstractmethod
    def _prepare(self) -> None:
        """Make the files that are needed before the first start."""

    @abstractmethod
    def _start_once(self, deadline: Deadline) -> None:
        """Start the emulator with a new port; PortTaken if the port is in use."""

    @abstractmethod
    def powered_off(self) -> bool:
        """Whether the emulator ended because the guest powered itself off."""

    @abstractmethod
    def last_words(self) -> str:
        """The emulator's own last output (standard error or its log), for messages."""

    def save(self, folder: Path, deadline: Deadline) -> None:
        """Write the running guest's state into `folder`, which must exist and be empty.

        The disk of the spec is not copied, and the state works only with this disk.  Afterwards the
        guest continues, or the machine has ended (`pid` says which).  Raises GuestError or OSError
        if the state could not be written, CannotError if this backend cannot save.
        """
        raise CannotError(f"a machine in {self.backend} cannot be saved")

    def open_debugger(self, deadline: Deadline) -> Path:
        """Open the emulator's own stub for gdb, on a socket that only the user can access.

        The guest continues until a debugger stops it.  Raises CannotError if this backend has no
        stub, GuestError if it cannot be opened.
        """
        raise CannotError(f"{self.backend} has no stub for gdb")

    def close_debugger(self, deadline: Deadline) -> None:
        """Close the stub and continue the guest, in whatever state a debugger left it."""
        raise CannotError(f"{self.backend} has no stub for gdb")

    def depends_on(self) -> dict[str, str]:
        """The facts that a saved state depends on in addition to the disk, with names for people:
        the emulator, its settings except those that differ from run to run, and the host's
        processor if guests see it.
        """
        return {}

    def require_own_state(self, folder: Path) -> None:
        """Raise CannotError unless a state that was saved elsewhere may be resumed here.

        It must not say anything about this computer's files.
        """
        raise CannotError(f"a state of {self.backend} is only resumed where it was saved")

    @abstractmethod
    def _quit(self, deadline: Deadline) -> None:
        """Ask the emulator to end, if it can be asked."""

    @abstractmethod
    def _release(self) -> None:
        """Release the machine's resources after the emulator has ended."""

    def start(self, deadline: Deadline) -> None:
        """Start the emulator; MachineDied with its own messages if it ends immediately.

        After any exception nothing of the machine is left.
        """
        # QEMU reports this late and with a long message, and Bochs invents a disk.
        if not self.spec.drive.path.exists():
            raise CannotError(f"{self.spec.drive.path}: there is no such disk")
        self.spec.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._prepare()
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                self._start_once(deadline)
            except PortTaken:
                self.stop(Deadline.after(1))
                if not tries_left:
                    raise
                self.spec.emulator_log.unlink(missing_ok=True)
            except BaseException:
                self.stop(Deadline.after(1))
                raise
            else:
                return

    def stop(self, deadline: Deadline) -> None:
        """End the emulator, gently if it supports that, and wait for it; does nothing if it has
        ended.
        """
        process = self._process
        try:
            if process is not None and process.poll() is None:
                self._quit(deadline)
        finally:
            # This also runs if Ctrl-C came while the emulator was asked.
            if process is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if self.traits.can_be_asked:
                    progress.say(
                        f"note: {self.spec.name}: {self.backend} (process {process.pid}) did not "
                        "end when it was asked to, and was killed"
                    )
            if self._console is not None:
                self._console.close()
            self._release()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop(Deadline.after(10))

    def check(self) -> None:
        """Raise GuestPanic or MachineDied if the guest panicked or the emulator ended."""
        if self._console is not None:
            self._console.check_panic()
        self._check_process()

    def _check_process(self) -> None:
        code = self.exit_code
        if code is None:
            self._check_running()
            if self._boot_watch is not None:
                self._boot_watch.look()
            return
        console = self._console
        if console is not None:
            # The guest's last output may not have arrived yet; a panic explains the end better.
            console.wait_closed(Deadline.after(1))
            console.check_panic()
        how = f"{self.backend} {describe_exit(code)}"
        if self.powered_off():
            how = f"the guest powered itself off ({how})"
        raise MachineDied(
            f"{self.spec.name}: {how} while it was needed; the console's log is "
            f"{self.spec.console_log}",
            detail="\n".join(filter(None, (self.last_words(), console.tail() if console else ""))),
        )

    def _check_running(self) -> None:
        """Raise GuestError if the emulator exists but is stopped."""
        pid = self.pid
        if pid is None or not _is_stopped(pid):
            self._stopped_since_s = 0.0
            return
        now = time.monotonic()
        self._stopped_since_s = self._stopped_since_s or now
        if now - self._stopped_since_s > _STOPPED_S:
            raise GuestError(
                f"{self.spec.name}: {self.backend} (process {pid}) was stopped by a "
                f"signal "
                f"{_STOPPED_S:.0f} s ago; `kill -CONT {pid}` continues "
                f"it; the console's log is {self.spec.console_log}"
            )

    def wait_ended(self, deadline: Deadline) -> int | None:
        """Wait for the emulator to end by itself; its exit code, or None if the time ran out."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout=deadline.remaining_s)
        except subprocess.TimeoutExpired:
            return None

    def _choose_port(self) -> int | None:
        """The port to forward, in a network of the emulator's own if possible."""
        self.private = self.spec.ssh and not self.spec.network_out and not unavailable()
        if not self.spec.ssh:
            return None
        return PRIVATE_PORT if self.private else free_port()

    def _spawn(
        self,
        command: Sequence[str],
        *,
        stdio: int | None = None,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Run the emulator in a session of its own, standard error to its log.

        setpriv makes the kernel end the emulator together with the harness, even if that is killed;
        more exactly, with the thread that starts it, so that thread must continue to run.  The
        emulator enters its own network after that, as the same process.
        """
        # Checked here, because setpriv's own error would look like the emulator's.
        for program in ("setpriv", command[0]):
            if shutil.which(program) is None:
                raise CannotError(f"{program} is not installed; run ./inv setup")
        words = fenced(command) if self.private else command
        # Not by process.run: the emulator runs on while this process works with it.
        with self.spec.emulator_log.open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *words],
                stdin=subprocess.DEVNULL if stdio is None else stdio,
                stdout=log if stdio is None else stdio,
                stderr=log,
                pass_fds=tuple(pass_fds),
                cwd=self.spec.run_dir,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (not by a debugger)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name before it is in parentheses and may contain anything.
    return stat.rpartition(")")[2].split()[:1] == ["T"]


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail_of(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or nothing if there is none."""
    try:
        with path.open("rb") as log:
            # A guest decides how long it gets.
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def describe_exit(code: int) -> str:
    """An exit code in words: `exited with 1`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
