"""Builds vmm.ko, libvmmapi and vmmls from a source tree and a series, on this machine.

Everything happens in a linked tree (linktree.py) and in a sandbox (sandbox.py); the user's tree is
only read.  The result is in `builds/KEY/` of the cache, where KEY is the digest of all inputs,
so that a second build of the same inputs compiles nothing.  Of a failed build only the log stays,
in `builds/failed/`.

vmmls finds its library in its own folder (run path $ORIGIN).  Both are copied to one private folder
of the guest, so no file of the guest's own system is replaced, no variable must be set, and the
checks use the real shared library with its ABI.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import files, source_tree
from harness import sysroot as sysroots
from harness.build import bmake, ccache, kernconf, linktree, sandbox, targets, workdir
from harness.build.bmake import Progress, Toolchain
from harness.build.features import Features
from harness.build.guest_programs import compile_program as compile_program
from harness.build.in_guest import GuestBuilder
from harness.build.job import Job, Made
from harness.build.result import MANIFEST, load
from harness.build.result import Build as Build
from harness.build.result import read_build_id as read_build_id
from harness.errors import CannotError, WorkbenchError
from harness.series import apply
from harness.series.load import PATCHES, Series
from harness.source_tree import SourceTree

# Part of every key: increase it if the same input must be built differently.
_RECIPE = 1
# `inv mutation` alone makes almost forty builds.
_KEPT_BUILDS = 120

Maker = Callable[[Job], Made]


def build(
    source: Path,
    sysroot: Path | None,
    series: Series | None,
    release: str,
    *,
    kernel_config: str = kernconf.DEFAULT_CONFIG,
    kernel_options: Sequence[str] = (),
    kernel: Sequence[str] = (),
    progress: Progress = lambda _line: None,
    maker: Maker = targets.make_all,
    in_guest: GuestBuilder | None = None,
    sandboxed: bool | None = None,
    coverage: bool = False,
    wanted: Features = Features(),  # noqa: B008  (frozen)
) -> Build:
    """Build `source` with a series applied, or find the existing build (`cached`).

    `series` None builds the stock module and library.  Without `sysroot` only the module is built;
    `not_built` names the missing parts and the reasons.  `kernel` is the configuration of the
    kernel that the module is for, as that kernel states it; without it, the tree's `kernel_config`
    is used.  `kernel_options` changes the options: "NAME", "NAME=VALUE" or "!NAME".  `in_guest`
    builds the module with FreeBSD's own compiler; then a machine without a compiler can build the
    module.  `sandboxed` False runs make without a sandbox, for trusted patches (default:
    `sandbox.wanted()`).  `coverage` builds a module, a library and programs that count which of
    their lines ran. `wanted` has the build options of a topic.

    Raises UsageError (not a source tree, or the wrong release), CannotError (no compiler),
    PatchError (a patch does not apply, or code does not compile; it names the log).
    """
    if sandboxed is None:
        sandboxed = sandbox.wanted()
    tree = source_tree.identify(source, release)
    apply.require_complete(tree.path)
    try:
        toolchain = bmake.find_toolchain()
    except CannotError:
        if in_guest is None:
            raise
        toolchain = Toolchain(0, "no compiler on the host")
    if in_guest is not None:
        toolchain = dataclasses.replace(
            toolchain, identity=f"{in_guest.identity}; {toolchain.identity}"
        )
        maker = in_guest.make
    options = (*kernel_options, *wanted.kernel_options)
    config = kernconf.read_config(tree.path, kernel_config, options, kernel)
    root = files.cache_dir() / "builds"
    if sysroot is not None:
        sysroot = sysroots.require(sysroot, tree.release.major)
    sysroot_is = targets.sysroot_fingerprint(sysroot) if sysroot else "no sysroot"
    key = files.sha256_text(
        str(_RECIPE),
        _own_code(),
        tree.target,
        linktree.fingerprint(tree.path, series),
        sysroot_is,
        series.digest if series else "stock",
        json.dumps([config.name, config.options]),
        toolchain.identity,
        "sandboxed" if sandboxed else "not sandboxed",
        "coverage" if coverage else "plain",
        *((wanted.identity,) if wanted.identity else ()),
    )[:32]
    target = root / key
    with files.locked(root / "locks" / key, f"build for FreeBSD {release}"):
        if found := load(target):
            os.utime(target / MANIFEST)
            # The key depends on the contents; the name of the series comes from the caller.
            return dataclasses.replace(
                found, release=release, series=series.topic if series else None
            )
        fence = sandbox.find(sandboxed)
        if fence is None:
            sandbox.require_plain(root, "the cache's path")
        job = _Job(
            tree,
            sysroot,
            sysroot_is,
            series,
            release,
            config,
            toolchain,
            progress,
            key,
            fence,
            coverage,
            wanted,
        )
        built = _make(job, target, maker)
    _prune(root, key)
    return built


@dataclass(frozen=True)
class _Job:
    tree: SourceTree
    sysroot: Path | None
    sysroot_is: str
    series: Series | None
    release: str
    config: kernconf.KernelConfig
    toolchain: Toolchain
    progress: Progress
    key: str
    fence: str | None
    coverage: bool
    wanted: Features


def _make(job: _Job, target: Path, maker: Maker) -> Build:
    start = time.monotonic()
    root = target.parent
    with workdir.claim(root) as shop, files.atomic_dir(target) as kept:
        work = shop.folder
        log = work / "build.log"
        try:
            job.progress("setting up the source")
            drift = linktree.plant(job.tree, job.series, work / "src")
            begun = f"{job.toolchain.identity}\n{job.tree.path} ({job.tree.target})\n"
            log.write_text(begun, errors="backslashreplace")
            launcher, fence = _fenced(job, shop)
            made = maker(
                Job(
                    job.tree,
                    work,
                    log,
                    job.config,
                    job.toolchain,
                    job.sysroot,
                    job.progress,
                    job.series,
                    launcher,
                    fence,
                    job.coverage,
                    job.wanted,
                )
            )
            build_id = read_build_id(made.module)
        except WorkbenchError as error:
            if full := files.out_of_room(work, error.detail):
                raise full from error
            if log.is_file():
                failed = root / "failed" / f"{job.key}.log"
                # Even if the disk is full, the reason must be reported.
                with contextlib.suppress(OSError):
                    files.write_atomic(failed, log.read_bytes())
                    error.message += f" (log: {failed})"
                    error.args = (error.message,)
            raise
        for path in (made.module, made.library, made.tool, made.symbols, *made.programs):
            if path:
                shutil.copy(path, kept / path.name)
                if (symbols := targets.symbols_of(path)).is_file():
                    shutil.copy(symbols, kept / symbols.name)
        shutil.copytree(made.include, kept / "include")
        shutil.copy(log, kept / "build.log")
        names = [path.name if path else None for path in (made.module, made.library, made.tool)]
        kept_names = (*names, *(path.name for path in made.programs))
        manifest = {
            "release": job.release,
            "revision": job.tree.revision,
            "osversion": job.tree.osversion,
            "module": names[0],
            "build_id": build_id,
            "library": names[1],
            "tool": names[2],
            "not_built": made.not_built,
            "untested": made.untested,
            "reached": made.reached,
            "drift": [str(moved) for moved in drift],
            "series": job.series.topic if job.series else None,
            "series_digest": job.series.digest if job.series else None,
            "kernel_config": job.config.name,
            "invariants": job.config.invariants,
            "compiler": job.toolchain.identity,
            "warnings": made.warnings,
            "sandboxed": job.fence is not None,
            "seconds": round(time.monotonic() - start, 1),
            "source": _as_text(job.tree.path),
            "sysroot": _as_text(job.sysroot) if job.sysroot else None,
            "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "digests": {name: files.sha256_file(kept / name) for name in kept_names if name},
        }
        kept.chmod(0o755)
        (kept / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    built = load(target, cached=False)
    if not built:
        raise CannotError(f"{target}: the finished build cannot be read back; is the disk full?")
    return built


def _as_text(path: Path) -> str:
    """A path for the manifest; a name that is not UTF-8 could not be read back."""
    return str(path).encode(errors="backslashreplace").decode()


def _fenced(job: _Job, shop: workdir.WorkFolder) -> tuple[ccache.Ccache, sandbox.Sandbox]:
    """The compiler's cache and the sandbox of a build."""
    work = shop.folder
    for name in ("obj", "made"):
        (work / name).mkdir()
    reads = [job.tree.path, *linktree.elsewhere(job.tree)]
    if job.sysroot:
        reads.append(job.sysroot)
    fence = sandbox.Sandbox(
        job.fence,
        work,
        reads=tuple(reads),
        writes=(work / "obj",),
        tools=job.toolchain.programs(),
        held=shop.lock_fd,
    )
    launcher, fence = ccache.find(
        work,
        job.toolchain.identity,
        _includable(job, work),
        fence,
        stranger=job.series.digest if job.series and not _shipped(job.series) else "",
    )
    fence.require()
    return launcher, fence


def _shipped(series: Series) -> bool:
    """Whether the whole series comes with the project, and so is trusted like its code."""
    own = PATCHES.resolve()
    return all(patch.path.resolve().is_relative_to(own) for patch in series.patches)


def _includable(job: _Job, work: Path) -> Iterator[str]:
    """The names of all files that an #include may find, in the tree and in the sysroot."""
    yield from linktree.names(job.tree.path, job.series, work / "src")
    yield from (str(job.sysroot), job.sysroot_is)


def _own_code() -> str:
    """The digest of the building code, so that a change to it causes new builds.

    The base modules are all in it, because any of them may be used.
    """
    here = Path(__file__).parent
    folders = (here, here.with_name("series"), here.parent)
    kinds = ("*.py", "*.c")
    sources = sorted(path for folder in folders for kind in kinds for path in folder.glob(kind))
    return files.sha256_text(*(path.read_text(encoding="utf-8") for path in sources))


def _prune(root: Path, key: str) -> None:
    """Remove the builds that were not used for the longest time (1 to 2 MB each), and leftovers."""
    for folder in _oldest(root.glob(f"*/{MANIFEST}")):
        if folder.parent.name != key:
            shutil.rmtree(folder.parent, ignore_errors=True)
    for log in _oldest(root.glob("failed/*.log")):
        log.unlink(missing_ok=True)
    workdir.sweep(root)


def _oldest(found: Iterable[Path]) -> list[Path]:
    """All but the newest _KEPT_BUILDS of some files."""
    times = []
    for path in found:
        with contextlib.suppress(OSError):
            times.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(times, reverse=True)[_KEPT_BUILDS:]]
