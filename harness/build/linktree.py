"""The linked tree: folders of our own with links to the files of the user's source tree.

make takes the real path of the folder it works in, and a compiler looks beside an including file
for its headers; so the folders around vmm are made for real and only their files are links.  What
the series touches is a copy.  The user's tree is read and never written to.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness import source_tree
from harness.build.parts import PARTS
from harness.build.sandbox import Sandbox
from harness.errors import CannotError, PatchError
from harness.series import git, staging
from harness.series.load import Series
from harness.source_tree import SourceTree

_FOLDERS = tuple(part.folder for part in PARTS.values())
# What the parts' Makefiles reach out to.
_BESIDE = tuple(folder for part in PARTS.values() for folder in part.beside)
_ROOTS = ("sys", "share/mk", *(it for it in _FOLDERS if not it.startswith("sys/")), *_BESIDE)
# Linked file by file; other folders that nothing is written to are one link each.
_EXPANDED = (
    "sys/amd64",
    "sys/x86",
    "sys/dev/vmm",
    "sys/sys",
    "sys/vm",
    "share/mk",
    *_FOLDERS,
    *_BESIDE,
)
_LISTING_MOST_BYTES = 1 << 20
_LISTINGS_DEEP = 40
_ELSEWHERE_MOST = 50
_SOURCES = (".h", ".c", ".S", ".inc", ".def")
_EXPANDED_SLASH = tuple(f"{root}/" for root in _EXPANDED)
# Files alone, not what is below them: Makefile.inc and its kin.
_FLAT = ("lib", "usr.sbin", "share")
# Two thirds of sys/ that no part of vmm reads: not worth the time to look at.
SKIPPED = frozenset(
    (
        *(f"sys/{name}" for name in ("arm", "arm64", "powerpc", "riscv")),
        *(
            f"sys/contrib/{name}"
            for name in ("alpine-hal", "device-tree", "edk2", "libsodium", "openzfs", "vchiq")
        ),
        *(
            f"sys/contrib/dev/{name}"
            for name in ("ath", "athk", "broadcom", "iwlwifi", "mediatek", "rtw88", "rtw89")
        ),
    )
)
# What a build in place leaves beside the sources; make would take it for up to date, or write
# through our link into it.
_PRODUCT = re.compile(
    r"(.*\.(o|a|ko|kld|debug|full|pico|so(\.\d+)?)|\.depend.*|opt_.*\.h|export_syms"
    r"|vnode_if_.*\.h|.*_assym\.h|offset\.inc|machine|x86|i386|obj(\..*)?|vmmls|bhyve(ctl|load)?|.*\.[1-9]\.gz)\Z"
)
# Made out of the kernel's *_if.m for a module; bhyve has sources that are called so.
_INTERFACE = re.compile(r".*_if\.[ch]\Z")


def _walk(source: Path, roots: Iterable[str], flat: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(path in the tree, real path to link to) of every file a build may read, unsorted."""
    for root in flat:
        top = source / root
        if top.is_dir():
            with os.scandir(top) as entries:
                yield from ((f"{root}/{it.name}", it.path) for it in entries if it.is_file())
    for root in roots:
        yield from _below(source, root, (os.path.realpath(source / root),))


def _below(source: Path, root: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    folder = source / root
    if root in SKIPPED or not folder.is_dir():
        return
    component = root in _FOLDERS
    with os.scandir(folder) as entries:
        for entry in entries:
            if component and _is_product(root, entry.name):
                continue
            path = f"{root}/{entry.name}"
            if not entry.is_dir():
                yield path, entry.path
            elif not entry.is_symlink():
                yield from _below(source, path, above)
            elif (real := os.path.realpath(entry.path)) not in above:
                yield from _below(source, path, (*above, real))


def _is_product(folder: str, name: str) -> bool:
    if _PRODUCT.match(name):
        return True
    return folder.startswith("sys/") and _INTERFACE.match(name) is not None


def _folders_of(series: Series | None) -> tuple[str, ...]:
    touched = series.touched if series else ()
    folders = {str(PurePosixPath(path).parent) for path in touched}
    return tuple(sorted(folder for folder in folders if folder != "."))


def fingerprint(source: Path, series: Series | None = None) -> str:
    """One digest over what a build may read of `source`: paths, sizes and times.

    Contents are not read: that is gigabytes, and this runs before every build, even the one that
    builds nothing.  The change time is in it, which cannot be set back by an unpacker or `cp -p`.
    """
    return _stat_digest(_walk(source, _ROOTS, (*_FLAT, *_folders_of(series))))


def names(source: Path, series: Series | None, planted: Path) -> frozenset[str]:
    """What an #include may lead to, by name: the tree's sources, as a series leaves them."""
    found = {path for path, _ in _walk(source, _ROOTS, _FLAT)}
    for path in series.touched if series else ():
        (found.add if (planted / path).is_file() else found.discard)(path)
    return frozenset(path for path in found if path.endswith(_SOURCES))


def folder_fingerprint(*folders: Path) -> str:
    """The same over everything in some folders (the sysroot's headers and libraries)."""
    digests = []
    for folder in folders:
        digests.append(_stat_digest(_below(folder.parent, folder.name, ())))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _stat_digest(found: Iterable[tuple[str, str]]) -> str:
    lines = set()
    for path, real in found:
        try:
            state = os.stat(real)
        except OSError:
            lines.add(f"{path}\0gone")
            continue
        lines.add(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}")
    data = "\n".join(sorted(lines)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(data).hexdigest()


def plant(tree: SourceTree, series: Series | None, folder: Path) -> tuple[git.Drift, ...]:
    """Make the linked tree in `folder`, which must not be there, with the series applied to it.

    Returns the hunks that moved.  Raises PatchError when a patch does not apply.
    """
    real = _real_folders(series)
    try:
        for root in sorted({path.split("/")[0] for path in (*_EXPANDED, *real)}):
            _plant_folder(tree.path, folder, root, real)
    except OSError as error:
        raise CannotError(f"{folder}: cannot set up the build: {error.strerror}") from error
    if not series:
        return ()
    with staging.staged(series, tree.path) as (patched, drift):
        for path in series.touched:
            target = folder / path
            target.unlink(missing_ok=True)
            if (patched / path).is_symlink():
                raise PatchError(f"{path}: a patch may not make a symbolic link of it")
            if (patched / path).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(patched / path, target)
    return drift


def _real_folders(series: Series | None) -> frozenset[str]:
    """Every folder that cannot be a link: those written to, and all above them."""
    found: set[str] = set()
    for path in (*(f"{root}/x" for root in _EXPANDED), *(series.touched if series else ())):
        found.update(str(above) for above in PurePosixPath(path).parents)
    return frozenset(found - {"."})


def _plant_folder(source: Path, folder: Path, path: str, real: frozenset[str]) -> None:
    target = folder / path
    target.mkdir(parents=True, exist_ok=True)
    if not (source / path).is_dir():
        return
    expanded = f"{path}/".startswith(_EXPANDED_SLASH)
    with os.scandir(source / path) as entries:
        for entry in entries:
            inner = f"{path}/{entry.name}"
            if path in _FOLDERS and _is_product(path, entry.name):
                continue
            if entry.is_dir() and (inner in real or (expanded and not entry.is_symlink())):
                _plant_folder(source, folder, inner, real)
            else:
                os.symlink(entry.path, target / entry.name)


def interfaces(source: Path, folder: Path) -> tuple[Path, ...]:
    """The *_if.m files below sys/, as paths in the linked tree, as make skips links."""
    return tuple(
        sorted(folder / path for path, _ in _walk(source, ("sys",), ()) if path.endswith("_if.m"))
    )


@dataclass(frozen=True)
class Reads:
    """What became of the sources a series touches, by the compilers' own listings.

    `read` were read; `unpatched` from the user's tree after all.
    """

    unpatched: tuple[str, ...]
    read: frozenset[str]


def reads(
    tree: SourceTree,
    series: Series,
    planted: Path,
    objects: Path,
    sandbox: Sandbox | None = None,
    copies: Mapping[Path, str] | None = None,
) -> Reads:
    """Which touched sources the compilers read, after the .depend files below `objects`.

    `sandbox` is the one that the compilers ran in, `copies` says of which files there are copies.
    A link to a whole folder could make a compiler read an unpatched file, when a header there
    includes "../x.h"; a module made half of unpatched source proves nothing.  A file that the
    series removes counts as read.
    """
    places = {}
    for path in series.touched:
        places[os.path.realpath(planted / path)] = (path, True)
        places.setdefault(os.path.realpath(tree.path / path), (path, False))
    places |= {os.path.realpath(copy): (path, True) for copy, path in (copies or {}).items()}
    found: set[tuple[str, bool]] = set()
    for listing in _listings(objects):
        for word in set(listing.read_text(errors="replace").split()):
            name = os.path.realpath(listing.parent / (sandbox.outside(word) if sandbox else word))
            if sandbox:
                # A link that make laid ("machine") leads to a name that is one inside.
                name = os.path.realpath(sandbox.outside(name))
            if "/" in word and (place := places.get(name)):
                found.add(place)
    unpatched = {path for path, ours in found if not ours}
    gone = {path for path in series.touched if not (planted / path).is_file()}
    return Reads(tuple(sorted(unpatched)), frozenset({path for path, _ in found} | gone))


def _listings(objects: Path) -> Iterator[Path]:
    """The plain .depend files below a folder, none of an absurd size."""
    for folder, folders, names_there in os.walk(objects):
        if folder.count("/") > str(objects).count("/") + _LISTINGS_DEEP:
            folders.clear()
        for name in names_there:
            if name.startswith(".depend"):
                state = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(state.st_mode) and state.st_size <= _LISTING_MOST_BYTES:
                    yield Path(folder, name)


def elsewhere(tree: SourceTree) -> tuple[Path, ...]:
    """Places outside the tree that links in it lead to, for the sandbox to show.

    Whole trees, where a link leads into one (a tree of links, as lndir makes it).
    """
    top = os.path.realpath(tree.path)
    found: dict[str, None] = {}
    for _, path in _links(tree.path):
        target = os.path.normpath(
            os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path))
        )
        if f"{target}/".startswith((f"{top}/", f"{tree.path}/")) or not os.path.exists(target):
            continue
        if not any(f"{target}/".startswith(f"{it}/") for it in found):
            above = (str(it) for it in PurePosixPath(target).parents)
            found[next((it for it in above if source_tree.is_tree(it)), target)] = None
        if len(found) > _ELSEWHERE_MOST:
            raise CannotError(
                f"{tree.path}: its links lead to more than {_ELSEWHERE_MOST} places outside it; "
                "name the tree they lead to, or copy it with cp -L"
            )
    return tuple(Path(it) for it in found)


def _links(source: Path) -> Iterator[tuple[str, str]]:
    """Symbolic links among what a build may read, and those to the folders it is read from."""
    for root in (*_FLAT, *_ROOTS):
        for part in (root, *map(str, PurePosixPath(root).parents)):
            if (source / part).is_symlink():
                yield part, str(source / part)
    folders = [str(source / root) for root in (*_FLAT, *_ROOTS)]
    while folders:
        folder = folders.pop()
        if not os.path.isdir(folder):
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield folder, entry.path
                elif entry.is_dir() and os.path.relpath(entry.path, source) not in SKIPPED:
                    folders.append(entry.path)
