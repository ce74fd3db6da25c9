"""Fixtures for tests on real emulators: the stand-in guest, and the Bochs of both Debians.

Each is made once per machine: the stand-in from Debian packages, and the Bochs that is not
installed from the other Debian's packages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import backends
import pytest
from backends import BOCHS_VERSIONS, EMULATORS, QEMU

from harness.deadline import Deadline
from harness.errors import CannotError
from harness.files import PROJECT
from harness.guest import snapshot
from harness.guest.freebsd import Access, Guest
from harness.machine import Drive, Spec, bochs_packages, bochs_program


def _load(name: str, *below: str) -> ModuleType:
    """Load a module outside any package from its file."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PROJECT.joinpath(*below))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


standin_build = _load("standin_build", "images", "standin", "build.py")


@pytest.fixture(scope="session")
def standin() -> Any:
    """The stand-in guest's disk, key and host key.  The first use downloads some 35 MB."""
    return standin_build.build()


@pytest.fixture(scope="session")
def access(standin: Any) -> Access:
    """The stand-in's key and host key."""
    return Access(standin.private_key, standin.host_key)


@pytest.fixture(scope="session")
def spec(standin: Any, tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A machine with a disk of its own, whose snapshots are beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    disk = folder / "disk.raw"
    shutil.copyfile(standin.disk, disk)
    return Spec(folder / "run", Drive(disk), memory_bytes=384 << 20, name="stand-in")


@pytest.fixture(scope="session")
def booted(spec: Spec, access: Access) -> Iterator[Guest]:
    """A guest that was booted and saved, and continues; no test that uses it changes it."""
    guest, note = snapshot.bring_up(
        lambda wanted: backends.make(QEMU, wanted), spec, access, "image"
    )
    try:
        assert note == "booted: there is no snapshot yet; saved a snapshot"
        yield guest
    finally:
        guest.disconnect()
        guest.machine.stop(Deadline.after(5))


@pytest.fixture(scope="session")
def nested() -> ModuleType:
    """The module that makes and runs a Linux with KVM.  The first use downloads about 30 MB."""
    return _load("nested_build", "images", "nested", "nested.py")


@contextlib.contextmanager
def _bochs_of(version: str) -> Iterator[None]:
    """Use this version of Bochs; skip the test if it cannot be obtained."""
    own = bochs_program.installed()
    with pytest.MonkeyPatch.context() as patch:
        if own and own.version == version:
            patch.delenv(bochs_program.VARIABLE, raising=False)
        else:
            try:
                place = bochs_packages.unpack(version)
            except CannotError as error:
                pytest.skip(f"Bochs {version} is not here: {error.message}")
            patch.setenv(bochs_program.VARIABLE, str(place))
        yield


@pytest.fixture(scope="module", params=BOCHS_VERSIONS)
def each_bochs(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each version of Bochs; returns the version."""
    with _bochs_of(request.param):
        yield request.param


@pytest.fixture(params=EMULATORS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test in each emulator, including each Bochs; returns the backend's name."""
    name, _, version = request.param.partition(" ")
    with _bochs_of(version) if version else contextlib.nullcontext():
        yield name
