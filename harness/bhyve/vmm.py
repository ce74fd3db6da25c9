"""bhyve in a guest as data: the hw.vmm sysctls, vmmls's output, making and destroying VMs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.bhyve.batch import Batch
from harness.bhyve.figures import LIMIT as LIMIT
from harness.bhyve.figures import SYSCTLS as SYSCTLS
from harness.bhyve.figures import USER_LIMIT as USER_LIMIT
from harness.bhyve.figures import Listed as Listed
from harness.bhyve.figures import Listing as Listing
from harness.bhyve.figures import Memory as Memory
from harness.bhyve.figures import library_figures
from harness.bhyve.figures import parse_listing as parse_listing
from harness.bhyve.vmm_module import HOME, LoadedModule
from harness.build.builder import Build, compile_program
from harness.build.parts import LIBRARY, PROGRAMS
from harness.deadline import Deadline
from harness.files import sha256_file
from harness.guest import runner
from harness.guest.freebsd import COMMAND_S, Guest
from harness.guest.ssh import Result
from harness.units import MiB

MIB = MiB
Counts = dict[str, int]
"""The counters of a helper's run, by name: cycles, reads, listings."""

_SOURCES = Path(__file__).parent / "guest_src"


def compile_vmtool(build: Build, sysroot: Path) -> Path:
    """The helper of guest_src/ for this build's library; PatchError if it does not compile."""
    sources = [_SOURCES / name for name in ("vmtool.c", "steps.c", "host.c", "race.c", "watch.c")]
    return compile_program(build, sources, sysroot=sysroot, libraries=("vmmapi", "util", "pthread"))


def compile_runner(build: Build, sysroot: Path) -> Path:
    """What runs commands in the guest and stays (guest/runner.c)."""
    return compile_program(build, [runner.SOURCE], sysroot=sysroot, libraries=())


def use_runner(guest: Guest, program: Path) -> None:
    """Have the guest's commands run by what `compile_runner` made; it may be there already."""
    guest.use_runner(program, f"{HOME}/runner-{sha256_file(program)[:16]}")


def compile_counters(build: Build, sysroot: Path) -> Path:
    """Compile the program that reads the counters of a module built for coverage."""
    source = _SOURCES / "counters" / "counters.c"
    return compile_program(build, [source], sysroot=sysroot, libraries=())


# $0 the build's folder, $1 the folder of the system's programs, then the names of those that should
# use the built library; built programs find it by themselves.  This is for people who log in:
# login.conf(5) has ~/bin in the path.
_IN_PATH = r"""
set -eu
home=$0 system=$1; shift
for name; do
    [ -x "$system/$name" ] || continue
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$home" "$system/$name" >"$home/$name"
    chmod 755 "$home/$name"
done
set --
for name in vmmls bhyve bhyvectl bhyveload; do
    if [ -e "$home/$name" ]; then
        set -- "$@" "$home/$name"
    elif [ -L ~/bin/"$name" ]; then
        rm ~/bin/"$name"
    fi
done
[ -d ~/bin ] || mkdir ~/bin
[ $# -eq 0 ] || ln -sf "$@" ~/bin/
"""
_SYSTEM = "/usr/sbin"


def through_library(build: Build) -> tuple[str, ...]:
    """The guest's own programs that should use the build's library, because a series changed it.

    Programs that include a changed header are built anyway.
    """
    if build.library is None or LIBRARY not in build.reached:
        return ()
    built = {path.name for path in build.programs}
    return tuple(name for name in PROGRAMS if name not in built)


class Vmm:
    """The guest's vmm, its tools and its virtual machines.

    `vmtool` is the helper of guest_src/, built for the guest; it is None without a sysroot, and
    then VMs cannot get memory.
    """

    def __init__(
        self, guest: Guest, loaded: LoadedModule, build: Build, vmtool: Path | None
    ) -> None:
        self.guest = guest
        self.loaded = loaded
        self.build = build
        self.home = str(Path(loaded.path).parent)
        self._made: list[str] = []
        self._put: set[str] = set()
        self.limited = False
        """Whether a check has set hw.vmm.mem_limit, so that `destroy_all` has to reset it."""
        for local in (build.library, build.tool, vmtool, *build.programs):
            if local is not None:
                guest.put(local, f"{self.home}/{local.name}", mode=0o755)
        self.vmmls_path = f"{self.home}/vmmls"
        guest.must(["sh", "-c", _IN_PATH, self.home, _SYSTEM, *through_library(build)])
        self.vmtool_path = f"{self.home}/vmtool"

    def put_once(self, local: Path) -> str:
        """Put a file beside the module unless this was done before; its path in the guest."""
        remote = f"{self.home}/{local.name}"
        if remote not in self._put:
            self.guest.put(local, remote)
            self._put.add(remote)
        return remote

    @property
    def memory(self) -> Memory:
        """The three sysctls, read by one sysctl(8); GuestError where they do not exist."""
        return Memory(*self.guest.numbers(*SYSCTLS))

    @property
    def mem_total_bytes(self) -> int:
        """hw.vmm.mem_total: the memory that all VMs together may use."""
        return self.memory.total_bytes

    @property
    def mem_allocated_bytes(self) -> int:
        """hw.vmm.mem_allocated: the memory that VMs use."""
        return self.memory.allocated_bytes

    @property
    def mem_free_bytes(self) -> int:
        """hw.vmm.mem_free: the memory that new VMs may still get."""
        return self.memory.free_bytes

    def library_memory(self) -> Memory:
        """The same figures from libvmmapi's functions."""
        return library_figures(self._vmtool(["memory"]))

    def vmmls(self, *arguments: str) -> Result:
        """Run vmmls; any exit code is allowed."""
        return self.guest.run([self.vmmls_path, *arguments])

    def listing(self, *names: str) -> Listing:
        """The output of vmmls, from its JSON; CommandFailed if its exit code is not 0."""
        return parse_listing(self.guest.must([self.vmmls_path, "--libxo", "json", "-v", *names]))

    def lingering(self, name: str, memory_bytes: int) -> str:
        """Make and destroy a VM whose memory a process still has; returns the process's number."""
        return self._vmtool(["linger", name, str(memory_bytes)]).strip()

    def end(self, process: str) -> None:
        """End the process that `lingering` started, and wait for its end."""
        self.guest.script('kill "$1"; pwait "$1"', process, check=False)

    def domains(self, name: str, count: int, memory_bytes: int) -> Result:
        """Give a VM NUMA domains of the given size; the VM is made if it does not exist.

        The VM stays, whatever the result.
        """
        self.made(name)
        return self.guest.run([self.vmtool_path, "domains", name, str(count), str(memory_bytes)])

    def misuse(self, name: str) -> dict[str, str]:
        """Make requests that must be refused, on a VM with 16 MB; returns each answer."""
        lines = self._vmtool(["misuse", name]).splitlines()
        return dict(line.split(": ", 1) for line in lines)

    def names(self) -> list[str]:
        """The virtual machines under /dev/vmm, looked up without vmmls."""
        script = "test -d /dev/vmm && find /dev/vmm -type c || true"
        found = self.guest.script(script).stdout.splitlines()
        return sorted(path.removeprefix("/dev/vmm/") for path in found)

    def create(
        self, name: str, memory_bytes: int = 0, *devmem_bytes: int, wired: bool = False
    ) -> None:
        """Make a VM and give it memory; if the kernel refuses, CommandFailed, and the VM is
        removed.

        `devmem_bytes`: a boot ROM's device memory, then a frame buffer's.  `wired` is bhyve's -S.
        """
        sizes = (str(size) for size in (memory_bytes, *devmem_bytes))
        self._vmtool(["create", *(["-S"] if wired else []), name, *sizes])
        self.made(name)

    def destroy(self, *names: str) -> None:
        """Destroy VMs."""
        self._vmtool(["destroy", *names])
        self.gone(names)

    def made(self, name: str) -> None:
        """Destroy this VM after the check, if it exists then."""
        if name not in self._made:
            self._made.append(name)

    def gone(self, names: Iterable[str]) -> None:
        """Forget VMs that have been destroyed."""
        self._made = [name for name in self._made if name not in names]

    def set_limit(self, limit_bytes: int) -> None:
        """Set hw.vmm.mem_limit; `destroy_all` resets it."""
        self.limited = limit_bytes != 0
        self.guest.must(["sysctl", f"{LIMIT}={limit_bytes}"])

    def destroy_all(self) -> None:
        """Destroy all VMs that were made and may still exist, and remove the limit."""
        left, self._made = self._made, []
        if left:
            self._vmtool(["clean", *left])
        if self.limited:
            # Where a check failed because there is no such sysctl, this fails too.
            self.guest.run(["sysctl", f"{LIMIT}=0"])
            self.limited = False

    def batch(self, *, stay: bool = False, limit_s: float = COMMAND_S) -> Batch:
        """A block whose requests are made by one command: see batch.py.

        With `stay` its VMs and its limit stay until `destroy_all`.
        """
        return Batch(self, limit_s, stay=stay)

    def churn(self, prefix: str, count: int, memory_bytes: int) -> None:
        """Make and destroy `count` VMs, one after another."""
        limit = self.guest.deadline(10 + count * 0.2)
        self._vmtool(["churn", prefix, str(count), str(memory_bytes)], limit)

    @contextlib.contextmanager
    def many(self, prefix: str, count: int, memory_bytes: int) -> Iterator[list[str]]:
        """Have `count` VMs during the block; yields their names, sorted."""
        limit = self.guest.deadline(10 + count * 0.2)
        try:
            self._vmtool(["many", prefix, str(count), str(memory_bytes)], limit)
            yield [f"{prefix}{number:05}" for number in range(count)]
        finally:
            self._vmtool(["few", prefix, str(count)], self.guest.deadline(10 + count * 0.2))

    def race(self, creators: int, rounds: int, memory_bytes: int) -> Counts:
        """Run threads that make and destroy VMs, each `rounds` times, and others that read the
        figures.

        Raises CommandFailed if a reader saw an impossible figure, or if something is left.
        """
        limit = self.guest.deadline(10 + creators * rounds * 0.4)
        command = ["race", str(creators), str(rounds), str(memory_bytes)]
        return _counts(self._vmtool(command, limit))

    def watch(self, creators: int, standing: int, listings: int, memory_bytes: int) -> Counts:
        """Run vmmls many times while some VMs stay and others are made and destroyed.

        Raises CommandFailed if a listing failed, missed a VM that stays, or showed one that never
        existed.
        """
        limit = self.guest.deadline(20 + listings * 0.5)
        numbers = (creators, standing, listings, memory_bytes)
        return _counts(self._vmtool(["watch", self.vmmls_path, *map(str, numbers)], limit))

    def reload(self) -> None:
        """Unload the module and load it again from the same file."""
        self.guest.must(["kldunload", "vmm"])
        self.guest.must(["kldload", self.loaded.path], self.guest.deadline(30))

    def _vmtool(self, arguments: Sequence[str], deadline: Deadline | None = None) -> str:
        return self.guest.must([self.vmtool_path, *arguments], deadline)


def _counts(said: str) -> Counts:
    words = said.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))
