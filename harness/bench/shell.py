"""Compares the latency of a remote command with OpenSSH's over a shared connection."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from harness.bench.boots import openssh
from harness.bench.model import Live, Measurements, Result, at_most
from harness.bench.subject import Subject
from harness.errors import CannotError, GuestError

_COMMANDS_A_ROUND = 20
_OURS, _THEIRS = "workbench", "OpenSSH, shared connection"
# No slower, allowing for the difference between two medians by chance.
_SLOWER_WANTED = 1.05


def ssh(subject: Subject, rounds: int, live: Live) -> Result:
    """Run `true` in the same guest, alternately over our connection and over OpenSSH's master."""
    if subject.record is None:
        raise CannotError(
            "inv bench ssh needs FreeBSD: the stand-in's server ends a connection with its command"
        )
    measured = Measurements()
    with subject.up() as (guest, _, _), tempfile.TemporaryDirectory(prefix="vmm-") as folder:
        forward = guest.machine.forward
        assert forward is not None
        known = Path(folder) / "known_hosts"
        known.write_text(f"[127.0.0.1]:{forward.port} {subject.access.host_key}\n")
        base = openssh(subject, forward.port, known)
        way, environment = forward.for_openssh()
        there = [word for name, value in way.items() for word in ("-o", f"{name}={value}")]
        shared = [*base[:-1], *there, "-o", f"ControlPath={folder}/master", base[-1]]
        begin = [*shared[:-1], "-o", "ControlMaster=yes", "-o", "ControlPersist=yes"]
        # Not by process.run, here and below: OpenSSH is measured without the workbench.
        subprocess.run(
            [*begin, shared[-1], "--", "true"],
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        try:
            for number in range(rounds):
                live(f"round {number + 1} of {rounds}")
                for _ in range(_COMMANDS_A_ROUND):
                    start = time.monotonic()
                    guest.must(["true"])
                    measured.add(_OURS, time.monotonic() - start)
                    start = time.monotonic()
                    # Not by process.run, see above.
                    if subprocess.call([*shared, "--", "true"], stdin=subprocess.DEVNULL):
                        raise GuestError("OpenSSH could not run a command in the guest")
                    measured.add(_THEIRS, time.monotonic() - start)
        finally:
            leave = [*shared[:-1], "-O", "exit", shared[-1]]
            # Not by process.run, see above.
            subprocess.run(leave, check=False, capture_output=True)
    ratio = measured.median(_OURS) / measured.median(_THEIRS)
    return Result(
        "ssh",
        "A remote command",
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        (at_most("workbench / OpenSSH", ratio, _SLOWER_WANTED),),
        (f"{rounds * _COMMANDS_A_ROUND} commands each, by turns, in the same guest",),
    )
