"""A guest inside the guest: bhyve runs our boot ROM (images/l2rom), which reports what it finds.

L2's serial line is a pair of files in L1: a fifo that it reads commands from, and a file that it
writes to.  bhyve's exit code and the ROM's output are read together, because many errors at bhyve's
start have the exit code of a power-off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from harness import hostmake
from harness.bhyve.vmm import Vmm
from harness.deadline import Deadline
from harness.errors import GuestError, WaitTimeout
from harness.files import PROJECT, atomic_dir, cache_dir, locked, sha256_text
from harness.probe import tap

SOURCE = PROJECT / "images" / "l2rom"
_READY = re.compile(r"L2ROM ready, memory: low (\d+) MiB, high (\d+) MiB")
_START_S = 10.0
_PLATFORM_S = 30.0
PLATFORM = (
    "-c", "4", "-A", "-s", "3,virtio-rnd", "-s", "4,nvme,{folder}/disk1", "-s", "5,xhci,tablet",
    "-s", "6,ahci,hd:{folder}/disk2", "-s", "7,virtio-blk,{folder}/disk3",
)  # fmt: skip
"""bhyve's arguments for the machine that images/l2rom/platform.c examines.

`{folder}` is L2's folder in the guest. There are three disks in it, of 1 MiB of zeros each.
"""
FIRMWARE = ("-c", "1", "-o", "lpc.fwcfg=qemu", "-f", "opt/workbench/word,string=hello")
"""The same for the machine that images/l2rom/fwcfg.c examines; it has 64 MiB."""


class Exit(IntEnum):
    """bhyve's exit codes, as bhyve(8) lists them."""

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
    """Build the boot ROM with the host's compiler and cache it; CannotError if that fails."""
    sources = sorted(path for path in SOURCE.iterdir() if path.is_file())
    key = sha256_text(*(f"{path.name}\n{path.read_text()}" for path in sources))[:16]
    folder = cache_dir() / "l2rom" / key
    rom = folder / "l2rom.bin"
    with locked(cache_dir() / "l2rom.lock", "building l2rom", 60):
        if rom.exists():
            return rom
        with atomic_dir(folder) as work:
            hostmake.make(SOURCE, result=rom.name, target=work / rom.name)
    return rom


_ENDED = "bhyve ended with"

# In these scripts the shell does itself what it can, since in Bochs each program that it starts
# takes 25 ms.

# $1 folder, $2 name, $3 MiB, and more of bhyve's arguments.  If bhyve was built, it is two folders
# above.  When bhyve has ended, the complete status file appears, and then the line that ends every
# wait for output that will not come.
_LAUNCH = rf"""
set -eu
[ ! -e "$1" ] || rm -rf "$1"
mkdir -p "$1"
mkfifo "$1/in"
: >"$1/out"
case "$*" in *"$1/disk"*) truncate -s 1M "$1/disk1" "$1/disk2" "$1/disk3" ;; esac
(
    set +e
    trap '' HUP
    PATH="${{1%/l2/*}}:$PATH"
    folder=$1 name=$2 mib=$3
    shift 3
    bhyve -H -m "${{mib}}M" -s 0,hostbridge -s 31,lpc -l com1,stdio "$@" "$name" \
        <>"$folder/in" >>"$folder/out" 2>>"$folder/err" &
    echo $! >"$folder/pid"
    wait $!
    code=$?
    echo $code >"$folder/status.part"; mv "$folder/status.part" "$folder/status"
    printf '\n{_ENDED} %s\n' $code >>"$folder/out"
) </dev/null >/dev/null 2>&1 &
"""

# $1 folder, $2 a line to type (or empty), $3 words to wait for (or empty).  Prints a line with
# bhyve's exit code or an empty one, then L2's output, only that after the typed line if there is
# one.  It sleeps in the kernel until L2 prints something, because L2 shares an emulated processor
# with this script, and polling over SSH would take most of it.  The fifo is opened for reading and
# writing, so that opening it does not block when bhyve has ended.
_TALK = rf"""
cd "$1" || exit
from=1
if [ -n "$2" ]; then
    from=$(($(wc -c <out) + 1))
    printf '%s\n' "$2" 1<>in
fi
if [ -n "$3" ]; then
    : >tail.pid
    {{
        {{ tail -c "+$from" -f out & echo $! >tail.pid; }} | {{
            while IFS= read -r line; do
                case $line in *"$3"* | *"{_ENDED}"*) break ;; esac
            done
            until read -r pid <tail.pid; do :; done
            kill "$pid"
        }}
    }} 2>/dev/null
fi
status=
[ ! -e status ] || read -r status <status
echo "$status"
tail -c "+$from" out
"""
# $1 words to wait for, then the arguments of _LAUNCH.
_START = f"""
wanted=$1
shift
{_LAUNCH}
set +eu
set -- "$1" '' "$wanted"
{_TALK}
"""

_KILL = """
if [ -e "$1/pid" ] && [ ! -e "$1/status" ]; then
    read -r pid <"$1/pid"
    kill -9 "$pid"
    until [ -e "$1/status" ]; do sleep 0.02; done
fi
"""
# $1 folder, $2 name, $3 the boot ROM.
_SECOND = """
PATH="${1%/l2/*}:$PATH"
bhyve -m 32M -s 0,hostbridge -s 31,lpc -l "bootrom,$3" "$2" </dev/null
"""
_DESTROY = """
PATH="${1%/l2/*}:$PATH"
if [ -e "/dev/vmm/$2" ]; then bhyvectl --destroy --vm="$2"; fi
"""


class L2:
    """A guest inside the guest; it exists from `start` until its VM is destroyed."""

    def __init__(
        self, vmm: Vmm, name: str, memory_mib: int, arguments: Sequence[str] = ("-c", "1")
    ) -> None:
        self.vmm = vmm
        self.name = name
        self.memory_mib = memory_mib
        self.arguments = tuple(arguments)
        self.folder = f"{vmm.home}/l2/{name}"
        """The folder in the guest with bhyve's input `in`, output `out`, and errors `err`."""
        self._guest = vmm.guest

    def start(self) -> Found:
        """Run bhyve and wait for the ROM's marker; returns the memory that L2 found.

        Raises GuestError with bhyve's own messages if it ends before that.
        """
        arguments = self._arguments("-l", f"bootrom,{self.vmm.put_once(build_rom())}")
        match = self._match(
            _READY,
            lambda words, limit: self._read(_START, words, *arguments, deadline=limit),
            self._guest.deadline(_START_S),
        )
        return Found(int(match[1]), int(match[2]))

    def launch(self, *arguments: str) -> None:
        """Run bhyve with additional arguments, without waiting for the ROM.

        Without a boot ROM the VM must exist and be loaded already, as bhyveload(8) does it.
        """
        self._guest.script(_LAUNCH, *self._arguments(*arguments))

    def _arguments(self, *arguments: str) -> list[str]:
        words = [it.replace("{folder}", self.folder) for it in (*arguments, *self.arguments)]
        return [self.folder, self.name, str(self.memory_mib), *words]

    def send(self, line: str) -> None:
        """Type a command of the boot ROM; images/l2rom/l2rom.c lists them."""
        self._talk(line, "")

    def output(self) -> str:
        """All that L2 has printed."""
        return self._talk("", "")[1]

    def errors(self) -> str:
        """The error messages of bhyve itself."""
        return self._guest.must(["cat", f"{self.folder}/err"])

    def ask(
        self, line: str, pattern: re.Pattern[str], deadline: Deadline | None = None
    ) -> re.Match[str]:
        """Type a line, if one is given, and wait for an answer that matches `pattern`.

        The pattern begins with plain words.  Raises GuestError if bhyve ends before that.
        """
        return self._match(
            pattern,
            lambda words, limit: self._talk(line, words, limit),
            deadline or self._guest.deadline(_START_S),
        )

    def _match(
        self,
        pattern: re.Pattern[str],
        talk: Callable[[str, Deadline], tuple[str, str]],
        limit: Deadline,
    ) -> re.Match[str]:
        words = re.split(r"[\\(\[.*+?]", pattern.pattern, maxsplit=1)[0]
        try:
            status, said = talk(words, limit)
        except WaitTimeout as error:
            raise WaitTimeout(
                f"L2 {self.name}: {words!r} not printed within {limit.limit_s:.0f} s",
                detail=self.output(),
            ) from error
        match = pattern.search(said)
        if match is None:
            raise GuestError(
                f"L2 {self.name}: {words!r} not printed, "
                + (f"bhyve exited with {status}" if status else "although similar text was"),
                detail=said + self.errors(),
            )
        return match

    def _talk(self, line: str, words: str, deadline: Deadline | None = None) -> tuple[str, str]:
        return self._read(_TALK, self.folder, line, words, deadline=deadline)

    def _read(
        self, script: str, *arguments: str, deadline: Deadline | None = None
    ) -> tuple[str, str]:
        """bhyve's exit code or an empty text, and L2's output, as _TALK prints them."""
        said = self._guest.script(script, *arguments, deadline=deadline).stdout
        status, _, text = said.replace("\r", "").partition("\n")
        return status, text

    def touch(self, mib: int) -> int:
        """Let L2 write and read back `mib` MiB; returns the number of wrong pages."""
        limit = self._guest.deadline(_START_S + mib / 16)
        answer = re.compile(rf"touched {mib} MiB, bad pages: (\d+)")
        return int(self.ask(f"t{mib}", answer, limit)[1])

    def platform(self, command: str = "u") -> tap.Report:
        """L2's report on bhyve's own devices.

        It needs the machine of PLATFORM; the command w needs that of FIRMWARE.
        """
        verdict = re.compile(r"# verdict failed=\d+")
        said = self.ask(command, verdict, self._guest.deadline(_PLATFORM_S)).string
        return tap.parse(said + "\n")

    def feed(self, remote: str) -> None:
        """Type the contents of a file in the guest."""
        self._guest.script('cat "$2" 1<>"$1/in"', self.folder, remote)

    def exit_code(self) -> int | None:
        """bhyve's exit code, or None while it runs."""
        status = self._talk("", "")[0]
        return int(status) if status else None

    def wait_exit(self, line: str = "") -> int:
        """Type a line, if one is given, and wait for bhyve's end; returns its exit code."""
        limit = self._guest.deadline(_START_S)
        try:
            return int(self._talk(line, _ENDED, limit)[0])
        except WaitTimeout as error:
            raise WaitTimeout(
                f"L2 {self.name}: bhyve did not end within {limit.limit_s:.0f} s",
                detail=self.output(),
            ) from error

    def kill(self) -> None:
        """Send SIGKILL to bhyve if it runs, and wait for its end; the VM stays."""
        self._guest.script(_KILL, self.folder)

    def start_second(self) -> int:
        """Run another bhyve for the same VM, to its end; its exit code."""
        rom = self.vmm.put_once(build_rom())
        return self._guest.script(_SECOND, self.folder, self.name, rom, check=False).exit_code

    def destroy(self) -> None:
        """Destroy the VM, even while bhyve runs it."""
        self._guest.script(_DESTROY, self.folder, self.name)

    def end(self) -> None:
        """End bhyve if it runs, and destroy the VM if it exists."""
        self._guest.script(_KILL + _DESTROY, self.folder, self.name)
