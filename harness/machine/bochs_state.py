"""A machine in Bochs, saved and resumed with nobody at its window.

Bochs numbers its timers in the order in which devices are set up, and a saved state knows them by
these numbers alone.  A start from settings and one from a saved state set the optional devices up
in different orders, unless the settings list them all: where they did not, a resumed guest had its
network's poll driven by the serial line's timer, which is to say never.
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
"""The optional devices, in one order for every start.  It has to be the settings' first line.

No speaker: its driver would look for a sound card and complain on standard error.
"""

STATE = "state"
_SAVING, _SAVED, _UNSAVED = "saving", "saved", "unsaved"
_CONFIG = "config"
# What Bochs saves, and what it is made into: without the pages that hold nothing.
_MEMORY, _IMAGE = "memory.ram", "memory.image"
_SOURCE = Path(__file__).with_name("bochs_save.c")
_HELPER = "bochs_save.so"
_NO_HELPER = (
    "that takes a helper which Bochs loads, and no C compiler is here to make it; run ./inv setup"
)
_COMPILERS = ("cc", "gcc", "clang", "clang-19")
# Video memory, the disk's journal and the devices' own state.
_BESIDES_MEMORY_BYTES = 96 << 20


def helper(run_dir: Path) -> dict[str, str]:
    """Compile into `run_dir` what makes Bochs save; the environment that has Bochs load it.

    Nothing where there is no C compiler: a machine runs without it, it only cannot be saved.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return {}
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", _HELPER, str(_SOURCE)]
    if not process.run(command, cwd=run_dir).ok:
        return {}
    # A path with blanks or colons would be several; this one starts from Bochs's own folder.
    return {"LD_PRELOAD": ":".join(filter(None, (f"./{_HELPER}", os.environ.get("LD_PRELOAD"))))}


def request(run_dir: Path, folder: Path, memory_bytes: int) -> None:
    """Note down that the machine is to be saved into `folder` when Bochs gets the signal for it."""
    if not (run_dir / _HELPER).exists():
        raise CannotError(f"Bochs cannot save the guest: {_NO_HELPER}")
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
    """Make what Bochs saved into what a resumed one reads, with the `settings` it was made with.

    Bochs does not notice when it cannot write all; every list of values it writes ends in a brace.
    Raises GuestError naming the file that is cut off.
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
    # Bochs wants the file, and would copy what is in it.
    (folder / _MEMORY).write_bytes(b"")


def present(run_dir: Path, folder: Path) -> None:
    """Let a Bochs that starts in `run_dir` find the state in `folder`; it only reads there."""
    if not (folder / _IMAGE).exists():
        raise CannotError(f"{folder}: there is no saved machine of Bochs's")
    (run_dir / STATE).unlink(missing_ok=True)
    (run_dir / STATE).symlink_to(folder.absolute())


def require_memory(pid: int, folder: Path) -> None:
    """CannotError unless the Bochs `pid` reads the memory in `folder`.

    One that has not loaded the helper resumes a guest whose memory is empty, and says nothing.
    """
    image = (folder / _IMAGE).resolve()
    with contextlib.suppress(OSError):
        if any(handle.resolve() == image for handle in Path(f"/proc/{pid}/fd").iterdir()):
            return
    raise CannotError(f"Bochs resumed without the memory in {folder}: {_NO_HELPER}")


def way() -> str:
    """The digest of what makes Bochs save: another way may succeed where this one did not."""
    return sha256_file(_SOURCE)[:16]
