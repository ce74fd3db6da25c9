"""The linked tree: folders of our own with links to the files of the user's source tree.

make uses the real path of the folder it works in, and a compiler looks for headers in the folder of
the including file.  So the folders around vmm are real and only their files are links.  The files
that the series changes are copies.  The user's tree is only read.
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
# Other folders that the parts' Makefiles use.
_BESIDE = tuple(folder for part in PARTS.values() for folder in part.beside)
_ROOTS = ("sys", "share/mk", *(it for it in _FOLDERS if not it.startswith("sys/")), *_BESIDE)
# Linked file by file; each other folder is one link, because nothing is written to it.
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
# Only the files in these folders, not those below: Makefile.inc and the like.
_FLAT = ("lib", "usr.sbin", "share")
# Two thirds of sys/, which no part of vmm reads; they are skipped to save time.
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
# Files that a build inside the tree leaves; make would take them for up to date, or write to them
# through our links.
_PRODUCT = re.compile(
    r"(.*\.(o|a|ko|kld|debug|full|pico|so(\.\d+)?)|\.depend.*|opt_.*\.h|export_syms"
    r"|vnode_if_.*\.h|.*_assym\.h|offset\.inc|machine|x86|i386|obj(\..*)?|vmmls|bhyve(ctl|load)?|.*\.[1-9]\.gz)\Z"
)
# For a module these are generated from the kernel's *_if.m; bhyve has sources with such names.
_INTERFACE = re.compile(r".*_if\.[ch]\Z")


def _walk(source: Path, roots: Iterable[str], flat: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(path in the tree, real path to link to) of every file that a build may read, unsorted."""
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
    """One digest of all files of `source` that a build may read: paths, sizes and times.

    Contents are not read: these are gigabytes, and the digest is computed before every build, even
    if nothing is to be built.  It includes the change time, which an unpacker or `cp -p` cannot set
    back.
    """
    return _stat_digest(_walk(source, _ROOTS, (*_FLAT, *_folders_of(series))))


def names(source: Path, series: Series | None, planted: Path) -> frozenset[str]:
    """The names that an #include may find: the tree's sources with the series applied."""
    found = {path for path, _ in _walk(source, _ROOTS, _FLAT)}
    for path in series.touched if series else ():
        (found.add if (planted / path).is_file() else found.discard)(path)
    return frozenset(path for path in found if path.endswith(_SOURCES))


def folder_fingerprint(*folders: Path) -> str:
    """The same digest of everything in some folders (the sysroot's headers and libraries)."""
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
    """Make the linked tree in `folder`, which must not exist, and apply the series.

    Returns the hunks that moved.  Raises PatchError if a patch does not apply.
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
                raise PatchError(f"{path}: a patch may not turn it into a symbolic link")
            if (patched / path).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(patched / path, target)
    return drift


def _real_folders(series: Series | None) -> frozenset[str]:
    """Every folder that cannot be a link: those written to, and their parents."""
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
    """The *_if.m files below sys/, as paths in the linked tree, because make skips links."""
    return tuple(
        sorted(folder / path for path, _ in _walk(source, ("sys",), ()) if path.endswith("_if.m"))
    )


@dataclass(frozen=True)
class Reads:
    """What the compilers did with the sources that a series touches, by their own listings.

    `read` were read; `unpatched` were wrongly read from the user's tree.
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
    """The touched sources that the compilers read, according to the .depend files below `objects`.

    `sandbox` is the one that the compilers ran in; `copies` has the files that are copies.
    A link to a whole folder could make a compiler read an unpatched file, when a header there
    includes "../x.h"; a module built partly from unpatched source proves nothing.  A file that the
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
                # A link that make created ("machine") refers to a path inside the sandbox.
                name = os.path.realpath(sandbox.outside(name))
            if "/" in word and (place := places.get(name)):
                found.add(place)
    unpatched = {path for path, ours in found if not ours}
    gone = {path for path in series.touched if not (planted / path).is_file()}
    return Reads(tuple(sorted(unpatched)), frozenset({path for path, _ in found} | gone))


def _listings(objects: Path) -> Iterator[Path]:
    """The plain .depend files below a folder, without absurdly large ones."""
    for folder, folders, names_there in os.walk(objects):
        if folder.count("/") > str(objects).count("/") + _LISTINGS_DEEP:
            folders.clear()
        for name in names_there:
            if name.startswith(".depend"):
                state = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(state.st_mode) and state.st_size <= _LISTING_MOST_BYTES:
                    yield Path(folder, name)


def elsewhere(tree: SourceTree) -> tuple[Path, ...]:
    """Places outside the tree that its links lead to, which the sandbox must show.

    If a link leads into another tree (as in a tree made by lndir), the whole tree is one place.
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
                "name the tree that they lead to, or copy it with cp -L"
            )
    return tuple(Path(it) for it in found)


def _links(source: Path) -> Iterator[tuple[str, str]]:
    """Symbolic links among the files that a build may read, and links to their folders."""
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
