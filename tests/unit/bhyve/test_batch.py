"""Several requests in one command, answered by vmtool's own code for it, compiled for this host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.bhyve.figures import LIMIT, Memory
from harness.bhyve.vmm import _SOURCES, Vmm
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.ssh import CommandFailed, Result

# What vmtool does itself is played by this: each VM is a file.
OPERATE = r"""
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "vmtool.h"

void usage(void) { exit(64); }
size_t number(const char *text) { return strtoull(text, NULL, 0); }

int
operate(int argc, char **argv)
{
	FILE *log = fopen("log", "a");
	int fd;

	for (int i = 0; i < argc; i++)
		fprintf(log, "%s%c", argv[i], i + 1 < argc ? ' ' : '\n');
	fclose(log);
	if (strcmp(argv[0], "create") == 0) {
		if (argc > 2 && number(argv[2]) > 1000) {
			errno = ENOMEM;
			err(71, "%s: vm_setup_memory", argv[1]);
		}
		if ((fd = open(argv[1], O_CREAT | O_EXCL, 0600)) < 0)
			err(71, "%s", argv[1]);
	} else if (strcmp(argv[0], "destroy") == 0 || strcmp(argv[0], "clean") == 0) {
		for (int i = 1; i < argc; i++)
			if (unlink(argv[i]) != 0 && argv[0][0] == 'd')
				err(66, "%s", argv[i]);
	} else if (strcmp(argv[0], "sysctl") == 0)
		for (int i = 1; i < argc; i++)
			printf("%d\n", i * 10);
	else if (strcmp(argv[0], "killed") == 0)
		abort();
	return (0);
}

int
main(int argc, char **argv)
{
	if (strcmp(argv[1], "steps") == 0)
		return (steps(argc - 2, argv + 2));
	return (operate(argc - 1, argv + 1));
}
"""


class Local:
    """A guest whose commands run on this host, in a folder; `asked` counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = 0

    def deadline(self, native_s: float) -> Deadline:
        return Deadline.after(native_s)

    def run(self, command: Sequence[str], _deadline: Deadline | None = None) -> Result:
        self.asked += 1
        if command[0] == "sysctl":
            return Result(command[0], 0, "", "", 0.0)
        done = subprocess.run(command, cwd=self.folder, check=False, capture_output=True, text=True)
        return Result(command[0], done.returncode, done.stdout, done.stderr, 0.0)

    def must(self, command: Sequence[str], deadline: Deadline | None = None) -> str:
        return self.run(command, deadline).stdout

    def there(self) -> set[str]:
        """The names of the VMs."""
        return {path.name for path in self.folder.iterdir()} - {"log"}

    def log(self) -> list[str]:
        """The operations so far."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    assert compiler
    folder = tmp_path_factory.mktemp("vmtool")
    source = folder / "operate.c"
    source.write_text(OPERATE)
    flags = ["-D_GNU_SOURCE", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{_SOURCES}"]
    made = folder / "vmtool"
    subprocess.run([compiler, *flags, "-o", made, source, _SOURCES / "steps.c"], check=True)
    return made


@pytest.fixture
def vmm(program: Path, tmp_path: Path) -> Vmm:
    folder = tmp_path / "guest"
    folder.mkdir()
    made: Any = object.__new__(Vmm)
    made.__dict__.update(
        guest=Local(folder), vmtool_path=str(program), vmmls_path="/bin/true", limited=False,
        _made=[], home=str(folder), loaded=SimpleNamespace(),
    )  # fmt: skip
    return made  # type: ignore[no-any-return]


def local(vmm: Vmm) -> Local:
    guest: Any = vmm.guest
    assert isinstance(guest, Local)
    return guest


def test_a_block_is_one_command(vmm: Vmm) -> None:
    with vmm.batch() as ask:
        ask.limit(64)
        ask.create("one", 5)
        ask.create("two", 5, 7, wired=True)
        during = ask.memory()
        refused = ask.refused("large", 5000)
        words = ask.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        ask.destroy("one")
        said = ask.must(["printf", "%s|", "a b", "", "'"])
    assert local(vmm).asked == 1
    assert during.value == Memory(10, 20, 30, 40)
    assert "large: vm_setup_memory: Cannot allocate memory" in refused.value
    assert (words.value.exit_code, words.value.stdout, words.value.stderr) == (3, "out\n", "err\n")
    assert said.value == "a b||'|"
    assert local(vmm).log() == [
        f"set {LIMIT} 64", "create one 5", "create -S two 5 7",
        "sysctl hw.vmm.mem_total hw.vmm.mem_allocated hw.vmm.mem_free hw.vmm.mem_device",
        "create large 5000", "destroy one", "clean two large", f"set {LIMIT} 0",
    ]  # fmt: skip
    # There is nothing left to do after the check.
    vmm.destroy_all()
    assert local(vmm).asked == 1


def test_the_first_failure_is_the_last_request(vmm: Vmm) -> None:
    ask = vmm.batch()
    ask.create("one", 5)
    ask.create("two", 5000)
    ask.create("three", 5)
    with pytest.raises(CommandFailed, match="two: vm_setup_memory: Cannot allocate") as caught:
        ask.__exit__(None, None, None)
    assert "vmtool create two 5000" in caught.value.detail
    assert local(vmm).log()[2:] == ["clean one two three"]
    assert local(vmm).there() == set()


def test_what_stays_is_destroyed_after_the_check(vmm: Vmm) -> None:
    with vmm.batch(stay=True) as ask:
        ask.limit(64)
        ask.create("one", 5)
        ask.create("two", 5)
        ask.destroy("two")
    assert local(vmm).there() == {"one"}
    vmm.destroy_all()
    assert local(vmm).asked == 3
    assert local(vmm).log()[-1] == "clean one"
    assert not vmm.limited


def test_a_limit_that_is_removed_in_the_block_is_not_removed_again(vmm: Vmm) -> None:
    with vmm.batch() as ask:
        ask.limit(64)
        ask.limit(0)
    vmm.destroy_all()
    assert local(vmm).asked == 1
    assert local(vmm).log() == [f"set {LIMIT} 64", f"set {LIMIT} 0"]


def test_what_should_be_refused_and_is_not_fails(vmm: Vmm) -> None:
    with pytest.raises(CommandFailed, match="create small 5: not refused"), vmm.batch() as ask:
        ask.refused("small", 5)
    assert local(vmm).there() == set()


def test_a_step_may_end_by_a_signal(vmm: Vmm) -> None:
    with vmm.batch() as ask:
        ended = ask.run(["sh", "-c", "kill -9 $$"])
        missing = ask.run(["/nonexistent/program"])
    assert ended.value.exit_code == -9
    assert missing.value.exit_code == 127


def test_nothing_is_sent_after_an_exception_and_without_requests(vmm: Vmm) -> None:
    with vmm.batch():
        pass
    ask = vmm.batch()
    ask.create("one")
    ask.__exit__(ValueError, ValueError(), None)
    assert local(vmm).asked == 0


def test_an_answer_is_not_known_before_it_was_given(vmm: Vmm) -> None:
    with vmm.batch() as ask:
        memory = ask.memory()
        with pytest.raises(RuntimeError, match="not answered before the block ends"):
            _ = memory.value


@pytest.mark.parametrize(
    ("output", "words"),
    [("", "did not answer request 1 of 1"), ("\x1ex y\n", "in another form")],
)
def test_a_damaged_answer_is_an_error(
    vmm: Vmm, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    monkeypatch.setattr(Local, "run", lambda *_: Result("vmtool", 1, output, output, 0.0))
    with pytest.raises(GuestError, match=words), vmm.batch() as ask:
        ask.memory()
