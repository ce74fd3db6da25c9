"""What every test begins with, whoever runs them and by which command."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def umask() -> Iterator[None]:
    """Files that tests make are open to others, as with most users; `./inv` itself sets 077."""
    before = os.umask(0o022)
    yield
    os.umask(before)
