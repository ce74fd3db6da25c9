"""Makes the parts of a build: the kernel module, the library, the command.

Each part has a function that calls bmake in the linked tree with the variables for FreeBSD's
Makefiles.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.build import bmake, coverage, kernconf, linktree, parts, workdir
from harness.build.bmake import Make, Toolchain
from harness.build.job import Job, Made
from harness.build.parts import PARTS
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError

# The folder where headers are installed -> their folder in the source tree.
_HEADERS = (
    ("machine", "sys/amd64/include"),
    ("x86", "sys/x86/include"),
    ("dev/vmm", "sys/dev/vmm"),
    ("sys", "sys/sys"),
    ("vm", "sys/vm"),
    ("", "lib/libvmmapi"),
    ("", "include"),
)
_VMM_HEADER = re.compile(r"(sys/amd64/include/vmm.*|sys/dev/vmm/.*|lib/libvmmapi/vmmapi)\.h\Z")
SYMBOLS = "vmm.ko.symbols"
"""The module with line numbers, in addition to the one that is loaded."""

_QUIET = (
    ("MK_CTF", "no"), ("MK_DEBUG_FILES", "no"), ("MK_MAN", "no"), ("MK_PROFILE", "no"),
    ("MK_TESTS", "no"), ("MK_AUTO_OBJ", "yes"), ("MK_WARNS", "yes"),
)  # fmt: skip

_TOOL_LIMIT_S = 300.0
_OPTIONAL = (("MK_NETGRAPH_SUPPORT", "usr/include/netgraph.h"),)


def sysroot_fingerprint(sysroot: Path) -> str:
    """A digest of the files of the sysroot that a build may read: paths, sizes and times."""
    return linktree.folder_fingerprint(
        sysroot / "usr/include", sysroot / "lib", sysroot / "usr/lib"
    )


def make_all(job: Job) -> Made:
    """Make every part that can be made; PatchError if one does not compile."""
    touched = job.series.touched if job.series else ()
    reached = parts.reach(job.source, touched)
    module, symbols, warnings = _module(job)
    include = job.work / "include"
    _headers(job, include)
    library = tool = None
    left_out: dict[str, str] = {}
    programs: list[Path] = []
    wants_tool = (job.source / PARTS[parts.COMMAND].folder / "Makefile").is_file()
    if not wants_tool:
        left_out[parts.COMMAND] = "the source has no usr.sbin/vmmls"
    asked = (*reached.names, *job.wanted.programs)
    wanted = [name for name in parts.PROGRAMS if name in asked]
    if job.sysroot:
        library, more = _library(job, include)
        warnings += more
        if wants_tool:
            tool, more = _program(job, parts.COMMAND, include, library)
            warnings += more
        for name in wanted:
            more_libraries = job.wanted.libraries
            if missing := _missing_libraries(job.source, job.sysroot, name, more_libraries):
                left_out[name] = f"the sysroot lacks {', '.join(missing)}"
                continue
            program, more = _program(job, name, include, library)
            programs.append(program)
            warnings += more
    else:
        without = (parts.LIBRARY, *wanted, *((parts.COMMAND,) if wants_tool else ()))
        left_out |= dict.fromkeys(without, "no sysroot (FreeBSD's headers and libraries)")
    return Made(
        module,
        library,
        tool,
        include,
        warnings,
        tuple(left_out.items()),
        untested_files(job, reached, left_out),
        symbols,
        tuple(programs),
        reached.names,
    )


def untested_files(
    job: Job, reached: parts.Reached, left_out: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """The files of the series from which nothing was built, each with the reason.

    Raises PatchError if a compiler read a touched file of the user's tree instead of the patched
    one.
    """
    if not job.series:
        return ()
    copies = {
        job.work / "include" / installed / path.rpartition("/")[2]: path
        for path in job.series.touched
        for installed, folder in _HEADERS
        if path.rpartition("/")[0] == folder
    }
    reads = linktree.reads(job.tree, job.series, job.source, job.objects, job.sandbox, copies)
    if reads.unpatched:
        stale = ", ".join(reads.unpatched)
        raise PatchError(f"the build read {stale} unpatched; this is a fault of the workbench")
    unread = (path for path in job.series.touched if path not in reads.read)
    reasons = ((path, parts.why_untested(path, reached, left_out)) for path in unread)
    return tuple((path, why) for path, why in reasons if why)


def make_again(job: Job, before: Made, touched: Sequence[str]) -> Made:
    """Make only the part whose C files are `touched`, and use the earlier build of the others.

    This is for one more patch on a series that is already built; if it touches several parts,
    everything is made.
    """
    reached = parts.reach(job.source, touched)
    plain = all(path.endswith(".c") for path in touched) and not reached.nothing
    if not plain or len(reached.names) != 1 or before.library is None:
        return make_all(job)
    only = reached.names[0]
    include = job.work / "include"
    _headers(job, include)
    if only == parts.MODULE:
        module, symbols, warnings = _module(job)
        return replace(before, module=module, symbols=symbols, include=include, warnings=warnings)
    if only == parts.LIBRARY:
        library, warnings = _library(job, include)
        return replace(before, library=library, include=include, warnings=warnings)
    library = job.made / before.library.name
    shutil.copy(before.library, library)
    _linkable(library)
    if only in parts.PROGRAMS:
        program, warnings = _program(job, only, include, library)
        others = (it for it in before.programs if it.name != only)
        return replace(before, programs=(*others, program), include=include, warnings=warnings)
    tool, warnings = _program(job, parts.COMMAND, include, library)
    return replace(before, tool=tool, include=include, warnings=warnings)


def _common(job: Job) -> tuple[tuple[str, str], ...]:
    tool = job.toolchain.tool
    return (
        ("MACHINE", "amd64"),
        ("MACHINE_ARCH", "amd64"),
        ("MACHINE_CPUARCH", "amd64"),
        ("SRCTOP", job.inside(job.source)),
        ("SYSDIR", job.inside(job.source / "sys")),
        # The user's own make.conf and src.conf are meant for machines that run FreeBSD.
        ("SRCCONF", "/dev/null"),
        ("__MAKE_CONF", "/dev/null"),
        ("SRC_ENV_CONF", "/dev/null"),
        # The full path is needed: from just ld.lld-N the Makefiles make a wrong --ld-path.
        ("LD", linker(job.toolchain)),
        ("AR", tool("llvm-ar")),
        ("NM", tool("llvm-nm")),
        ("RANLIB", tool("llvm-ranlib")),
        ("OBJCOPY", tool("llvm-objcopy")),
        ("STRIPBIN", tool("llvm-strip")),
        *_QUIET,
        *job.wanted.make,
    )


def _run(job: Job, make: Make) -> int:
    job.progress(f"building {make.component}")
    return bmake.run(make, job.source, job.log, job.progress, job.sandbox).warnings


def _taken(job: Job, folder: str, name: str, component: str) -> Path:
    """A copy of make's result in a folder that the next make cannot write to."""
    place = f"{job.inside(job.source).lstrip('/')}/amd64.amd64/{folder}/{name}"
    copy = job.made / name
    if not workdir.take(job.objects, place, copy):
        raise PatchError(f"{component}: make succeeded but made no {name}")
    return copy


def _module(job: Job) -> tuple[Path, Path, int]:
    folder = PARTS[parts.MODULE].folder
    options = job.work / "GENERIC"
    options.mkdir()
    kernconf.write_headers(job.config, options)
    clang = job.toolchain.tool("clang")
    compiler = [*job.ccache.launcher, clang, f"--target={job.tree.target}", *_path_maps(job)]
    compiler += coverage.FLAGS if job.coverage else ()
    make = Make(
        "vmm.ko",
        job.source / folder,
        ("all",),
        (
            *_common(job),
            ("CC", " ".join(compiler)),
            ("KERNBUILDDIR", job.inside(options)),
            ("__MPATH", " ".join(map(job.inside, linktree.interfaces(job.tree.path, job.source)))),
            # All symbols are exported, because selecting some needs BSD's xargs.
            ("EXPORT_SYMS", "YES"),
            # Line numbers for a panic's backtrace; the loaded module does not contain them.
            ("DEBUG_FLAGS", "-gline-tables-only"),
            ("MK_SPLIT_KERNEL_DEBUG", "no"),
        ),
        (("MAKEOBJDIRPREFIX", job.inside(job.objects)), *job.ccache.environment),
    )
    warnings = _run(job, make)
    symbols = _taken(job, folder, "vmm.ko", "vmm.ko").rename(job.made / SYMBOLS)
    sections: tuple[str, ...] = ()
    if job.coverage:
        symbols = _with_counters(job, symbols)
        sections = coverage.NOT_LOADED
    command = [job.toolchain.tool("llvm-objcopy"), "--strip-debug"]
    command += [f"--remove-section={name}" for name in sections]
    return _tool(job, command, symbols, "vmm.ko"), symbols, warnings


def _with_counters(job: Job, module: Path) -> Path:
    """Link the module again, with all counters in one section."""
    script = job.work / "counters.ld"
    script.write_text(coverage.SCRIPT)
    plain = module.rename(module.with_suffix(".plain"))
    command = [linker(job.toolchain), "-m", "elf_x86_64_fbsd", "-r", "--build-id=sha1"]
    command += ["-T", job.inside(script)]
    return _tool(job, command, plain, SYMBOLS, "-o")


def symbols_of(file: Path) -> Path:
    """The file next to a counting program or library that says what its counters mean."""
    return file.with_name(f"{file.name}.symbols")


def _finished(job: Job, file: Path) -> Path:
    """A program or library as it is copied into the guest; next to it, one with all symbols."""
    if not job.coverage:
        return file
    symbols = file.rename(symbols_of(file))
    command = [job.toolchain.tool("llvm-objcopy"), "--strip-debug"]
    command += [f"--remove-section={name}" for name in coverage.USER_NOT_LOADED]
    return _tool(job, command, symbols, file.name)


def _tool(job: Job, command: Sequence[str], source: Path, name: str, *before: str) -> Path:
    """Run a tool on a file: `command`, the file, `before`, and the output's path."""
    out = job.objects / f"{name}.made"
    words = [*command, job.inside(source), *before, job.inside(out)]
    done = job.sandbox.run(words, job.work, Deadline.after(_TOOL_LIMIT_S))
    if not done.ok:
        raise PatchError(f"{name}: {Path(command[0]).name} fails", detail=done.stderr)
    if not workdir.take(job.objects, out.name, job.made / name):
        raise CannotError(f"{Path(command[0]).name} succeeded but wrote no file")
    return job.made / name


def _path_maps(job: Job) -> tuple[str, ...]:
    """Options that keep our paths out of the results, so that the same source gives the same bytes.

    The Makefiles of 15 do that by themselves, those of 14 only partly.
    """
    maps = ((job.objects, "/usr/obj"), (job.source, "/usr/src"))
    return tuple(f"-ffile-prefix-map={job.inside(ours)}={theirs}" for ours, theirs in maps)


def _headers(job: Job, include: Path) -> None:
    """Copy vmm's headers and those that the series touches to a folder, laid out as installed.

    They precede the sysroot's, which are those of a release without the patch.
    """
    include.mkdir()
    touched = set(job.series.touched) if job.series else set()
    for installed, folder in _HEADERS:
        for header in sorted((job.source / folder).glob("*.h")):
            path = f"{folder}/{header.name}"
            if path in touched or _VMM_HEADER.match(path):
                (include / installed).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(header, include / installed / header.name)


def userland_compiler(toolchain: Toolchain, target: str, sysroot: str, include: str) -> list[str]:
    """The command line of the compiler for the guest's programs, patched headers first."""
    return [
        toolchain.tool("clang"),
        f"--target={target}",
        f"--sysroot={sysroot}",
        f"-I{include}",
        # These precede clang's own headers: FreeBSD's clang has no stdarg.h and uses the system's.
        f"-isystem{sysroot}/usr/include",
        "-Wno-unused-command-line-argument",
    ]


def linker(toolchain: Toolchain) -> str:
    """The linker's full path."""
    return shutil.which(toolchain.tool("ld.lld")) or toolchain.tool("ld.lld")


def _userland(job: Job, component: str, target: str, include: Path, link: str) -> Make:
    assert job.sysroot
    # make cannot handle blanks in paths, so use a link without blanks.
    sysroot = job.work / "sysroot"
    if not sysroot.is_symlink():
        sysroot.symlink_to(job.sysroot)
    compiler = userland_compiler(
        job.toolchain, job.tree.target, job.inside(sysroot), job.inside(include)
    )
    compiler += _path_maps(job)
    if job.coverage:
        link = " ".join((link, *_counting_words(job, compiler)))
        compiler += coverage.USER_FLAGS
    return Make(
        component,
        job.source / PARTS[component].folder,
        (target,),
        (
            *_common(job),
            ("CC", " ".join((*job.ccache.launcher, *compiler))),
            # Libraries that a sysroot may lack and that few programs use.
            *((option, "no") for option, it in _OPTIONAL if not (job.sysroot / it).exists()),
        ),
        (
            ("MAKEOBJDIRPREFIX", job.inside(job.objects)),
            ("LDFLAGS", link),
            *job.ccache.environment,
        ),
    )


def _counting_words(job: Job, compiler: Sequence[str]) -> tuple[str, ...]:
    """What a counting program is linked with: our run time library, compiled once, and a script."""
    script = job.work / "user-counters.ld"
    library = job.made / "counted.o"
    if not library.exists():
        script.write_text(coverage.USER_SCRIPT)
        source = shutil.copyfile(coverage.USER_SOURCE, job.work / "counted.c")
        command = [*compiler, "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-c"]
        _tool(job, command, source, library.name, "-o")
    return job.inside(library), f"-Wl,-T,{job.inside(script)}"


def _missing_libraries(source: Path, sysroot: Path, program: str, more: Sequence[str]) -> list[str]:
    """The libraries that a program of this source tree is linked with and the sysroot lacks."""
    names = (f"lib{name}.so" for name in (*parts.libraries(source, program), *more))
    return [name for name in names if not (sysroot / "usr/lib" / name).exists()]


def _library(job: Job, include: Path) -> tuple[Path, int]:
    folder = PARTS[parts.LIBRARY].folder
    text = (job.source / folder / "Makefile").read_text(errors="replace")
    found = re.search(r"^SHLIB_MAJOR\s*=\s*(\d+)", text, re.M)
    if not found:
        raise PatchError(f"{folder}/Makefile: it has no SHLIB_MAJOR")
    name = f"libvmmapi.so.{found[1]}"
    warnings = _run(job, _userland(job, "libvmmapi", name, include, ""))
    return _linkable(_finished(job, _taken(job, folder, name, "libvmmapi"))), warnings


def _linkable(library: Path) -> Path:
    """The library, with a link next to it under the name that a linker looks for (-lvmmapi)."""
    library.with_name("libvmmapi.so").symlink_to(library.name)
    return library


def _program(job: Job, name: str, include: Path, library: Path) -> tuple[Path, int]:
    # Doubled for make and quoted for the shell, so that the linker gets $ORIGIN.
    link = f"-L{job.inside(library.parent)} -Wl,-rpath,'$$ORIGIN' -Wl,-z,origin"
    warnings = _run(job, _userland(job, name, name, include, link))
    return _finished(job, _taken(job, PARTS[name].folder, name, name)), warnings
