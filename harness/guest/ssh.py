"""A guest's remote shell over one connection, with a pinned host key and no settings of the user.

It uses paramiko.  A command is an argument list, quoted here.  A script is text that the guest's
/bin/sh reads from standard input, so that nothing is quoted twice.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import paramiko

from harness import limits
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError
from harness.files import atomic_path
from harness.guest import ssh_reason
from harness.guest.runner import (
    MOST_STDIN_BYTES,
    PUT,
    Runner,
    RunnerEnded,
    RunnerExchange,
    RunnerMissing,
)
from harness.guest.ssh_connect import Address, connect
from harness.guest.ssh_exec import Exchange
from harness.guest.transcript import Listener, asked

# A connection breaks a moment before the end of its process can be noticed.
_END_FOLLOWS_S = 1.0
_WATCH_S = 0.05
_LOG = logging.getLogger(__name__)


class CommandFailed(GuestError):
    """A command in the guest failed that had to succeed."""


@dataclass(frozen=True)
class Result:
    """The result of a command in the guest; a negative `exit_code` means that a signal ended it."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the exit code was 0."""
        return self.exit_code == 0

    def describe(self) -> str:
        """The command, its exit code and its output, for people."""
        text = f"$ {self.command}\n[exit {self.exit_code}, {self.seconds:.1f} s]"
        for name, data in (("stdout", self.stdout), ("stderr", self.stderr)):
            if data:
                text += f"\n--- {name}\n{data.rstrip()}"
        return text


class Ssh:
    """A connection to a guest; use it as a context manager.

    `watch` is called during every wait and raises if the machine has ended or panicked; `listener`
    is called with each command and its result.
    """

    def __init__(
        self,
        address: Address,
        watch: Callable[[], None] = lambda: None,
        listener: Listener = lambda _asked: None,
        runner: str = "",
        runner_source: Path | None = None,
    ) -> None:
        """`runner` is the path in the guest of the program that runs commands (runner.c), if there
        is one; where it is missing, `runner_source` is sent first.
        """
        self.address = address
        self.runner = runner
        self.runner_source = runner_source
        self._runner: Runner | None = None
        self._watch = watch
        self._listener = listener
        self._client: paramiko.SSHClient | None = None

    def connect(self, deadline: Deadline, *, listening: bool = False) -> None:
        """Connect, trying until the deadline passes; raises as ssh_connect.connect does."""
        self.close()
        self._client = connect(self.address, deadline, self._watch, listening=listening)

    def _transport(self) -> paramiko.Transport:
        transport = self._client.get_transport() if self._client else None
        if transport is None or not transport.is_active():
            self._explain_break()
            raise GuestError("the SSH connection to the guest is closed")
        return transport

    def _explain_break(self) -> None:
        """Raise an error that explains a broken connection better; an emulator's end is noticed
        later.
        """
        limit = Deadline.after(_END_FOLLOWS_S)
        while not limit.expired:
            self._watch()
            time.sleep(_WATCH_S)

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        transport = self._client.get_transport() if self._client else None
        return transport is not None and transport.is_active()

    def run(
        self,
        command: Sequence[str],
        deadline: Deadline,
        *,
        stdin: bytes = b"",
    ) -> Result:
        """Run a command given as an argument list; returns a Result, with any exit code.

        Raises WaitTimeout with the output so far if the deadline passes, GuestError if the
        connection breaks, and the exceptions of `watch`.
        """
        return self._execute(command, deadline, stdin)

    def script(self, text: str, deadline: Deadline, arguments: Sequence[str] = ()) -> Result:
        """Run a script with the guest's /bin/sh; `arguments` are its $1 and so on."""
        # Without the dashes an argument that begins with a dash would be an option of sh.
        command = ["/bin/sh", "-s", "--", *arguments]
        heard_as = f"{shlex.join(command)} <<END\n{text}\nEND"
        return self._execute(command, deadline, text.encode(), heard_as)

    def must(self, command: Sequence[str], deadline: Deadline, *, stdin: bytes = b"") -> str:
        """Run a command that must exit with 0; returns its standard output, or raises
        CommandFailed.
        """
        return succeeded(self.run(command, deadline, stdin=stdin)).stdout

    def _exchange(
        self, words: Sequence[str], deadline: Deadline, stdin: bytes
    ) -> RunnerExchange | None:
        """The command for the program in the guest that runs commands, where that can run it."""
        if not self.runner or len(stdin) > MOST_STDIN_BYTES:
            return None
        runner = self._runner
        if runner is None or (not runner.ready and not runner.busy):
            runner = Runner(self._transport(), self._watch)
            try:
                runner.start(self.runner, deadline, self.runner_source)
            except RunnerMissing as error:
                # Commands take a channel each, then, until the next connection.
                _LOG.info("%s", error.message)
                self.runner = ""
                return None
            self._runner = runner
        if not runner.take():
            return None
        return RunnerExchange(runner, words, shlex.join(words))

    def _execute(
        self,
        words: Sequence[str],
        deadline: Deadline,
        stdin: bytes,
        heard_as: str = "",
        *,
        sink: IO[bytes] | None = None,
        most_bytes: int | None = None,
        for_runner: Sequence[str] = (),
    ) -> Result:
        """Run a command.  Standard output goes to `sink` if there is one.

        `for_runner` is the form of the command for the program that runs commands in the guest, if
        it differs; `heard_as` is a text for the listener, if the command line is not descriptive.
        """
        command = shlex.join(words)
        start = time.monotonic()
        exchange: Exchange | RunnerExchange | None = None
        if sink is None and most_bytes is None:
            exchange = self._exchange(for_runner or words, deadline, stdin)
        if exchange is None:
            exchange = Exchange(
                self._transport(), command, self._watch, sink=sink, most_bytes=most_bytes
            )
        code: int | None = None
        try:
            code = exchange.run(stdin, deadline)
        except RunnerEnded:
            self._explain_break()
            raise GuestError(
                f"{command}: the program that runs commands in the guest ended before it",
                detail=exchange.said(),
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._explain_break()
            raise GuestError(
                f"{command}: the SSH connection broke: {ssh_reason.explain(error)}",
                detail=exchange.said(),
            ) from error
        finally:
            seconds = time.monotonic() - start
            said = (bytes(exchange.output), bytes(exchange.errors))
            self._listener(asked(heard_as or command, code, *said, seconds))
        if code == -1 and not self.connected:
            self._explain_break()
            raise GuestError(
                f"{command}: the SSH connection broke before it ended", detail=exchange.said()
            )
        output, errors = (data.decode("utf-8", "replace") for data in said)
        return Result(command, code, output, errors, seconds)

    def save(
        self, command: Sequence[str], out: IO[bytes], deadline: Deadline, most_bytes: int
    ) -> None:
        """Write the output of a command that must exit with 0 to `out`, byte for byte, as it comes.

        Raises CommandFailed if it does not exit with 0, TooMuchOutput beyond `most_bytes`.
        """
        succeeded(self._execute(command, deadline, b"", sink=out, most_bytes=most_bytes))

    def put(self, local: Path, remote: str, deadline: Deadline, mode: int = 0o644) -> None:
        """Copy a file into the guest; the remote name appears when the file is complete."""
        try:
            data = local.read_bytes()
        except OSError as error:
            raise CannotError(f"{local}: cannot be read: {error.strerror}") from error
        # The count distinguishes a complete file from one that a broken connection truncated. After
        # a failure the input is still read to its end: sshd loses the last output of a command that
        # ends while input is sent to it.
        script = (
            'umask 077; why=$(cat 2>&1 >"$1.part") && test $(($(wc -c <"$1.part"))) -eq "$3" && '
            'chmod -- "$2" "$1.part" && mv -f -- "$1.part" "$1" && exit; '
            'cat >/dev/null; echo "$why" >&2; rm -f -- "$1.part"; exit 1'
        )
        command = ["/bin/sh", "-c", script, "put", remote, f"{mode:o}", str(len(data))]
        heard_as = f"put {local.name}, {len(data)} bytes, as {remote}"
        for_runner = [PUT, remote, f"{mode:o}"]
        result = self._execute(command, deadline, data, heard_as, for_runner=for_runner)
        if not result.ok:
            raise CommandFailed(
                f"cannot copy {local.name} to {remote}: "
                f"{result.stderr.strip() or 'it did not arrive completely'}"
            )

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy a file out of the guest; the local name appears when the file is complete.

        Raises TooMuchOutput if it is larger than the free room on the disk.
        """
        with atomic_path(local) as temporary, temporary.open("wb") as out:
            room_bytes = max(0, shutil.disk_usage(temporary.parent).free - limits.LEAST_FREE_BYTES)
            command = ["cat", "--", remote]
            result = self._execute(command, deadline, b"", sink=out, most_bytes=room_bytes)
            if not result.ok:
                raise CommandFailed(f"cannot read {remote}: {result.stderr.strip()}")
            temporary.chmod(0o644)

    def close(self) -> None:
        """Close the connection; does nothing if it is closed."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Ssh:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


def succeeded(result: Result) -> Result:
    """Returns `result`; raises CommandFailed with its output if its exit code is not 0."""
    if result.ok:
        return result
    said = (result.stderr or result.stdout).strip().splitlines()
    raise CommandFailed(
        f"`{result.command.splitlines()[0]}` in the guest exited with {result.exit_code}"
        + (f": {said[-1]}" if said else ""),
        detail=result.describe(),
    )
