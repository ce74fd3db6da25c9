"""console: the speed of L2's consoles, and whether all bytes arrive as they were sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.bhyve import streams
from harness.bhyve.l2 import L2
from harness.bhyve.vmm import Vmm
from harness.guest.freebsd import Guest

pytestmark = pytest.mark.vtx

COM_BYTES = 4096
VIRTIO_BYTES = 262_144
# Less than the 64 buffers of 4 KiB that L2 offers: stock closes its socket when all are full.
VIRTIO_IN_BYTES = 131_072
# Two exits to bhyve for a byte cost some ten thousand cycles each, in an emulator as with KVM.
MOST_CYCLES_A_BYTE = {"COM1": 200_000, "virtio": 5_000}

Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def serial(vmm: Vmm) -> Iterator[L2]:
    """A guest with a serial line."""
    inner = L2(vmm, "serial", 32)
    try:
        inner.start()
        yield inner
    finally:
        if not vmm.guest.given_up:
            inner.end()


def test_com1_out(serial: L2, record_property: Note) -> None:
    """bhyve passes on the bytes that L2 sends through COM1 unaltered and in order"""
    stream, came = streams.send(serial, COM_BYTES)
    record_property("COM1, out of L2", stream)
    assert streams.difference(came, streams.sequence(COM_BYTES)) == ""
    assert stream.cycles / COM_BYTES < MOST_CYCLES_A_BYTE["COM1"]


def test_com1_in(guest: Guest, serial: L2, tmp_path: Path, record_property: Note) -> None:
    """L2 reads the bytes that bhyve gets for COM1 unaltered and in order"""
    data = streams.sequence(COM_BYTES).encode()
    local, remote = tmp_path / "bytes", f"{serial.folder}/bytes"
    local.write_bytes(data)
    guest.put(local, remote)
    stream, came = streams.receive(serial, COM_BYTES, remote)
    record_property("COM1, into L2", stream)
    assert hex(came) == hex(streams.checksum(data))
    assert stream.cycles / COM_BYTES < MOST_CYCLES_A_BYTE["COM1"]


# $1 is the socket, $2 the file for its output.
LISTEN = """
for try in 1 2 3 4 5 6 7 8 9; do if [ -S "$1" ]; then break; fi; sleep 0.3; done
nohup nc -d -U "$1" >"$2" 2>&1 </dev/null & echo $!
"""
SIZE = 'stat -f %z "$1"'
# bhyve's thread writes to the socket when L2 runs again.
ARRIVED = """
for try in 1 2 3 4 5 6 7 8 9; do
    if [ "$(stat -f %z "$1")" -ge "$2" ]; then break; fi
    sleep 0.3
done
cat "$1"
"""


def test_virtio_console_out(guest: Guest, vmm: Vmm, record_property: Note) -> None:
    """bhyve passes on the bytes that L2 sends through a virtio console unaltered and in order"""
    inner = L2(vmm, "vcons", 32)
    socket, taken = f"{inner.folder}/port", f"{inner.folder}/taken"
    inner.arguments = ("-c", "1", "-s", f"4,virtio-console,speed={socket}")
    listener = ""
    try:
        inner.start()
        listener = guest.script(LISTEN, socket, taken).stdout.strip()
        # Bytes that are sent before the listener is connected are lost.
        for _ in range(20):
            streams.send_virtio(inner, 1)
            if (before := int(guest.script(SIZE, taken).stdout)) > 0:
                break
        else:
            pytest.fail(f"{socket} has no output")
        stream = streams.send_virtio(inner, VIRTIO_BYTES)
        record_property("virtio console, out of L2", stream)
        came = guest.script(ARRIVED, taken, str(before + VIRTIO_BYTES)).stdout[before:]
        assert streams.difference(came, streams.sequence(VIRTIO_BYTES)) == ""
        assert stream.cycles / VIRTIO_BYTES < MOST_CYCLES_A_BYTE["virtio"]
    finally:
        if not guest.given_up:
            if listener:
                guest.script('kill "$1"', listener, check=False)
            inner.end()


def test_virtio_console_in(guest: Guest, vmm: Vmm, tmp_path: Path, record_property: Note) -> None:
    """L2 reads the bytes that bhyve gets for a virtio console unaltered and in order"""
    inner = L2(vmm, "vconsin", 32)
    socket, remote = f"{inner.folder}/port", f"{inner.folder}/bytes"
    inner.arguments = ("-c", "1", "-s", f"4,virtio-console,speed={socket}")
    data = streams.sequence(VIRTIO_IN_BYTES).encode()
    local = tmp_path / "bytes"
    local.write_bytes(data)
    try:
        inner.start()
        guest.put(local, remote)
        stream, came = streams.receive_virtio(inner, VIRTIO_IN_BYTES, remote, socket)
        record_property("virtio console, into L2", stream)
        assert stream.length_bytes == VIRTIO_IN_BYTES
        assert hex(came) == hex(streams.checksum(data))
        assert stream.cycles / VIRTIO_IN_BYTES < MOST_CYCLES_A_BYTE["virtio"]
    finally:
        if not guest.given_up:
            inner.end()
