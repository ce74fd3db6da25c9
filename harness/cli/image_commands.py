"""The work of the `image.*` tasks: import, show and remove releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harness import progress
from harness.errors import EXIT_CHECK_FAILED, CannotError, UsageError, WorkbenchError
from harness.files import human_bytes, sha256_file
from harness.guest import snapshot
from harness.image import bundle, check, manifest, obtain, prune, store
from harness.image.fetch import FetchError
from harness.image.model import ImageRecord
from harness.series import given


def import_release(release: str, disk: str, src: str, sysroot: str, backend: str) -> int:
    """`image.import`: prepare the user's disk, and record the trees that belong to it."""
    brought = obtain.Files(_path(disk), _path(src), _path(sysroot))
    if not release:
        raise UsageError(f"--release is missing; run {store.import_line('RELEASE')}")
    with progress.stage(f"import {release}") as step:
        record = obtain.import_files(release, brought, backend=backend, live=step.live)
        step.note = _short(record) if record else "trees recorded; no disk yet"
    if record:
        _say_missing(record)
    return 0


def import_bundle(file: str, release: str, sha256: str, snapshot: bool) -> int:
    """`image.import --bundle`: import a bundle that `image.bundle` made elsewhere."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"--bundle {path}: no such file")
    with progress.stage(f"import {path.name}") as step:
        if sha256 and (found := sha256_file(path)) != sha256.lower():
            raise CannotError(f"{path}: its SHA-256 is {found}, not {sha256}; copy it again")
        record = bundle.take_in(
            path,
            release,
            step.live,
            snapshot=snapshot,
            note=lambda line: progress.say(f"note: {line}"),
        )
        step.note = f"FreeBSD {record.release}: {_short(record)}"
    _say_missing(record)
    return 0


def write_bundle(release: str, out: str, snapshot: bool) -> int:
    """`image.bundle`: write a prepared release as one file."""
    release = store.resolve(release)
    path = Path(out or f"freebsd-{release}.bundle.tar").expanduser()
    with progress.stage(f"bundle {release}") as step:
        made = bundle.write(release, path, step.live, snapshot=snapshot)
        step.note = f"{', '.join(made.members)}"
    line = f"./inv image.import --bundle {made.path.name} --sha256 {made.sha256}"
    progress.table(
        ("what", "is"),
        [
            ("file", str(made.path)),
            ("size", human_bytes(made.size_bytes)),
            ("sha256", made.sha256),
            ("elsewhere", line + (" --snapshot" if snapshot else "")),
        ],
    )
    return 0


def _path(given: str) -> Path | None:
    return Path(given).expanduser() if given else None


def fetch_release(
    release: str, backend: str, offline: bool, download_only: bool, refresh: bool = False
) -> int:
    """`image.fetch`: get the official files, verified, and prepare the image.

    With `refresh` the newest published build of a snapshot is fetched, even if there is one here.
    """
    known = manifest.find(release)
    if refresh and known and not known.is_snapshot:
        raise UsageError(
            f"--refresh: FreeBSD {release} does not change; it is for snapshots like 16.0-CURRENT"
        )
    if refresh and offline:
        raise UsageError("--refresh looks for a newer build; leave out --offline or --refresh")
    for note in known.notes if known else ():
        progress.say(f"FreeBSD {release}: {note}")
    build = store.resolve(release)
    if known and known.is_snapshot and not refresh and store.has_record(build):
        progress.say(f"FreeBSD {build} is prepared; --refresh looks for a newer build")
        return 0
    with progress.stage(f"fetch {release}") as step:
        try:
            brought = obtain.fetch_official(
                release, offline=offline, newest=refresh, live=step.live
            )
        except FetchError as error:
            remedy = f"{error.message}; bring your own: {store.import_line(release)}"
            raise CannotError(remedy, detail=error.detail) from error
        step.note = f"{brought.files.disk}"
    if download_only:
        return 0
    with progress.stage(f"prepare {brought.release}") as step:
        record = obtain.import_files(
            brought.release, brought.files, backend=backend, live=step.live
        )
        step.note = _short(record) if record else ""
    return 0


def show_list(as_json: bool) -> int:
    """`image.list`: show every known release and build, and what the cache has of each.

    The row of a snapshot's own name shows the build that it means now.
    """
    rows = [_row(release) for release in store.known()]
    if as_json:
        progress.print_json(rows)
    else:
        progress.table(
            ("release", "official image", "prepared", "source", "sysroot", "disk"),
            [[str(cell) for cell in row.values()] for row in rows],
        )
    return 0


def _row(release: str) -> dict[str, str]:
    row = {
        "release": release,
        "official": _official(release),
        "prepared": "no",
        "source": "no",
        "sysroot": "no",
        "disk": "",
    }
    try:
        release = store.resolve(release)
        trees = store.trees(release)
        row["source"] = "yes" if trees.source and trees.source.is_dir() else "no"
        row["sysroot"] = "yes" if trees.sysroot and trees.sysroot.is_dir() else "no"
        if store.has_record(release):
            record = store.find(release)
            row["prepared"] = record.prepared_at
            row["disk"] = str(record.disk)
    except WorkbenchError as error:
        row["prepared"] = "broken"
        row["disk"] = error.message
    return row


def _official(release: str) -> str:
    """Whether FreeBSD's own image can be fetched, and its size if it is known."""
    try:
        known = manifest.find(release) if release in manifest.available() else None
    except UsageError:
        return "broken"
    if known is None:
        return "no"
    if known.is_snapshot:
        return "the newest build"
    size = known.image.about_bytes
    return f"about {human_bytes(size)}" if size else "yes"


def _kernel(lines: Sequence[str]) -> str:
    """The name of a kernel's configuration, and whether it has the checks of a debug kernel."""
    if not lines:
        return "unknown: modules are built for GENERIC of the source"
    name = next((it.removeprefix("ident ") for it in lines if it.startswith("ident ")), "no name")
    checks = [it for it in ("INVARIANTS", "WITNESS") if f"options {it}" in lines]
    return f"{name}, with {' and '.join(checks)}" if checks else name


def show_info(release: str, as_json: bool) -> int:
    """`image.info`: show where a prepared image came from, and what was changed in it."""
    record = store.find(store.resolve(release))
    data = store.flat(record)
    for name in ("disk", "private_key", "source", "sysroot"):
        data[name] = str(data[name]) if data[name] else None
    kept = snapshot.kept(record.disk)
    if as_json:
        progress.print_json({**data, "snapshots": [snapshot.to_data(each) for each in kept]})
        return 0
    data["disk_bytes"] = f"{record.disk_bytes} ({human_bytes(_room(record.disk))} on disk)"
    changes = data.pop("changes")
    data["kernel"] = _kernel(record.kernel)
    rows = [
        (name.replace("_", " "), "none" if value is None else str(value))
        for name, value in data.items()
    ]
    rows += [("changed", change) for change in changes]
    rows += [("snapshot", each.describe()) for each in kept]
    progress.table(("what", "is"), rows)
    return 0


def remove(release: str) -> int:
    """`image.rm`: remove a release; the user's own files stay where they are."""
    if not release:
        raise UsageError("--release is missing; run ./inv image.rm --release RELEASE")
    if (meant := store.resolve(release)) != release and not store.folder(release).is_dir():
        raise UsageError(
            f"--release {release}: name the build to remove: ./inv image.rm --release {meant}"
        )
    taken = prune.size(store.folder(release))
    store.remove(release)
    progress.say(f"removed {release}: {human_bytes(taken)} freed")
    return 0


def prune_all() -> int:
    """`image.prune`: remove downloads and leftovers of every release, and old small guests."""
    freed = sum(prune.release(release) for release in store.known())
    freed += prune.small_guests()
    freed += sum(snapshot.prune(record.disk) for record in store.prepared())
    freed += given.forget_stored()
    progress.say(f"pruned: {human_bytes(freed)} freed")
    return 0


def verify(release: str, as_json: bool) -> int:
    """`image.verify`: compute digests again and compare them with the records; 1 if one differs."""
    names = [store.resolve(release)] if release else store.cached()
    with progress.stage("verify the cache") as step:
        findings = [found for name in names for found in check.release(name, step.live)]
        findings += [
            _look_at(record.release, each)
            for record in store.prepared()
            if record.release in names
            for each in snapshot.kept(record.disk)
        ]
        corrupt = [found for found in findings if not found.ok]
        step.note = f"{len(findings)} looked at, {len(corrupt)} corrupt"
    if as_json:
        progress.print_json([asdict(found) for found in findings])
    else:
        progress.table(
            ("release", "what", "is", "evidence, and the remedy"),
            [
                (
                    found.release,
                    found.what,
                    "ok" if found.ok else "CORRUPT",
                    found.evidence + (f"\n-> {found.remedy}" if found.remedy else ""),
                )
                for found in findings
            ],
        )
    return EXIT_CHECK_FAILED if corrupt else 0


def _look_at(release: str, kept: snapshot.Snapshot) -> check.Finding:
    """Compute a snapshot's checksums again; a run does not resume one that has changed either."""
    what = f"snapshot {kept.folder.name[:8]}"
    try:
        kept.verify(again=True)
    except CannotError as error:
        return check.Finding(release, what, False, error.message, f"rm -r {kept.folder}")
    return check.Finding(release, what, True, kept.describe())


def _short(record: ImageRecord) -> str:
    return f"{record.system}; {record.disk}"


def _say_missing(record: ImageRecord) -> None:
    """Say now what a later build will need."""
    lacking = [
        f"{option} ({what})"
        for option, what, path in (
            ("--src", "nothing can be built without it", record.source),
            ("--sysroot", "no libvmmapi and no vmmls without it", record.sysroot),
        )
        if path is None
    ]
    if lacking:
        progress.say(
            f"not imported yet: {', '.join(lacking)}; "
            f"./inv image.import --release {record.release} imports them without the disk"
        )


def _room(path: Path) -> int:
    return path.stat().st_blocks * 512
