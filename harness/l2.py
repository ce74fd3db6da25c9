"""A guest inside the guest: bhyve runs our boot ROM (images/l2rom), which says what it sees.

L2's serial line is a pair of files in L1: a fifo that it reads commands from, and a file that it
writes to.  bhyve's exit code and the ROM's words are asked for together, since many errors at
bhyve's start have the exit code of a power-off.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from .deadline import Deadline
from .errors import CannotError, GuestError, WaitTimeout
from .files import PROJECT, atomic_dir, cache_dir, locked, sha256_text
from .vmm import Vmm

SOURCE = PROJECT / "images" / "l2rom"
_READY = re.compile(r"L2ROM ready, memory: low (\d+) MiB, high (\d+) MiB")
_POLL_S = 0.1
_START_S = 10.0


class Exit(IntEnum):
    """bhyve's exit codes, by bhyve(8)."""

    RESET = 0
    POWER_OFF = 1
    HALTED = 2
    TRIPLE_FAULT = 3
    ERROR = 4


@dataclass(frozen=True)
class Found:
    """The memory that L2 found, in MiB, below and above 4 GiB."""

    low_mib: int
    high_mib: int


def build_rom() -> Path:
    """The boot ROM, made with the host's compiler and cached; CannotError when that fails."""
    sources = sorted(path for path in SOURCE.iterdir() if path.is_file())
    key = sha256_text(*(f"{path.name}\n{path.read_text()}" for path in sources))[:16]
    folder = cache_dir() / "l2rom" / key
    rom = folder / "l2rom.bin"
    with locked(cache_dir() / "l2rom.lock", "building l2rom", 60):
        if rom.exists():
            return rom
        make = shutil.which("make")
        if make is None:
            raise CannotError("make is not installed; run ./inv setup")
        with atomic_dir(folder) as work:
            done = subprocess.run(
                [make, "-s", "-C", str(SOURCE), f"O={work}"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise CannotError("images/l2rom did not build", detail=done.stderr)
    return rom


# $1 folder, $2 name, $3 MiB, $4 rom.  The status appears when bhyve has ended, whole.
_LAUNCH = r"""
set -eu
rm -rf "$1"; mkdir -p "$1"; mkfifo "$1/in"; : >"$1/out"
cat >"$1/run" <<'END'
bhyve -H -c 1 -m "$3M" -s 0,hostbridge -s 31,lpc -l com1,stdio -l bootrom,"$4" "$2" \
    <>"$1/in" >>"$1/out" 2>>"$1/err" &
echo $! >"$1/pid"
wait $!
echo $? >"$1/status.part"; mv "$1/status.part" "$1/status"
END
nohup /bin/sh "$1/run" "$@" </dev/null >/dev/null 2>&1 &
"""


class L2:
    """One such guest; it exists from `start` until its VM is destroyed."""

    def __init__(self, vmm: Vmm, name: str, memory_mib: int) -> None:
        self.vmm = vmm
        self.name = name
        self.memory_mib = memory_mib
        self._folder = f"{vmm.home}/l2/{name}"
        self._guest = vmm.guest

    def start(self) -> Found:
        """Run bhyve and wait for the marker; what memory L2 found.

        Raises GuestError with bhyve's own words when it ends before.
        """
        rom = f"{self.vmm.home}/l2rom.bin"
        if not self._guest.exists(rom):
            self._guest.put(build_rom(), rom)
        self._guest.script(_LAUNCH, self._folder, self.name, str(self.memory_mib), rom)
        match = self.wait_for(_READY)
        return Found(int(match[1]), int(match[2]))

    def tell(self, line: str) -> None:
        """Type a command: t and a number of MiB, s, h, p, r or f."""
        self._guest.script('printf "%s\\n" "$2" >"$1/in"', self._folder, line)

    def output(self) -> str:
        """All that L2 has printed."""
        return self._guest.must(["cat", f"{self._folder}/out"]).replace("\r", "")

    def errors(self) -> str:
        """What bhyve itself complained of."""
        return self._guest.must(["cat", f"{self._folder}/err"])

    def wait_for(self, pattern: re.Pattern[str], deadline: Deadline | None = None) -> re.Match[str]:
        """Wait until L2 has printed `pattern`; GuestError when bhyve ends before."""
        limit = deadline or self._guest.deadline(_START_S)
        while True:
            ended = self.exit_code()
            match = pattern.search(self.output())
            if match:
                return match
            if ended is not None or limit.expired:
                said = self._guest.script('cat "$1/out" "$1/err"', self._folder, check=False).stdout
                wanted = f"L2 {self.name}: {pattern.pattern!r}"
                if ended is not None:
                    raise GuestError(
                        f"{wanted} not printed, bhyve exited with {ended}", detail=said
                    )
                raise WaitTimeout(f"{wanted} not printed within {limit.limit_s:.0f} s", detail=said)
            time.sleep(_POLL_S)

    def touch(self, mib: int) -> int:
        """Have L2 write and read back `mib` MiB; how many pages came back wrong."""
        self.tell(f"t{mib}")
        limit = self._guest.deadline(_START_S + mib / 16)
        return int(self.wait_for(re.compile(rf"touched {mib} MiB, bad pages: (\d+)"), limit)[1])

    def exit_code(self) -> int | None:
        """bhyve's exit code, or None while it runs."""
        result = self._guest.run(["cat", f"{self._folder}/status"])
        return int(result.stdout) if result.ok else None

    def wait_exit(self) -> int:
        """Wait for bhyve's end; its exit code."""
        limit = self._guest.deadline(_START_S)
        while True:
            code = self.exit_code()
            if code is not None:
                return code
            if limit.expired:
                raise WaitTimeout(
                    f"L2 {self.name}: bhyve did not end within {limit.limit_s:.0f} s",
                    detail=self.output(),
                )
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL bhyve and wait until it is gone; the VM stays."""
        pid = self._guest.must(["cat", f"{self._folder}/pid"]).strip()
        self._guest.run(["kill", "-9", pid])
        self.wait_exit()

    def end(self) -> None:
        """End bhyve if it runs, and destroy the VM if it is there."""
        if self._guest.exists(f"{self._folder}/pid") and self.exit_code() is None:
            self.kill()
        if self._guest.exists(f"/dev/vmm/{self.name}"):
            self._guest.must(["bhyvectl", "--destroy", f"--vm={self.name}"])
