"""The work of the tasks for guests that stay: start, show, enter, end."""

from __future__ import annotations

import contextlib
import datetime
import io
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import defaults, keeper, limits, progress, surroundings
from harness.cli import shells
from harness.deadline import Deadline
from harness.errors import EXIT_CANNOT, EXIT_OK, CannotError, GuestError, UsageError, WorkbenchError
from harness.files import atomic_dir, human_bytes, runs_dir
from harness.guest import gdb as debugger
from harness.guest.freebsd import Guest
from harness.image.unpack import unpack
from harness.machine.console import clean_lines
from harness.run.options import Options
from harness.run.persistent_session import AttachedSession, PersistentSession, ways_in
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.stages import Proven

_SLOWEST_BYTES_S = 1 << 20
_LOOK_S = 0.3
_MOST_SAID = 10
# A guest decides how long its log gets.
_LINE_MOST_BYTES = 1 << 14
_LOGS = {
    "console": "guest/console.log",
    "keeper": "keeper.log",
    "emulator": "guest/emulator.log",
    "bochs": "guest/bochs.log",
}


def up(options: Options, name: str) -> int:
    """Start a guest that stays, and load the module unless `--no-module` was given.

    If the module does not load, or the guest panics, the guest stays too, so that it can be
    examined.
    """
    # The folder of the run has the name in its own.
    keeper.check_name(name)
    with PersistentSession(options, new_run_dir(f"up-{name}"), name) as session:
        try:
            session.up()
        except WorkbenchError:
            if session.guest is not None and (record := session.keep()):
                progress.say(f"guest {name} stays; {ways_in(record)}")
            raise
        record = session.keep()
    if record is None:
        raise UsageError(
            f"guest {name} ended as soon as it was up; ./inv logs --name {name} shows why"
        )
    progress.say(f"guest {name} is up; {ways_in(record)}")
    return EXIT_OK


def dry_run(options: Options) -> int:
    """Print the emulator's command line, and the files it reads, without starting anything.

    A boot runs exactly this, in the run's folder.  The port for SSH is printed as 0, because it is
    chosen at the start.  Descriptors 3 and 4 are the serial line and QMP, sockets without a name.
    """
    session = Session(options, runs_dir() / "RUN")
    imaged = session.find_image(Proven(session.choose(), "nothing is started"))
    machine = session.make_machine(imaged)
    progress.out.print(shlex.join(machine.command()), markup=False)
    for name, text in machine.reads().items():
        progress.out.print(f"\n--- {name}\n{text.rstrip()}", markup=False)
    return EXIT_OK


def down(name: str, everything: bool, hard: bool) -> int:
    """End a guest or all of them; their logs stay."""
    if everything and name:
        raise UsageError("--all ends every guest; leave out --name or --all")
    code = EXIT_OK
    for each in keeper.names() if everything else [name or defaults.GUEST]:
        try:
            record = keeper.load(each)
        except CannotError as error:
            if not everything:
                raise
            progress.say(error.message)
            code = EXIT_CANNOT
            continue
        with progress.stage(f"down {each}") as step:
            step.note = keeper.down(each, hard, step.live)
            if record is not None:
                step.note += f"; its logs are in {record.run_dir}"
    return code


def status(name: str, json: bool) -> int:
    """Show the guests that stay, one on each line.

    A record that cannot be read hides no other guest: its reason and remedy are printed, and the
    exit code is EXIT_CANNOT.
    """
    records, damaged = [], []
    for each in [name] if name else keeper.names():
        try:
            if record := keeper.load(each):
                records.append(record)
        except CannotError as error:
            if name:
                raise
            damaged.append(error.message)
    code = EXIT_CANNOT if damaged else EXIT_OK
    for message in damaged:
        progress.say(message)
    if json:
        progress.print_json([record.to_data() for record in records])
        return code
    if not records:
        if damaged:
            return code
        progress.say("no guest is up; ./inv up starts one")
        return EXIT_OK
    progress.table(
        ("guest", "state", "what", "in", "module", "SSH", "up for", "note"),
        [
            (
                record.name,
                record.state,
                record.what,
                record.backend,
                record.module or "-",
                str(record.forward or "-"),
                _age(record),
                record.note or str(record.run_dir),
            )
            for record in records
        ],
    )
    return code


def _age(record: keeper.Record) -> str:
    if not record.alive:
        return "-"
    try:
        began = datetime.datetime.fromisoformat(record.began_at)
        age = datetime.datetime.now(datetime.UTC) - began
    except (TypeError, ValueError):
        return "?"
    return str(datetime.timedelta(seconds=max(0, round(age.total_seconds()))))


def ssh(name: str, command: Sequence[str]) -> int:
    """A shell in the guest, or one command there and its exit code."""
    return shells.ssh(shells.way_in(name), command)


def console(name: str, lines: int) -> int:
    """Connect this terminal to the serial line."""
    shells.console(keeper.find(name), lines)
    return EXIT_OK


def logs(name: str, which: str, lines: int, follow: bool) -> int:
    """Print a log's last lines, of a guest that is up or of the last one of that name."""
    record = keeper.load(name)
    run_dir = record.run_dir if record else _last_run(name)
    if which not in _LOGS:
        raise UsageError(f"--which {which}: unknown log; choose one of {', '.join(_LOGS)}")
    path = run_dir / _LOGS[which]
    if not path.exists():
        raise UsageError(f"{path}: there is no such log, or not yet")
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _LINE_MOST_BYTES * lines))
        text = stream.read()
        said = clean_lines(text.decode("utf-8", "replace"))[-lines:]
        sys.stdout.write(progress.clean("".join(f"{line}\n" for line in said)))
        part = b""
        while follow:
            sys.stdout.flush()
            now = keeper.load(name)
            over = now is None or not now.alive or now.run_dir != run_dir
            data = part + stream.read()
            whole = data.rfind(b"\n") + 1
            part = data[whole:]
            for line in clean_lines(data[:whole].decode("utf-8", "replace")):
                sys.stdout.write(progress.clean(f"{line}\n"))
            if over:
                break
            time.sleep(_LOOK_S)
    return EXIT_OK


def _last_run(name: str) -> Path:
    runs = sorted(runs_dir().glob(f"*-up-{name}")) + sorted(runs_dir().glob(f"*-up-{name}-[0-9]*"))
    if not runs:
        raise UsageError(f"there was no guest named {name}; ./inv status lists the guests")
    return max(runs, key=lambda path: path.stat().st_mtime)


def push(name: str, local: str, remote: str) -> int:
    """Copy a file or a folder into the guest."""
    source = Path(local)
    with keeper.attached(shells.way_in(name).name) as guest:
        if guest.run(["test", "-d", remote]).ok:
            remote = f"{remote.rstrip('/')}/{source.resolve().name}"
        with progress.stage(f"push {local} to {name}:{remote}") as step:
            if source.is_dir():
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w") as archive:
                    archive.add(source, ".")
                step.note = human_bytes(len(packed.getvalue()))
                guest.must(["mkdir", "-p", remote])
                limit = _transfer(guest, len(packed.getvalue()))
                guest.must(["tar", "-C", remote, "-xf", "-"], limit, stdin=packed.getvalue())
            elif source.is_file():
                size = source.stat().st_size
                step.note = human_bytes(size)
                mode = source.stat().st_mode & 0o777
                guest.ssh.put(source, remote, _transfer(guest, size), mode)
            else:
                raise UsageError(f"{local}: there is no such file or folder")
    return EXIT_OK


def pull(name: str, remote: str, local: str) -> int:
    """Copy a file or a folder out of the guest."""
    target = Path(local)
    with keeper.attached(shells.way_in(name).name) as guest:
        if target.is_dir():
            target /= Path(remote).name
        with progress.stage(f"pull {name}:{remote} to {target}") as step:
            if guest.run(["test", "-d", remote]).ok:
                step.note = _pull_folder(guest, remote, target, step.live)
            else:
                guest.ssh.get(remote, target, _transfer(guest))
                step.note = human_bytes(target.stat().st_size)
    return EXIT_OK


def _pull_folder(guest: Guest, remote: str, target: Path, live: Callable[[str], None]) -> str:
    """Copy a folder out of the guest; returns a note on its size and on what was left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull.", dir=target.parent) as scratch:
        packed = Path(scratch, "tar")
        room_bytes = max(0, shutil.disk_usage(scratch).free - limits.LEAST_FREE_BYTES)
        with packed.open("wb") as out:
            command = ["tar", "-C", remote, "-cf", "-", "."]
            guest.ssh.save(command, out, _transfer(guest), room_bytes)
        with atomic_dir(target) as folder:
            came = unpack(
                packed, folder, live, of_a_system=False, called=f"the guest's tar of {remote}"
            )
        size = human_bytes(packed.stat().st_size)
    for left_out in came.left_out[:_MOST_SAID]:
        progress.say(f"left out: {left_out}")
    if len(came.left_out) > _MOST_SAID:
        progress.say(f"left out: {len(came.left_out) - _MOST_SAID} more")
    return f"{size}, {len(came.left_out)} left out" if came.left_out else size


def _transfer(guest: Guest, size_bytes: int = 1 << 30) -> Deadline:
    return guest.deadline(20 + size_bytes / _SLOWEST_BYTES_S)


def reload(name: str, changes: Mapping[str, Any]) -> int:
    """Build the module again and load it in place of the one that runs."""
    with AttachedSession(shells.way_in(name), **changes) as session:
        session.up()
    return EXIT_OK


def reboot(name: str) -> int:
    """Reboot the guest and wait until it answers again."""
    with keeper.attached(shells.way_in(name).name) as guest:
        with (
            progress.stage(f"reboot {name}") as step,
            progress.following(step, guest.machine.console.last_line),
        ):
            guest.reboot()
            step.note = "it answers again; no module is loaded"
        keeper.set_module(keeper.find(name))
    return EXIT_OK


def gdb(name: str, symbols: str, commands: Sequence[str]) -> int:
    """Run gdb on the guest's kernel, through the emulator's stub; the guest continues afterwards.

    The symbols come from `symbols`, else from the kernel that was found to be the guest's, else
    from the guest's own kernel file, if the guest still answers.
    """
    record = keeper.find(name)
    if shutil.which("gdb") is None:
        command = surroundings.look().as_root("apt-get install gdb")
        raise CannotError(f"gdb is not installed; run {command}")
    if symbols and not Path(symbols).is_file():
        raise UsageError(f"--symbols {symbols}: there is no such file")
    with keeper.debugger(record) as target:
        kernel = Path(symbols or record.kernel_file or _own_kernel(record))
        module = Path(record.module_file) if record.module_file else None
        words = debugger.command(
            target, kernel if kernel.is_file() else None, module, record.module_address, commands
        )
        if not kernel.is_file():
            progress.say("note: there are no kernel symbols; give them with --symbols FILE")
        progress.say(f"running: {shlex.join(words)}")
        # Not by process.run: gdb has the user's terminal.
        process = subprocess.Popen(words)
        while True:
            # Ctrl-C belongs to gdb: it stops the guest.
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def _own_kernel(record: keeper.Record) -> Path:
    """The kernel file that the guest booted from, copied out once; it has the names of functions.

    Returns None if the guest does not answer or is not FreeBSD.
    """
    path = record.guest_dir / "kernel"
    if record.stage == keeper.READY and not path.exists():
        with (
            contextlib.suppress(GuestError),
            progress.stage("symbols") as step,
            keeper.attached(record.name) as guest,
        ):
            booted = guest.must(["sysctl", "-n", "kern.bootfile"]).strip()
            guest.ssh.get(booted, path, _transfer(guest))
            step.note = f"the guest's own {booted}, {human_bytes(path.stat().st_size)}"
    return path
