"""Bochs, which emulates VMX and EPT completely and needs no feature of the host's processor.

Properties of a single version, found by running it, are explained where they are used.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import tty
from pathlib import Path

from harness import limits
from harness.deadline import Deadline
from harness.errors import CannotError, DiskFull, GuestError, MachineDied, WaitTimeout
from harness.files import human_bytes
from harness.machine import bochs_program, bochs_screen, bochs_state
from harness.machine.base import Machine, PortTaken, describe_exit, tail_of
from harness.machine.bochs_screen import Screen
from harness.machine.console import Console
from harness.machine.models import BOCHS_MODELS, BOCHS_REFUSED
from harness.machine.spec import Spec, Traits

TRAITS = Traits(
    backend="bochs",
    time_scale=12.0,
    virtualizes=True,
    saves=True,
    can_be_asked=False,
    processors=1,
)

# The number of instructions in a second of the guest's time.  With fewer, the guest spends its
# instructions on timer interrupts: at 10 million, a tick interrupts L2 before it has run much, and
# the checks need more than twice the processor time.  More make each wait during the boot longer,
# without benefit (docs/bench.md has the table).
_IPS = 40_000_000

_CONFIG = "bochsrc.txt"
_DEBUGGER = "debugger.txt"
_STOPS = 50
_SLIRP = "slirp.txt"
_LOG = "bochs.log"
DISK = "disk.img"
_TTY = "console.tty"
_BIOS, _VGA_BIOS = "bios.rom", "vgabios.rom"
_PORT_TAKEN = "could not set up host forwarding rule"
_DISK_ERROR = b"could not write() hard drive image file"
_REDOLOG = "overlay.redolog"
# A line of the log that was written after instructions had run: it begins with the ticks.
_TICKED = re.compile(r"^0*[1-9]\d*[ied]\[", re.MULTILINE)
_START_LIMIT_S = 60.0
_END_S = 5.0
_POLL_S = 0.02
_LOG_STEP_BYTES = 16 << 20
_RESET = re.compile(rb"\]\s+bx_pc_system_c::Reset\(")
_COMPLAINT = re.compile(r"^\d{11}[pe]\[")
_CHATTER = re.compile(r"^\d{11}[ide]\[|^=+$|^Bochs (?:connected|is exiting)|^ALSA ")
_POWERED_OFF = ("ACPI control: soft power off", "Shutdown port: shutdown requested")


def configuration(
    spec: Spec,
    *,
    has_network: bool,
    ips: int = _IPS,
    more_disks: tuple[str, ...] = (),
    errors: str = "action=report",
) -> str:
    """The bochsrc for `spec`; a pure function, tested with golden files.

    It is the same in every run of the same machine: files that differ have fixed names in the run's
    folder. `more_disks` are names there too, of a second and a third disk; `errors` says which of
    its complaints Bochs logs.
    """
    mib = spec.memory_bytes >> 20
    lines = [
        bochs_state.PLUGINS.format(network=int(has_network)),
        # The text display opens no port, while rfb would listen on every interface.
        "display_library: term",
        # fastboot: the BIOS does not wait three seconds for a key.
        f"romimage: file={_BIOS}, options=fastboot",
        f"vgaromimage: file={_VGA_BIOS}",
        f"cpu: model={spec.cpu or BOCHS_MODELS['intel']}, count=1, ips={ips}, "
        "reset_on_triple_fault=1, ignore_bad_msrs=1",
        f"memory: guest={mib}, host={mib}",
        # The guest's clock depends only on instructions, so it leaps while the guest is idle.
        "clock: sync=none, time0=utc",
        "pci: enabled=1, chipset=i440fx" + (", slot1=e1000" if has_network else ""),
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        # The guest's writes go to the journal; the image is only read.
        # The path is that of a link, because Bochs interprets quotes and $VARIABLES in it.
        f'ata0-master: type=disk, mode=volatile, path="{DISK}", journal={_REDOLOG}',
        *_further_disks(more_disks),
        "boot: disk",
        f'com1: enabled=1, mode=term, dev="{_TTY}"',
        f"log: {_LOG}",
        "panic: action=fatal",
        f"error: {errors}",
        "info: action=report",
        "debug: action=ignore",
        "usb_uhci: enabled=0",
        "mouse: enabled=0",
        "magic_break: enabled=0",
    ]
    if has_network:
        lines.insert(
            8,
            "e1000: enabled=1, mac=52:54:00:12:34:56, ethmod=slirp, ethdev=none, "
            f'script="{_SLIRP}"',
        )
    return "\n".join(lines) + "\n"


def _further_disks(names: tuple[str, ...]) -> list[str]:
    """The settings' lines for further disks; without a third one there is no second controller."""
    places = zip(("ata0-slave", "ata1-master"), names, strict=False)
    lines = [
        f'{place}: type=disk, mode=volatile, path="{name}", journal=overlay.{name}.redolog'
        for place, name in places
    ]
    second = "enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15" if len(names) > 1 else "enabled=0"
    return [*lines[:1], f"ata1: {second}", *lines[1:]]


def slirp_settings(ssh_port: int, network_out: bool) -> str:
    """The settings file of Bochs's slirp; its first line is compared letter by letter."""
    return (
        "# slirp config\n"
        f"restricted = {0 if network_out else 1}\n"
        f"hostfwd = tcp:127.0.0.1:{ssh_port}-:22\n"
    )


class BochsMachine(Machine):
    """A virtual computer in Bochs: one processor, an ATA disk, an e1000."""

    traits = TRAITS

    def __init__(self, spec: Spec) -> None:
        if spec.drive.format != "raw":
            raise CannotError(
                f"Bochs boots only raw disks, but {spec.drive.path} is {spec.drive.format}"
            )
        if spec.second:
            raise CannotError(
                "Bochs is too slow to build in, and has no second disk; use --backend tcg or "
                "kvm, or --builder host"
            )
        if not spec.debug_exit and (why := BOCHS_REFUSED.get(spec.cpu or "")):
            raise CannotError(
                f"Bochs's model {spec.cpu} boots no FreeBSD: {why}; take {BOCHS_MODELS['amd']}"
            )
        super().__init__(spec)
        self._bochs = bochs_program.find()
        self._console_tty_fd = -1
        self._log_seen_bytes = 0
        self._resets = 0
        self._helped = bool(spec.savable or spec.resume_from)
        self._screen: Screen | None = None

    def command(self) -> list[str]:
        begin = ["-r", bochs_state.STATE] if self.spec.resume_from else ["-f", _CONFIG]
        # A Bochs that always runs in its debugger would stop before the first instruction; the
        # script's one line continues.  A Bochs that can run without its debugger is faster that
        # way.
        script = ["-rc", _DEBUGGER] if self._in_debugger else []
        return self._bochs.command("-q", *begin, *script)

    @property
    def _emulated(self) -> Spec:
        """What Bochs itself emulates."""
        return self.spec

    def _settings(self) -> str:
        return configuration(self.spec, has_network=self.spec.ssh)

    def _disks(self) -> dict[str, Path]:
        """The disks by their names in the run's folder."""
        return {DISK: self.spec.drive.path.absolute()}

    @property
    def _in_debugger(self) -> bool:
        return self._bochs.debugger is bochs_program.Debugger.ALWAYS

    def reads(self) -> dict[str, str]:
        network = {_SLIRP: slirp_settings(self.ssh_port or 0, self.spec.network_out)}
        return {
            _CONFIG: self._settings(),
            **(network if self.spec.ssh else {}),
            **({_DEBUGGER: "c\n" * self._goes_on} if self._in_debugger else {}),
        }

    @property
    def _goes_on(self) -> int:
        """The number of `continue` commands in the debugger's script.

        The debugger stops before the first instruction, and whenever a triple fault resets the
        guest. If the machine may be saved, the helper library gives the later commands, so the
        script must end.
        """
        return 1 if self._helped else _STOPS

    def _prepare(self) -> None:
        parts = ((self._bochs.bios, "bochsbios"), (self._bochs.vga_bios, "vgabios"))
        for path, package in parts:
            if not path.exists():
                remedy = "unpack it there too" if self._bochs.private else "run ./inv setup"
                raise CannotError(f"{path} (package {package}) is missing; {remedy}")

    def _start_once(self, deadline: Deadline) -> None:
        run_dir = self.spec.run_dir
        (run_dir / _LOG).unlink(missing_ok=True)
        self._log_seen_bytes = self._resets = 0
        links = {
            **self._disks(),
            _BIOS: self._bochs.bios,
            _VGA_BIOS: self._bochs.vga_bios,
        }
        for name, target in links.items():
            (run_dir / name).unlink(missing_ok=True)
            (run_dir / name).symlink_to(target)
        master, self._console_tty_fd = pty.openpty()
        self._console = Console(master, self.spec.console_log, self._check_process)
        tty.setraw(self._console_tty_fd)
        self.ssh_port = self._choose_port()
        (run_dir / _TTY).unlink(missing_ok=True)
        (run_dir / _TTY).symlink_to(os.ttyname(self._console_tty_fd))
        environment = {**bochs_screen.ENVIRONMENT, **self._bochs.environment}
        if self.spec.savable or self.spec.resume_from:
            helper = bochs_state.helper(run_dir)
            self._helped = bool(helper)
            environment |= helper
        for name, text in self.reads().items():
            (run_dir / name).write_text(text)
        if self.spec.resume_from:
            bochs_state.present(run_dir, self.spec.resume_from)
        self._screen = Screen()
        self._process = self._spawn(self.command(), stdio=self._screen.tty, environment=environment)
        self._screen.started()
        self._wait_running(deadline)
        self._screen.running(self.spec.emulator_log)
        if self.spec.resume_from:
            bochs_state.require_memory(self._process.pid, self.spec.resume_from)
        # Bochs has opened the terminal itself.  Close our copy, so that its end is noticed
        # immediately.
        self._close_tty()

    def _wait_running(self, deadline: Deadline) -> None:
        """Wait until Bochs has read its settings or the saved state, and runs instructions."""
        log = self.spec.run_dir / _LOG
        # How long a saved memory takes to read depends on its size, which the caller knows.
        limit = deadline if self.spec.resume_from else deadline.at_most(_START_LIMIT_S)
        while True:
            ended = self.wait_ended(Deadline.after(_POLL_S))
            said = log.read_text(errors="replace") if log.exists() else ""
            # Bochs would continue without the port, or another process would answer there.
            if _PORT_TAKEN in said:
                raise PortTaken(f"Bochs could not use port {self.ssh_port}; its log is {log}")
            # If instructions have run, it did start, even if it ended soon.
            if _TICKED.search(said) or (self._process and _catches_alarm(self._process.pid)):
                return
            if ended is not None:
                raise MachineDied(
                    f"Bochs did not start: {describe_exit(ended)}; its log is {log}",
                    detail=self.last_words(),
                )
            if limit.expired:
                raise MachineDied(
                    f"Bochs did not start within {limit.limit_s:.0f} s; its log is {log}",
                    detail=self.last_words(),
                )

    def _close_tty(self) -> None:
        if self._console_tty_fd >= 0:
            os.close(self._console_tty_fd)
            self._console_tty_fd = -1

    def _check_running(self) -> None:
        super()._check_running()
        with contextlib.suppress(OSError), (self.spec.run_dir / _LOG).open("rb") as log:
            if os.fstat(log.fileno()).st_size > limits.LOG_MOST_BYTES:
                raise GuestError(
                    f"{self.spec.name}: Bochs's log has grown to "
                    f"{human_bytes(limits.LOG_MOST_BYTES)}, because the guest causes "
                    f"endless messages; "
                    f"it is {log.name}",
                    detail=self.last_words(),
                )
            log.seek(self._log_seen_bytes)
            said = log.read(_LOG_STEP_BYTES)
            if _DISK_ERROR in said:
                raise DiskFull(
                    f"{self.spec.name}: Bochs cannot write the guest's disk, and "
                    f"reports a broken "
                    f"disk to the guest; free some room under {self.spec.run_dir}, or set "
                    "HARNESS_RUNS to a folder with more",
                    detail=self.last_words(),
                )
            # A line may be written in two parts, and the second part is useless by itself.
            whole = said.rfind(b"\n") + 1 or len(said) // _LOG_STEP_BYTES * _LOG_STEP_BYTES
            self._log_seen_bytes += whole
            self._resets += len(_RESET.findall(said[:whole]))

    @property
    def resets(self) -> int:
        # Bochs resets it once before it runs.
        return max(0, self._resets - 1)

    def screen(self) -> list[str]:
        return self._screen.lines() if self._screen else []

    def powered_off(self) -> bool:
        words = tail_of(self.spec.run_dir / _LOG, 60)
        return self.exit_code is not None and any(sign in words for sign in _POWERED_OFF)

    def last_words(self) -> str:
        # After its error messages it may list its devices.
        log = tail_of(self.spec.run_dir / _LOG, 400).splitlines()
        complaints = [line for line in log if _COMPLAINT.match(line)]
        printed = tail_of(self.spec.emulator_log, 40).splitlines()
        complaints += [line for line in printed if line and not _CHATTER.match(line)]
        screen = self._screen.printed() if self._screen and not complaints else ""
        return "\n".join(complaints[-8:]) or screen

    def save(self, folder: Path, deadline: Deadline) -> None:
        """As in Machine; a guest that is not saved within the deadline stays stopped."""
        self.check()
        if not self.spec.savable:
            raise CannotError(f"{self.spec.name} was not started as one that can be saved")
        run_dir = self.spec.run_dir
        bochs_state.request(run_dir, folder, self._emulated.memory_bytes)
        if self._process is not None:
            # In its debugger Bochs stops at the prompt and continues; without it, it must end.
            self._process.send_signal(signal.SIGINT if self._in_debugger else signal.SIGUSR1)
        while not bochs_state.answered(run_dir):
            ended = self.wait_ended(Deadline.after(_POLL_S))
            if ended is not None and not bochs_state.answered(run_dir):
                self.check()
            if deadline.expired:
                raise WaitTimeout(f"Bochs did not save the guest within {deadline.limit_s:.0f} s")
        bochs_state.complete(folder, self._settings())
        if not self._in_debugger:
            self.wait_ended(Deadline.after(_END_S))

    def depends_on(self) -> dict[str, str]:
        """This Bochs, its settings, and the method of saving."""
        settings = self._settings()
        return {
            "Bochs": self._bochs.identity(),
            "the machine's settings": settings + slirp_settings(0, self.spec.network_out),
            "way of saving": bochs_state.way(),
        }

    def require_own_state(self, folder: Path) -> None:
        bochs_state.require_own(folder, self._settings())

    def open_debugger(self, deadline: Deadline) -> Path:
        raise CannotError(
            "Debian's Bochs is built with a debugger of its own and without the stub for gdb; "
            "start the guest in another emulator (./inv up --backend tcg, or kvm), or use "
            "the kernel's debugger on the serial line (./inv console)"
        )

    def _quit(self, deadline: Deadline) -> None:
        """Do nothing: Bochs cannot be asked to end, and it has no data to lose."""

    def _release(self) -> None:
        self._close_tty()
        if self._screen is not None:
            self._screen.close()


def _catches_alarm(pid: int) -> bool:
    """Whether the process has a handler for SIGALRM.

    Every version of Bochs sets it as the last step before the first instruction, of a boot and of a
    resumed machine; its log does not always show that moment.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGALRM - 1) & 1)
    return False
