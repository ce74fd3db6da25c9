"""Loading the module and reading vmmls, with a fake guest."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Answer, FakeGuest

from harness.bhyve import vmm, vmm_module
from harness.bhyve.vmm import Listed, Listing, Memory, Vmm, parse_listing
from harness.bhyve.vmm_module import LoadedModule
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, PatchError
from harness.guest.ssh import CommandFailed, Result

BUILD_ID = "0123456789abcdef0123456789abcdef"
KERNEL = " 1 12 0xffffffff80200000 1f3f2d0 kernel (/boot/kernel/kernel)\n"
# In the place of FreeBSD's programs: what the scripts of a load call.  $STATE/loaded has the lines
# of kldstat about vmm.ko.
PROGRAMS = {
    "kldstat": """
if [ "$1" = -q ]; then [ -s "$STATE/loaded" ]; exit; fi
cat "$STATE/kernel" "$STATE/loaded"
""",
    "kldunload": """
if [ -e "$STATE/busy" ]; then
    echo "kldunload: can't unload file: Device busy" >&2
    exit 1
fi
: >"$STATE/loaded"
""",
    "kenv": "",
    "sysctl": 'cat "$STATE/sysctls"',
    "sha256": 'sha256sum "$2" | cut -d " " -f 1',
}


class LocalGuest(FakeGuest):
    """A guest whose shell scripts run on this host, with PROGRAMS in the path."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.state = folder
        (folder / "bin").mkdir()
        for name, text in PROGRAMS.items():
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\necho {name} "$@" >>"$STATE/said"\n{text}\n')
            program.chmod(0o755)
        (folder / "kernel").write_text(KERNEL)
        (folder / "loaded").write_text("")

    def run(
        self, command: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b""
    ) -> Result:
        if command[0] != "/bin/sh":
            return super().run(command, deadline, stdin=stdin)
        self.said.append("a script")
        path = f"{self.state / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": path, "STATE": str(self.state)},
        )
        return Result(" ".join(command), done.returncode, done.stdout, done.stderr, 0.1)

    def put(self, local: Path, remote: str, mode: int = 0o644) -> None:
        super().put(local, remote, mode)
        Path(remote).write_bytes(local.read_bytes())


class Loading:
    """A guest before and after kldload."""

    def __init__(self, folder: Path) -> None:
        module = folder / "vmm.ko"
        module.write_bytes(b"the module")
        self.header = folder / "include/dev/vmm/vmm_dev.h"
        self.header.parent.mkdir(parents=True)
        self.header.write_text("#define VMMCTL_VM_CREATE 1\n")
        self.remote = str(folder / "home" / BUILD_ID[:16] / "vmm.ko")
        self.build: Any = SimpleNamespace(
            module=module,
            key=BUILD_ID,
            build_id=BUILD_ID,
            osversion=1501000,
            include=folder / "include",
        )
        self.guest = LocalGuest(folder)
        self.guest.answers["kldload"] = self.load
        self.paths = [self.remote]
        self.says = ""
        self.answer: Answer = (0, "", "")
        self.sysctls("kern.osreldate=1501000", "kern.build_id=abc", "kern.features.invariants=1")

    def sysctls(self, *lines: str) -> None:
        (self.guest.state / "sysctls").write_text("".join(f"{line}\n" for line in lines))

    def loads(self, *paths: str) -> None:
        """From now on the kernel has these modules named vmm.ko."""
        lines = "".join(f" 2 1 0xffffffff82a00000 4d5e8 vmm.ko ({path})\n" for path in paths)
        (self.guest.state / "loaded").write_text(lines)

    def load(self) -> Answer:
        self.guest.machine.console.text += self.says  # type: ignore[attr-defined]
        assert isinstance(self.answer, tuple)
        if self.answer[0] == 0:
            self.loads(*self.paths)
        return self.answer

    def said(self) -> list[str]:
        """The programs that the scripts called."""
        return (self.guest.state / "said").read_text().splitlines()

    def tried(self) -> bool:
        return any(line.startswith("kldload") for line in self.guest.said)

    def run(self) -> LoadedModule:
        return vmm_module.load(self.guest, self.build)


@pytest.fixture
def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    monkeypatch.setattr(vmm_module, "HOME", str(tmp_path / "home"))
    monkeypatch.setattr(vmm_module, "CONTROL", str(tmp_path / "vmmctl"))
    (tmp_path / "vmmctl").touch()
    return Loading(tmp_path)


def test_a_module_is_loaded_by_its_absolute_path(loading: Loading) -> None:
    loaded = loading.run()
    assert loaded == LoadedModule(
        loading.remote,
        BUILD_ID,
        hashlib.sha256(b"the module").hexdigest(),
        virtualizes=True,
        refusal="",
        kernel_build_id="abc",
        kernel_invariants=True,
    )
    assert loading.guest.files == {loading.remote: b"the module"}
    assert loading.guest.said == ["a script", f"kldload {loading.remote}", "a script"]
    assert "kenv hw.vmm.maxcpu=4" in loading.said()
    # It has just been sent, so nobody computes its digest there.
    assert not any(line.startswith("sha256") for line in loading.said())


def test_a_module_that_is_there_already_is_not_sent_again(loading: Loading) -> None:
    loading.run()
    loading.guest.put = None  # type: ignore[method-assign, assignment]
    assert loading.run().virtualizes


def test_another_file_in_its_place_is_replaced(loading: Loading) -> None:
    loading.run()
    Path(loading.remote).write_bytes(b"not the module")
    assert loading.run().virtualizes
    assert Path(loading.remote).read_bytes() == b"the module"


def test_a_module_that_is_loaded_already_goes_first(loading: Loading) -> None:
    loading.loads("/boot/kernel/vmm.ko")
    loading.run()
    assert "kldunload vmm" in loading.said()
    (loading.guest.state / "busy").touch()
    with pytest.raises(CommandFailed, match="Device busy"):
        loading.run()


@pytest.mark.parametrize("running", [1500068, 1403000, 1600001])
def test_another_kernel_is_refused_before_anything_is_loaded(
    loading: Loading, running: int
) -> None:
    loading.sysctls(f"kern.osreldate={running}")
    with pytest.raises(CannotError, match=rf"runs FreeBSD {running}, .* is 1501000.*--src"):
        loading.run()
    assert not loading.tried()


@pytest.mark.parametrize("lines", [(), ("kern.osreldate=many",), ("kern.build_id=1",)])
def test_a_guest_that_does_not_say_what_it_is(loading: Loading, lines: tuple[str, ...]) -> None:
    loading.sysctls(*lines)
    with pytest.raises(GuestError, match="does not say which FreeBSD"):
        loading.run()
    assert not loading.tried()


def test_a_newer_kernel_of_the_same_release_will_do(loading: Loading) -> None:
    loading.sysctls("kern.osreldate=1501500")
    loaded = loading.run()
    assert loaded.virtualizes
    assert (loaded.kernel_build_id, loaded.kernel_invariants) == ("", False)


def test_a_kernel_that_refuses_the_module(loading: Loading) -> None:
    loading.answer = (1, "", "kldload: can't load vmm.ko: Exec format error\n")
    loading.says = "link_elf_obj: symbol vm_foo undefined\r\n"
    with pytest.raises(PatchError, match=r"refuses the module: .*Exec format") as caught:
        loading.run()
    assert "vm_foo undefined" in caught.value.detail


@pytest.mark.parametrize(
    "words",
    [
        "vmx_modinit: processor does not support VMX operation",
        "SVM: Nested Paging not supported",
        "vmx_init: ept initialization failed (22)",
    ],
)
def test_a_processor_that_is_not_up_to_it_is_no_fault_of_the_module(
    loading: Loading, words: str
) -> None:
    """13.2 fails the load then."""
    loading.answer = (1, "", "kldload: can't load vmm.ko: Operation not supported\n")
    loading.says = f"{words}\r\n"
    loaded = loading.run()
    assert not loaded.virtualizes
    assert loaded.refusal == words


def test_a_load_that_succeeds_proves_no_virtualization(loading: Loading) -> None:
    """15.1 loads without VT-x; only the missing /dev/vmmctl shows it."""
    (loading.guest.state / "vmmctl").unlink()
    assert loading.run().refusal == f"{loading.guest.state}/vmmctl is missing"
    loading.says = "noise\r\nvmx_modinit: processor does not support desired pinbased controls\r\n"
    loaded = loading.run()
    assert not loaded.virtualizes
    assert loaded.refusal.startswith("vmx_modinit: ")


def test_a_release_without_the_control_device_makes_vms_without_it(loading: Loading) -> None:
    """14 has no /dev/vmmctl; there the load itself fails on a processor that does not virtualize.

    Its header of ioctls is in another folder, and says nothing of such a device.
    """
    (loading.guest.state / "vmmctl").unlink()
    loading.header.unlink()
    older = loading.build.include / "machine/vmm_dev.h"
    older.parent.mkdir()
    older.write_text("#define VM_RUN 1\n")
    assert loading.run().virtualizes
    older.write_text("#define VMMCTL_VM_CREATE 1\n")
    assert loading.run().refusal == f"{loading.guest.state}/vmmctl is missing"


@pytest.mark.parametrize("paths", [("/boot/kernel/vmm.ko",), (), ("", "/boot/kernel/vmm.ko")])
def test_another_module_that_runs_is_found_out(loading: Loading, paths: tuple[str, ...]) -> None:
    loading.paths = [path or loading.remote for path in paths]
    with pytest.raises(GuestError, match=rf"loaded {loading.remote}, but the kernel runs"):
        loading.run()


def listing(**changes: Any) -> str:
    top = {
        "virtual-machine": [
            {"name": "one", "owner": "me", "vcpus": 2, "state": "running"}
            | {"memory": 3, "wired": 1, "resident": 2, "lowmem": 2, "highmem": 1},
            {"name": "closed", "owner": "root"},
        ],
        "total": 30,
        "allocated": 10,
        "device": 5,
        "free": 15,
    }
    return json.dumps({"vmm": {**top, **changes}})


def test_a_listing_is_read() -> None:
    assert parse_listing(listing()) == Listing(
        vms=(Listed("one", "me", 2, "running", 3, 1, 2, 2, 1), Listed("closed", "root")),
        memory=Memory(total_bytes=30, allocated_bytes=10, free_bytes=15, device_bytes=5),
    )
    empty = json.dumps({"vmm": {"total": 1, "allocated": 0, "device": 0, "free": 1}})
    assert parse_listing(empty).vms == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NAME MEMORY",
        "[]",
        "{}",
        '{"vmm": []}',
        '{"vmm": {"total": 1}}',
        listing(total="30"),
        listing(free=None),
        listing(allocated=True),
        listing(allocated=1.5),
        listing(**{"virtual-machine": None}),
        listing(**{"virtual-machine": {"name": "x"}}),
        listing(**{"virtual-machine": [{"memory": 1}]}),
        listing(**{"virtual-machine": [{"name": 7}]}),
        listing(**{"virtual-machine": [{"name": "x"}]}),
        listing(**{"virtual-machine": [{"name": "x", "owner": "y", "memory": "1G"}]}),
        listing(**{"virtual-machine": [{"name": "x", "owner": "y", "vcpus": "1"}]}),
        listing(device=None),
    ],
)
def test_a_listing_that_is_not_as_documented(text: str) -> None:
    with pytest.raises(CommandFailed, match="not in the documented form") as caught:
        parse_listing(text)
    assert caught.value.detail == text


@pytest.fixture
def tools(tmp_path: Path) -> Vmm:
    files = {}
    for name in ("libvmmapi.so.7", "vmmls", "vmtool"):
        files[name] = tmp_path / name
        files[name].write_bytes(name.encode())
    build: Any = SimpleNamespace(
        library=files["libvmmapi.so.7"], tool=files["vmmls"], programs=(), reached=()
    )
    loaded = LoadedModule("/home/vmm.ko", BUILD_ID, "", virtualizes=True, refusal="")
    guest = FakeGuest(
        {
            "sysctl -n hw.vmm": (0, "30\n10\n15\n5\n", ""),
            "/home/vmtool memory": (0, "total 30\nallocated 10\ndevice 5\nfree 15\n", ""),
        }
    )
    return Vmm(guest, loaded, build, files["vmtool"])


def test_tools_lie_beside_the_module(tools: Vmm) -> None:
    guest = tools.guest
    assert isinstance(guest, FakeGuest)
    assert set(guest.files) == {"/home/libvmmapi.so.7", "/home/vmmls", "/home/vmtool"}
    assert tools.memory == tools.library_memory() == Memory(30, 10, 15, 5)
    assert (tools.mem_total_bytes, tools.mem_allocated_bytes, tools.mem_free_bytes) == (30, 10, 15)


def test_what_was_made_is_destroyed(tools: Vmm) -> None:
    guest = tools.guest
    assert isinstance(guest, FakeGuest)
    tools.create("one", 5)
    tools.create("two", 5, 7)
    tools.destroy("one")
    tools.create("gone")
    guest.answers["/home/vmtool create no"] = (1, "", "vmtool: ENOMEM\n")
    with pytest.raises(CommandFailed, match="ENOMEM"):
        tools.create("no")
    guest.said.clear()
    tools.destroy_all()
    tools.destroy_all()
    assert guest.said == ["/home/vmtool clean two gone"]


@pytest.mark.parametrize(
    ("kernel", "module", "words"),
    [
        (True, True, ""),
        (False, False, ""),
        (True, False, "the kernel was built with INVARIANTS, the module without"),
        (False, True, "the module was built with INVARIANTS, the kernel without"),
    ],
)
def test_kernel_and_module_may_disagree_about_invariants(
    kernel: bool, module: bool, words: str
) -> None:
    loaded = LoadedModule("", "", "", virtualizes=True, refusal="", kernel_invariants=kernel)
    build: Any = SimpleNamespace(invariants=module)
    said = vmm_module.invariants_differ(loaded, build)
    assert said.startswith(words)
    assert bool(said) == bool(words)


@pytest.mark.parametrize(
    ("reached", "programs", "wrapped"),
    [
        ((), (), ()),
        (("vmm.ko",), (), ()),
        (("libvmmapi",), (), ("bhyve", "bhyvectl", "bhyveload")),
        (("libvmmapi", "bhyve"), ("bhyve",), ("bhyvectl", "bhyveload")),
    ],
)
def test_the_guest_s_programs_use_a_library_that_a_series_changed(
    reached: tuple[str, ...], programs: tuple[str, ...], wrapped: tuple[str, ...]
) -> None:
    build: Any = SimpleNamespace(
        library=Path("x"), programs=tuple(map(Path, programs)), reached=reached
    )
    assert vmm.through_library(build) == wrapped
    build.library = None
    assert vmm.through_library(build) == ()


def test_the_wrapper_runs_the_system_s_program_with_the_library(tmp_path: Path) -> None:
    home, system, user = (tmp_path / name for name in ("home", "sbin", "user"))
    for folder in (home, system, user):
        folder.mkdir()
    (system / "bhyve").write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH" "$@"\n')
    (system / "bhyve").chmod(0o755)
    (home / "vmmls").touch()
    (user / "bin").mkdir()
    (user / "bin/bhyvectl").symlink_to("of an earlier build")
    command: list[str | Path] = ["sh", "-c", vmm._IN_PATH, home, system, "bhyve", "bhyveload"]
    subprocess.run(command, env={"HOME": str(user), "PATH": "/usr/bin:/bin"}, check=True)
    said = subprocess.run(
        [user / "bin/bhyve", "a b", "c"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert said == f"{home} a b c\n"
    assert sorted(path.name for path in (user / "bin").iterdir()) == ["bhyve", "vmmls"]
