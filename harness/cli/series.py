"""Invoke tasks for the user's own patches: new topics, bad calls, the first bad patch."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import defaults, progress
from harness.cli.options import (
    BACKEND_HELP,
    OFFLINE_HELP,
    RELEASE_HELP,
    SANDBOX_HELP,
    VIRTUALIZING_HELP,
)
from harness.cli.program import run_task
from harness.errors import UsageError
from harness.series import given as given_series


@task(
    iterable=["series"],
    help={
        "seed": "the number that determines all calls (default: a new one, which is printed)",
        "calls": "how many calls to make on each module (default: 10000)",
        "round": "the round to begin with (default: 0)",
        "stock": "attack only the stock module",
        "known": "also make the calls that are known to harm the stock module",
        **RELEASE_HELP,
        **VIRTUALIZING_HELP,
        "series": "attack this series' module (a folder, a patch, - for stdin; may be repeated)",
        "topic": f"a folder of patches/ (default: {defaults.TOPIC})",
        **OFFLINE_HELP,
        **SANDBOX_HELP,
        "json": "print the report as JSON",
    },
)
@run_task
def fuzz(
    _context: Context,
    series: list[str],
    seed: str = "",
    calls: int = 10000,
    round: int = 0,  # noqa: A002
    stock: bool = False,
    known: bool = False,
    release: str = defaults.RELEASE,
    backend: str = "auto",
    cpu_vendor: str = "",
    topic: str = defaults.TOPIC,
    offline: bool = False,
    sandbox: bool = True,
    json: bool = False,
) -> int:
    """Make malformed and racing calls to /dev/vmmctl and /dev/vmm: first stock, then yours."""
    from harness import debian
    from harness.build import sandbox as fence
    from harness.run import fuzz_run
    from harness.run.options import Options

    fence.choose(sandbox)
    debian.ensure()
    options = Options(
        release,
        backend,
        stock,
        given_series.absolute_paths(series),
        # The default is not what the user named: with a series of theirs it does not count.
        None if topic == defaults.TOPIC else topic,
        offline=offline,
        side_by_side=not stock,
        cpu_vendor=cpu_vendor,
    )
    try:
        chosen = int(seed, 0) if seed else fuzz_run.new_seed()
    except ValueError as error:
        raise UsageError(f"--seed {seed}: it must be a number") from error
    progress.say(f"fuzz: seed {chosen}")
    result = fuzz_run.run(options, fuzz_run.Order(chosen, calls, round, known))
    if json:
        progress.print_json(result.to_data())
    else:
        fuzz_run.show(result)
    return result.exit_code


@task(
    iterable=["series"],
    help={
        "good": "how many patches are known to be good (default: 0, the stock source)",
        "bad": "how many patches are known to be bad (default: all)",
        "k": "use only the checks that match this, as pytest's -k does (default: all)",
        "guests": "in how many guests at once (default: as many as fit into memory)",
        "series": "the series to search (a folder, a patch, - for stdin; may be repeated)",
        "topic": "a folder of patches/, whose checks and (without --series) series to use",
        **RELEASE_HELP,
        **BACKEND_HELP,
        "full": "also use the checks that take minutes",
        **OFFLINE_HELP,
        **SANDBOX_HELP,
        "json": "print the steps as JSON",
    },
)
@run_task
def bisect(
    _context: Context,
    series: list[str],
    topic: str = "",
    good: int = 0,
    bad: int = 0,
    k: str = "",
    guests: int = 0,
    release: str = defaults.RELEASE,
    backend: str = "auto",
    cpu_vendor: str = "",
    full: bool = False,
    offline: bool = False,
    sandbox: bool = True,
    json: bool = False,
) -> int:
    """Find the first patch of a series that breaks a check; exit 1 if any does."""
    from harness import debian
    from harness.build import sandbox as fence
    from harness.run import bisect as bisection
    from harness.run.options import Options

    fence.choose(sandbox)
    debian.ensure()
    given = given_series.absolute_paths(series)
    if not given and not topic:
        raise UsageError("name the patches to search with --series or --topic")
    options = Options(
        release,
        backend,
        series=given,
        topic=topic or None,
        offline=offline,
        full=full,
        only=k,
        cpu_vendor=cpu_vendor,
        guests=guests,
    )
    found = bisection.bisect(options, good, bad or None)
    if json:
        progress.print_json(found.to_data())
    else:
        bisection.show(found)
    return found.exit_code


@task(
    name="new",
    positional=["name"],
    help={
        "name": "the topic's name: lower-case letters and digits, with - or _ between them",
        "release": f"the release of its first series (default: {defaults.RELEASE}; with "
        "--like: no series)",
        "like": "begin with a copy of this topic's checks: benchmark, boot, console, snapshot, ...",
    },
)
@run_task
def topic_new(_context: Context, name: str, release: str = "", like: str = "") -> None:
    """Create a topic in patches/ with a series, checks and notes, ready for verify --topic NAME."""
    from harness.series import scaffold as topics

    release = release or ("" if like else defaults.RELEASE)
    folder = topics.new(name, release, like=like)
    if release:
        progress.say(f"{folder}: put patches into {release}/ and name them in {release}/series")
    else:
        progress.say(f"{folder}: a copy of {like}; its checks are in tests/")
    progress.say(f"next: ./inv verify --topic {name}")


SERIES_TASKS = (bisect, fuzz)
