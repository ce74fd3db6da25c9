"""One way to run a program: an argument list, a deadline, a clean environment, bounded output.

The program runs in a process group of its own, and the whole group ends with it: background
processes that it left, everything that runs at the deadline, and everything after an interrupt.
Its output goes to the logger `harness.process`, so that a run's log has the output of every
program.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, TypeAlias

from harness.deadline import Deadline
from harness.errors import CannotError

Line: TypeAlias = "Connection[Any, Any]"
"""The connection over which two of our processes send each other Python objects."""

OUTPUT_MOST_BYTES = 16 << 20
"""The bytes of a program's output that are stored by default; a longer output is cut."""

LIMIT_S = 120.0
"""The deadline of a program that should end quickly."""

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 16
_GRACE_S = 5.0
_WATCH_S = 0.25
_LOGGED_CHARACTERS = 4000
# The variables of the caller's environment that a program gets.  Others may contain secrets, or
# change what the program does.
_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TERM", "TZ")


class Unfinished(CannotError):
    """A program was still running at its deadline, and was ended."""


@dataclass(frozen=True)
class Finished:
    """How a program ended; `code` is negative for the signal that ended it.

    `cut` says that output beyond the bound was dropped.
    """

    command: tuple[str, ...]
    code: int
    output: bytes
    errors: bytes
    cut: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.code == 0

    @property
    def stdout(self) -> str:
        """Its standard output as text; bytes that are not UTF-8 are replaced."""
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its standard error as text; bytes that are not UTF-8 are replaced."""
        return self.errors.decode(errors="replace")


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for programs: a few of the caller's variables, LC_ALL=C, and `more`."""
    kept = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return {"PATH": "/usr/bin:/bin", **kept, "LC_ALL": "C", **(more or {})}


def run(
    command: Sequence[str | os.PathLike[str]],
    deadline: Deadline | None = None,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    given: bytes | None = None,
    merged: bool = False,
    most_bytes: int = OUTPUT_MOST_BYTES,
    pass_fds: Sequence[int] = (),
    sink: Callable[[bytes], None] | None = None,
    watch: Callable[[], None] | None = None,
) -> Finished:
    """Run `command` to its end.

    `environment` is its complete environment (default: `clean_environment()`).  `given` is its
    standard input (default: empty).  `merged` sends its standard error to its standard output.
    `sink` gets the output as it comes, up to the same bound.  `watch` is called now and then; an
    exception from it ends the program.  Raises CannotError when the program cannot be run,
    Unfinished at the deadline (default: LIMIT_S).
    """
    words = tuple(os.fspath(word) for word in command)
    deadline = deadline or Deadline.after(LIMIT_S)
    try:
        with _signals_wait() as arrived:
            child = subprocess.Popen(
                words,
                cwd=cwd,
                env=clean_environment() if environment is None else dict(environment),
                stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merged else subprocess.PIPE,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
                bufsize=0,
            )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotError(f"{words[0]}: cannot be run: {reason}") from error
    exchange = _Exchange(child, given or b"", most_bytes, sink)
    try:
        if arrived:
            signal.raise_signal(arrived[0])
        in_time = exchange.until_end(deadline, watch)
    except BaseException:
        end_group(child)
        raise
    end_group(child, at_once=in_time)
    output, errors = (bytes(exchange.read.get(it, b"")) for it in (child.stdout, child.stderr))
    # A name that is not UTF-8 must not break the log.
    called = shlex.join(words).encode(errors="backslashreplace").decode()
    _log.debug("%s: exit code %d\n%s", called, child.returncode, _ends(output + errors))
    if not in_time:
        raise Unfinished(
            f"{Path(words[0]).name} did not end within {deadline.limit_s:.0f} s and was ended",
            detail="\n".join((output + errors).decode(errors="replace").splitlines()[-20:]),
        )
    return Finished(words, child.returncode, output, errors, exchange.cut)


def end_group(child: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
    """End a child that leads a process group, with all of its group, and collect it.

    It is killed with SIGKILL, after a grace time or (`at_once`) immediately.  The group's number
    cannot belong to another process meanwhile, because the child is collected only after the last
    signal.
    """
    if child.returncode is not None:
        return
    if not at_once:
        _signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(child.pid)
            with selectors.DefaultSelector() as selector, open(handle, "rb", buffering=0) as ended:
                selector.register(ended, selectors.EVENT_READ)
                selector.select(_GRACE_S)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def start_with_line(
    command: Sequence[str], cwd: Path, log: Path
) -> tuple[subprocess.Popen[bytes], Line]:
    """Start a program in a session of its own, connected by a socket; its output goes to `log`.

    Its last argument is the number of its descriptor of the socket.  It runs in `cwd`, so that it
    neither blocks the caller's folder nor imports modules from there.
    """
    ours, theirs = socket.socketpair()
    with theirs, log.open("ab") as output:
        child = subprocess.Popen(
            [*command, str(theirs.fileno())],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    return child, Connection(ours.detach())


@contextlib.contextmanager
def _signals_wait() -> Iterator[list[int]]:
    """Delay the handlers of SIGINT, SIGTERM and SIGHUP; yields the signals that arrived.

    If a handler raised an exception within Popen, the child would run on unnoticed.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, lambda got, _frame: arrived.append(got))
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Exchange:
    """The input and output of a child until it ends."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        given: bytes,
        most_bytes: int,
        sink: Callable[[bytes], None] | None,
    ) -> None:
        self._child = child
        self._given = memoryview(given)
        self._most = most_bytes
        self._sink = sink
        self.read: dict[IO[bytes] | None, bytearray] = {}
        self.cut = False

    def until_end(self, deadline: Deadline, watch: Callable[[], None] | None) -> bool:
        """Serve the pipes until the child has ended or the time has run out; whether it ended."""
        watched = Deadline.after(0)
        with selectors.DefaultSelector() as selector:
            # Wait for the child's end, not for that of its pipes, which a daemon may keep open for
            # ever.
            ended = os.pidfd_open(self._child.pid)
            try:
                selector.register(ended, selectors.EVENT_READ)
                for stream in (self._child.stdout, self._child.stderr):
                    if stream:
                        os.set_blocking(stream.fileno(), False)
                        self.read[stream] = bytearray()
                        selector.register(stream, selectors.EVENT_READ)
                if self._child.stdin:
                    os.set_blocking(self._child.stdin.fileno(), False)
                    selector.register(self._child.stdin, selectors.EVENT_WRITE)
                while not deadline.expired:
                    if watch is not None and watched.expired:
                        watch()
                        watched = Deadline.after(_WATCH_S)
                    step_s = deadline.remaining_s if watch is None else watched.remaining_s
                    ready = [key.fileobj for key, _ in selector.select(step_s)]
                    for it in ready:
                        if it != ended and not self._serve(it):  # type: ignore[arg-type]
                            selector.unregister(it)
                    if ready == [ended] or (ended in ready and self._drained()):
                        return True
                return False
            finally:
                os.close(ended)

    def _drained(self) -> bool:
        """Read the rest of an ended child's output from its pipes."""
        for stream in self.read:
            while stream and not stream.closed and self._take(stream):
                if self.cut:
                    break
        return True

    def _serve(self, stream: IO[bytes]) -> bool:
        """Copy available bytes; False at the end of the stream."""
        if stream is self._child.stdin:
            try:
                self._given = self._given[os.write(stream.fileno(), self._given[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                return True
            except OSError:
                self._given = self._given[:0]
            if not self._given:
                with contextlib.suppress(OSError):
                    stream.close()
            return bool(self._given)
        return self._take(stream) != b""

    def _take(self, stream: IO[bytes]) -> bytes | None:
        """The next bytes of a stream; empty at its end, None if there are none yet."""
        try:
            chunk = os.read(stream.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        kept = self.read[stream]
        room = self._most - len(kept)
        self.cut |= len(chunk) > room
        if room > 0 and chunk:
            kept += chunk[:room]
            if self._sink:
                self._sink(chunk[:room])
        return chunk


def _ends(output: bytes) -> str:
    """The beginning and the end of a long output."""
    text = output.decode(errors="replace")
    if len(text) <= 2 * _LOGGED_CHARACTERS:
        return text
    return f"{text[:_LOGGED_CHARACTERS]}\n[...]\n{text[-_LOGGED_CHARACTERS:]}"
