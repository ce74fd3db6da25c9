"""Compares booting and resuming, one guest and several, the workbench and a bare emulator."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil

from harness.bench.model import Live, Measurements, Ratio, Result, at_least, at_most
from harness.bench.subject import Subject
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError
from harness.files import runs_dir, sha256_file
from harness.machine import Drive
from harness.machine.base import free_port
from harness.machine.qemu import make_overlay

# The goal was set when a bare QEMU took 38.7 s to boot FreeBSD's own image and 1.2 s to resume it.
_RESUME_WANTED = 25
_OVERHEAD_WANTED = 0.05
_TRY_S = 0.2
_BARE_LIMIT_S = 600.0
_AS_IT_CAME, _COLD, _RESUMED = "as it came", "cold", "resumed"
_LOGIN_S = 600.0
_OURS, _BARE = "workbench", "bare QEMU and ssh"


def boot(subject: Subject, rounds: int, live: Live) -> Result:
    """Compare the times from power-on to the first command's answer, booted and resumed.

    If the disk that the image was prepared from still exists, it is booted too: to its login
    prompt, because it accepts no SSH connection of ours.
    """
    how = subject.have_snapshot()
    brought = _brought(subject)
    measured = Measurements()
    for number in range(rounds):
        if brought:
            live(f"round {number + 1} of {rounds}: {_AS_IT_CAME}")
            measured.add(_AS_IT_CAME, _to_login(subject, brought))
        for name in (_COLD, _RESUMED):
            live(f"round {number + 1} of {rounds}: {name}")
            with subject.up(cold=name == _COLD) as (_, took_s, came):
                if name == _RESUMED and not came.startswith("resumed"):
                    raise GuestError(f"the guest was not resumed: {came}")
                measured.add(name, took_s)
    resumed_s = measured.median(_RESUMED)
    ratios = [Ratio("cold / resumed", measured.median(_COLD) / resumed_s)]
    notes = [f"before the first round: {how}"]
    if brought:
        ratio = measured.median(_AS_IT_CAME) / resumed_s
        ratios.append(at_least("as it came / resumed", ratio, _RESUME_WANTED))
        notes.append(f"as it came: {brought.path}, to its login prompt")
    elif subject.record:
        notes.append(
            f"the disk as it came is not there, so the goal of {_RESUME_WANTED} is not checked"
        )
    return Result(
        "boot",
        "To the first SSH command's answer" + (", or the login prompt" if brought else ""),
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        tuple(ratios),
        tuple(notes),
    )


def _brought(subject: Subject) -> Drive | None:
    """The disk that the subject's image was prepared from, if it is still there."""
    record = subject.record
    if record is None or subject.backend == "bochs":
        return None
    disk = Path(record.origin)
    # A downloaded image has an address here; a compressed or changed disk has another digest.
    if not disk.is_file() or sha256_file(disk) != record.origin_sha256:
        return None
    return Drive(disk, record.origin_format)


def _to_login(subject: Subject, drive: Drive) -> float:
    """Seconds from the start to the login prompt of a disk that was not prepared."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=runs_dir()) as folder:
        start = time.monotonic()
        with subject.make(replace(subject.spec, run_dir=Path(folder), drive=drive)) as machine:
            machine.start(Deadline.after(30))
            limit = Deadline.after(_LOGIN_S)
            machine.console.talk(0).expect_any(["login: "], "the login prompt", limit)
            return time.monotonic() - start


def harness(subject: Subject, rounds: int, live: Live) -> Result:
    """The time that the workbench adds to the emulator's own, from its start to SSH."""
    if subject.backend == "bochs":
        raise CannotError("inv bench harness compares with a bare QEMU: --backend tcg or kvm")
    measured = Measurements()
    for number in range(rounds):
        live(f"round {number + 1} of {rounds}: {_OURS}")
        with subject.up(cold=True) as (_, took_s, _):
            measured.add(_OURS, took_s)
        live(f"round {number + 1} of {rounds}: {_BARE}")
        measured.add(_BARE, _bare(subject))
    added = measured.median(_OURS) / measured.median(_BARE) - 1
    return Result(
        "harness",
        "Start to SSH: the workbench and the bare emulator",
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        (at_most("added by the workbench", added, _OVERHEAD_WANTED),),
        (f"bare: the same command line, and OpenSSH tried every {_TRY_S} s",),
    )


def _bare(subject: Subject) -> float:
    """Seconds from a bare QEMU's start until OpenSSH has run a command in it."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=runs_dir()) as folder:
        spec = replace(subject.spec, run_dir=Path(folder))
        start = time.monotonic()
        make_overlay(spec.drive.path, spec.drive.format, spec.run_dir / "overlay.qcow2")
        machine = subject.make(spec)
        machine.ssh_port = free_port()
        command = _without_harness(machine.command())
        known = Path(folder) / "known_hosts"
        known.write_text(f"[127.0.0.1]:{machine.ssh_port} {subject.access.host_key}\n")
        knock = [*openssh(subject, machine.ssh_port, known), "-o", "ConnectTimeout=4", "--", "true"]
        with (Path(folder) / "log").open("wb") as log:
            # Not by process.run, both: what is measured is a bare QEMU without the workbench.
            qemu = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
            try:
                while subprocess.call(knock, stdout=log, stderr=log):
                    if qemu.poll() is not None or time.monotonic() - start > _BARE_LIMIT_S:
                        raise GuestError(f"the bare QEMU did not come up: {shlex.join(command)}")
                    time.sleep(_TRY_S)
                return time.monotonic() - start
            finally:
                qemu.kill()
                qemu.wait()


def _without_harness(command: list[str]) -> list[str]:
    """A machine's command line without QMP, console socket and stopped start."""
    bare: list[str] = []
    words = iter(command)
    for word in words:
        if word == "-S":
            continue
        if word in ("-chardev", "-mon"):
            value = next(words)
            if "com1" in value:
                bare += ["-chardev", "file,id=com1,path=console.log"]
            continue
        bare.append(word)
    return bare


def openssh(subject: Subject, port: int, known_hosts: Path) -> list[str]:
    """The command line of OpenSSH's client, with the image's key and host key."""
    options = (
        f"UserKnownHostsFile={known_hosts}",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "LogLevel=ERROR",
    )
    command = ["ssh", "-F", "none", "-p", str(port), "-i", str(subject.access.private_key)]
    for option in options:
        command += ["-o", option]
    return [*command, f"{subject.access.user}@127.0.0.1"]


def parallel(subject: Subject, rounds: int, live: Live) -> Result:
    """Compare one resumed guest with several at once: time, and memory with shared pages."""
    counts = (1, 2, 4)
    subject.have_snapshot()
    measured = Measurements()
    for number in range(rounds):
        for count in counts:
            live(f"round {number + 1} of {rounds}: {count} at once")
            took_s, pss_bytes = _at_once(subject, count)
            measured.add(f"{count} at once", took_s)
            measured.add(f"memory of {count}", pss_bytes / (1 << 20))
    units = {f"memory of {count}": "MiB" for count in counts}
    most = counts[-1]
    alone, together = measured.median("1 at once"), measured.median(f"{most} at once")
    return Result(
        "parallel",
        "Several guests resumed at once",
        f"{subject.name} in {subject.backend}",
        measured.samples(units),
        (at_least(f"guests a second, {most} at once / 1", most * alone / together, 1),),
        (f"memory is the emulators' proportional share; {os.cpu_count()} processors",),
    )


def _at_once(subject: Subject, count: int) -> tuple[float, int]:
    """Seconds until the last of `count` guests answers, and the memory that all take together."""
    # An emulator ends with the thread that started it, so the threads wait until all are measured.
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        start = time.monotonic()
        pending = [pool.submit(stack.enter_context, subject.up()) for _ in range(count)]
        ups = [each.result() for each in pending]
        took_s = time.monotonic() - start
        for _, _, how in ups:
            if not how.startswith("resumed"):
                raise GuestError(f"a guest was not resumed: {how}")
        pids = [guest.machine.pid for guest, _, _ in ups]
        memory = sum(psutil.Process(pid).memory_full_info().pss for pid in pids if pid)
        # This happens before the threads end, because the emulators end with them.
        stack.close()
        return took_s, memory
