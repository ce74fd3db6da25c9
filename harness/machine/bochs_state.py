"""Saves and resumes a machine in Bochs without its window.

Bochs numbers its timers in the order in which devices are set up, and a saved state identifies them
only by these numbers.  A start from settings and one from a saved state set up the optional devices
in different orders, unless the settings list them all. Otherwise the poll of a resumed guest's
network would use the serial line's timer, and so never run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from harness import process
from harness.errors import CannotError, GuestError
from harness.files import require_room, sha256_file

PLUGINS = (
    "plugin_ctrl: biosdev=1, iodebug=1, extfpuirq=1, serial=1, unmapped=1, e1000={network}, "
    "usb_uhci=1, speaker=0, parallel=0, gameport=0"
)
"""The optional devices, in one order for every start.  This must be the settings' first line.

There is no speaker: its driver would look for a sound card and print errors.
"""

STATE = "state"
_SAVING, _SAVED, _UNSAVED = "saving", "saved", "unsaved"
_CONFIG = "config"
# The file that Bochs saves, and the file made from it, without empty pages.
_MEMORY, _IMAGE = "memory.ram", "memory.image"
_SOURCE = Path(__file__).with_name("bochs_save.c")
_HELPER = "bochs_save.so"
_NO_HELPER = "that needs a helper library, and there is no C compiler to build it; run ./inv setup"
_COMPILERS = ("cc", "gcc", "clang", "clang-19")
# Video memory, the disk's journal and the devices' own state.
_BESIDES_MEMORY_BYTES = 96 << 20


def helper(run_dir: Path) -> dict[str, str]:
    """Compile the helper library that saves into `run_dir`; returns the environment that loads it.

    Without a C compiler the environment is empty: the machine runs, but it cannot be saved.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return {}
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", _HELPER, str(_SOURCE)]
    if not process.run(command, cwd=run_dir).ok:
        return {}
    # A path with blanks or colons would be split, so this one is relative to Bochs's own folder.
    return {"LD_PRELOAD": ":".join(filter(None, (f"./{_HELPER}", os.environ.get("LD_PRELOAD"))))}


def request(run_dir: Path, folder: Path, memory_bytes: int) -> None:
    """Store the request to save the machine into `folder`, for when Bochs gets the signal."""
    if not (run_dir / _HELPER).exists():
        raise CannotError(f"Bochs cannot save the guest: {_NO_HELPER}")
    require_room(folder, memory_bytes + _BESIDES_MEMORY_BYTES, "saving the guest")
    for name in (_SAVING, _SAVED, _UNSAVED):
        (run_dir / name).unlink(missing_ok=True)
    (run_dir / _SAVING).symlink_to(folder.absolute())


def answered(run_dir: Path) -> bool:
    """Whether the request has been fulfilled; GuestError if Bochs could not write the state."""
    if (run_dir / _UNSAVED).is_symlink():
        raise GuestError(f"Bochs could not save into {(run_dir / _UNSAVED).readlink()}")
    return (run_dir / _SAVED).is_symlink()


def complete(folder: Path, settings: str) -> None:
    """Turn the files that Bochs saved into those that a resumed one reads, with its `settings`.

    Bochs does not notice if it cannot write everything, but each of its complete lists ends in a
    brace.  Raises GuestError with the name of a truncated file.
    """
    (folder / _CONFIG).write_text(settings)
    for path in folder.iterdir():
        is_list = not path.suffix and path.name not in (_CONFIG, "logopts")
        if is_list and not path.read_bytes().endswith(b"}\n"):
            raise GuestError(f"Bochs saved only a part of {path}; is the disk full?")
    copying = ["cp", "--sparse=always", _MEMORY, _IMAGE]
    done = process.run(copying, cwd=folder)
    if not done.ok:
        raise GuestError(f"the guest's memory was not saved: {done.stderr.strip()}")
    # Bochs needs the file to exist, and would copy its contents.
    (folder / _MEMORY).write_bytes(b"")


def require_own(folder: Path, settings: str) -> None:
    """Raise CannotError unless a saved state has exactly these settings.

    A resumed Bochs takes its settings from the state, and they name the files that it writes to.
    """
    try:
        same = (folder / _CONFIG).read_text() == settings and (folder / _IMAGE).is_file()
    except (OSError, ValueError):
        same = False
    if not same:
        raise CannotError(f"{folder / _CONFIG}: these are not the settings of this machine")


def present(run_dir: Path, folder: Path) -> None:
    """Link the state in `folder` into `run_dir` for a Bochs that starts there; it only reads it."""
    if not (folder / _IMAGE).exists():
        raise CannotError(f"{folder}: it contains no machine saved by Bochs")
    (run_dir / STATE).unlink(missing_ok=True)
    (run_dir / STATE).symlink_to(folder.absolute())


def require_memory(pid: int, folder: Path) -> None:
    """Raise CannotError unless the Bochs `pid` reads the memory in `folder`.

    A Bochs without the helper library resumes a guest with empty memory, without an error.
    """
    image = (folder / _IMAGE).resolve()
    with contextlib.suppress(OSError):
        if any(handle.resolve() == image for handle in Path(f"/proc/{pid}/fd").iterdir()):
            return
    raise CannotError(f"Bochs resumed without the memory in {folder}: {_NO_HELPER}")


def way() -> str:
    """The digest of the helper library: another version may succeed where this one failed."""
    return sha256_file(_SOURCE)[:16]
