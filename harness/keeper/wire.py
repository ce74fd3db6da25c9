"""The protocol between a keeper and other processes: a line of JSON there, a line of JSON back.

The socket is in the run's folder, which only its owner can enter.  It is addressed through the open
folder (/proc/self/fd), so that its path is short wherever the folder is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import CannotError, WaitTimeout
from harness.keeper.record import Record

_SOCKET = "keeper.sock"
_ANSWER_S = 10.0
_LINE_BYTES = 65536


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{_SOCKET}"
    finally:
        os.close(handle)


def listen(folder: Path) -> socket.socket:
    """Open the keeper's socket; CannotError if the file system has no sockets."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        (folder / _SOCKET).unlink(missing_ok=True)
        with _short(folder) as address:
            listener.bind(address)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise CannotError(
            f"{folder / _SOCKET}: cannot listen there: {error.strerror}; set HARNESS_RUNS to a "
            "folder of a local file system"
        ) from error
    return listener


def send(connection: socket.socket, data: Mapping[str, object]) -> None:
    """Send one line."""
    connection.sendall(json.dumps(data).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, Any]:
    """Receive exactly one line; EOFError if the other side closes the connection."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > _LINE_BYTES:
            raise EOFError
        line += byte
    return dict(json.loads(line))


def call(
    record: Record, request: str, *, timeout_s: float = _ANSWER_S, **more: object
) -> dict[str, Any]:
    """Send the keeper a request; returns its answer.  Raises the errors of `converse`."""
    connection, answer = converse(record, request, timeout_s=timeout_s, **more)
    connection.close()
    return answer


def converse(
    record: Record, request: str, *, timeout_s: float = _ANSWER_S, **more: object
) -> tuple[socket.socket, dict[str, Any]]:
    """Send a request and keep the connection; CannotError if it fails or is refused,
    WaitTimeout.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        with _short(record.run_dir) as address:
            connection.connect(address)
        send(connection, {"request": request, **more})
        answer = receive(connection)
        connection.settimeout(None)
    except TimeoutError as error:
        connection.close()
        raise WaitTimeout(
            f"guest {record.name}: its keeper, process {record.owner.pid}, did not answer within "
            f"{timeout_s:.0f} s; ./inv down --name {record.name} ends both"
        ) from error
    except (OSError, EOFError, ValueError, TypeError) as error:
        connection.close()
        raise CannotError(
            f"guest {record.name}: its keeper, process {record.owner.pid}, does not "
            f"accept the request "
            f"({error or 'it closed the connection'}); its log is {record.run_dir / 'keeper.log'}"
        ) from error
    if refusal := answer.get("refused"):
        connection.close()
        raise CannotError(f"guest {record.name}: {refusal}")
    return connection, answer
