"""The Debian packages the project needs: which are missing, and how they get installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from harness import process, progress, surroundings
from harness.deadline import Deadline
from harness.errors import CannotError

# What a command line needs -> the package that brings it.  The compilers are not in it: any
# version from 17 on will do, and a distribution rarely has more than two of them.
TOOLS: Mapping[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "bochs": "bochs",
    "bmake": "bmake",
    "bwrap": "bubblewrap",
    "git": "git",
    "gcc": "gcc",
    "make": "make",
    "xz": "xz-utils",
    "bsdtar": "libarchive-tools",
    "mke2fs": "e2fsprogs",
    "mandoc": "mandoc",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}
FILES: Mapping[str, str] = {
    "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so": "bochs-term",
    "/usr/share/bochs/BIOS-bochs-latest": "bochsbios",
    "/usr/share/bochs/VGABIOS-lgpl-latest": "vgabios",
    "/usr/lib/x86_64-linux-gnu/libasan.so.8": "gcc",
}
BOCHS = frozenset({"bochs", "bochs-term", "bochsbios", "vgabios"})
OTHER_BOCHS = "HARNESS_BOCHS"
"""The variable that names a Bochs which is not installed; none need be then."""
# What makes things faster and is done without where it is not there.
OPTIONAL: Mapping[str, str] = {"ccache": "ccache"}
_INSTALL_S = 3600.0
CLANG_VERSIONS = (19, 20, 21, 18, 17)


@dataclass(frozen=True)
class Missing:
    """Packages that are not there, and the line that installs them."""

    packages: tuple[str, ...]

    @property
    def line(self) -> str:
        """The one command to run, as root."""
        return "apt-get install -y --no-install-recommends " + " ".join(self.packages)


def search_path() -> str:
    """PATH with the system folders that an ordinary user's lacks (sshd lives there)."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def clang_version() -> int | None:
    """The preferred clang that is installed together with its lld and llvm-objcopy."""
    for version in CLANG_VERSIONS:
        names = (f"clang-{version}", f"ld.lld-{version}", f"llvm-objcopy-{version}")
        if all(shutil.which(name) for name in names):
            return version
    return None


def missing() -> Missing:
    """What this machine lacks of the packages named here."""
    packages = {
        package for tool, package in TOOLS.items() if not shutil.which(tool, path=search_path())
    }
    packages |= {package for path, package in FILES.items() if not os.path.exists(path)}
    if os.environ.get(OTHER_BOCHS, "").strip():
        packages -= BOCHS
    if clang_version() is None:
        version = CLANG_VERSIONS[0]
        packages |= {f"clang-{version}", f"lld-{version}", f"llvm-{version}"}
    return Missing(tuple(sorted(packages)))


def ensure(*, optional: bool = False) -> None:
    """Install what is missing, as root or through a sudo that asks nothing.

    What is `optional` comes along with what is needed; with the argument it is asked for by itself,
    and a line says so where it cannot be had.  Raises CannotError with the line to run where what
    is needed is missing and neither is possible.
    """
    needed = missing()
    more = tuple(package for tool, package in OPTIONAL.items() if not shutil.which(tool))
    if needed.packages:
        _install(Missing(tuple(sorted((*needed.packages, *more)))))
    elif more and optional:
        try:
            _install(Missing(more))
        except CannotError as error:
            progress.say(
                f"setup: done without {', '.join(more)}, which only saves time: {error.message}"
            )


def _install(lacking: Missing) -> None:
    if not shutil.which("apt-get"):
        raise CannotError(
            f"missing: {', '.join(lacking.packages)} (Debian's names), and there is no apt-get "
            "here; install what brings these with your own package manager"
        )
    prefix = _root_prefix()
    if prefix is None:
        raise CannotError(
            f"missing Debian packages: {', '.join(lacking.packages)}; run: {_typed(lacking)}"
        )
    progress.say(f"setup: {lacking.line}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], lacking.line.split()):
        done = process.run(
            [*prefix, *command],
            Deadline.after(_INSTALL_S),
            environment=environment,
            merged=True,
        )
        if not done.ok:
            raise CannotError(
                f"setup: {' '.join(command[:2])} failed; repair it and run: {_typed(lacking)}",
                detail="\n".join(done.stdout.splitlines()[-15:]),
            )


def _typed(lacking: Missing) -> str:
    return surroundings.look().as_root(lacking.line)


def _root_prefix() -> list[str] | None:
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and process.run(["sudo", "-n", "true"]).ok:
        return ["sudo"]
    return None
