"""Several requests about VMs in one command of the guest.

In Bochs a command takes 45 ms, most of them to start a program; making a VM takes 2 ms.  So a check
lists its requests first, and vmtool (guest_src/steps.c) makes them one after another, each in a
process of its own:

    with vmm.batch() as ask:
        ask.create("first", 96 * MIB)
        during = ask.memory()
        ask.destroy("first")
    assert during.value.allocated_bytes == 96 * MIB
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from harness.bhyve.figures import (
    LIMIT,
    SYSCTLS,
    Listing,
    Memory,
    library_figures,
    parse_listing,
)
from harness.errors import GuestError
from harness.guest.ssh import CommandFailed, Result, succeeded

if TYPE_CHECKING:
    from harness.bhyve.vmm import Vmm

T = TypeVar("T")
# The words of guest_src/steps.c.
MUST, MAY, ALWAYS = "must", "may", "always"
_AFTER_STEP = "\x1e"


class Answer(Generic[T]):
    """The answer to one request; `value` is known after the block."""

    def __init__(self, read: Callable[[Result], T], *, kind: str, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.kind = kind
        self._read = read
        self._value: T | None = None
        self.known = False
        """Whether it has been answered."""

    @property
    def value(self) -> T:
        """What the guest answered; RuntimeError inside the block, since nothing was sent yet."""
        if not self.known:
            raise RuntimeError(f"{' '.join(self.words)}: not answered before the block ends")
        return self._value  # type: ignore[return-value]

    def take(self, result: Result) -> None:
        """Set the value; raises CommandFailed if the request failed that had to succeed."""
        self._value = self._read(result if self.kind == MAY else succeeded(result))
        self.known = True


class Batch:
    """Requests of one block; they are sent when the block ends, unless it raised an exception.

    After the first request that fails, and must not, none is made, and CommandFailed is raised.  At
    the end the VMs of the block are destroyed and hw.vmm.mem_limit is 0, unless `stay` is set;
    then `Vmm.destroy_all` does both.
    """

    def __init__(self, vmm: Vmm, limit_s: float, *, stay: bool) -> None:
        """`limit_s`: how long all of them may take at native speed."""
        self._vmm = vmm
        self._limit_s = limit_s
        self._stay = stay
        self._asked: list[Answer[Any]] = []
        # Those of this block that exist at its end, if all goes well.
        self._made: list[str] = []
        self._gone: list[str] = []
        self._limited: bool | None = None

    def _ask(
        self, words: Sequence[str], read: Callable[[Result], T], *, must: bool = True
    ) -> Answer[T]:
        answer = Answer(read, kind=MUST if must else MAY, words=words)
        self._asked.append(answer)
        return answer

    def memory(self) -> Answer[Memory]:
        """The four sysctls, as `Vmm.memory`."""
        return self._ask(["sysctl", *SYSCTLS], lambda result: Memory(*_numbers(result)))

    def numbers(self, *names: str) -> Answer[tuple[int, ...]]:
        """Sysctls that are whole numbers."""
        return self._ask(["sysctl", *names], _numbers)

    def number(self, name: str) -> Answer[int]:
        """One of them."""
        return self._ask(["sysctl", name], lambda result: _numbers(result)[0])

    def set(self, name: str, value: int) -> None:
        """Set a sysctl that is a number; it keeps the value after the check."""
        self._ask(["set", name, str(value)], lambda _: None)

    def limit(self, limit_bytes: int) -> None:
        """Set hw.vmm.mem_limit; after the block there is none again."""
        self._vmm.limited = True
        self._limited = limit_bytes != 0
        self.set(LIMIT, limit_bytes)

    def library_memory(self) -> Answer[Memory]:
        """The figures of libvmmapi's functions."""
        return self._ask(["memory"], lambda result: library_figures(result.stdout))

    def names(self) -> Answer[list[str]]:
        """The virtual machines under /dev/vmm, sorted."""
        return self._ask(["names"], lambda result: sorted(result.stdout.splitlines()))

    def create(
        self, name: str, memory_bytes: int = 0, *devmem_bytes: int, wired: bool = False
    ) -> None:
        """Make a VM, as `Vmm.create`."""
        self._create(name, memory_bytes, devmem_bytes, wired=wired, must=True)

    def refused(
        self, name: str, memory_bytes: int = 0, *devmem_bytes: int, wired: bool = False
    ) -> Answer[str]:
        """The same for a VM that is expected to be refused; the error message."""
        return self._create(name, memory_bytes, devmem_bytes, wired=wired, must=False)

    def try_create(self, name: str, memory_bytes: int, *, wired: bool = False) -> Answer[Result]:
        """The same for a VM that may be made or refused."""
        self._make(name)
        words = ["create", *(["-S"] if wired else []), name, str(memory_bytes)]
        return self._ask(words, lambda result: result, must=False)

    def _create(
        self, name: str, memory_bytes: int, devmem_bytes: Sequence[int], *, wired: bool, must: bool
    ) -> Answer[str]:
        sizes = (str(size) for size in (memory_bytes, *devmem_bytes))
        self._make(name)
        words = ["create", *(["-S"] if wired else []), name, *sizes]
        return self._ask(words, _refusal(words, must=must), must=must)

    def destroy(self, *names: str) -> None:
        """Destroy VMs."""
        self._ask(["destroy", *names], lambda _: None)
        self._made = [name for name in self._made if name not in names]
        self._gone += names

    def lingering(self, name: str, memory_bytes: int) -> Answer[str]:
        """As `Vmm.lingering`: the number of a process that has a destroyed VM's memory."""
        return self._ask(["linger", name, str(memory_bytes)], lambda result: result.stdout.strip())

    def domains(self, name: str, count: int, memory_bytes: int) -> Answer[Result]:
        """As `Vmm.domains`; any exit code is allowed."""
        self._make(name)
        return self._ask(
            ["domains", name, str(count), str(memory_bytes)], lambda result: result, must=False
        )

    def misuse(self, name: str) -> Answer[dict[str, str]]:
        """As `Vmm.misuse`: the answers to wrong requests."""
        return self._ask(
            ["misuse", name],
            lambda result: dict(line.split(": ", 1) for line in result.stdout.splitlines()),
        )

    def churn(self, prefix: str, count: int, memory_bytes: int) -> None:
        """Make and destroy `count` VMs, one after another."""
        self._ask(["churn", prefix, str(count), str(memory_bytes)], lambda _: None)

    def listing(self, *names: str) -> Answer[Listing]:
        """The output of vmmls, from its JSON."""
        words = ["exec", self._vmm.vmmls_path, "--libxo", "json", "-v", *names]
        return self._ask(words, lambda result: parse_listing(result.stdout))

    def vmmls(self, *arguments: str) -> Answer[Result]:
        """Run vmmls; any exit code is allowed."""
        return self.run([self._vmm.vmmls_path, *arguments])

    def run(self, command: Sequence[str]) -> Answer[Result]:
        """Run any program of the guest; any exit code is allowed."""
        return self._ask(["exec", *command], lambda result: result, must=False)

    def must(self, command: Sequence[str]) -> Answer[str]:
        """Run a program that must succeed; its standard output."""
        return self._ask(["exec", *command], lambda result: result.stdout)

    def _make(self, name: str) -> None:
        self._vmm.made(name)
        if name not in self._made:
            self._made.append(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self._asked:
            return
        if not self._stay:
            self._tidy_up()
        self._send()
        self._vmm.gone(self._gone)
        if self._limited is not None:
            self._vmm.limited = self._limited

    def _tidy_up(self) -> None:
        tidy: list[list[str]] = []
        if self._made:
            tidy.append(["clean", *self._made])
            self._gone += self._made
        if self._limited:
            tidy.append(["set", LIMIT, "0"])
            self._limited = False
        self._asked += [Answer(lambda _: None, kind=ALWAYS, words=words) for words in tidy]

    def _send(self) -> None:
        command = [self._vmm.vmtool_path, "steps"]
        for answer in self._asked:
            command += [answer.kind, str(len(answer.words)), *answer.words]
        guest = self._vmm.guest
        whole = guest.run(command, guest.deadline(self._limit_s))
        outputs, errors = _parts(whole.stdout), _parts(whole.stderr)
        failed: GuestError | None = None
        for number, answer in enumerate(self._asked):
            try:
                if number not in outputs or number not in errors:
                    raise CommandFailed(
                        f"vmtool did not answer request {number + 1} of {len(self._asked)}: "
                        f"{' '.join(answer.words)}",
                        detail=whole.describe(),
                    )
                words = answer.words
                words = words[1:] if words[0] == "exec" else ("vmtool", *words)
                code, output = outputs[number]
                answer.take(
                    Result(shlex.join(words), code, output, errors[number][1], whole.seconds)
                )
            except GuestError as error:
                # The other answers are needed to clean up.
                failed = failed or error
        if failed:
            raise failed


def _numbers(result: Result) -> tuple[int, ...]:
    return tuple(map(int, result.stdout.split()))


def _refusal(words: Sequence[str], *, must: bool) -> Callable[[Result], str]:
    def read(result: Result) -> str:
        if result.ok and not must:
            raise CommandFailed(f"vmtool {' '.join(words)}: not refused, although it should be")
        return result.stderr

    return read


def _parts(text: str) -> dict[int, tuple[int, str]]:
    """The exit code and the output of each step, by its number."""
    found = {}
    while (mark := text.find(_AFTER_STEP)) >= 0:
        said = text[:mark]
        line, _, text = text[mark + 1 :].partition("\n")
        try:
            number, code = map(int, line.split())
        except ValueError:
            raise GuestError("vmtool steps answers in another form", detail=line) from None
        found[number] = (code, said)
    return found
