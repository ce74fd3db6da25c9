"""The facts about a panic as data: the message, the backtrace, and the registers.

A kernel with only KDB prints a backtrace and reboots after a while; one with DDB stops at a prompt
and accepts commands.  Functions and offsets become files and lines if there are symbols of exactly
this module or kernel.  No function here raises because of the output of a broken guest.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness import debian, process
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, GuestPanic
from harness.files import write_atomic
from harness.machine.console import Console, clean_lines

QUESTIONS = ("bt", "show registers", "show pcpu", "show thread", "ps")
"""Commands for the kernel's debugger; they change nothing in the guest."""

KERNEL_SYMBOLS = Path("usr/lib/debug/boot/kernel/kernel.debug")
"""The path of the kernel's symbols in a sysroot with kernel-dbg.txz."""

_PROMPT = "db>"
_ANSWER_S = 5.0
_STEP_S = 0.02
_SYMBOLIZER_S = 30.0

# The formats of stack(9) and of DDB; both end in FUNCTION+OFFSET.
_FRAME = re.compile(
    r"^(?:#\d+ 0x(?P<address>[0-9a-f]+) at |[\w.$]+\(.*\) at )"
    r"(?P<function>[\w.$]+)\+(?:0x)?(?P<offset>[0-9a-f]+)(?:/frame 0x[0-9a-f]+)?$"
)
_TRAP = re.compile(r"^--- (?!syscall).*\brip = ")
_REGISTER = re.compile(
    r"\b(r(?:[abcd]x|[sd]i|[bs]p|\d\d?|ip|flags)|[cdefgs]s|cr[0234]):?\s+(?:0x)?([0-9a-f]+)\b"
)
_TABLE = re.compile(r"^(fault [a-z ]+|instruction pointer|current process|\w+ pointer)\s+= (.+)$")
# Functions that handle any panic, so they are not the place that caused it.
_FALLING = re.compile(
    r"kdb_(?:backtrace|enter|trap)|db_trace_\w+|v?panic|kassert_panic|trap\w*|calltrap"
    r"|__?(?:mtx|rw|sx)_assert"
)


@dataclass(frozen=True)
class Frame:
    """A place in a backtrace, innermost first; `address` is None unless the kernel printed it.

    `function` is empty if the kernel printed only the address.  `sources` are `path:line`,
    innermost first: several if the compiler inlined functions, none without symbols.
    """

    function: str
    offset: int
    address: int | None = None
    after_trap: bool = False
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f"{self.function}+{self.offset:#x}" if self.function else f"{self.address or 0:#x}"
        where = ", in ".join(self.sources)
        return name + (f" ({where})" if where else "")


@dataclass(frozen=True)
class Panic:
    """All facts about a panic; `console` is the output from its first line on.

    `registers` are those of the trap, as printed (hexadecimal, or a line of the fault's table);
    without DDB a panic that the kernel itself called has none.  `debugger` has DDB's output.
    """

    message: str
    console: tuple[str, ...]
    frames: tuple[Frame, ...] = ()
    registers: tuple[tuple[str, str], ...] = ()
    debugger: tuple[tuple[str, str], ...] = ()

    @property
    def culprit(self) -> Frame | None:
        """The innermost place that is not part of the kernel's handling of panics."""
        return next((f for f in self.frames if not _FALLING.fullmatch(f.function)), None)

    @property
    def summary(self) -> str:
        """One line: what, and where."""
        return self.message + (f", in {self.culprit}" if self.culprit else "")

    def to_data(self) -> dict[str, object]:
        """For panic.json and the report."""
        data = dataclasses.asdict(self)
        return {"summary": self.summary, **data, "registers": dict(self.registers)}

    def to_text(self) -> str:
        """The facts as text for people."""
        parts = [self.summary]
        if self.frames:
            lines = (f"#{number} {frame}" for number, frame in enumerate(self.frames))
            parts.append("\n".join(["backtrace:", *lines]))
        if self.registers:
            lines = (f"{name:<21} {value}" for name, value in self.registers)
            parts.append("\n".join(["registers:", *lines]))
        parts.append("\n".join(["console:", *self.console]))
        parts += [f"{_PROMPT} {question}\n{answer}" for question, answer in self.debugger]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Symbols:
    """ELF files with line numbers of the running module and kernel; None if there is none."""

    module: Path | None = None
    kernel: Path | None = None


def collect(console: Console, symbols: Symbols, time_scale: float = 1.0) -> Panic | None:
    """The facts about the panic on `console`, or None if there was none.

    If DDB has stopped the kernel, commands are sent to it; each answer may take `_ANSWER_S`
    seconds, multiplied by `time_scale`.
    """
    try:
        console.check_panic()
    except GuestPanic as error:
        text = error.detail.splitlines()
    else:
        return None
    answers = _interrogate(console, time_scale)
    return from_console(text, answers, symbols)


def from_console(text: Sequence[str], answers: Mapping[str, str], symbols: Symbols) -> Panic:
    """Make a Panic from the console's lines and the debugger's output."""
    frames = parse_frames(text) or parse_frames(answers.get("bt", "").splitlines())
    registers = dict(_registers(text))
    registers |= dict(_registers(answers.get("show registers", "").splitlines()))
    frames = _with_trap(frames, registers.get("instruction pointer", ""))
    return Panic(
        message=text[0] if text else "the kernel panicked without a message",
        console=tuple(text),
        frames=symbolize(frames, symbols),
        registers=tuple(registers.items()),
        debugger=tuple(answers.items()),
    )


def save(panic: Panic, folder: Path) -> Path:
    """Write panic.json and panic.txt into a run's folder; returns the latter's path."""
    write_atomic(folder / "panic.json", json.dumps(panic.to_data(), indent=2) + "\n")
    write_atomic(folder / "panic.txt", panic.to_text())
    return folder / "panic.txt"


def parse_frames(lines: Iterable[str]) -> tuple[Frame, ...]:
    """The first backtrace in some lines."""
    frames: list[Frame] = []
    after_trap = False
    for line in lines:
        if match := _FRAME.match(line.strip()):
            address = int(match["address"], 16) if match["address"] else None
            if address is not None and frames and line.strip().startswith("#0 "):
                break
            frames.append(Frame(match["function"], int(match["offset"], 16), address, after_trap))
            after_trap = False
        elif _TRAP.match(line.strip()):
            after_trap = True
        elif frames and not line.strip().startswith("---"):
            break
    return tuple(frames)


def _with_trap(frames: tuple[Frame, ...], instruction_pointer: str) -> tuple[Frame, ...]:
    """Add the function that trapped, which stack(9) leaves out; the fault's table has its
    address.
    """
    address = re.search(r":0x([0-9a-f]+)$", instruction_pointer)
    names = [frame.function for frame in frames]
    if address is None or "calltrap" not in names or any(frame.after_trap for frame in frames):
        return frames
    at = names.index("calltrap") + 1
    return (*frames[:at], Frame("", 0, int(address[1], 16), after_trap=True), *frames[at:])


def _registers(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        if match := _TABLE.match(line):
            yield match[1].strip(), match[2].strip()
        elif not _FRAME.match(line) and not line.startswith("---"):
            yield from ((m[1], f"0x{int(m[2], 16):x}") for m in _REGISTER.finditer(line))


def _interrogate(console: Console, time_scale: float) -> dict[str, str]:
    """DDB's output for each command, as far as it answers."""
    answers: dict[str, str] = {}
    if not _at_prompt(console.tail(1)):
        return answers
    with contextlib.suppress(GuestError):
        # Without this DDB stops after each screenful and waits for a key.
        _ask(console, "set $lines=0", time_scale)
        for question in QUESTIONS:
            answers[question] = _ask(console, question, time_scale)
    return {question: answer for question, answer in answers.items() if answer}


def _ask(console: Console, question: str, time_scale: float) -> str:
    limit = Deadline.scaled(_ANSWER_S, time_scale)
    mark = console.mark
    console.send(question + "\r", limit)
    while not limit.expired and not console.closed:
        said = clean_lines(console.since(mark))
        if len(said) > 1 and _at_prompt(said[-1]):
            return "\n".join(said[1:-1])
        time.sleep(_STEP_S)
    return "\n".join(clean_lines(console.since(mark))[1:])


def _at_prompt(line: str) -> bool:
    return line.strip() == _PROMPT


@dataclass(frozen=True)
class _Object:
    """An ELF file's functions: name -> (begin, size), and the file's address in the kernel."""

    path: Path
    functions: Mapping[str, tuple[int, int]]
    base: int | None

    def place(self, frame: Frame) -> tuple[str, int] | None:
        """The function's name and the address in the file, if `frame` is in this file.

        A call that does not return, such as panic(), may be the last instruction of a function;
        then the kernel names the next function, at whose beginning the return address is.
        """
        if frame.address is not None and self.base is not None:
            at = frame.address - self.base
        elif frame.function in self.functions:
            at = self.functions[frame.function][0] + frame.offset
        else:
            return None
        within = at if frame.after_trap else at - 1
        for name, (begin, size) in self.functions.items():
            named = frame.function in ("", name) or (frame.offset == 0 and not frame.after_trap)
            if begin <= within < begin + size and named:
                return name, at
        return None


def symbolize(frames: Sequence[Frame], symbols: Symbols) -> tuple[Frame, ...]:
    """`frames` with files and lines as far as they can be found; unchanged without a symbolizer."""
    objects = [_object(path, frames) for path in (symbols.module, symbols.kernel) if path]
    named: list[Frame] = []
    places: dict[int, tuple[Path, int]] = {}
    for number, frame in enumerate(frames):
        named.append(frame)
        for it in objects:
            if (found := it.place(frame)) is not None:
                name, at = found
                offset = at - it.functions[name][0]
                named[number] = dataclasses.replace(frame, function=name, offset=offset)
                # The return address may already belong to the next line.
                places[number] = it.path, at if frame.after_trap else at - 1
                break
    sources = _lines_of(places.values())
    for number, place in places.items():
        named[number] = dataclasses.replace(named[number], sources=sources.get(place, ()))
    return tuple(named)


def _object(path: Path, frames: Sequence[Frame]) -> _Object:
    """Read a file's symbol table; a module's address is computed from the frames in it."""
    functions: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(OSError, ELFError), path.open("rb") as stream:
        functions = {
            symbol.name: (int(symbol["st_value"]), int(symbol["st_size"]))
            for section in ELFFile(stream).iter_sections()
            if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        }
    if any(begin >> 47 for begin, _ in functions.values()):
        return _Object(path, functions, 0)
    # Another module or the kernel may have a function of the same name.
    bases = collections.Counter(
        frame.address - frame.offset - functions[frame.function][0]
        for frame in frames
        if frame.address is not None and frame.function in functions
    )
    return _Object(path, functions, max(bases, key=lambda base: bases[base], default=None))


def _lines_of(places: Iterable[tuple[Path, int]]) -> dict[tuple[Path, int], tuple[str, ...]]:
    """The output of llvm-symbolizer for addresses in ELF files."""
    found: dict[tuple[Path, int], tuple[str, ...]] = {}
    by_file: dict[Path, list[int]] = {}
    for path, address in places:
        by_file.setdefault(path, []).append(address)
    for path, addresses in by_file.items():
        command = [f"llvm-symbolizer-{debian.clang_version()}", f"--obj={path}", "--inlines"]
        command += ["--output-style=JSON", *(f"{address:#x}" for address in addresses)]
        with contextlib.suppress(CannotError, ValueError):
            done = process.run(command, Deadline.after(_SYMBOLIZER_S))
            for address, entry in zip(addresses, json.loads(done.stdout), strict=True):
                known = [it for it in entry.get("Symbol", ()) if it.get("FileName")]
                found[path, address] = tuple(
                    f"{it['FileName'].removeprefix('/usr/src/')}:{it['Line']}" for it in known
                )
    return found
