"""What the tasks for a guest at one's fingertips do: bring up, look, enter, end."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from . import enter, keeper, ui
from .errors import EXIT_OK, UsageError, WorkbenchError
from .kept import KeptWorkbench, ways_in
from .workbench import Options, Workbench, new_run_dir


def up(options: Options, name: str) -> int:
    """Bring up a guest that stays, with the module loaded unless that was left out.

    A guest whose module does not load, or that panics then, stays too: it is there to be looked at.
    """
    with KeptWorkbench(options, new_run_dir(f"up-{name}"), name) as bench:
        try:
            bench.up()
        except WorkbenchError:
            if bench.guest is not None and (record := bench.keep()):
                ui.say(f"guest {name} stays; {ways_in(record)}")
            raise
        record = bench.keep()
    if record is None:
        raise UsageError(f"guest {name} ended as soon as it was up; ./inv logs --name {name}")
    ui.say(f"guest {name} is up; {ways_in(record)}")
    return EXIT_OK


def dry_run(options: Options) -> int:
    """Print the emulator's command line, and what it reads, without starting anything."""
    bench = Workbench(options, Path("RUN"))
    with contextlib.redirect_stdout(None):
        bench.choose()
        bench.find_image()
    machine = bench.make_machine()
    ui.out.print(shlex.join(machine.command()), markup=False)
    return EXIT_OK


def down(name: str, everything: bool, hard: bool) -> int:
    """End a guest or all of them; their logs stay."""
    if everything and name:
        raise UsageError("--all ends every guest; leave out --name or --all")
    for each in keeper.names() if everything else [name or keeper.DEFAULT_NAME]:
        record = keeper.load(each)
        with ui.stage(f"down {each}") as step:
            step.note = keeper.down(each, hard, step.live)
            if record is not None:
                step.note += f"; its logs are in {record.run_dir}"
    return EXIT_OK


def status(name: str, json: bool) -> int:
    """Show the guests that are kept, each in a line."""
    records = [
        record for each in ([name] if name else keeper.names()) if (record := keeper.load(each))
    ]
    if json:
        ui.print_json([record.to_data() for record in records])
        return EXIT_OK
    if not records:
        ui.say("no guest is up; ./inv up starts one")
        return EXIT_OK
    ui.table(
        ("guest", "state", "what", "in", "module", "SSH", "since", "note"),
        [
            (
                record.name,
                record.state,
                record.what,
                record.backend,
                record.module or "-",
                f"127.0.0.1:{record.ssh_port}" if record.ssh_port else "-",
                record.began_at,
                record.note or str(record.run_dir),
            )
            for record in records
        ],
    )
    return EXIT_OK


def ssh(name: str, command: Sequence[str]) -> int:
    """A shell in the guest, or one command there and its exit code."""
    return enter.ssh(enter.way_in(name), command)
