"""Measures L2's consoles: sends bytes through them, checks them, and computes the speed.

The ROM (images/l2rom/stream.c) sends a sequence that is determined by its length, so that a lost,
doubled or moved byte is noticed.  It measures by its time-stamp counter, whose frequency L1 knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.bhyve.l2 import L2
from harness.errors import GuestError

_CYCLES = r"cycles 0x([0-9a-f]+) 0x([0-9a-f]+)"
_SENT = re.compile(rf"L2ROM sent (\d+), {_CYCLES}")
_SENT_VIRTIO = re.compile(rf"L2ROM sent (\d+) by virtio, {_CYCLES}")
_READ = re.compile(rf"L2ROM read (\d+), sum 0x([0-9a-f]+), {_CYCLES}")
_READ_VIRTIO = re.compile(rf"L2ROM read (\d+) by virtio, sum 0x([0-9a-f]+), {_CYCLES}")
_READS = re.compile(r"L2ROM reads")
_BEGINS = "L2ROM stream begins\n"
_FREQUENCY = "machdep.tsc_freq"
_BYTE_S = 0.01
_VIRTIO_BYTE_S = 0.0002
_WAIT_S = 20.0


@dataclass(frozen=True)
class Stream:
    """A number of bytes, the cycles that they took, and the counter's ticks per second."""

    length_bytes: int
    cycles: int
    hz: int

    @property
    def bytes_a_second(self) -> float:
        """The speed by L1's clock."""
        return self.length_bytes * self.hz / self.cycles

    def __str__(self) -> str:
        each = self.cycles / self.length_bytes
        return f"{self.bytes_a_second:,.0f} bytes/s, {each:,.0f} cycles a byte"


def sequence(length_bytes: int) -> str:
    """The bytes that the ROM sends for a given length."""
    seed, found = length_bytes, []
    for _ in range(length_bytes):
        seed = (seed * 1103515245 + 12345) & 0xFFFFFFFF
        found.append(chr(33 + (seed >> 16 & 0x7FFF) % 94))
    return "".join(found)


def checksum(data: bytes) -> int:
    """The ROM's checksum of the bytes that it read; it depends on their order."""
    total = 0
    for byte in data:
        total = ((total ^ byte) * 16777619) & 0xFFFFFFFF
        total ^= total >> 15
    return total


def difference(got: str, wanted: str) -> str:
    """Describes the first difference between two streams; empty if they are equal."""
    if got == wanted:
        return ""
    at = next(
        (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b),
        min(len(got), len(wanted)),
    )
    return (
        f"{len(got)} bytes of {len(wanted)} came; byte {at} is the first that is wrong: "
        f"{got[at : at + 16]!r}, not {wanted[at : at + 16]!r}"
    )


def send(l2: L2, length_bytes: int) -> tuple[Stream, str]:
    """Let L2 send through COM1; returns the speed, and the output of bhyve.

    Raises GuestError if bhyve ends before that, or if nothing came.
    """
    found = l2.ask(f"o{length_bytes}", _SENT, l2.vmm.guest.deadline(_limit_s(length_bytes)))
    _, begun, rest = l2.output().rpartition(_BEGINS)
    if not begun:
        raise GuestError(f"L2 {l2.name}: {_BEGINS.strip()!r} is not in what it printed")
    # The line break before the last line is not part of the stream.
    return _stream(l2, length_bytes, found[2], found[3]), rest.rpartition("\nL2ROM sent ")[0]


def receive(l2: L2, length_bytes: int, remote: str) -> tuple[Stream, int]:
    """Let L2 read a file of L1 through COM1; returns the speed and the checksum.

    Raises GuestError if bhyve ends before that.
    """
    l2.ask(f"i{length_bytes}", _READS)
    l2.feed(remote)
    found = l2.ask("", _READ, l2.vmm.guest.deadline(_limit_s(length_bytes)))
    return _stream(l2, length_bytes, found[3], found[4]), int(found[2], 16)


def send_virtio(l2: L2, length_bytes: int) -> Stream:
    """Let L2 send through its virtio console; returns the speed.  GuestError if bhyve ends
    early.
    """
    limit = l2.vmm.guest.deadline(_limit_s(length_bytes))
    found = l2.ask(f"v{length_bytes}", _SENT_VIRTIO, limit)
    return _stream(l2, length_bytes, found[2], found[3])


# $1 a file, $2 the socket.
_SEND = 'nc -N -U "$2" <"$1"'


def receive_virtio(l2: L2, length_bytes: int, remote: str, socket: str) -> tuple[Stream, int]:
    """Let L2 read a file of L1 through its virtio console; returns the speed and the checksum.

    L1 writes the file to the console's `socket`.  Raises GuestError if bhyve ends early, and
    CommandFailed if it closes the socket before everything was written.
    """
    limit = l2.vmm.guest.deadline(_WAIT_S + length_bytes * _VIRTIO_BYTE_S)
    l2.ask(f"j{length_bytes}", _READS)
    l2.vmm.guest.script(_SEND, remote, socket, deadline=limit)
    found = l2.ask("", _READ_VIRTIO, limit)
    return _stream(l2, int(found[1]), found[3], found[4]), int(found[2], 16)


def _limit_s(length_bytes: int) -> float:
    return _WAIT_S + length_bytes * _BYTE_S


def _stream(l2: L2, length_bytes: int, high: str, low: str) -> Stream:
    hz = l2.vmm.guest.number(_FREQUENCY)
    return Stream(length_bytes, int(high, 16) << 32 | int(low, 16), hz)
