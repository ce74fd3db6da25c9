"""The emulators' command lines and settings, as they are in golden/.

A difference is to be looked at and then taken over on purpose:

    HARNESS_REFRESH_GOLDEN=1 .venv/bin/python -m pytest tests/unit/machine/test_machine_commands.py

which writes the files again and fails where one changed, so that no job refreshes them unseen.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import machine as machines
from harness.errors import CannotError, UsageError
from harness.machine import Backend, Drive, Spec, Traits, bochs, nested, qemu
from harness.machine.base import describe_exit
from harness.machine.models import BOCHS_MODELS, BOCHS_REFUSED, Vendor

GOLDEN = Path(__file__).with_name("golden")
DISK = Path("/images/FreeBSD 15.1.raw")


def spec(**more: object) -> Spec:
    return Spec(run_dir=Path("/run"), drive=Drive(DISK), **more)  # type: ignore[arg-type]


def compare(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    known = path.read_text() if path.exists() else ""
    if text != known and os.environ.get("HARNESS_REFRESH_GOLDEN"):
        path.write_text(text)
        pytest.fail(f"{path.name} was written again: look at the difference")
    assert text == known, f"see {Path(__file__).name}'s first lines for how to refresh it"


def lines(command: list[str]) -> str:
    """One option with its value a line."""
    text = command[0]
    for word in command[1:]:
        text += ("\n" if word.startswith("-") else " ") + word
    return text + "\n"


@pytest.mark.parametrize(
    ("name", "traits", "flag", "what"),
    [
        ("qemu-kvm-vmx", qemu.KVM, "vmx", spec(cpus=2)),
        ("qemu-kvm-svm", qemu.KVM, "svm", spec(cpus=2)),
        ("qemu-tcg", qemu.TCG, "vmx", spec()),
        ("qemu-tcg-second-disk", qemu.TCG, "vmx", spec(second=Drive(Path("/a, b/source.tar")))),
        ("qemu-tcg-network-out", qemu.TCG, "vmx", spec(network_out=True, name="a, b")),
        (
            "qemu-tcg-probe",
            qemu.TCG,
            "vmx",
            spec(ssh=False, debug_exit=True, cpu="Skylake-Client", memory_bytes=64 << 20),
        ),
    ],
)
def test_qemu(name: str, traits: Traits, flag: str, what: Spec) -> None:
    command = qemu.command_line(
        what,
        traits,
        console="socket,id=com1,fd=3",
        qmp="socket,id=qmp,fd=4",
        forward=f"127.0.0.1:{2222 if what.ssh else None}",
        cpu=qemu.default_cpu(traits, flag),
    )
    assert "None" not in command
    compare(name, lines(command))


@pytest.mark.parametrize("network", [True, False])
def test_bochs(network: bool) -> None:
    what = spec(ssh=network)
    text = bochs.configuration(what, has_network=network)
    compare("bochs" + ("" if network else "-no-network"), text)
    assert text.count("\npci:") == text.count("\nmemory:") == 1


@pytest.mark.parametrize("vendor", ["intel", "amd"])
def test_the_nested_linux_runs_qemu_as_the_kvm_backend_does(vendor: Vendor) -> None:
    backend = Backend("kvm-in-bochs", vendor)
    text = nested.orders(spec(), backend.flag, "3.0")
    compare(f"nested-orders-{vendor}", text)
    # What a start or a save adds is no part of what Linux starts.
    assert nested.orders(spec(savable=True), backend.flag, "3.0") == text


def test_the_nested_linux_has_its_disk_the_guest_s_and_its_orders() -> None:
    machine = machines.make("kvm-in-bochs", spec(cpus=2))
    assert isinstance(machine, nested.NestedMachine)
    compare("nested-bochs", machine._settings())


@pytest.mark.parametrize("out", [True, False])
def test_slirp(out: bool) -> None:
    compare("slirp" + ("-out" if out else ""), bochs.slirp_settings(2222, out))


def test_the_guest_is_shut_in_unless_asked() -> None:
    assert "restrict=on" in (GOLDEN / "qemu-kvm-vmx.txt").read_text()
    assert "restricted = 1" in (GOLDEN / "slirp.txt").read_text()
    for path in GOLDEN.glob("*.txt"):
        if path.stem.startswith("nested"):
            # There, the address is in the network of the Linux in Bochs.
            continue
        forwards = [line for line in path.read_text().splitlines() if "hostfwd" in line]
        assert all("tcp:127.0.0.1:" in line for line in forwards)


def test_every_golden_file_is_compared() -> None:
    known = {"bochs", "bochs-no-network", "slirp", "slirp-out", "qemu-kvm-vmx", "qemu-kvm-svm"}
    known |= {"nested-orders-intel", "nested-orders-amd", "nested-bochs"}
    known |= {"qemu-tcg", "qemu-tcg-network-out", "qemu-tcg-probe", "qemu-tcg-second-disk"}
    assert {path.stem for path in GOLDEN.iterdir()} == known


def test_backends_by_name() -> None:
    for name in machines.BACKENDS:
        assert machines.traits(name).backend == name
        assert machines.make(name, spec()).backend == name
    with pytest.raises(UsageError, match=r"--backend vbox: .*auto, kvm, bochs, tcg"):
        machines.traits("vbox")


def test_a_model_of_bochs_on_which_freebsd_resets_for_ever_is_refused() -> None:
    with pytest.raises(CannotError, match=r"model ryzen boots no FreeBSD: .*TCE.*; take zambezi"):
        machines.make("bochs", spec(cpu="ryzen"))
    # The bare-metal probe runs on it.
    assert machines.make("bochs", spec(cpu="ryzen", debug_exit=True)).backend == "bochs"
    assert not set(BOCHS_MODELS.values()) & set(BOCHS_REFUSED)


def test_the_command_shown_is_the_command_run() -> None:
    shown = machines.make("tcg", spec(ssh=False)).command()
    assert shown == qemu.command_line(
        spec(ssh=False),
        qemu.TCG,
        console="socket,id=com1,fd=3",
        qmp="socket,id=qmp,fd=4",
        forward="",
        cpu="max",
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with 0"),
        (1, "exited with 1"),
        (-9, "was killed by SIGKILL"),
        (-77, "was killed by signal 77"),
    ],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
