"""Invoke tasks: parse, call harness/, print.  `./inv --list` shows them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from harness import host, packages, patch_cli, report, report_cli, ui
from harness import probe as vtxprobe
from harness.cli import run_task
from harness.errors import UsageError
from harness.patches import DEFAULT_TOPIC
from harness.teeth import show as show_teeth
from harness.teeth import teeth as run_teeth
from harness.verify import verify as run_verify
from harness.workbench import Options
from tasks_bench import bench
from tasks_guest import GUEST_TASKS
from tasks_image import IMAGE_TASKS
from tasks_series import SERIES_TASKS, topic_new

SECTIONS = ("unit", "machine")


@task
@run_task
def setup(_context: Context) -> None:
    """Install the Debian packages that are missing, or print the line that does."""
    packages.ensure(optional=True)
    ui.say("setup: everything that is needed is here")


@task(
    name="test",
    help={
        "only": "unit, machine or soak (default: the first two)",
        "args": "further arguments for pytest",
    },
)
@run_task
def run_tests(_context: Context, only: str = "", args: str = "") -> int:
    """Run the project's own tests: no FreeBSD, no KVM needed."""
    if only not in ("", *SECTIONS, "soak"):
        raise UsageError(f"--only {only}: one of {', '.join(SECTIONS)}, soak is meant")
    packages.ensure()
    if only == "soak":
        # One after another: what a test holds is counted.
        soak = [sys.executable, "-m", "pytest", "tests/machine", "-m", "soak", "-s"]
        return subprocess.call([*soak, *shlex.split(args)])
    folders = [f"tests/{section}" for section in SECTIONS if only in ("", section)]
    # A worker for each processor; without pytest-xdist they run one after another.
    workers = ["-n", "logical", "--dist", "worksteal"] if find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", *folders, *workers, *shlex.split(args)]
    return subprocess.call(command)


@task(
    iterable=["series"],
    help={
        "release": "the FreeBSD release to boot (default: 15.1)",
        "backend": "auto (default), kvm, bochs or tcg",
        "stock": "run the same checks on the unpatched module: the patch's must fail there",
        "series": "test this series (a folder or a patch, may be given again)",
        "topic": "a folder of patches/, whose series and checks to use (default: meminfo)",
        "side-by-side": "run the checks on the stock module first (--series does so by itself)",
        "alone": "with --series: leave the stock module out",
        "go-on": "when the guest breaks, bring it up anew for the checks that are left",
        "only": "run the checks that match this, as pytest -k takes it",
        "offline": "fetch nothing: use what is in the cache",
        "cold": "boot, though a snapshot could be resumed, and save none",
        "full": "also run the checks with a guest inside the guest, minutes in Bochs",
        "keep": "leave the guest up if the verdict is bad, and say how to enter it",
        "name": "what it is then called (default: verify)",
        "builder": "who builds vmm.ko: auto (default), host, or guest (FreeBSD's own compiler)",
        "json": "print the report as JSON",
    },
)
@run_task
def verify(
    _context: Context,
    series: list[str],
    release: str = "15.1",
    backend: str = "auto",
    stock: bool = False,
    offline: bool = False,
    full: bool = False,
    topic: str = "",
    side_by_side: bool = False,
    alone: bool = False,
    go_on: bool = False,
    only: str = "",
    cold: bool = False,
    keep: bool = False,
    name: str = "verify",
    builder: str = "auto",
    json: bool = False,
) -> int:
    """Boot FreeBSD, build and load the patched vmm.ko, run the checks, print the verdict."""
    packages.ensure()
    given = tuple(Path(path).absolute() for path in series)
    if stock and side_by_side:
        raise UsageError("--stock is the stock module alone; leave out --stock or --side-by-side")
    options = Options(
        release,
        backend,
        stock,
        given,
        # Patches of somebody's own are held to what any vmm.ko must do, unless a topic is named.
        topic or ("" if given else DEFAULT_TOPIC),
        offline=offline,
        full=full,
        cold=cold,
        side_by_side=side_by_side or (bool(given) and not stock and not alone),
        go_on=go_on,
        only=only,
        builder=builder,
    )
    result = run_verify(options, keep_as=name if keep else "")
    if json:
        ui.print_json(result.to_data())
    else:
        report.show(result)
    return result.exit_code


@task(
    name="report",
    help={
        "run": "a run of --list, or its folder (default: the last one)",
        "list": "list the runs that left a report",
        "open": "open the page in a browser",
        "json": "print it as JSON",
    },
)
@run_task
def show_report(
    _context: Context,
    run: str = "",
    list: bool = False,  # noqa: A002
    open: bool = False,  # noqa: A002
    json: bool = False,
) -> None:
    """Print what a run has shown, write its page (report.html) anew, and open that if asked."""
    if list:
        report_cli.show_list(json)
    else:
        report_cli.show(run, open, json)


@task(
    iterable=["only"],
    help={
        "only": "a variant's name (may be given again; default: all in tests/mutants)",
        "backend": "auto (default), kvm or bochs",
        "all": "run every check over each variant, and name all that object",
        "full": "also the checks that take minutes",
        "offline": "fetch nothing: use what is in the cache",
        "json": "print the result as JSON",
    },
)
@run_task
def teeth(
    _context: Context,
    only: list[str],
    backend: str = "auto",
    all: bool = False,  # noqa: A002  (it is the option's name)
    full: bool = False,
    offline: bool = False,
    json: bool = False,
) -> int:
    """Try the checks on deliberately wrong variants of the patch: each must be caught."""
    packages.ensure()
    options = Options(backend=backend, offline=offline, full=full)
    result = run_teeth(options, only, every=all)
    if json:
        ui.print_json(result.to_data())
    else:
        show_teeth(result)
    return result.exit_code


@task(help={"json": "print the findings and the facts as JSON"})
@run_task
def doctor(_context: Context, json: bool = False) -> int:
    """Show what this machine can do, what is missing, and the backend `auto` would take."""
    verdict = host.examine(host.gather())
    if json:
        ui.print_json(verdict.to_data())
    else:
        host.show(verdict)
    return verdict.exit_code


@task(
    help={
        "backend": "auto, kvm, bochs or tcg",
        "cpu": "the emulator's name of a processor model (default: the backend's best)",
        "fault": "build a deliberate fault in; images/vtxprobe/faults.txt has the names",
        "json": "print the result as JSON",
    }
)
@run_task
def probe(
    _context: Context, backend: str = "auto", cpu: str = "", fault: str = "", json: bool = False
) -> int:
    """Try VT-x and EPT (or SVM) in a backend by running a tiny guest: seconds, no download."""
    decision = host.decide(host.gather(), backend)
    chosen = decision.require()
    ui.say(f"backend {chosen}: {decision.reason}")
    with ui.stage(f"probe on {chosen}") as stage:
        result = vtxprobe.run_probe(
            chosen, vendor_flag=decision.vendor_flag, cpu=cpu or None, fault=fault
        )
        stage.outcome = "ok" if result.held else "something is missing"
    if not result.held:
        ui.say(f"error: {result.reason}")
    if json:
        ui.print_json(result.to_data())
    else:
        vtxprobe.show(result)
    return result.exit_code


SERIES_HELP = {
    "series": "a folder of patches or one patch, instead of a topic of this project",
    "topic": "a folder of patches/ (default: meminfo)",
    "release": "15.1 or 14 (default: what the tree is, or 15.1)",
}


@task(
    help={
        **SERIES_HELP,
        "stock": "build without any patch",
        "src": "FreeBSD source tree (default: the imported one)",
        "sysroot": "FreeBSD's headers and libraries (default: the imported ones)",
        "builder": "auto (default), host, or guest: FreeBSD's own compiler, in a guest made for it",
        "json": "print what was built as JSON",
    }
)
@run_task
def build(
    _context: Context,
    release: str = "",
    stock: bool = False,
    series: str = "",
    topic: str = "",
    src: str = "",
    sysroot: str = "",
    builder: str = "auto",
    json: bool = False,
) -> int:
    """Build vmm.ko, libvmmapi and vmmls from source and series; nothing if nothing changed."""
    return patch_cli.run_build(release, stock, series, topic, src, sysroot, json, builder)


@task(name="list", help={"topic": SERIES_HELP["topic"], "json": "print it as JSON"})
@run_task
def patch_list(_context: Context, topic: str = "", json: bool = False) -> int:
    """Show every series, patch by patch."""
    return patch_cli.show_list(topic, json)


@task(
    name="check",
    help={
        **SERIES_HELP,
        "release": "15.1 or 14 (default: every release, or what the tree is)",
        "tree": "source tree to try it on (default: the imported one, if any)",
        "json": "print the findings as JSON",
    },
)
@run_task
def patch_check(
    _context: Context,
    release: str = "",
    tree: str = "",
    series: str = "",
    topic: str = "",
    json: bool = False,
) -> int:
    """Check a series: applies, drift, style(9), message and sign-off, manuals; exit 5 if wrong."""
    return patch_cli.check(series, topic, release, tree, json)


@task(name="apply", help={**SERIES_HELP, "tree": "the source tree to change"})
@run_task
def patch_apply(
    _context: Context, tree: str, release: str = "", series: str = "", topic: str = ""
) -> int:
    """Apply a series to a source tree: all of it or nothing."""
    return patch_cli.apply(tree, series, topic, release)


@task(
    name="refresh",
    help={
        **SERIES_HELP,
        "tree": "the tree with the series applied and edits made",
        "pristine": "the tree without either (default: the imported one)",
        "into": "the patch that takes edited files which no patch touches",
    },
)
@run_task
def patch_refresh(
    _context: Context,
    tree: str,
    pristine: str = "",
    release: str = "",
    series: str = "",
    topic: str = "",
    into: str = "",
) -> int:
    """Bring the edits made in a tree back into the series' patches."""
    return patch_cli.refresh_series(tree, pristine, series, topic, release, into)


@task(name="export", help={**SERIES_HELP, "out": "the file to write (default: TOPIC-RELEASE.mbox)"})
@run_task
def patch_export(
    _context: Context, release: str = "", series: str = "", topic: str = "", out: str = ""
) -> int:
    """Write a series as one mbox, ready for git am or a review tool."""
    return patch_cli.export(series, topic, release, out)


@task
@run_task
def lint(_context: Context) -> int:
    """Check the style: ruff (format and lint) and mypy --strict."""
    commands = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])
    return max(subprocess.call([sys.executable, "-m", *command]) for command in commands)


namespace = Collection(
    verify,
    teeth,
    show_report,
    *GUEST_TASKS,
    *SERIES_TASKS,
    setup,
    build,
    doctor,
    probe,
    bench,
    run_tests,
    lint,
)
namespace.add_collection(Collection("topic", topic_new))
namespace.add_collection(
    Collection("patch", patch_list, patch_check, patch_apply, patch_refresh, patch_export)
)
namespace.add_collection(Collection("image", *IMAGE_TASKS))
