"""What this machine can do: the facts, the missing requirements of vmm.ko, and the backend.

`gather` collects the facts, `decide` chooses; all functions except `gather` are pure.
"""

from harness.host.backend import (
    Decision,
    bochs_refusal,
    decide,
    kvm_refusal,
)
from harness.host.facts import (
    Cpu,
    Emulator,
    Folder,
    HostFacts,
    Image,
    Kvm,
    Processor,
    from_data,
    identity,
    to_data,
)
from harness.host.refusal import Refusal
from harness.host.requirements import VMX_CONTROLS, Control, Lack, Need, lacking, required_lacking
from harness.host.survey import gather

__all__ = [
    "VMX_CONTROLS",
    "Control",
    "Cpu",
    "Decision",
    "Emulator",
    "Folder",
    "HostFacts",
    "Image",
    "Kvm",
    "Lack",
    "Need",
    "Processor",
    "Refusal",
    "bochs_refusal",
    "decide",
    "from_data",
    "gather",
    "identity",
    "kvm_refusal",
    "lacking",
    "required_lacking",
    "to_data",
]
