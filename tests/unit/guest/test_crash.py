"""A panic is read from the kernel's output and its debugger, and source lines are added."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import debian
from harness.deadline import Deadline
from harness.errors import GuestPanic
from harness.guest import panic_report
from harness.guest.panic_report import Frame, Symbols
from harness.machine.console import Console

CALLED = """\
panic: kdb_sysctl_panic
cpuid = 1
time = 1795430915
KDB: stack backtrace:
#0 0xffffffff80bd675d at kdb_backtrace+0x5d
#1 0xffffffff80b872c6 at vpanic+0x136
#2 0xffffffff80b87183 at panic+0x43
#3 0xffffffff80bd7383 at kdb_sysctl_panic+0x63
Uptime: 56s
Automatic reboot in 15 seconds - press a key on the console to abort
"""

TRAPPED = """\
Fatal trap 12: page fault while in kernel mode
cpuid = 0; apic id = 00
fault virtual address	= 0x10
fault code		= supervisor read data, page not present
instruction pointer	= 0x20:0xffffffff82c11e2b
stack pointer	        = 0x28:0xfffffe005d0a8c00
processor eflags	= interrupt enabled, resume, IOPL = 0
current process		= 812 (bhyvectl)
rdi: fffff80003a1c000 rsi: 0000000000000010 rdx: 0000000000000000
r10: 0000000000000001 r11: fffff80004c20a00 r12: 0000000000000000
trap number		= 12
panic: page fault
KDB: stack backtrace:
db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe005d0a8900
vpanic() at vpanic+0x136/frame 0xfffffe005d0a8a30
trap_pfault() at trap_pfault+0x4a1/frame 0xfffffe005d0a8b20
calltrap() at calltrap+0x8/frame 0xfffffe005d0a8b20
--- trap 0xc, rip = 0xffffffff82c11e2b, rsp = 0xfffffe005d0a8c00, rbp = 0xfffffe005d0a8c40 ---
vm_alloc_memseg() at vm_alloc_memseg+0x1b/frame 0xfffffe005d0a8c40
vmmdev_ioctl() at vmmdev_ioctl+0x2f/frame 0xfffffe005d0a8d00
--- syscall (54, FreeBSD ELF64, ioctl), rip = 0x1, rsp = 0x2, rbp = 0x3 ---
KDB: enter: panic
[ thread pid 812 tid 100101 ]
Stopped at      kdb_enter+0x33: movq    $0,0x1234567(%rip)
"""


class Kernel:
    """The far end of a serial line: says things, and answers as a debugger that echoes."""

    def __init__(self, folder: Path) -> None:
        near, self.far = socket.socketpair()
        self.console = Console(near.detach(), folder / "console.log")
        self.asked: list[str] = []

    def says(self, text: str) -> None:
        mark = self.console.mark
        self.far.sendall(text.replace("\n", "\r\n").encode())
        until = time.monotonic() + 5
        while self.console.mark == mark and time.monotonic() < until:
            time.sleep(0.002)

    def debugs(self, answers: dict[str, str]) -> None:
        def serve() -> None:
            line = b""
            while byte := self.far.recv(1):
                if byte != b"\r":
                    line += byte
                    continue
                question, line = line.decode(), b""
                self.asked.append(question)
                text = f"{question}\n{answers.get(question, '')}db> "
                self.far.sendall(text.replace("\n", "\r\n").encode())

        threading.Thread(target=serve, daemon=True).start()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    with made.far:
        yield made
        made.far.shutdown(socket.SHUT_RDWR)
        made.console.close()


def test_no_panic_no_story(kernel: Kernel) -> None:
    kernel.says("login: ")
    assert panic_report.collect(kernel.console, Symbols()) is None


def test_a_kernel_that_only_prints(kernel: Kernel, tmp_path: Path) -> None:
    kernel.says(CALLED)
    panic = panic_report.collect(kernel.console, Symbols())
    assert panic is not None
    assert panic.message == "panic: kdb_sysctl_panic"
    assert panic.summary == "panic: kdb_sysctl_panic, in kdb_sysctl_panic+0x63"
    assert panic.frames[1] == Frame("vpanic", 0x136, 0xFFFFFFFF80B872C6)
    assert len(panic.frames) == 4
    assert panic.debugger == ()
    assert kernel.asked == []
    text = panic_report.save(panic, tmp_path).read_text()
    assert "#3 kdb_sysctl_panic+0x63" in text
    assert "Uptime: 56s" in text
    data = json.loads((tmp_path / "panic.json").read_text())
    assert data["summary"] == panic.summary
    assert data["frames"][3]["offset"] == 0x63


def test_a_trap_brings_its_registers(kernel: Kernel) -> None:
    kernel.says(TRAPPED)
    panic = panic_report.collect(kernel.console, Symbols())
    assert panic is not None
    assert panic.message == "Fatal trap 12: page fault while in kernel mode"
    assert panic.culprit == Frame("vm_alloc_memseg", 0x1B, after_trap=True)
    assert [frame.function for frame in panic.frames][-1] == "vmmdev_ioctl"
    registers = dict(panic.registers)
    assert registers["rdi"] == "0xfffff80003a1c000"
    assert registers["r12"] == "0x0"
    assert registers["fault virtual address"] == "0x10"
    assert registers["instruction pointer"] == "0x20:0xffffffff82c11e2b"
    assert registers["current process"] == "812 (bhyvectl)"
    # The backtrace's lines for traps and system calls name registers of another place.
    assert "rip" not in registers


def test_a_debugger_is_asked(kernel: Kernel) -> None:
    kernel.debugs(
        {
            "bt": "Tracing pid 812 tid 100101\nkdb_enter() at kdb_enter+0x33/frame 0xfffffe0\n",
            "show registers": "rax      0x12\nrip      0xffffffff80bd0033  kdb_enter+0x33\n",
            "ps": "  pid  ppid  pgrp\n  812     1   812\n",
        }
    )
    kernel.says(TRAPPED + "db> ")
    panic = panic_report.collect(kernel.console, Symbols())
    assert panic is not None
    assert kernel.asked == ["set $lines=0", *panic_report.QUESTIONS]
    assert dict(panic.registers)["rip"] == "0xffffffff80bd0033"
    assert dict(panic.debugger)["ps"].splitlines()[-1] == "  812     1   812"
    assert "db> ps\n" in panic.to_text()


def test_a_debugger_that_hangs_is_left(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panic_report, "_ANSWER_S", 0.1)
    kernel.says("KDB: enter: panic\n[ thread pid 0 tid 100000 ]\ndb> ")
    panic = panic_report.collect(kernel.console, Symbols())
    assert panic is not None
    assert panic.message == "KDB: enter: panic"
    assert panic.culprit is None
    assert panic.debugger == ()


@pytest.mark.parametrize("end", ["Automatic reboot in 15 seconds - press a key\n", "db> "])
def test_a_story_that_is_over_is_not_waited_for(
    kernel: Kernel, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.console._PANIC_QUIET_S", 60.0)
    monkeypatch.setattr("harness.machine.console._PANIC_SETTLES_S", 60.0)
    kernel.says("panic: at once\ncpuid = 0\n")
    threading.Timer(0.2, kernel.says, (end,)).start()
    with pytest.raises(GuestPanic, match="at once"):
        kernel.console.talk().expect_any(["never"], "what never comes", Deadline.after(20))


SOURCE = """\
static int poke(volatile int *where) { return *where; }
int inlined(volatile int *where) {
    return
        poke(where) + 1;
}
int main(void) { return 0; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module's stand-in, an object file, as vmm.ko is; poke() is in inlined()."""
    folder = tmp_path_factory.mktemp("symbols")
    (folder / "poke.c").write_text(SOURCE)
    clang = f"clang-{debian.clang_version()}"
    flags = ["-O2", "-gline-tables-only", f"-ffile-prefix-map={folder}=/usr/src/sys"]
    subprocess.run([clang, *flags, "-c", folder / "poke.c"], cwd=folder, check=True)
    return folder / "poke.o"


def test_places_get_their_lines(program: Path) -> None:
    frames = [Frame("inlined", 0, after_trap=True), Frame("elsewhere", 4)]
    got = panic_report.symbolize(frames, Symbols(module=program))
    assert got[0].sources == ("sys/poke.c:1", "sys/poke.c:4")
    assert str(got[0]) == "inlined+0x0 (sys/poke.c:1, in sys/poke.c:4)"
    assert got[1] == frames[1]


def test_a_kernel_of_another_address_lends_no_lines(program: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    base = 0xFFFFFFFF80200000
    linker = f"ld.lld-{debian.clang_version()}"
    command: list[str | Path] = [
        linker,
        "-e",
        "main",
        "-Ttext",
        f"{base:#x}",
        "-o",
        kernel,
        program,
    ]
    subprocess.run(command, check=True)
    begin = panic_report._object(kernel, []).functions["inlined"][0]
    right, wrong = Frame("inlined", 2, begin + 2), Frame("inlined", 2, begin + 0x1002)
    got = panic_report.symbolize([right, wrong], Symbols(kernel=kernel))
    assert got[0].sources[-1].startswith("sys/poke.c:")
    assert got[1].sources == ()


def test_the_function_that_trapped_is_found_by_its_address(program: Path) -> None:
    """stack(9) leaves it out; where the module lies follows from another frame in it."""
    functions = panic_report._object(program, []).functions
    base = 0xFFFFFFFF82E00000
    address = base + functions["inlined"][0] + 1
    story = [
        "Fatal trap 12: page fault while in kernel mode",
        f"instruction pointer     = 0x20:{address:#x}",
        "#0 0xffffffff80b872c6 at vpanic+0x136",
        "#1 0xffffffff8106f138 at calltrap+0x8",
        f"#2 {base + functions['main'][0] + 1:#x} at main+0x1",
    ]
    panic = panic_report.from_console(story, {}, Symbols(module=program))
    assert [frame.function for frame in panic.frames] == ["vpanic", "calltrap", "inlined", "main"]
    assert panic.culprit is not None
    assert panic.culprit.offset == 1
    assert panic.culprit.sources
    bare = panic_report.from_console(story, {}, Symbols())
    assert bare.summary.endswith(f"in {address:#x}")


def test_a_last_call_that_does_not_return_is_in_its_own_function(tmp_path: Path) -> None:
    """Seen in FreeBSD: `#3 0xffffffff82e098e0 at sysctl_vmm_mem_limit+0`, of sysctl_vmm_mem()."""
    source = """\
_Noreturn void panic(const char *, ...);
int falls(int how);
int falls(int how) {
    if (how)
        return 0;
    panic("fallen");
}
int after(int how);
int after(int how) { return falls(how) + 1; }
"""
    (tmp_path / "falls.c").write_text(source)
    clang = f"clang-{debian.clang_version()}"
    flags = ["-Oz", "-gline-tables-only", "-fno-inline", "-c"]
    subprocess.run([clang, *flags, "falls.c"], cwd=tmp_path, check=True)
    module = tmp_path / "falls.o"
    functions = panic_report._object(module, []).functions
    assert functions["after"][0] == sum(functions["falls"])
    base = 0xFFFFFFFF82E00000
    story = [
        "panic: fallen",
        "KDB: stack backtrace:",
        "#0 0xffffffff80b872c6 at vpanic+0x136",
        "#1 0xffffffff80b87183 at panic+0x43",
        f"#2 {base + functions['after'][0]:#x} at after+0",
        f"#3 {base + functions['after'][0] + 6:#x} at after+0x6",
        "#4 0xffffffff80b97018 at sysctl_root+0x268",
    ]
    panic = panic_report.from_console(story, {}, Symbols(module=module))
    names = [frame.function for frame in panic.frames]
    assert names == ["vpanic", "panic", "falls", "after", "sysctl_root"]
    assert panic.culprit is not None
    assert panic.culprit.function == "falls"
    assert panic.culprit.sources == (f"{tmp_path}/falls.c:6",)
    without = panic_report.symbolize([Frame("after", 0)], Symbols(module=module))
    assert without[0].function == "falls"


def test_without_a_symbolizer_the_places_stay(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = (Frame("inlined", 1),)
    monkeypatch.setenv("PATH", os.fspath(program.parent))
    assert panic_report.symbolize(frames, Symbols(module=program)) == frames
    assert panic_report.symbolize(frames, Symbols(module=program.with_name("absent"))) == frames
