"""The parts that a build can make, and the sources of each.

`reach` finds the parts that a patch changes: a part is reached by a file of its own folder, by a
source that it borrows from another folder, and by every header that its sources include, directly
or not.  Includes are searched as text, so a part may count as reached too often, but never too
rarely; only code under `#ifdef _KERNEL` is left out for programs.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MODULE, LIBRARY, COMMAND = "vmm.ko", "libvmmapi", "vmmls"


@dataclass(frozen=True)
class Part:
    """A part that can be built: its folder, and its other sources.

    `borrowed` are patterns of sources in other folders, `includes` folders that its compiler
    searches, `uses` other parts that it is linked with, `libraries` those of the sysroot, `beside`
    other folders that its Makefile uses.
    """

    name: str
    folder: str
    borrowed: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    kernel: bool = False


_VMM_SOURCES = ("sys/amd64/vmm/*", "sys/dev/vmm/*")

PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part(
            MODULE,
            "sys/modules/vmm",
            borrowed=_VMM_SOURCES,
            includes=("sys", "sys/amd64/vmm", "sys/amd64/vmm/io", "sys/contrib/ck/include"),
            kernel=True,
        ),
        Part(LIBRARY, "lib/libvmmapi", libraries=("util",)),
        Part(COMMAND, "usr.sbin/vmmls", uses=(LIBRARY,)),
        Part(
            "bhyve",
            "usr.sbin/bhyve",
            borrowed=(
                "sys/amd64/vmm/vmm_instruction_emul.c",
                "sys/libkern/crc16.c",
                "sys/cam/ctl/ctl_*_all.c",
                "sys/cam/ctl/ctl_util.c",
            ),
            includes=(
                "usr.sbin/bhyve", "usr.sbin/bhyve/amd64", "contrib/lib9p", "sys",
                "sys/dev/e1000", "sys/dev/mii", "sys/dev/usb/controller", "sys/amd64",
            ),
            uses=(LIBRARY,),
            libraries=(
                "md", "nv", "uvmem", "pthread", "z", "util", "sbuf", "cam", "9p", "crypto",
            ),
            beside=("contrib/lib9p",),
        ),
        Part(
            "bhyvectl",
            "usr.sbin/bhyvectl",
            includes=("usr.sbin/bhyvectl", "sys/amd64/vmm"),
            uses=(LIBRARY,),
            libraries=("util",),
        ),
        Part(
            "bhyveload",
            "usr.sbin/bhyveload",
            includes=("stand/userboot",),
            uses=(LIBRARY,),
            beside=("stand/userboot",),
        ),
    )
}  # fmt: skip
PROGRAMS = ("bhyve", "bhyvectl", "bhyveload")
"""Programs that run and control VMs; built if a series reaches them, else the guest's are used."""

# Files that make reads for every part.
_RULES = (
    "share/mk/*", "sys/conf/*.mk", "sys/conf/options*", "sys/amd64/conf/*", "sys/conf/newvers.sh",
    "sys/conf/kmod_syms*", "sys/kern/*_if.m", "sys/tools/*.awk",
    "sys/modules/Makefile.inc", "lib/Makefile.inc", "usr.sbin/Makefile.inc", "Makefile.inc",
)  # fmt: skip
# The folders of headers that are included by their installed names.
_INSTALLED = (
    ("machine/", "sys/amd64/include/"),
    ("x86/", "sys/x86/include/"),
    ("", "sys/"),
    ("", "include/"),
    ("", "lib/libvmmapi/"),
)
_SOURCES = (".c", ".h", ".S", ".m")
_MANUAL = re.compile(r"(\.[1-9](\.in)?|(\A|/)README[^/]*|\.md)\Z")
_OWN_CHECKS = "tests/sys/vmm/"
_DIRECTIVE = re.compile(
    rb"^[ \t]*#[ \t]*(?:(include)[ \t]*([<\"])([^>\"\n]+)|(if|ifdef|ifndef|elif|else|endif)\b(.*))",
    re.M,
)
_LIBADD = re.compile(r"^[ \t]*LIBADD[.\w${}]*[ \t]*[+?:]?=([^\n#]*)", re.M)
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Reached:
    """The parts that some paths reach, each with these paths; and the paths that reach none."""

    parts: tuple[tuple[str, tuple[str, ...]], ...]
    nothing: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parts' names, in the order in which they are built."""
        return tuple(name for name, _ in self.parts)


def reach(source: Path, paths: Iterable[str]) -> Reached:
    """The parts of the tree `source` that the files `paths` reach, and the paths that reach none.

    `source` is the tree with the patches applied, so the includes of new headers count too.
    """
    wanted = sorted(set(paths))
    parts = []
    left = set(wanted)
    for part in PARTS.values():
        own = {path for path in wanted if _belongs(part, path)}
        rest = [path for path in wanted if path not in own and path.endswith(_SOURCES)]
        if rest:
            seen = closure(source, part)
            own.update(path for path in rest if path in seen)
        if own:
            parts.append((part.name, tuple(sorted(own))))
            left -= own
    return Reached(tuple(parts), tuple(sorted(left)))


def libraries(source: Path, name: str) -> tuple[str, ...]:
    """The libraries of a part that its Makefile in the tree `source` links.

    The list in PARTS is the newest release's; an older one does not have each of them.
    """
    part = PARTS[name]
    text = (source / part.folder / "Makefile").read_text(errors="replace").replace("\\\n", " ")
    linked = {word for line in _LIBADD.findall(text) for word in line.split()}
    return tuple(it for it in part.libraries if it in linked)


def why_untested(path: str, reached: Reached, left_out: Mapping[str, str]) -> str:
    """Why a file that was not compiled is not tested; empty if a built part reads it.

    `left_out` names the parts that were not built, with their reasons.
    """
    if _MANUAL.search(path):
        return "it is documentation"
    if path.startswith(_OWN_CHECKS):
        # These tests are built with the series applied, and run with the library.
        return f"{LIBRARY} was not built: {left_out[LIBRARY]}" if LIBRARY in left_out else ""
    names = [name for name, those in reached.parts if path in those]
    if names and all(name in left_out for name in names):
        return f"{names[0]} was not built: {left_out[names[0]]}"
    if not names:
        return "no part that is built uses it"
    return "no part that was built reads it" if path.endswith(_SOURCES) else ""


def _belongs(part: Part, path: str) -> bool:
    """Whether a path belongs to a part, judging only by its name."""
    if path.startswith(f"{part.folder}/"):
        return True
    return any(fnmatch.fnmatchcase(path, it) for it in (*part.borrowed, *_RULES))


def closure(source: Path, part: Part) -> frozenset[str]:
    """All sources and headers below `source` that a part may use."""
    found: set[str] = set()
    # The same names are looked up repeatedly.
    is_file = functools.cache(lambda path: os.path.isfile(source / path))
    waiting = list(_begin(source, part))
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [it for it in _includes(source, part, path, is_file) if it not in found]
    return frozenset(found)


def _begin(source: Path, part: Part) -> Iterator[str]:
    folders = {part.folder, *(os.path.dirname(it) for it in part.borrowed)}
    for top in folders:
        for folder, _, names in os.walk(source / top, followlinks=True):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), source)
                if name.endswith((".c", ".S", ".m")) and (
                    path.startswith(f"{part.folder}/") or _belongs(part, path)
                ):
                    yield path


def _includes(source: Path, part: Part, path: str, is_file: Callable[[str], bool]) -> Iterator[str]:
    """The files that an #include in a file may refer to."""
    for quoted, name in _included(os.fspath(source / path), part.kernel):
        places = [os.path.dirname(path)] if quoted else []
        tried = [os.path.normpath(os.path.join(it, name)) for it in (*places, *part.includes)]
        tried += [
            place + name.removeprefix(prefix)
            for prefix, place in _INSTALLED
            if name.startswith(prefix)
        ]
        for it in dict.fromkeys(tried):
            if not it.startswith("..") and is_file(it):
                yield it


def _included(file: str, kernel: bool) -> Iterator[tuple[bool, str]]:
    """(whether in quotes, name) of each include that a program, or the kernel, may use."""
    try:
        if os.stat(file).st_size > _MOST_BYTES:
            return
        with open(file, "rb") as stream:
            text = stream.read()
    except OSError:
        return
    # For each open #if: whether its code is compiled, and whether that depends only on _KERNEL.
    open_ifs: list[tuple[bool, bool]] = []
    for found in _DIRECTIVE.finditer(text):
        if found[1]:
            if all(seen for seen, _ in open_ifs):
                yield found[2] == b'"', found[3].decode("utf-8", "surrogateescape")
        elif found[4] in (b"if", b"ifdef", b"ifndef"):
            wants = _wants_kernel(found[4], found[5])
            open_ifs.append((wants in (None, kernel), wants is not None))
        elif open_ifs and found[4] == b"endif":
            open_ifs.pop()
        elif open_ifs:
            seen, decided = open_ifs[-1]
            open_ifs[-1] = (not seen if decided else True, decided)


def _wants_kernel(word: bytes, condition: bytes) -> bool | None:
    """Whether a condition is true only in the kernel (or only outside); None for other
    conditions.
    """
    condition = re.sub(rb"/\*.*?(\*/|\Z)|//.*", b"", condition).strip()
    if word != b"if":
        return (word == b"ifdef") if condition == b"_KERNEL" else None
    found = re.fullmatch(rb"(!?)\s*defined[ (]*_KERNEL[ )]*", condition)
    return None if not found else not found[1]
