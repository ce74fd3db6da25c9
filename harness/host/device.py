"""What is wrong with /dev/kvm itself, and the remedy that fits this machine."""

from __future__ import annotations

from harness.host.facts import KVM_AMD, KVM_INTEL, HostFacts
from harness.host.kvm import API_VERSION
from harness.host.refusal import Refusal

_X86 = {"x86_64", "amd64", "i686"}
_NODE = "mknod -m 666 /dev/kvm c 10 232"
_GIVE_DEVICE = "start the container with --device /dev/kvm"


def refusal(facts: HostFacts) -> Refusal | None:
    """Why the device cannot be used, or None: it is there, permitted and works."""
    kvm, cpu, here = facts.kvm, facts.cpu, facts.surroundings
    messages = here.on_kernel("dmesg | grep -i kvm")
    if cpu.architecture not in _X86:
        return Refusal(
            f"this processor is {cpu.architecture}, and KVM makes guests of its own kind only",
            "no setting changes that; Bochs emulates a processor with VT-x on any machine",
        )
    module = KVM_INTEL if cpu.vmx else KVM_AMD
    if not kvm.present:
        return _absent(facts)
    if not kvm.device:
        # Docker's -v makes a folder of that name where the host has no such device.
        made = _NODE if module in kvm.built_in else f"modprobe {module}"
        return Refusal(
            "/dev/kvm is no device node",
            f"{_GIVE_DEVICE} instead of -v, on a host that has it"
            if here.container
            else here.as_root("rm -r /dev/kvm", made),
        )
    if kvm.open_error in {"EACCES", "EPERM"}:
        return Refusal(f"no right to open /dev/kvm ({kvm.open_error})", _right(facts))
    if kvm.open_error:
        return Refusal(
            f"/dev/kvm cannot be opened ({kvm.open_error})",
            here.on_kernel(f"modprobe {module}")
            if module not in kvm.modules
            else f"look at {messages}",
        )
    if kvm.problem:
        return Refusal(f"/dev/kvm is there, but {kvm.problem}", f"look at {messages}")
    if kvm.api_version != API_VERSION:
        return Refusal(f"KVM's API version is {kvm.api_version}, not {API_VERSION}")
    if kvm.create_vm_error:
        return Refusal(
            f"KVM makes no virtual machine (KVM_CREATE_VM: {kvm.create_vm_error})",
            "end the other hypervisor that holds the processor (VirtualBox, VMware)"
            if kvm.create_vm_error == "EBUSY"
            else f"look at {messages}",
        )
    return None


def _absent(facts: HostFacts) -> Refusal:
    kvm, cpu, here = facts.kvm, facts.cpu, facts.surroundings
    if not cpu.vmx and not cpu.svm:
        where = "this virtual machine" if cpu.hypervisor else "this processor"
        return Refusal(
            f"there is no /dev/kvm, and {where} shows neither VMX nor SVM",
            "turn on nested virtualization in the host below"
            if cpu.hypervisor
            else "turn on virtualization in the firmware's setup, if this processor has it",
        )
    module = KVM_INTEL if cpu.vmx else KVM_AMD
    if module not in kvm.modules:
        return Refusal(
            "there is no /dev/kvm: the module is not loaded", here.on_kernel(f"modprobe {module}")
        )
    if here.container:
        return Refusal(
            f"there is no /dev/kvm although {module} is loaded: a container without the device",
            _GIVE_DEVICE,
        )
    return Refusal(
        f"there is no /dev/kvm although {module} is loaded: a container or a chroot without the "
        "device",
        f"{_GIVE_DEVICE}; without a container: {here.as_root(_NODE)}",
    )


def _right(facts: HostFacts) -> str:
    kvm, here = facts.kvm, facts.surroundings
    if here.container:
        # The group's number counts: its name is the host's, or nobody's.
        of_group = f"--group-add {kvm.group_id}" if kvm.group_id else "--user root"
        return _GIVE_DEVICE if kvm.open_error == "EPERM" else f"start the container with {of_group}"
    if here.root:
        return "a security module or a control group forbids it: look at dmesg and at the service"
    if kvm.member:
        return f"log in again, so that the group {kvm.group} counts (or run: newgrp {kvm.group})"
    if kvm.group:
        join = here.as_root(f'usermod -aG {kvm.group} "$USER"')
        open_to_all = here.as_root("chmod 666 /dev/kvm")
        return f"{join} and log in again (a CI job: {open_to_all})"
    return here.as_root("chmod 666 /dev/kvm")
