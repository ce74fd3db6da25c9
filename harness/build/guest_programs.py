"""Compiles small C programs for the guest with a build's headers and library.

The checks use them to call libvmmapi directly, or to use /dev/vmm in ways that no tool does.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import files
from harness import sysroot as sysroots
from harness.build import bmake, sandbox, targets, workdir
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError, UsageError

if TYPE_CHECKING:
    from harness.build.builder import Build

# Stripped, they are a third of the size; a megabyte takes a second to copy into an emulated guest.
_FLAGS = ("-O2", "-Wl,--strip-all", "-Wall", "-Wextra", "-Werror", "-fPIE", "-pie")
_LIMIT_S = 600.0


def compile_program(
    built: Build,
    sources: Sequence[Path],
    *,
    sysroot: Path,
    name: str = "",
    libraries: Sequence[str] = ("vmmapi", "util"),
    flags: Sequence[str] = (),
    headers: Sequence[Path] = (),
) -> Path:
    """Compile C files to one program for the guest; returns its path in the cache.

    A source can include the headers of its own folder, and those of `headers`, by name.
    It is linked against the build's own libvmmapi and looks for it in its own folder ($ORIGIN), so
    copy both to the same folder.  It is compiled again only if sources, build or compiler changed.

    Raises UsageError (a source is missing), CannotError (`built` has no library), PatchError with
    the compiler's messages.
    """
    if "vmmapi" in libraries and built.library is None:
        raise CannotError("libvmmapi was not built, so no program can be linked against it")
    name = name or sources[0].stem
    sysroot = sysroots.require(sysroot)
    toolchain = bmake.find_toolchain()
    try:
        beside = {path for source in sources for path in source.parent.glob("*.h")} | set(headers)
        contents = [path.read_bytes().hex() for path in (*sources, *sorted(beside))]
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error
    key = files.sha256_text(
        name, built.key, toolchain.identity, *contents, "--", *libraries, "--", *flags, *_FLAGS
    )[:32]
    root = files.cache_dir() / "builds" / "programs"
    target = root / key / name
    with files.locked(root / "locks" / key, f"compiling {name}"):
        if target.is_file():
            return target
        with workdir.claim(root.parent) as shop:
            made = _compiled(
                built, sources, sysroot, toolchain, shop, name, libraries, flags, headers
            )
            with files.atomic_dir(target.parent) as folder:
                shutil.copy(made, folder / name)
                folder.chmod(0o755)
    return target


def _compiled(
    built: Build,
    sources: Sequence[Path],
    sysroot: Path,
    toolchain: bmake.Toolchain,
    shop: workdir.WorkFolder,
    name: str,
    libraries: Sequence[str],
    flags: Sequence[str],
    headers: Sequence[Path],
) -> Path:
    """Compile in a sandbox, because the patched headers are not trusted."""
    work = shop.folder
    for folder in ("obj", "made", "src"):
        (work / folder).mkdir()
    program = sandbox.find(built.sandboxed)
    if program is None:
        sandbox.require_plain(work, "the cache's path")
    fence = sandbox.Sandbox(
        program,
        work,
        reads=(sysroot, built.folder),
        writes=(work / "obj",),
        tools=toolchain.programs(),
        held=shop.lock_fd,
    )
    fence.require()
    copies = []
    for number, source in enumerate(sources):
        near = work / "src" / str(number)
        near.mkdir()
        for path in (source, *headers, *source.parent.glob("*.h")):
            shutil.copyfile(path, near / path.name)
        copies.append(fence.inside(near / source.name))
    # The linker looks for this name because of -lvmmapi; at run time the soname's file is used.
    if built.library and "vmmapi" in libraries:
        (work / "made" / "libvmmapi.so").symlink_to(built.library)
    command = [
        *targets.userland_compiler(
            toolchain,
            f"x86_64-unknown-freebsd{built.revision}",
            str(sysroot),
            str(built.include),
        ),
        f"--ld-path={targets.linker(toolchain)}",
        *copies,
        f"-L{fence.inside(work / 'made')}",
        *(f"-l{library}" for library in libraries),
        # bhyveload runs in capability mode, where a library with $ORIGIN cannot be loaded.
        *(("-Wl,-rpath,$ORIGIN", "-Wl,-z,origin") if "vmmapi" in libraries else ()),
        *_FLAGS,
        *flags,
        "-o",
        fence.inside(work / "obj" / name),
    ]
    done = fence.run(command, work, Deadline.after(_LIMIT_S))
    if not done.ok:
        lines = bmake.error_lines(done.stderr.splitlines(), fence.inside(work / "src"))
        raise PatchError(
            f"{name} does not compile: {lines[0] if lines else 'no reason given'}",
            detail="\n".join(lines),
        )
    made = work / "made" / name
    if not workdir.take(work / "obj", name, made):
        raise CannotError(f"{name}: the compiler succeeded but wrote no file")
    return made
