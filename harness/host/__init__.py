"""What this machine can do: facts, what they lack of what vmm.ko asks, and the backend to take.

`gather` looks, `decide` judges; everything but `gather` is pure.
"""

from .choice import ASKED, BOCHS_MODEL, Decision, Refusal, bochs_refusal, decide, kvm_refusal
from .doctor import Row, Verdict, examine, show
from .facts import (
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
from .requirements import VMX_CONTROLS, Control, Lack, Need, lacking, required_lacking
from .survey import gather

__all__ = [
    "ASKED",
    "BOCHS_MODEL",
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
    "Row",
    "Verdict",
    "bochs_refusal",
    "decide",
    "examine",
    "from_data",
    "gather",
    "identity",
    "kvm_refusal",
    "lacking",
    "required_lacking",
    "show",
    "to_data",
]
