"""The checksum of what L2 reads from its consoles."""

from __future__ import annotations

import pytest

from harness.bhyve import streams

LENGTH = 131_072


@pytest.mark.parametrize("step", [1, 1000, 1024, 2048, 4096, 8192, LENGTH])
def test_the_checksum_notices_a_bit_that_is_wrong_in_every_piece(step: int) -> None:
    """A sum of powers of 31 did not: in 32 pieces of 4 KiB the changes cancelled each other."""
    right = streams.sequence(LENGTH).encode()
    wrong = bytearray(right)
    wrong[::step] = bytes(byte ^ 1 for byte in right[::step])
    assert streams.checksum(bytes(wrong)) != streams.checksum(right)


def test_the_checksum_depends_on_order_and_length() -> None:
    right = streams.sequence(64).encode()
    assert len({streams.checksum(it) for it in (right, right[::-1], right[:-1], right[1:])}) == 4
