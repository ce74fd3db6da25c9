"""Help texts of options that several tasks take."""

from __future__ import annotations

from harness import backends, defaults

RELEASE_HELP = {"release": f"the FreeBSD release to boot (default: {defaults.RELEASE})"}

BACKEND_HELP = {
    "backend": backends.listed(first="auto (default)"),
    "cpu-vendor": "intel or amd: the processor that Bochs emulates (default: intel)",
}

VERIFY_VENDOR_HELP = {
    "cpu-vendor": "intel, amd or both: the processor that Bochs emulates (default: intel); both "
    "runs two guests at once, one for each half of vmm.ko, and makes one report",
}

VIRTUALIZING_HELP = {
    **BACKEND_HELP,
    "backend": backends.listed("tcg", first="auto (default)"),
}
"""For tasks that are useless without virtual machines."""

SANDBOX_HELP = {
    "sandbox": "--no-sandbox builds without a sandbox: the patch's Makefiles then run as you",
}

OFFLINE_HELP = {"offline": "fetch nothing; use only the cache"}
