"""The choice of a backend, on the facts of many hosts."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness import host
from harness.errors import CannotError, UsageError
from harness.files import PROJECT
from harness.host.facts import load
from harness.host.requirements import Control
from harness.machine import Backend
from harness.machine.models import vendor_of
from harness.surroundings import Surroundings

HOSTS = PROJECT / "tests" / "unit" / "data" / "hosts"


def facts_of(name: str) -> host.HostFacts:
    return load((HOSTS / f"{name}.json").read_text())


# For each host: what auto takes (None: nothing), the reason against KVM, and the remedy.
EXPECTED: dict[str, tuple[str | None, str, str]] = {
    "amd-nested": ("kvm", "", ""),
    "amd-nesting-off": ("bochs", "nesting is off (kvm_amd.nested=0)", "modprobe kvm_amd nested=1"),
    "amd-no-npt": ("bochs", "svm.npt (kvm_amd.npt=N)", "modprobe kvm_amd npt=1"),
    "amd-no-nrips": ("bochs", "a guest would lack svm.nrip_save", ""),
    "arm": ("bochs", "this processor is aarch64", "no setting changes that"),
    "bochs-without-broadwell": (None, "no /dev/kvm", "nested virtualization in the host below"),
    "container-without-kvm": ("bochs", "a chroot without the device", "--device /dev/kvm"),
    "full-disk": ("kvm", "", ""),
    "hanging-device": ("bochs", "did not answer within 1.2 s", "dmesg"),
    "hosted-ci-runner": ("bochs", "no right to open /dev/kvm (EACCES)", "chmod 666 /dev/kvm"),
    "hosted-ci-runner-permitted": ("kvm", "", ""),
    "intel-built-in": (
        "bochs",
        "nesting is off (kvm_intel.nested=N)",
        "add kvm_intel.nested=1 to the kernel's command line",
    ),
    "intel-busy": ("bochs", "KVM_CREATE_VM: EBUSY", "VirtualBox"),
    "intel-nested": ("kvm", "", ""),
    "intel-nesting-off": (
        "bochs",
        "nesting is off (kvm_intel.nested=N)",
        "sudo modprobe kvm_intel nested=1",
    ),
    "intel-no-ept": (
        "bochs",
        "procbased2.ept",
        "modprobe kvm_intel ept=1 unrestricted_guest=1",
    ),
    "intel-no-module": ("bochs", "the module is not loaded", "sudo modprobe kvm_intel"),
    "intel-no-unrestricted-guest": (
        "bochs",
        "procbased2.unrestricted_guest (kvm_intel.unrestricted_guest=N)",
        "modprobe kvm_intel unrestricted_guest=1",
    ),
    "intel-old-kernel": ("bochs", "none of its capability registers (ENOTTY)", "Linux 4.17"),
    "intel-vmxon-locked": ("bochs", "vmx.feature_control", ""),
    "intel-without-secondary-controls": ("bochs", "vmx.ins_outs_info", ""),
    "no-bochs": (None, "no /dev/kvm", "nested virtualization in the host below"),
    "no-emulators": (None, "qemu-system-x86_64 is not installed", "./inv setup"),
    "no-rights": ("bochs", "no right to open /dev/kvm (EACCES)", "usermod -aG kvm"),
    "not-a-device": ("bochs", "no device node", "sudo rm -r /dev/kvm && sudo modprobe kvm_intel"),
    "software-kvm": ("bochs", "software (kvm_pvm)", "no setting of this machine helps"),
    "virtual-machine-without-nesting": ("bochs", "neither VMX nor SVM", "in the host below"),
}


def test_every_host_has_an_expectation() -> None:
    assert {path.stem for path in HOSTS.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_host_says_where_its_facts_come_from(name: str) -> None:
    about = facts_of(name).about
    assert about.startswith(("Recorded with", "Constructed from documented values"))


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_auto(name: str, expected: tuple[str | None, str, str]) -> None:
    backend, against, _ = expected
    decision = host.decide(facts_of(name))
    assert (decision.name or None) == backend
    assert decision.ok == (backend is not None)
    assert against in decision.reason
    if backend is None:
        with pytest.raises(CannotError) as caught:
            decision.require()
        assert caught.value.exit_code == 3
        assert "Bochs" in caught.value.message
    else:
        assert decision.require().name == backend
        assert decision.virtualizes


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_kvm_by_name_is_kvm_or_a_refusal(name: str, expected: tuple[str | None, str, str]) -> None:
    _, against, remedy = expected
    decision = host.decide(facts_of(name), "kvm")
    if not against:
        assert decision.name == "kvm"
        return
    assert decision.backend is None
    with pytest.raises(CannotError) as caught:
        decision.require()
    message = caught.value.message
    assert against in message
    assert remedy in message
    assert "\n" not in message


REQUIRED = [it for it in host.VMX_CONTROLS if it.need is not host.Need.OPTIONAL]


@pytest.mark.parametrize("control", REQUIRED, ids=lambda control: control.name)
def test_kvm_is_refused_for_each_required_control(control: Control) -> None:
    """QEMU starts without it and says nothing: this is the only guard."""
    facts = facts_of("intel-nested")
    guest = facts.kvm.guest
    assert guest is not None
    assert host.decide(facts, "kvm").ok
    bit = 1 << control.bit
    msrs = dict(guest.msrs)
    for index in (control.field.msr, control.field.true_msr):
        if index not in msrs or index is None:
            continue
        if not control.want:
            msrs[index] |= bit
        else:
            msrs[index] &= ~(bit if control.field.plain else bit << 32)
    without = dataclasses.replace(guest, msrs=msrs)
    kvm = dataclasses.replace(facts.kvm, guest=without)
    decision = host.decide(dataclasses.replace(facts, kvm=kvm), "kvm")
    assert not decision.ok
    # Without the secondary controls, what they hold is missing, too.
    assert control.name in decision.reason
    assert host.decide(dataclasses.replace(facts, kvm=kvm)).name == "bochs"


@pytest.mark.parametrize("name", EXPECTED)
def test_tcg_is_taken_only_when_asked(name: str) -> None:
    facts = facts_of(name)
    assert host.decide(facts).name != "tcg"
    asked = host.decide(facts, "tcg")
    assert asked.name == ("tcg" if "qemu-system-x86_64" in facts.emulators else "")
    assert not asked.virtualizes


def test_bochs_by_name_where_kvm_would_do() -> None:
    assert host.decide(facts_of("intel-nested"), "bochs").name == "bochs"


@pytest.mark.parametrize("vendor", ["intel", "amd"])
@pytest.mark.parametrize("name", EXPECTED)
def test_kvm_in_bochs_needs_nothing_of_this_machine_s_kvm(name: str, vendor: str) -> None:
    facts = facts_of(name)
    assert host.decide(facts).name != "kvm-in-bochs"
    decision = host.decide(facts, "kvm-in-bochs", vendor)
    needed = {"qemu-system-x86_64", "bochs"} <= set(facts.emulators)
    if needed and host.decide(facts, "bochs", vendor).ok:
        assert decision.require() == Backend("kvm-in-bochs", vendor_of(vendor))
        assert decision.virtualizes
    else:
        assert decision.backend is None
        assert decision.reason.startswith("KVM in Bochs: ")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no-bochs", "not installed: bochs, bochs-term, bochsbios, vgabios"),
        ("bochs-without-broadwell", "no processor model broadwell_ult"),
    ],
)
def test_bochs_refused(name: str, cause: str) -> None:
    decision = host.decide(facts_of(name), "bochs")
    assert decision.backend is None
    assert cause in decision.reason
    assert decision.remedy


def test_which_flag_kvm_guests_get() -> None:
    assert host.decide(facts_of("intel-nested")).require().flag == "vmx"
    assert host.decide(facts_of("amd-nested")).require().flag == "svm"


@pytest.mark.parametrize("asked", ["auto", "bochs"])
def test_bochs_emulates_either_vendor(asked: str) -> None:
    facts = facts_of("no-rights")
    assert host.decide(facts, asked).require() == Backend("bochs", "intel")
    amd = host.decide(facts, asked, "amd")
    assert amd.require() == Backend("bochs", "amd")
    assert "SVM, nested paging and NRIP save" in amd.reason
    assert str(amd.backend) == "bochs as AMD"


def test_kvm_has_this_machine_s_processor() -> None:
    facts = facts_of("intel-nested")
    assert host.decide(facts, "auto", "amd").require() == Backend("bochs", "amd")
    with pytest.raises(CannotError, match=r"processor is Intel's.*--backend bochs emulates both"):
        host.decide(facts, "kvm", "amd").require()
    assert host.decide(facts, "auto", "intel").require() == Backend("kvm", "intel")


def test_unknown_vendor_is_a_wrong_call() -> None:
    with pytest.raises(UsageError, match="--cpu-vendor via: no such vendor; use intel or amd"):
        host.decide(facts_of("intel-nested"), "auto", "via")


def test_unknown_backend_is_a_wrong_call() -> None:
    with pytest.raises(UsageError, match="use one of auto, kvm, bochs, tcg"):
        host.decide(facts_of("intel-nested"), "xen")


def test_emulators_that_do_not_run_are_not_taken() -> None:
    facts = facts_of("intel-nested")
    broken = dataclasses.replace(
        facts,
        emulators={
            name: dataclasses.replace(found, problem="it does not run")
            for name, found in facts.emulators.items()
        },
    )
    decision = host.decide(broken)
    assert decision.backend is None
    assert decision.reason.count("it does not run") == 2


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"api_version": 11}, "API version is 11"),
        ({"guest": None}, "does not say which processor"),
        ({"open_error": "ENODEV"}, "cannot be opened (ENODEV)"),
        ({"create_vm_error": "ENOMEM"}, "KVM_CREATE_VM: ENOMEM"),
    ],
)
def test_kvm_that_is_almost_right(change: dict[str, object], cause: str) -> None:
    facts = facts_of("intel-nested")
    kvm = dataclasses.replace(facts.kvm, **change)  # type: ignore[arg-type]
    refusal = host.kvm_refusal(dataclasses.replace(facts, kvm=kvm))
    assert refusal is not None
    assert cause in refusal.cause


def remedy(name: str, here: Surroundings, **kvm: object) -> str:
    """The message about /dev/kvm on a host, for a user in these surroundings."""
    facts = dataclasses.replace(facts_of(name), surroundings=here)
    changed = dataclasses.replace(facts.kvm, **kvm)  # type: ignore[arg-type]
    refusal = host.kvm_refusal(dataclasses.replace(facts, kvm=changed))
    assert refusal is not None
    return refusal.remedy


ROOT = Surroundings(root=True, sudo=False)
PLAIN = Surroundings(sudo=False)
DOCKER = Surroundings(root=True, sudo=False, container="docker")


@pytest.mark.parametrize(
    ("name", "here", "kvm", "expected"),
    [
        (
            "intel-nesting-off",
            ROOT,
            {},
            "then modprobe -r kvm_intel && modprobe kvm_intel nested=1",
        ),
        ("intel-nesting-off", PLAIN, {}, "then su -c 'modprobe -r kvm_intel && modprobe kvm_intel"),
        (
            "intel-nesting-off",
            DOCKER,
            {},
            "then on the container's host: sudo modprobe -r kvm_intel && sudo modprobe kvm_intel",
        ),
        ("intel-built-in", ROOT, {}, "then update-grub) and reboot"),
        ("intel-built-in", DOCKER, {}, "on the container's host, add kvm_intel.nested=1"),
        ("intel-no-module", DOCKER, {}, "on the container's host: sudo modprobe kvm_intel"),
        ("intel-no-module", ROOT, {}, "modprobe kvm_intel"),
        ("not-a-device", DOCKER, {}, "--device /dev/kvm instead of -v"),
        ("not-a-device", PLAIN, {}, "su -c 'rm -r /dev/kvm && modprobe kvm_intel'"),
        ("not-a-device", ROOT, {"built_in": ("kvm_intel",)}, "mknod -m 666 /dev/kvm c 10 232"),
        ("container-without-kvm", DOCKER, {}, "start the container with --device /dev/kvm"),
        ("container-without-kvm", ROOT, {}, "without a container: mknod -m 666 /dev/kvm c 10 232"),
        ("no-rights", Surroundings(), {"group": "kvm"}, 'sudo usermod -aG kvm "$USER" and log in'),
        ("no-rights", Surroundings(), {"group": "vm"}, 'sudo usermod -aG vm "$USER" and log in'),
        ("no-rights", PLAIN, {}, "su -c 'usermod -aG kvm \"$USER\"' and log in again"),
        (
            "no-rights",
            Surroundings(),
            {"member": True},
            "log in again, so that the group kvm counts",
        ),
        ("no-rights", Surroundings(), {"group": ""}, "sudo chmod 666 /dev/kvm"),
        (
            "no-rights",
            Surroundings(container="docker"),
            {"group": "104", "group_id": 104},
            "start the container with --group-add 104",
        ),
        (
            "no-rights",
            DOCKER,
            {"open_error": "EPERM"},
            "start the container with --device /dev/kvm",
        ),
        ("no-rights", ROOT, {"open_error": "EPERM"}, "a control group forbids it"),
        ("hanging-device", DOCKER, {}, "look at on the container's host: sudo dmesg"),
    ],
)
def test_a_remedy_fits_the_surroundings(
    name: str, here: Surroundings, kvm: dict[str, object], expected: str
) -> None:
    assert expected in remedy(name, here, **kvm)


def test_surroundings_go_into_the_facts_and_back() -> None:
    facts = dataclasses.replace(facts_of("intel-nested"), surroundings=DOCKER)
    assert load(json.dumps(host.to_data(facts))).surroundings == DOCKER
