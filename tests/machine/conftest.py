"""What tests on real emulators share: the stand-in guest, built once per machine."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from harness.files import PROJECT


def _load(name: str, *below: str) -> ModuleType:
    """A module that belongs to no package, from its file."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PROJECT.joinpath(*below))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


standin_build = _load("standin_build", "images", "standin", "build.py")


@pytest.fixture(scope="session")
def standin() -> standin_build.Standin:
    """The stand-in guest's disk, key and host key.  The first use downloads some 35 MB."""
    return standin_build.build()
