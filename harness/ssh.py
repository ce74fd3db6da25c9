"""A guest's remote shell: one connection, a pinned host key, nothing of the user's own SSH set-up.

paramiko does the talking.  A command is an argument list, quoted here; a script may be given as
text and is then read by the guest's /bin/sh from standard input, so that nothing is quoted twice.
"""

from __future__ import annotations

import base64
import logging
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from .deadline import Deadline
from .errors import GuestError, WaitTimeout

_TRY_S = 30.0
_PAUSE_S = 0.3
_STEP_S = 0.5
_LEFT_BEHIND_S = 2.0
_CHUNK_BYTES = 1 << 16

# paramiko logs a traceback for every try that meets a guest which is not up yet.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class SshRefused(GuestError):
    """The guest answered and does not let us in, or shows another host key than the pinned."""


class CommandFailed(GuestError):
    """A command in the guest that had to succeed did not."""


@dataclass(frozen=True)
class Address:
    """Where a guest's sshd is, who we are there and whom we expect to meet.

    `host_key` is `type base64`, as learned over the serial line.
    """

    port: int
    private_key: Path
    host_key: str
    user: str = "root"
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended; a negative `exit_code` means that a signal ended it."""

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
        """The command, its exit code and what it printed, for a person."""
        text = f"$ {self.command}\n[exit {self.exit_code}, {self.seconds:.1f} s]"
        for name, data in (("stdout", self.stdout), ("stderr", self.stderr)):
            if data:
                text += f"\n--- {name}\n{data.rstrip()}"
        return text


class Ssh:
    """A connection to a guest; use it as a context manager.

    `watch` is called during every wait and raises when the machine has died or panicked.
    """

    def __init__(self, address: Address, watch: Callable[[], None] = lambda: None) -> None:
        self.address = address
        self._watch = watch
        self._client: paramiko.SSHClient | None = None

    def connect(self, deadline: Deadline) -> None:
        """Connect, trying until the deadline passes.

        Raises SshRefused at once when the guest denies our key or shows another host key (waiting
        would not mend it), what `watch` raises when the machine dies, and WaitTimeout with the last
        try's reason when time runs out.
        """
        reason = "not tried"
        while True:
            self._watch()
            try:
                self._client = self._connect_once(min(_TRY_S, max(1.0, deadline.remaining_s)))
            except paramiko.BadHostKeyException as error:
                raise SshRefused(
                    f"the guest shows the host key {_fingerprint(error.key)}, the prepared image's "
                    f"is {_fingerprint(error.expected_key)}; import the image again, or find out "
                    f"who answers on port {self.address.port}"
                ) from error
            except paramiko.AuthenticationException as error:
                raise SshRefused(
                    f"the guest denied our key for {self.address.user} ({error}); import the image "
                    "again"
                ) from error
            except (TimeoutError, paramiko.SSHException, OSError, EOFError) as error:
                reason = _reason(error)
            else:
                return
            if deadline.remaining_s < _PAUSE_S:
                self._watch()
                raise WaitTimeout(
                    f"no SSH connection to 127.0.0.1:{self.address.port} within "
                    f"{deadline.limit_s:.0f} s; the last try: {reason}"
                )
            time.sleep(_PAUSE_S)

    def _connect_once(self, limit_s: float) -> paramiko.SSHClient:
        kind, data = self.address.host_key.split()[:2]
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        name = f"[{self.address.host}]:{self.address.port}"
        pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(data))
        client.get_host_keys().add(name, kind, pinned)
        try:
            client.connect(
                self.address.host,
                port=self.address.port,
                username=self.address.user,
                key_filename=str(self.address.private_key),
                allow_agent=False,
                look_for_keys=False,
                timeout=limit_s,
                banner_timeout=limit_s,
                auth_timeout=limit_s,
            )
        except BaseException:
            client.close()
            raise
        return client

    def _transport(self) -> paramiko.Transport:
        transport = self._client.get_transport() if self._client else None
        if transport is None or not transport.is_active():
            self._watch()
            raise GuestError("the SSH connection to the guest is gone")
        return transport

    @property
    def connected(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        transport = self._client.get_transport() if self._client else None
        return transport is not None and transport.is_active()

    def run(
        self,
        command: Sequence[str],
        deadline: Deadline,
        *,
        stdin: bytes = b"",
    ) -> Result:
        """Run a command given as an argument list; whatever its exit code, a Result comes back.

        Raises WaitTimeout with what it printed so far when the deadline passes, GuestError when the
        connection breaks, and what `watch` raises when the machine dies.
        """
        return self._execute(shlex.join(command), deadline, stdin)

    def script(self, text: str, deadline: Deadline, arguments: Sequence[str] = ()) -> Result:
        """Run a script with the guest's /bin/sh; `arguments` are its $1 and so on."""
        return self._execute(shlex.join(["/bin/sh", "-s", *arguments]), deadline, text.encode())

    def must(self, command: Sequence[str], deadline: Deadline, *, stdin: bytes = b"") -> str:
        """Run a command that has to exit 0; its standard output, or CommandFailed."""
        return succeeded(self.run(command, deadline, stdin=stdin)).stdout

    def _execute(self, command: str, deadline: Deadline, stdin: bytes) -> Result:
        start = time.monotonic()
        try:
            channel = self._transport().open_session(timeout=max(1.0, deadline.remaining_s))
            channel.settimeout(_STEP_S)
            channel.exec_command(command)
            output, errors = self._exchange(channel, command, deadline, stdin)
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._watch()
            raise GuestError(f"{command}: the SSH connection broke: {_reason(error)}") from error
        code = channel.recv_exit_status()
        channel.close()
        if code == -1 and not self.connected:
            self._watch()
            raise GuestError(f"{command}: the SSH connection broke before it ended")
        return Result(
            command=command,
            exit_code=code,
            stdout=output.decode("utf-8", "replace"),
            stderr=errors.decode("utf-8", "replace"),
            seconds=time.monotonic() - start,
        )

    def _exchange(
        self, channel: paramiko.Channel, command: str, deadline: Deadline, stdin: bytes
    ) -> tuple[bytes, bytes]:
        """Feed standard input and drain both outputs, so that neither side blocks the other."""
        output, errors = bytearray(), bytearray()
        unsent = memoryview(stdin)
        ended_s = 0.0
        if not unsent:
            channel.shutdown_write()
        while True:
            moved = False
            while channel.recv_ready():
                output += channel.recv(_CHUNK_BYTES)
                moved = True
            while channel.recv_stderr_ready():
                errors += channel.recv_stderr(_CHUNK_BYTES)
                moved = True
            if unsent and channel.send_ready():
                sent = channel.send(bytes(unsent[:_CHUNK_BYTES]))
                unsent = unsent[sent:]
                moved = True
                if not unsent:
                    channel.shutdown_write()
            if moved:
                continue
            if channel.closed or (channel.exit_status_ready() and channel.eof_received):
                if not channel.recv_ready() and not channel.recv_stderr_ready():
                    return bytes(output), bytes(errors)
                continue
            if channel.exit_status_ready():
                # sshd tells the status as soon as the command ends; its last output follows, unless
                # a daemon that it left behind holds the pipe open for ever.
                ended_s = ended_s or time.monotonic()
                if time.monotonic() - ended_s > _LEFT_BEHIND_S:
                    return bytes(output), bytes(errors)
                time.sleep(0.005)
                continue
            self._watch()
            if deadline.expired:
                channel.close()
                said = (bytes(output) + bytes(errors)).decode("utf-8", "replace")
                raise WaitTimeout(
                    f"`{command}` in the guest did not end within {deadline.limit_s:.0f} s",
                    detail="\n".join(said.splitlines()[-15:]),
                )
            channel.status_event.wait(0.02)

    def put(self, local: Path, remote: str, deadline: Deadline, mode: int = 0o644) -> None:
        """Copy a file into the guest; the remote name appears when the file is whole."""
        script = 'cat >"$1.part" && chmod "$2" "$1.part" && mv "$1.part" "$1"'
        command = ["/bin/sh", "-c", script, "put", remote, f"{mode:o}"]
        result = self.run(command, deadline, stdin=local.read_bytes())
        if not result.ok:
            raise CommandFailed(f"cannot copy {local.name} to {remote}: {result.stderr.strip()}")

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy a file out of the guest."""
        channel_result = self.run(["base64", remote], deadline)
        if not channel_result.ok:
            raise CommandFailed(f"cannot read {remote}: {channel_result.stderr.strip()}")
        local.write_bytes(base64.b64decode(channel_result.stdout))

    def close(self) -> None:
        """End the connection; harmless when it is gone."""
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
    """`result`, or CommandFailed with what it printed when its exit code is not 0."""
    if result.ok:
        return result
    said = (result.stderr or result.stdout).strip().splitlines()
    raise CommandFailed(
        f"`{result.command.splitlines()[0]}` in the guest exited with {result.exit_code}"
        + (f": {said[-1]}" if said else ""),
        detail=result.describe(),
    )


def make_key(path: Path, comment: str) -> str:
    """Write a new Ed25519 private key to `path` (mode 0600); its line for authorized_keys."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(private)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{public.decode()} {comment}"


def _fingerprint(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()[:16]}..."


def _reason(error: BaseException) -> str:
    """Why a try failed, told apart: nobody listens, silence, no banner, cut off."""
    text = str(error)
    if isinstance(error, ConnectionRefusedError) or "Unable to connect" in text:
        return "connection refused (sshd is not up, or the network is not)"
    if "banner" in text:
        return "connected, but no SSH banner came (sshd is not up yet, or hangs)"
    if isinstance(error, TimeoutError | socket.timeout):
        return "no answer"
    if isinstance(error, EOFError | ConnectionResetError):
        return "the connection was cut off"
    return text or type(error).__name__
