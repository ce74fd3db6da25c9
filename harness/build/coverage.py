"""A build that counts which of its lines ran: made with clang's source coverage.

The counters are plain memory, one 64-bit number for each region of the source.  vmm.ko's are read
from /dev/kmem by a small program (guest_src/counters), because a kernel has no run time library.
bhyve, libvmmapi and the other programs get a small one of ours (counted.c), which lets them count
in a file next to them.  The files with symbols say what the counters mean, and llvm-profdata and
llvm-cov turn both into numbers of lines.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section, SymbolTableSection

from harness.errors import CannotError

FLAGS = (
    "-fprofile-instr-generate", "-fcoverage-mapping", "-fprofile-update=atomic",
    # The names are read here, without the compiler's own library.
    "-mllvm", "-enable-name-compression=false",
)  # fmt: skip

START, END = "vmm_counters_start", "vmm_counters_end"
"""Symbols of the module around its counters."""

# The compiler makes a section for each function; the kernel's linker and we need a single one.  The
# symbol of the run time library, which every object refers to, is defined as 0.
SCRIPT = f"""\
SECTIONS {{
    __llvm_prf_cnts : {{ {START} = .; *(__llvm_prf_cnts) {END} = .; }}
    __llvm_prf_data : {{ *(__llvm_prf_data) }}
    __llvm_prf_names : {{ *(__llvm_prf_names) }}
    __llvm_covfun : {{ *(__llvm_covfun) }}
    __llvm_covmap : {{ *(__llvm_covmap) }}
}}
__llvm_profile_runtime = 0;
"""
# A program's counters fill pages of their own, which counted.c replaces by those of a file.  The
# linker's usual layout is used for everything else.
USER_SCRIPT = f"""\
SECTIONS {{
    __llvm_prf_cnts : ALIGN(4096) {{
        {START} = .;
        *(__llvm_prf_cnts)
        . = ALIGN(4096);
        {END} = .;
    }}
}} INSERT AFTER .data;
"""
USER_FLAGS = (*FLAGS, "-noprofilelib")
"""For programs and libraries: the compiler has no run time library for FreeBSD."""
USER_SOURCE = Path(__file__).with_name("counted.c")
USER_NOT_LOADED = ("__llvm_covfun", "__llvm_covmap")
COUNTERS_SUFFIX = ".counters"
"""A program's counters in the guest are in the file with its name and this suffix."""

NOT_LOADED = ("__llvm_covfun", "__llvm_covmap", "__llvm_prf_names", "__llvm_prf_data")
"""Sections that only the file with symbols needs."""

_COUNTERS, _RECORDS, _NAMES = "__llvm_prf_cnts", "__llvm_prf_data", "__llvm_prf_names"
# struct __llvm_profile_data of LLVM 17 to 21: the name's digest, the function's digest, the
# position of its counters, and their number.
_RECORD = struct.Struct("<QQ")
_WHERE, _HOW_MANY = 16, 48
_RECORD_BYTES = 64
_COUNTER_BYTES = 8


@dataclass(frozen=True)
class Function:
    """A function's counters: their offset in all counters, and their number."""

    name: str
    digest: int
    offset_bytes: int
    count: int


def functions(symbols: Path) -> tuple[Function, ...]:
    """The functions that a file's counters belong to, from the file with symbols.

    Raises CannotError if the file was not built for coverage, or was built by an unknown compiler.
    """
    try:
        with symbols.open("rb") as stream:
            return tuple(_functions(ELFFile(stream), symbols))
    except (ELFError, struct.error, KeyError) as error:
        raise CannotError(f"{symbols}: its counters cannot be read: {error!r}") from error


def _functions(elf: ELFFile, symbols: Path) -> Iterable[Function]:
    sections = {section.name: section for section in elf.iter_sections()}
    if not {_COUNTERS, _RECORDS, _NAMES} <= sections.keys():
        raise CannotError(f"{symbols}: it was not built for coverage")
    names = {_digest(name): name for name in _names(sections[_NAMES].data())}
    records = sections[_RECORDS].data()
    places = _places(elf) if elf["e_type"] == "ET_REL" else _linked_places(sections)
    if len(records) % _RECORD_BYTES:
        raise CannotError(f"{symbols}: its counters have an unknown layout")
    for start in range(0, len(records), _RECORD_BYTES):
        name, digest = _RECORD.unpack_from(records, start)
        (count,) = struct.unpack_from("<I", records, start + _HOW_MANY)
        # The value is relative to the record, so the field's own offset is subtracted as well.
        offset = places[start + _WHERE] - _WHERE
        yield Function(names[name], digest, offset, count)


def _places(elf: ELFFile) -> dict[int, int]:
    """Offset of each field in the records -> the offset in the counters that it refers to."""
    records, counters = (elf.get_section_index(name) for name in (_RECORDS, _COUNTERS))
    found = {}
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection) or section["sh_info"] != records:
            continue
        table = elf.get_section(section["sh_link"])
        assert isinstance(table, SymbolTableSection)
        for it in section.iter_relocations():
            symbol = table.get_symbol(it["r_info_sym"])
            if symbol["st_shndx"] == counters:
                found[it["r_offset"]] = symbol["st_value"] + it["r_addend"]
    return found


def _linked_places(sections: Mapping[str, Section]) -> dict[int, int]:
    """The same for a program or a library, in which the linker has filled in the fields."""
    records = sections[_RECORDS]
    between = records["sh_addr"] - sections[_COUNTERS]["sh_addr"]
    data = records.data()
    return {
        # The field has the distance from the record to the counters.
        at: between + at + struct.unpack_from("<q", data, at)[0]
        for at in range(_WHERE, len(data), _RECORD_BYTES)
    }


def _names(data: bytes) -> Iterable[str]:
    """The functions' names: blocks of (length, packed length, names between ones)."""
    at = 0
    while at < len(data):
        length, at = _uleb128(data, at)
        packed, at = _uleb128(data, at)
        if packed:
            raise CannotError("the names of the functions are compressed")
        yield from data[at : at + length].decode(errors="replace").split("\x01")
        at += length
        while at < len(data) and data[at] == 0:
            at += 1


def _uleb128(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.md5(name.encode(), usedforsecurity=False).digest()[:8], "little")


def length_bytes(known: Sequence[Function]) -> int:
    """The length of the counters of these functions."""
    return max((it.offset_bytes + it.count * _COUNTER_BYTES for it in known), default=0)


def profile(known: Sequence[Function], counters: bytes) -> str:
    """The counters in llvm-profdata's text format.

    Raises CannotError if the counters do not belong to these functions.
    """
    needed = length_bytes(known)
    if len(counters) < needed:
        raise CannotError(
            f"{len(counters)} bytes of counters were read, the build has {needed}: another build "
            "runs in the guest"
        )
    lines = []
    for it in known:
        values = struct.unpack_from(f"<{it.count}Q", counters, it.offset_bytes)
        lines += [it.name, str(it.digest), str(it.count), *map(str, values), ""]
    return "\n".join(lines) + "\n"
