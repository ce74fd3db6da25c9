"""Invoke tasks that import, fetch, show and remove the images that guests boot from."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import backends, defaults
from harness.cli.program import run_task
from harness.errors import UsageError
from harness.release import EXAMPLES


@task(
    name="import",
    help={
        "release": f"the FreeBSD release it is, like {EXAMPLES}",
        "disk": "a bootable disk, raw or qcow2 (or raw.xz); it is only read",
        "src": "its source: a folder, or src.txz",
        "sysroot": "its headers and libraries: a folder, or base.txz",
        "backend": "the backend that boots it for preparation: "
        + backends.listed("bochs", backends.KVM_IN_BOCHS),
        "bundle": "a file that image.bundle wrote, instead of --disk, --src and --sysroot",
        "sha256": "the SHA-256 that the bundle must have",
        "snapshot": "with --bundle: use the snapshot in it if it fits this machine, and its keys",
    },
)
@run_task
def image_import(
    _context: Context,
    release: str = "",
    disk: str = "",
    src: str = "",
    sysroot: str = "",
    backend: str = "auto",
    bundle: str = "",
    sha256: str = "",
    snapshot: bool = False,
) -> int:
    """Import a FreeBSD disk and the source and sysroot that belong to it; prepare the disk once."""
    from harness.cli import image_commands

    if bundle:
        if disk or src or sysroot:
            raise UsageError(
                "--bundle contains disk, source and sysroot; leave out the other options"
            )
        return image_commands.import_bundle(bundle, release, sha256, snapshot)
    if snapshot:
        raise UsageError("--snapshot belongs to --bundle, which may have one")
    return image_commands.import_release(release, disk, src, sysroot, backend)


@task(
    name="fetch",
    help={
        "release": f"a release with a manifest in images/ (default: {defaults.RELEASE})",
        "backend": "the backend that boots it for preparation: "
        + backends.listed("bochs", backends.KVM_IN_BOCHS),
        "offline": "fetch nothing; use only files fetched before",
        "download-only": "fetch and verify, but do not prepare",
        "refresh": "fetch the newest build of a snapshot; older builds stay",
    },
)
@run_task
def image_fetch(
    _context: Context,
    release: str = defaults.RELEASE,
    backend: str = "auto",
    offline: bool = False,
    download_only: bool = False,
    refresh: bool = False,
) -> int:
    """Fetch a release's official image, source and base, verify them, and prepare the image."""
    from harness.cli import image_commands

    return image_commands.fetch_release(release, backend, offline, download_only, refresh)


@task(name="list", help={"json": "print it as JSON"})
@run_task
def image_list(_context: Context, json: bool = False) -> int:
    """Show the known releases, and what the cache has of each."""
    from harness.cli import image_commands

    return image_commands.show_list(json)


@task(
    name="info",
    help={
        "release": f"the prepared release (default: {defaults.RELEASE})",
        "json": "print it as JSON",
    },
)
@run_task
def image_info(_context: Context, release: str = defaults.RELEASE, json: bool = False) -> int:
    """Show where a prepared image came from and what was changed in it."""
    from harness.cli import image_commands

    return image_commands.show_info(release, json)


@task(
    name="bundle",
    help={
        "release": f"the prepared release (default: {defaults.RELEASE})",
        "out": "the file to write (default: freebsd-RELEASE.bundle.tar)",
        "snapshot": "put the last used snapshot of Bochs into it, and the private key",
    },
)
@run_task
def image_bundle(
    _context: Context, release: str = defaults.RELEASE, out: str = "", snapshot: bool = False
) -> int:
    """Pack a prepared release, its source and sysroot into one file for image.import --bundle."""
    from harness.cli import image_commands

    return image_commands.write_bundle(release, out, snapshot)


@task(name="rm", help={"release": "the release to remove"})
@run_task
def image_rm(_context: Context, release: str = "") -> int:
    """Remove a release from the cache; the files that you imported stay where they are."""
    from harness.cli import image_commands

    return image_commands.remove(release)


@task(name="prune")
@run_task
def image_prune(_context: Context) -> int:
    """Remove downloads and leftovers that the prepared releases no longer need."""
    from harness.cli import image_commands

    return image_commands.prune_all()


@task(
    name="verify",
    help={"release": "one release (default: all in the cache)", "json": "print it as JSON"},
)
@run_task
def image_verify(_context: Context, release: str = "", json: bool = False) -> int:
    """Compute the digests of the files in the cache again; exit with 1 if one is corrupt."""
    from harness.cli import image_commands

    return image_commands.verify(release, json)


IMAGE_TASKS = (
    image_import,
    image_fetch,
    image_list,
    image_info,
    image_verify,
    image_bundle,
    image_rm,
    image_prune,
)
