"""The work of the patch tasks and `build`: choose the series and trees, print the results."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import defaults, files, host, progress, source_tree
from harness import release as releases
from harness.build import builder, in_guest
from harness.cli import patch_files
from harness.errors import EXIT_OK, EXIT_PATCH, CannotError, UsageError
from harness.image import store
from harness.machine.models import Backend
from harness.series import apply as treeapply
from harness.series import check as series_check
from harness.series import commits as series_commits
from harness.series import given as given_series
from harness.series import load, mailbox, refresh, sender
from harness.series.load import Series


def where(series: Sequence[str], topic: str) -> Path | str | Sequence[Path]:
    """The series that --series (which may be given several times) and --topic name."""
    if series and topic:
        raise UsageError("--series and --topic both name patches; leave out one of them")
    return load.chosen(given_series.paths(series), topic or defaults.TOPIC)


def sources(release: str, src: str, sysroot: str) -> tuple[Path, Path | None]:
    """The source tree and sysroot to build from: the given ones, else those of the imported image.

    Raises CannotError when there is neither; the message names the option.
    """
    given = Path(sysroot) if sysroot else None
    if src:
        return Path(src), given
    release = store.resolve(release)
    try:
        return store.source(release), given or store.trees(release).sysroot
    except CannotError as error:
        raise CannotError(f"{error.message}, or give --src DIR") from error


def show_list(topic: str, json: bool) -> int:
    """Print every series of a topic (or of all), patch by patch."""
    names = (topic,) if topic else load.topics()
    found = []
    for name in names:
        has = load.releases(load.PATCHES / name)
        if not has:
            raise UsageError(f"{name}: no such topic; the topics are {', '.join(load.topics())}")
        found += [load.load_series(load.PATCHES / name, release) for release in has]
    if json:
        progress.print_json([_series_data(series) for series in found])
        return EXIT_OK
    for series in found:
        rows = [
            (patch.name, "all" if patch.common else series.release, patch.subject)
            for patch in series.patches
        ]
        title = f"{series.topic} for FreeBSD {series.release} (digest {series.digest[:12]})"
        progress.table(("patch", "release", "subject"), rows, title)
    return EXIT_OK


def _series_data(series: Series) -> dict[str, object]:
    return {
        "topic": series.topic,
        "release": series.release,
        "digest": series.digest,
        "patches": [
            {
                "patch": patch.name,
                "common": patch.common,
                "subject": patch.subject,
                "author": patch.author,
                "touched": patch.touched,
                "sha256": patch.digest,
            }
            for patch in series.patches
        ],
    }


def check(series: Sequence[str], topic: str, release: str, tree: str, json: bool) -> int:
    """Check a series for one release, or all that a topic has; exit 5 if something is wrong.

    Without `release`, a `tree` chooses it: only the series for the tree's release is checked.
    """
    place = where(series, topic)
    folder = load.PATCHES / place if isinstance(place, str) else place
    has = load.releases(folder) if isinstance(folder, Path) else ()
    wanted: Sequence[str] = (release,) if release else has
    if tree and not release:
        wanted = (_release_of(Path(tree), has),)
    reports = []
    for each in wanted or (defaults.RELEASE,):
        source = Path(tree) if tree else _source(each)
        if tree:
            source_tree.identify(Path(tree), each)
            treeapply.require_complete(Path(tree))
        loaded = load.require_patches(load.load_series(place, each, source))
        reports.append(series_check.check(loaded, source))
    if json:
        progress.print_json([report.to_data() for report in reports])
    else:
        for report in reports:
            _show_report(report)
    return EXIT_OK if all(report.held for report in reports) else EXIT_PATCH


def check_files(
    series: Sequence[str], topic: str, release: str, tree: str, address: str, json: bool
) -> int:
    """Check a series against single files as they are published at a web address, like main's."""
    if tree:
        raise UsageError("--files and --tree both name a source tree; leave out one of them")
    place = where(series, topic)
    with tempfile.TemporaryDirectory(prefix="vmm-files-") as name:
        folder = Path(name)
        with progress.stage("fetch files") as step:
            patch_files.fetch((), address, folder, live=step.live)
            topic_folder = load.PATCHES / place if isinstance(place, str) else place
            has = load.releases(topic_folder) if isinstance(topic_folder, Path) else ()
            release = release or _release_of(folder, has)
            touched = load.load_series(place, release).touched
            absent = patch_files.fetch(touched, address, folder, live=step.live)
            step.note = (
                f"FreeBSD {source_tree.read(folder)} from {address}: {len(touched)} files, "
                f"{len(absent)} of them are not there"
            )
        return check(series, topic, release, name, json)


def _release_of(tree: Path, has: Sequence[str]) -> str:
    """The release of a tree, or the one whose series is checked for it."""
    found = source_tree.read(tree).release
    return _closest(found.line if found.kind == "CURRENT" else found.version, has)


def _closest(release: str, has: Sequence[str]) -> str:
    """The release of a topic whose series is for `release`, or else the nearest of its branch."""
    wanted = releases.read(release)
    if wanted is None or not set(has).isdisjoint(wanted.series_folders):
        return release
    known = [found for it in has if (found := releases.read(it))]
    near = [it for it in known if it.major == wanted.major]
    if not near:
        return release
    closest = str(min(near, key=wanted.distance))
    progress.say(f"note: no series for FreeBSD {release}; the one for {closest} is checked")
    return closest


def _source(release: str) -> Path | None:
    """The imported image's source tree, if there is one, so that as much as possible is checked."""
    try:
        return sources(release, "", "")[0]
    except (CannotError, UsageError):
        return None


def _show_report(report: series_check.Report) -> None:
    series = report.series
    rows = [
        (patch.name, *(report.state(patch, kind) for kind in series_check.KINDS))
        for patch in series.patches
    ]
    against = f", against {report.tree}" if report.tree else ""
    title = f"{series.topic} for FreeBSD {series.release}{against}"
    progress.table(("patch", *series_check.KINDS), rows, title)
    _say_notes(series)
    for finding in report.findings:
        mark = "wrong" if finding.wrong else "note"
        progress.say(f"{mark}: {finding.patch}: {finding.text}")
    for kind, reason in report.not_run:
        progress.say(f"not run: {kind}: {reason}")


def apply(tree: str, series: Sequence[str], topic: str, release: str) -> int:
    """Apply a series to a user's tree, all or nothing."""
    path = Path(tree)
    release = release or source_tree.revision(path)
    source_tree.identify(path, release)
    loaded = load.require_patches(load.load_series(where(series, topic), release, path))
    _say_notes(loaded)
    applied = treeapply.apply(loaded, path)
    for drift in applied.drift:
        progress.say(str(drift))
    progress.say(
        f"{path}: {len(loaded.patches)} patches applied, {len(applied.changed)} files changed"
    )
    return EXIT_OK


def refresh_series(
    tree: str, pristine: str, series: Sequence[str], topic: str, release: str, into: str
) -> int:
    """Write the edits of a tree back into the series."""
    given_series.require_files(series, "patch.refresh")
    release = release or source_tree.revision(Path(tree))
    base = sources(release, pristine, "")[0]
    loaded = load.load_series(where(series, topic), release, base)
    done = refresh.refresh(loaded, base, Path(tree), into=into)
    for name in done.changed:
        progress.say(f"rewritten: {name}")
    for name in done.shared:
        progress.say(f"note: {name} is shared by every release; run patch.check for the others too")
    for path in done.unclaimed:
        progress.say(
            f"note: {path} was edited, but no patch touches it; --into PATCH puts it into one"
        )
    if not done.changed:
        progress.say("nothing to rewrite: the tree equals the pristine one with the series applied")
    return EXIT_OK


def _say_notes(series: Series) -> None:
    for note in series.notes:
        progress.say(f"note: {note}")


def commits(repo: str, base: str, out: str) -> int:
    """Write the commits of a checkout as a series."""
    written = series_commits.write_series(Path(repo or "."), base, Path(out))
    progress.say(f"{out}: {len(written)} patches, from the commits after {base}")
    if waits := series_commits.uncommitted(Path(repo or ".")):
        progress.say(f"note: {waits} files are changed and not committed; that is not tested")
    return EXIT_OK


def export(
    series: Sequence[str],
    topic: str,
    release: str,
    out: str,
    author: str = "",
    signoff: bool = False,
) -> int:
    """Write a series as one mbox, from `author` where the patches have a placeholder."""
    sent_by = sender.parse(author, signoff)
    release = release or defaults.RELEASE
    loaded = load.load_series(where(series, topic), release)
    target = Path(out or f"{loaded.topic}-{loaded.release}.mbox")
    mailbox.export(loaded, target, sent_by)
    progress.say(f"{target}: {len(loaded.patches)} patches, for git am")
    return EXIT_OK


def _guest_builder(by: str, release: str) -> in_guest.GuestBuilder | None:
    if not in_guest.builds_in_guest(by):
        return None
    decision = host.decide(host.gather(), "auto")
    run_dir = files.cache_dir() / "builds" / "guest"
    return in_guest.choose(
        by, store.find(store.resolve(release)), decision.backend or Backend("tcg"), run_dir
    )


def _kernel(release: str) -> tuple[str, ...]:
    """The configuration of the kernel of the prepared image; empty if there is no image."""
    try:
        return store.find(release).kernel
    except CannotError:
        return ()


def run_build(
    release: str,
    stock: bool,
    series: Sequence[str],
    topic: str,
    src: str,
    sysroot: str,
    json: bool,
    by: str = "auto",
) -> int:
    """Build module, library and command; print where they are and what was not built."""
    if stock and series:
        raise UsageError("--stock builds without patches; leave out --series or --stock")
    in_guest.require_known(by)
    release = release or (source_tree.revision(Path(src)) if src else defaults.RELEASE)
    source, root = sources(release, src, sysroot)
    loaded = None
    if not stock:
        loaded = load.require_patches(load.load_series(where(series, topic), release, source))
    with progress.stage(f"build for FreeBSD {release}") as step:
        built = builder.build(
            source,
            root,
            loaded,
            release,
            kernel=_kernel(release),
            progress=step.live,
            in_guest=_guest_builder(by, release),
        )
        if built.cached:
            step.note = (
                f"nothing changed, nothing built (the earlier build took {built.seconds:.1f} s)"
            )
        else:
            step.note = f"{built.warnings} warnings, log {built.log}"
    if json:
        progress.print_json(built.to_data())
        return EXIT_OK
    if loaded is not None:
        _say_notes(loaded)
        for moved in built.drift:
            progress.say(f"note: {moved}")
    for path, why in built.untested:
        progress.say(f"note: {path} is not tested: {why}")
    made = dict(zip(("vmm.ko", "libvmmapi", "vmmls"), built.files, strict=True))
    made |= {path.name: path for path in built.programs}
    left_out = dict(built.not_built)
    progress.table(
        ("part", "file"),
        [(name, str(path or f"not built: {left_out.get(name)}")) for name, path in made.items()],
        f"{built.series or 'stock'}, FreeBSD {built.revision} ({built.osversion}), "
        f"build id {built.build_id}",
    )
    return EXIT_OK
