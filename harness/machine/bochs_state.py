"""A machine in Bochs, saved and resumed with nobody at its window.

Bochs numbers its timers in the order in which devices are set up, and a saved state knows them by
these numbers alone.  A start from settings and one from a saved state set the optional devices up
in different orders, unless the settings list them all: where they did not, a resumed guest had its
network's poll driven by the serial line's timer, which is to say never.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ..errors import CannotError, GuestError
from ..files import human_bytes, require_room, sha256_text

PLUGINS = (
    "plugin_ctrl: biosdev=1, iodebug=1, extfpuirq=1, serial=1, unmapped=1, e1000={network}, "
    "usb_uhci=1, speaker=0, parallel=0, gameport=0"
)
"""The optional devices, in one order for every start.  It has to be the settings' first line.

No speaker: its driver would look for a sound card and complain on standard error.
"""

STATE = "state"
_SAVING, _SAVED, _UNSAVED = "saving", "saved", "unsaved"
_CONFIG = "config"
_MEMORY = "memory.ram"
_SOURCE = Path(__file__).with_name("bochs_save.c")
_HELPER = "bochs_save.so"
_COMPILERS = ("cc", "gcc", "clang", "clang-19")
# Video memory, the disk's journal and the devices' own state.
_BESIDES_MEMORY_BYTES = 96 << 20
_PLUGINS_IN = ("bochs/plugins/*.so", "*/bochs/plugins/*.so")
# Where glibc's tmpfile(3) makes its files, whatever TMPDIR says.
_TMPFILES = Path("/tmp")  # noqa: S108


def helper(run_dir: Path) -> dict[str, str]:
    """Compile into `run_dir` what makes Bochs save; the environment that has Bochs load it.

    Nothing where there is no C compiler: a machine runs without it, it only cannot be saved.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return {}
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", _HELPER, str(_SOURCE)]
    done = subprocess.run(command, cwd=run_dir, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}
    # A path with blanks or colons would be several; this one starts from Bochs's own folder.
    return {"LD_PRELOAD": ":".join(filter(None, (f"./{_HELPER}", os.environ.get("LD_PRELOAD"))))}


def request(run_dir: Path, folder: Path, memory_bytes: int) -> None:
    """Note down that the machine is to be saved into `folder` when Bochs gets SIGINT next."""
    if not (run_dir / _HELPER).exists():
        raise CannotError(
            "Bochs saves a machine only with a helper that has to be compiled, and no C compiler "
            "is here; run ./inv setup"
        )
    require_room(folder, memory_bytes + _BESIDES_MEMORY_BYTES, "saving the guest")
    for name in (_SAVING, _SAVED, _UNSAVED):
        (run_dir / name).unlink(missing_ok=True)
    (run_dir / _SAVING).symlink_to(folder.absolute())


def answered(run_dir: Path) -> bool:
    """Whether the request was met; GuestError when Bochs could not write what it should."""
    if (run_dir / _UNSAVED).is_symlink():
        raise GuestError(f"Bochs could not save into {(run_dir / _UNSAVED).readlink()}")
    return (run_dir / _SAVED).is_symlink()


def complete(folder: Path, settings: str) -> None:
    """Check what Bochs saved, and put `settings` where a resumed Bochs looks for them.

    Bochs does not notice when it cannot write all; every list of values it writes ends in a brace.
    Raises GuestError naming the file that is cut off.
    """
    lists = [path for path in folder.iterdir() if not path.suffix and path.name != "logopts"]
    (folder / _CONFIG).write_text(settings)
    for path in lists:
        if path.name != _CONFIG and not path.read_bytes().endswith(b"}\n"):
            raise GuestError(f"Bochs saved only a part of {path}; is the disk full?")
    if not (folder / _MEMORY).exists():
        raise GuestError(f"Bochs saved no memory into {folder}")


def present(run_dir: Path, folder: Path, memory_bytes: int) -> None:
    """Let a Bochs that starts in `run_dir` find the state in `folder`; it only reads there.

    Raises CannotError where Bochs would go on with a part of the guest's memory, unnoticed.
    """
    if not (folder / _MEMORY).exists():
        raise CannotError(f"{folder}: there is no saved machine of Bochs's")
    free = shutil.disk_usage(_TMPFILES).free
    if free < memory_bytes:
        raise CannotError(
            f"resuming a guest in Bochs needs {human_bytes(memory_bytes)} in {_TMPFILES}, "
            f"{human_bytes(free)} are free; free some room"
        )
    (run_dir / STATE).unlink(missing_ok=True)
    (run_dir / STATE).symlink_to(folder.absolute())


def identity(files: Iterable[Path]) -> str:
    """Which Bochs is here, as far as a saved state may differ: a digest over its files.

    Their sizes and dates stand for them; a package that is changed changes these.
    """
    program = shutil.which("bochs-bin") or shutil.which("bochs")
    plugins = [lib for where in _PLUGINS_IN for lib in sorted(Path("/usr/lib").glob(where))]
    told = []
    for path in [*([Path(program)] if program else []), *plugins, *files]:
        if path.exists():
            about = path.stat()
            told.append(f"{path} {about.st_size} {about.st_mtime_ns}")
    return sha256_text(*told)[:16]
