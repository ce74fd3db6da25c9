"""gdb on a guest's kernel: the command line and the symbols.

The emulator's stub knows only memory and registers.  The symbols come from the kernel's own file
and from the module's, whose sections are placed as the kernel's linker (sys/kern/link_elf_obj.c)
placed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from harness.errors import CannotError

_LOADED = {"SHT_PROGBITS", "SHT_NOBITS", "SHT_AMD64_UNWIND", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY"}


def section_addresses(module: Path, base: int) -> dict[str, int]:
    """The address of each section of a relocatable module that the kernel loaded at `base`.

    Raises CannotError if the file is not a module.
    """
    found = {}
    try:
        with module.open("rb") as stream:
            for section in ELFFile(stream).iter_sections():
                allocated = section["sh_flags"] & SH_FLAGS.SHF_ALLOC and section["sh_size"]
                if allocated and section["sh_type"] in _LOADED:
                    align = max(1, section["sh_addralign"])
                    base = -(-base // align) * align
                    found[section.name] = base
                    base += section["sh_size"]
    except (OSError, ELFError) as error:
        raise CannotError(f"{module}: it is not a module with usable symbols: {error}") from error
    return found


def command(
    target: Path,
    kernel: Path | None,
    module: Path | None = None,
    module_base: int = 0,
    more: Sequence[str] = (),
) -> list[str]:
    """gdb's command line for a stub that listens on the socket `target`.

    `more` are gdb commands that run last.
    """
    # Without this a gdb without support for FreeBSD takes its kernel for a 32-bit program.
    steps = ["set confirm off", "set osabi none", "set architecture i386:x86-64"]
    if kernel is not None:
        steps.append(f"file {kernel}")
    steps.append(f"target remote {target}")
    if module is not None:
        places = section_addresses(module, module_base)
        sections = " ".join(
            f"-s {name} {place:#x}" for name, place in places.items() if name != ".text"
        )
        steps.append(f"add-symbol-file {module} {places['.text']:#x} {sections}")
    words = ["gdb", "-q", "-nx"]
    for step in (*steps, *more):
        words += ["-ex", step]
    return words
