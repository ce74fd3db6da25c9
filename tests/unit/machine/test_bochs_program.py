"""Which Bochs is taken, how it is run, and what is read from what it says of itself.

The texts are what Debian 12's and Debian 13's Bochs printed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import limits
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, MachineDied
from harness.machine import Drive, Spec, bochs, bochs_program
from harness.machine.bochs_program import Bochs, Debugger

DATA = Path(__file__).parents[1] / "data"
OLD = (DATA / "bochs-2.7-help.txt").read_text()
NEW = (DATA / "bochs-3.0-help.txt").read_text()


@pytest.mark.parametrize(
    ("text", "version", "debugger"),
    [
        (OLD, "2.7", Debugger.ALWAYS),
        (NEW, "3.0", Debugger.ON_REQUEST),
        # Built by somebody without a debugger.
        (OLD.replace("  -rc filename ", "  -xy filename "), "2.7", Debugger.NEVER),
        # Later versions say what they can do as well.
        (NEW.replace("Emulator 3.0", "Emulator 3.1.devel"), "3.1.devel", Debugger.ON_REQUEST),
        ("error while loading shared libraries: libltdl.so.7\n", "", Debugger.ALWAYS),
        ("", "", Debugger.ALWAYS),
    ],
)
def test_what_it_says_of_itself(text: str, version: str, debugger: Debugger) -> None:
    found = bochs_program.parse_help(Bochs("/usr/bin/bochs"), text)
    assert (found.version, found.debugger) == (version, debugger)
    assert found.path == "/usr/bin/bochs"


LOADER = "x86_64-linux-gnu/ld-linux-x86-64.so.2"


@pytest.fixture(params=["usr/lib", "lib"])
def unpacked(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder as Debian's packages leave it, 13's or 12's; the loader prints what Bochs would.

    Debian 12's link in lib64 is absolute: it leads to the loader of the machine.
    """
    root = tmp_path / "a root"
    loader = root / request.param / LOADER
    link = root / request.param.replace("lib", "lib64") / loader.name
    for path in (root / "usr/bin/bochs-bin", loader, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/bochs-bin").write_bytes(b"program")
    link.symlink_to(f"/lib/{LOADER}" if request.param == "lib" else f"../lib/{LOADER}")
    loader.write_text(f'#!/bin/sh\necho "$@" >"{tmp_path}/called"\ncat <<"E"\n{NEW}\nE\n')
    loader.chmod(0o755)
    return root


def test_one_that_was_unpacked_runs_with_its_own_libraries(unpacked: Path, tmp_path: Path) -> None:
    found = bochs_program.find({"HARNESS_BOCHS": str(unpacked)})
    assert (found.version, found.private) == ("3.0", True)
    own = unpacked / "usr/lib/x86_64-linux-gnu"
    libraries = f"{own}:{unpacked / 'lib/x86_64-linux-gnu'}"
    program = unpacked / "usr/bin/bochs-bin"
    assert (tmp_path / "called").read_text() == f"--library-path {libraries} {program} --help\n"
    assert found.command("-q")[-3:] == [libraries, str(program), "-q"]
    assert found.environment["LTDL_LIBRARY_PATH"] == str(own / "bochs/plugins")
    assert found.bios == unpacked / "usr/share/bochs/BIOS-bochs-latest"


def test_the_same_bochs_in_another_folder_can_resume_its_machines(
    unpacked: Path, tmp_path: Path
) -> None:
    """A bundle brings a saved machine to a computer with another user and another cache."""
    moved = Path(shutil.copytree(unpacked, tmp_path / "elsewhere" / "bochs", symlinks=True))
    here, there = (Bochs(str(it / "usr/bin/bochs-bin"), it, "3.0") for it in (unpacked, moved))
    assert here.identity() == there.identity()
    (moved / "usr/bin/bochs-bin").write_text("another build\n")
    assert here.identity() != there.identity()


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotError, match=r"HARNESS_BOCHS=.*: there is no usr/bin/bochs-bin in it"):
        bochs_program.find({"HARNESS_BOCHS": str(tmp_path)})


def test_where_none_is_installed_its_command_can_still_be_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = bochs_program.find({})
    assert (found.version, found.private, found.environment) == ("", False, {})
    assert found.command("-q") == ["bochs", "-q"]


def machine(monkeypatch: pytest.MonkeyPatch, found: Bochs, **more: object) -> bochs.BochsMachine:
    monkeypatch.setattr(bochs_program, "find", lambda: found)
    spec = Spec(run_dir=Path("/run"), drive=Drive(Path("/disk")), **more)  # type: ignore[arg-type]
    return bochs.BochsMachine(spec)


def test_only_one_that_is_always_in_its_debugger_gets_a_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its prompt would wait for ever; another one would not know the option, or be slowed down."""
    old = machine(monkeypatch, Bochs("bochs", version="2.7"))
    assert old.command() == ["bochs", "-q", "-f", "bochsrc.txt", "-rc", "debugger.txt"]
    # A triple fault stops at the prompt as well, where nobody would answer.
    assert old.reads()["debugger.txt"] == 50 * "c\n"
    saved = machine(monkeypatch, Bochs("bochs", version="2.7"), savable=True)
    assert saved.reads()["debugger.txt"] == "c\n"
    for debugger in (Debugger.ON_REQUEST, Debugger.NEVER):
        new = machine(monkeypatch, Bochs("bochs", version="3.0", debugger=debugger))
        assert new.command() == ["bochs", "-q", "-f", "bochsrc.txt"]
        assert "debugger.txt" not in new.reads()


def test_a_saved_machine_is_of_one_bochs(
    monkeypatch: pytest.MonkeyPatch, unpacked: Path, tmp_path: Path
) -> None:
    """Neither takes up what another version saved, nor what another build of its own did."""
    found = bochs_program.below(unpacked)
    first = machine(monkeypatch, found).depends_on()
    assert first == machine(monkeypatch, bochs_program.below(unpacked)).depends_on()
    assert first["Bochs"].startswith("3.0, ")
    assert first != machine(monkeypatch, Bochs(found.path, found.root, "2.7")).depends_on()
    for name in ("usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_vga.so", "usr/share/bochs/x"):
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
    (unpacked / "usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_vga.so").touch()
    with_plugin = machine(monkeypatch, found).depends_on()["Bochs"]
    assert with_plugin != first["Bochs"]
    found.bios.write_bytes(b"another BIOS")
    assert machine(monkeypatch, found).depends_on()["Bochs"] != with_plugin


def test_the_way_of_saving_counts_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unpacked: Path
) -> None:
    """What a better way can save must not be left alone because of a note of the old one."""
    found = bochs_program.below(unpacked)
    before = machine(monkeypatch, found).depends_on()
    other = tmp_path / "bochs_save.c"
    other.write_text("int other;\n")
    monkeypatch.setattr("harness.machine.bochs_state._SOURCE", other)
    assert machine(monkeypatch, found).depends_on() != before


@pytest.mark.parametrize("catches", [True, False])
def test_whether_a_process_is_about_to_run_is_seen_by_its_handler(catches: bool) -> None:
    setting = "signal.signal(signal.SIGALRM, print); " if catches else ""
    code = f"import signal; {setting}print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert bochs._catches_alarm(child.pid) == catches
        child.kill()
    assert not bochs._catches_alarm(1 << 22)


@pytest.mark.parametrize(
    ("line", "ran"),
    [
        ("00000000000i[SIM   ] quit_sim called with exit code 1", False),
        ("00000000000p[      ] >>PANIC<< bochsrc.txt:5: cpu directive malformed.", False),
        ("00030406864p[UNMAP ] >>PANIC<< Shutdown port: shutdown requested", False),
        ("00000197843i[BIOS  ] $Revision: 14885 $", True),
        ("00032409424i[CPU0  ] CPU is in real mode (active)", True),
    ],
)
def test_a_log_line_after_the_first_instruction(line: str, ran: bool) -> None:
    assert bool(bochs._TICKED.search(f"00000000000i[      ] x\n{line}\n")) == ran


def test_a_guest_that_makes_bochs_complain_without_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither this process's memory nor the disk is filled by its log."""
    machine = bochs.BochsMachine(Spec(tmp_path, Drive(tmp_path / "disk")))
    log = tmp_path / "bochs.log"
    reset = b"00000000000i[      ] bx_pc_system_c::Reset(HARDWARE) called\n"
    monkeypatch.setattr(bochs, "_LOG_STEP_BYTES", 4096)
    log.write_bytes(b"".join([reset * 2, b"y" * 10_000, b"\n", reset * 3]))
    for _ in range(6):
        machine._check_running()
    assert machine.resets == 4
    monkeypatch.setattr(limits, "LOG_MOST_BYTES", 10_000)
    with pytest.raises(GuestError, match=r"Bochs's log has grown to .*, because the guest causes"):
        machine._check_running()


def test_reading_a_saved_memory_may_take_longer_than_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took more than 20 s on a busy machine, and the saved guest was taken for a broken one."""
    monkeypatch.setattr(bochs, "_START_LIMIT_S", 0.0)
    fresh = Spec(tmp_path, Drive(tmp_path / "disk"))
    for spec in (fresh, replace(fresh, resume_from=tmp_path / "state")):
        machine = bochs.BochsMachine(spec)
        (tmp_path / "bochs.log").unlink(missing_ok=True)
        asked: list[float] = []

        def reads(_limit: Deadline, asked: list[float] = asked) -> None:
            asked.append(0)
            if len(asked) == 5:
                (tmp_path / "bochs.log").write_text("00000000123i[CPU0  ] it runs\n")

        monkeypatch.setattr(machine, "wait_ended", reads)
        if spec is fresh:
            with pytest.raises(MachineDied, match="did not start within 0 s"):
                machine._wait_running(Deadline.after(60))
            assert len(asked) == 1
        else:
            machine._wait_running(Deadline.after(60))
            assert len(asked) == 5
