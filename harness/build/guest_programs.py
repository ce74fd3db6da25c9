"""Small C programs for the guest, compiled here against a build's headers and library.

The tests use them to ask libvmmapi itself, or to do to /dev/vmm what no tool does.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import files
from harness.build import bmake, targets
from harness.errors import CannotError, PatchError, UsageError

if TYPE_CHECKING:
    from harness.build.builder import Build

_FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIE", "-pie")


def compile_program(
    built: Build,
    sources: Sequence[Path],
    *,
    sysroot: Path,
    name: str = "",
    libraries: Sequence[str] = ("vmmapi", "util"),
    flags: Sequence[str] = (),
) -> Path:
    """Compile C files to one program for the guest; returns its path in the cache.

    It is linked against the build's own libvmmapi and looks for it in its own folder ($ORIGIN), so
    copy both to the same place.  Compiled again only when sources, build or compiler changed.

    Raises UsageError (a source is not there), CannotError (no sysroot's library in `built`),
    PatchError with the compiler's lines.
    """
    if "vmmapi" in libraries and built.library is None:
        raise CannotError("libvmmapi was not built, so no program can be linked against it")
    name = name or sources[0].stem
    sysroot = targets.require_sysroot(sysroot)
    toolchain = bmake.find_toolchain()
    try:
        beside = {path for source in sources for path in source.parent.glob("*.h")}
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
        with files.atomic_dir(target.parent) as folder:
            command = _command(sources, built, sysroot, toolchain, folder, libraries)
            command += [*_FLAGS, *flags, "-o", str(folder / name)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = bmake.error_lines(done.stderr.splitlines(), built.folder)
                raise PatchError(
                    f"{name} does not compile: {lines[0] if lines else 'no reason given'}",
                    detail="\n".join(lines),
                )
            folder.chmod(0o755)
    return target


def _command(
    sources: Sequence[Path],
    built: Build,
    sysroot: Path,
    toolchain: bmake.Toolchain,
    folder: Path,
    libraries: Sequence[str],
) -> list[str]:
    target = f"x86_64-unknown-freebsd{built.revision}"
    # The name a linker looks for under -lvmmapi; the run takes the soname's file.
    if built.library and "vmmapi" in libraries:
        (folder / "libvmmapi.so").symlink_to(built.library)
    return [
        *targets.userland_compiler(toolchain, target, sysroot, built.include),
        f"--ld-path={targets.linker(toolchain)}",
        *map(str, sources),
        f"-L{folder}",
        *(f"-l{library}" for library in libraries),
        "-Wl,-rpath,$ORIGIN",
        "-Wl,-z,origin",
    ]
