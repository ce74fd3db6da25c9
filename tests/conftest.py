"""Set-up for every test, independent of the user and the command."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# A shell lets what runs in the background ignore SIGINT, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def umask() -> Iterator[None]:
    """Files that tests make are open to others, as with most users; `./inv` itself sets 077."""
    before = os.umask(0o022)
    yield
    os.umask(before)
