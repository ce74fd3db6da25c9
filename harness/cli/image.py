"""Invoke tasks for the images that guests boot from: brought, fetched, looked at, forgotten."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import defaults
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
        "backend": "what boots it for preparation: auto, kvm or tcg",
        "bundle": "a file that image.bundle wrote, instead of all the above",
        "sha256": "what the bundle's SHA-256 has to be",
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
) -> int:
    """Take in a FreeBSD disk, and the source and sysroot that belong to it; prepare it once."""
    from harness.cli import image_commands

    if bundle:
        if disk or src or sysroot:
            raise UsageError("--bundle brings disk, source and sysroot: leave the others out")
        return image_commands.import_bundle(bundle, release, sha256)
    return image_commands.import_release(release, disk, src, sysroot, backend)


@task(
    name="fetch",
    help={
        "release": f"a release with a manifest in images/ (default: {defaults.RELEASE})",
        "backend": "what boots it for preparation: auto, kvm or tcg",
        "offline": "use what was fetched before and nothing else",
        "download-only": "fetch and verify, prepare later",
    },
)
@run_task
def image_fetch(
    _context: Context,
    release: str = defaults.RELEASE,
    backend: str = "auto",
    offline: bool = False,
    download_only: bool = False,
) -> int:
    """Fetch a release's official image, source and base, verify them, and prepare the image."""
    from harness.cli import image_commands

    return image_commands.fetch_release(release, backend, offline, download_only)


@task(name="list", help={"json": "print it as JSON"})
@run_task
def image_list(_context: Context, json: bool = False) -> int:
    """Show the releases that are known, and what is here of each."""
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
    },
)
@run_task
def image_bundle(_context: Context, release: str = defaults.RELEASE, out: str = "") -> int:
    """Pack a prepared release, its source and sysroot into one file for image.import --bundle."""
    from harness.cli import image_commands

    return image_commands.write_bundle(release, out)


@task(name="rm", help={"release": "the release to forget"})
@run_task
def image_rm(_context: Context, release: str = "") -> int:
    """Remove a release from the cache; what was brought stays where it is."""
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
    """Take the digests of what is in the cache again; exit 1 when something is corrupt."""
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
