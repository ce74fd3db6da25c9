"""The sandbox that a build runs in, because a patch's Makefiles are untrusted programs.

bubblewrap makes it, with namespaces of its own for users, mounts, processes, network and System V
IPC.  Inside there are the system's programs, the source tree and the sysroot, all read-only, and
the build's own folder under a fixed name; only the objects and the compiler's cache can be written
to.  There is no /proc, no home, no network, and no other process; every process that it starts ends
with the command.  The fixed name also makes a build independent of the path of its folder: a path
that make cannot handle (a blank, a colon, a `$`) does no harm, and the same source always gives the
same bytes.

Landlock is no substitute: it prevents neither UDP, nor (before Linux 6.12) signals, nor daemons.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import limits, process
from harness.deadline import Deadline
from harness.errors import CannotError, UsageError
from harness.machine.forward import namespace_remedy

PLACE = "/workbench"
"""The name of a build's folder inside the sandbox."""

_PROGRAM = "bwrap"
_VARIABLE = "HARNESS_SANDBOX"
# Mounted read-only; a link (/bin on a merged system) stays a link.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
# Debian's awk and cc are links through alternatives; the loader's cache avoids searching.
_SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache")
_SEARCH = "/usr/bin:/bin:/usr/sbin:/sbin"
_TEMPORARY_BYTES = 256 << 20
_FENCED = (
    "--unshare-user-try", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
    "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
)  # fmt: skip
# The characters of paths that make, the shell and the compilers' command lines can handle.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.,+@~-]*\Z")


@dataclass(frozen=True)
class Sandbox:
    """Runs the commands of one build.

    `work` is the build's folder on this machine; `reads` are places with the same path inside;
    `writes` are folders of `work` that can be written to; `caches` are pairs of a place outside and
    a folder of `work`, also writable; `tools` are programs that must be found.  `held` is an open
    file that stays open as long as a process runs.  Without `program` there is no sandbox.
    """

    program: str | None
    work: Path
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    caches: tuple[tuple[Path, Path], ...] = ()
    tools: tuple[Path, ...] = ()
    held: int | None = None

    def inside(self, path: Path) -> str:
        """The path inside the sandbox of a path on this machine."""
        if self.program is None or not path.is_relative_to(self.work):
            return str(path)
        return os.path.join(PLACE, path.relative_to(self.work))

    def outside(self, name: str) -> str:
        """The path on this machine of a path inside the sandbox."""
        if self.program is None or not f"{name}/".startswith(f"{PLACE}/"):
            return name
        return str(self.work) + name[len(PLACE) :]

    def command(self, words: Sequence[str], folder: Path) -> list[str]:
        """The command line that runs `words` in `folder`."""
        if self.program is None:
            return list(words)
        made = [self.program, *_FENCED]
        for path in map(Path, _SYSTEM):
            if path.is_symlink():
                made += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                made += ["--ro-bind", str(path), str(path)]
        for name in _SETTINGS:
            made += ["--ro-bind-try", name, name]
        made += ["--dev", "/dev", "--size", str(_TEMPORARY_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
        for path in (*_tool_folders(self.tools), *self.reads):
            made += ["--ro-bind", str(path), str(path)]
        made += ["--ro-bind", str(self.work), PLACE]
        for path in self.writes:
            made += ["--bind", str(path), self.inside(path)]
        for place, path in self.caches:
            made += ["--bind", str(place), self.inside(path)]
        made += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", self.inside(folder)]
        if self.held is not None:
            made += ["--sync-fd", str(self.held)]
        return [*made, "--", *words]

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
        *,
        merged: bool = False,
        sink: Callable[[bytes], None] | None = None,
    ) -> process.Finished:
        """Run a command with a fixed environment and `environment`.

        Raises CannotError if it cannot be run or fills the disk, process.Unfinished at the
        deadline.
        """
        return process.run(
            self.command(words, folder),
            deadline,
            cwd=None if self.program else folder,
            environment={
                "PATH": self._search(),
                "HOME": "/nonexistent",
                "LC_ALL": "C",
                "TZ": "UTC",
                **(environment or {}),
            },
            merged=merged,
            sink=sink,
            watch=self._watch_room,
            pass_fds=() if self.held is None else (self.held,),
        )

    def _watch_room(self) -> None:
        """Raise CannotError if the build's disk is almost full."""
        disk = os.statvfs(self.work)
        few_files = disk.f_files and disk.f_favail < limits.BUILD_LEAVES_FILES
        if disk.f_bavail * disk.f_frsize < limits.BUILD_LEAVES_BYTES or few_files:
            raise CannotError(
                f"{self.work.parent}: the build almost filled this disk and was ended; "
                "free some room or choose another folder (HARNESS_CACHE), or look at what the "
                "patch's Makefiles write"
            )

    def require(self) -> None:
        """Raise CannotError with bubblewrap's own message unless this sandbox can be made."""
        if self.program is not None:
            _require([*self.command(["true"], self.work)])

    def _search(self) -> str:
        if self.program is None:
            return os.environ.get("PATH", _SEARCH)
        folders = dict.fromkeys(str(tool.parent) for tool in self.tools)
        return ":".join((*(it for it in folders if not _in_system(Path(it))), _SEARCH))


def choose(wanted: bool) -> None:
    """Set the user's choice for this process and its children."""
    if not wanted:
        os.environ[_VARIABLE] = "no"


def wanted() -> bool:
    """Whether builds run in a sandbox: yes, unless $HARNESS_SANDBOX or --no-sandbox says no."""
    return os.environ.get(_VARIABLE, "") != "no"


def find(wanted: bool = True) -> str | None:
    """The program that makes sandboxes, after a trial; None if no sandbox is wanted.

    Raises CannotError with the remedy if it is missing or forbidden.
    """
    if not wanted:
        return None
    reason = unavailable()
    if reason:
        raise CannotError(
            f"a patch's Makefiles are built in a sandbox, and {reason}; or give --no-sandbox if "
            "you trust the patch as you trust a program that you run (HARNESS_SANDBOX=no where "
            "there is no such option)"
        )
    return shutil.which(_PROGRAM)


@functools.cache
def unavailable() -> str:
    """Why there can be no sandbox on this machine, with the remedy; empty if there can be one."""
    program = shutil.which(_PROGRAM)
    if program is None:
        return "bubblewrap is not installed: run ./inv setup"
    try:
        _require([program, *_FENCED, "--ro-bind", "/", "/", "--dev", "/dev", "--", "true"])
    except CannotError as error:
        return error.message
    return ""


def describe() -> str:
    """Describe the sandbox, if there is one."""
    done = process.run([_PROGRAM, "--version"])
    return f"{done.stdout.strip()}: namespaces for users, mounts, processes, network and IPC"


def require_plain(path: Path, what: str) -> None:
    """Raise UsageError for a path that make could not handle without a sandbox."""
    if not _PLAIN_PATH.match(str(path)):
        raise UsageError(
            f"{what} {str(path)!r} has characters that make cannot handle; build in the "
            f"sandbox (without --no-sandbox), "
            "where any path works, or choose a path of letters, digits and ._+,@~-"
        )


def _require(command: Sequence[str]) -> None:
    done = process.run(command, Deadline.after(30))
    if done.ok:
        return
    said = (done.stderr.splitlines() or [f"exit code {done.code}"])[-1]
    said = said.replace(": ", ", ")
    raise CannotError(f"this machine forbids it ({said}): {namespace_remedy()}")


def _in_system(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _SYSTEM)


def _tool_folders(tools: Sequence[Path]) -> list[Path]:
    """The folders of programs outside the system's folders, with their libraries.

    Their parent folder is not included, because it may be a home.
    """
    found: dict[Path, None] = {}
    for tool in tools:
        for path in (tool, tool.resolve()):
            if not _in_system(path):
                near = (path.parent, path.parent.parent / "lib")
                found.update(dict.fromkeys(it for it in near if it.is_dir()))
    return list(found)
