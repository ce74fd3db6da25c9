"""Finds the Debian packages that are missing, and installs them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from harness import process, progress, surroundings
from harness.deadline import Deadline
from harness.errors import CannotError

# Program -> the package that contains it.  The compilers are not listed: any version from 17 on is
# good enough, and a distribution rarely has more than two of them.
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
"""The variable that names an unpacked Bochs; if it is set, Bochs need not be installed."""
# Packages that only save time; the work is also possible without them.
OPTIONAL: Mapping[str, str] = {"ccache": "ccache"}
_INSTALL_S = 3600.0
CLANG_VERSIONS = (19, 20, 21, 18, 17)


@dataclass(frozen=True)
class Missing:
    """Missing packages, and the command that installs them."""

    packages: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command to run as root."""
        return "apt-get install -y --no-install-recommends " + " ".join(self.packages)


def search_path() -> str:
    """PATH plus the system folders that an ordinary user's PATH lacks (sshd is there)."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def clang_version() -> int | None:
    """The preferred version of clang among those installed with their lld and llvm-objcopy."""
    for version in CLANG_VERSIONS:
        names = (f"clang-{version}", f"ld.lld-{version}", f"llvm-objcopy-{version}")
        if all(shutil.which(name) for name in names):
            return version
    return None


def missing() -> Missing:
    """The packages of this module's lists that this machine lacks."""
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
    """Install missing packages, as root or through a sudo that asks for no password.

    Optional packages are installed together with the needed ones; `optional` also installs them if
    nothing else is missing, and prints a line if that is impossible.  Raises CannotError with the
    command to run if needed packages are missing and cannot be installed.
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
                f"setup: continuing without {', '.join(more)}, which only saves time: "
                f"{error.message}"
            )


def _install(lacking: Missing) -> None:
    if not shutil.which("apt-get"):
        raise CannotError(
            f"missing: {', '.join(lacking.packages)} (Debian's names), and there is no apt-get "
            "here; install the packages with these programs by your own package manager"
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
