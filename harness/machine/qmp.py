"""Synchronous QMP: runs qemu.qmp in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, cast

from qemu.qmp import QMPClient, QMPError

from harness.deadline import Deadline
from harness.errors import GuestError

T = TypeVar("T")


class Qmp:
    """A QMP session over a connected socket."""

    def __init__(self, connection: socket.socket, name: str, deadline: Deadline) -> None:
        """Take over `connection`; GuestError if QEMU sends no greeting in time."""
        self._connection = connection
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient(name)
        # Its log would go to standard error; errors come back as exceptions.
        self._client.logger.disabled = True
        self.disk_error = ""
        """Why QEMU stopped the guest, after a write to its disk failed."""
        self.resets = 0
        """The number of resets caused by the guest itself."""
        self._listener: concurrent.futures.Future[None] | None = None
        try:
            self._wait(self._client.connect(connection), deadline)
            self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        except BaseException:
            self.close()
            raise

    def _wait(self, work: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout=deadline.remaining_s)
        except TimeoutError:
            future.cancel()
            raise GuestError(
                f"QEMU did not answer over QMP within {deadline.limit_s:.0f} s"
            ) from None
        except (QMPError, OSError, EOFError) as error:
            raise GuestError(f"QMP: {error}") from error

    async def _listen(self) -> None:
        with self._client.listener(("BLOCK_IO_ERROR", "RESET")) as events:
            async for event in events:
                data = cast(dict[str, Any], event["data"])
                if event["event"] == "RESET":
                    self.resets += bool(data.get("guest"))
                elif data.get("action") == "stop":
                    self.disk_error = str(data.get("reason", "a write failed"))

    def execute(
        self, command: str, deadline: Deadline, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Run one QMP command; GuestError with QEMU's message if it is refused or the connection
        ends.
        """
        return self._wait(self._client.execute(command, arguments), deadline)

    def give(self, name: str, fd: int, deadline: Deadline) -> None:
        """Pass QEMU an open file, which commands can then refer to by `name`."""

        async def send() -> None:
            self._client.send_fd_scm(fd)

        self._wait(send(), deadline)
        self.execute("getfd", deadline, {"fdname": name})

    def close(self) -> None:
        """End the session; does nothing if QEMU has ended."""
        if self._listener is not None:
            self._listener.cancel()
        with contextlib.suppress(Exception):
            self._wait(self._client.disconnect(), Deadline.after(2))
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            self._loop.close()
        self._connection.close()
