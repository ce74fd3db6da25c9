"""Asks /dev/kvm about itself and about the processor that it would give a guest.

A child process that runs this same file makes the ioctls: on a broken device an ioctl may never
return, and a process stuck in the kernel cannot be ended, only abandoned.  For that reason the file
imports only the standard library.  Numbers and layouts are those of <linux/kvm.h>
(Documentation/virt/kvm/api.rst), which are stable.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
import subprocess
import sys
from typing import Any

DEVICE = "/dev/kvm"
API_VERSION = 12
"""The only version since Linux 2.6.22; a device with another version does not work with QEMU."""

_KVMIO = 0xAE
_READ_WRITE = 3


def _ioctl_number(number: int, size_bytes: int = 0) -> int:
    direction = _READ_WRITE if size_bytes else 0
    return direction << 30 | size_bytes << 16 | _KVMIO << 8 | number


GET_API_VERSION = _ioctl_number(0x00)
CREATE_VM = _ioctl_number(0x01)
GET_SUPPORTED_CPUID = _ioctl_number(0x05, 8)
GET_MSR_FEATURE_INDEX_LIST = _ioctl_number(0x0A, 4)
GET_MSRS = _ioctl_number(0x88, 8)

# The registers that report what VMX can do (SDM volume 3, appendix A), and IA32_FEATURE_CONTROL.
WANTED_MSRS = (0x3A, *range(0x480, 0x492))
# CPUID 1 reports VMX, 8000_0001 SVM, 8000_000A the features of SVM (APM volume 3, appendix E).
WANTED_LEAVES = (0x1, 0x80000001, 0x8000000A)


def supported_cpuid(handle: int) -> dict[str, list[int]]:
    """EAX to EDX that KVM would show a guest, by leaf in hex; OSError if it does not answer."""
    room = 128
    while True:
        buffer = bytearray(struct.pack("=II", room, 0) + bytes(40 * room))
        try:
            fcntl.ioctl(handle, GET_SUPPORTED_CPUID, buffer)
            break
        except OSError as error:
            if error.errno != errno.E2BIG or room > 4096:
                raise
            room *= 2
    (count,) = struct.unpack_from("=I", buffer)
    leaves: dict[str, list[int]] = {}
    for number in range(min(count, room)):
        leaf, _index, _flags, *registers = struct.unpack_from("=7I", buffer, 8 + 40 * number)
        if leaf in WANTED_LEAVES:
            leaves[hex(leaf)] = registers
    return leaves


def feature_msrs(handle: int) -> dict[str, int]:
    """The capability registers that KVM would show a guest, by index in hex.

    An old KVM (before Linux 4.17) has no feature MSRs; this raises OSError like any refusal.
    """
    room = 512
    buffer = bytearray(struct.pack("=I", room) + bytes(4 * room))
    fcntl.ioctl(handle, GET_MSR_FEATURE_INDEX_LIST, buffer)
    (count,) = struct.unpack_from("=I", buffer)
    offered = struct.unpack_from(f"={min(count, room)}I", buffer, 4)
    values: dict[str, int] = {}
    for index in sorted(set(offered) & set(WANTED_MSRS)):
        # One at a time, because KVM stops at the first register that it does not report.
        entry = bytearray(struct.pack("=IIIIQ", 1, 0, index, 0, 0))
        if fcntl.ioctl(handle, GET_MSRS, entry) == 1:
            (values[hex(index)],) = struct.unpack_from("=Q", entry, 16)
    return values


def look(device: str = DEVICE) -> dict[str, Any]:
    """Ask `device` all questions; never raises because of the device."""
    found: dict[str, Any] = {"present": os.path.lexists(device)}
    if not found["present"]:
        return found
    try:
        found["device"] = stat.S_ISCHR(os.stat(device).st_mode)
        if not found["device"]:
            return found
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        found["open_error"] = _errno_name(error)
        return found
    try:
        found["api_version"] = fcntl.ioctl(handle, GET_API_VERSION, 0)
        # Access to the device is not enough to make a virtual machine: another hypervisor may use
        # VMX.
        try:
            os.close(fcntl.ioctl(handle, CREATE_VM, 0))
        except OSError as error:
            found["create_vm_error"] = _errno_name(error)
        found["cpuid"] = supported_cpuid(handle)
        try:
            found["msrs"] = feature_msrs(handle)
        except OSError as error:
            found["msrs_error"] = _errno_name(error)
    except OSError as error:
        found["problem"] = f"its ioctls fail with {_errno_name(error)}"
    finally:
        os.close(handle)
    return found


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def start(device: str = DEVICE) -> subprocess.Popen[bytes]:
    """Start the questions in a child process; `finish` returns the answer."""
    # Not by process.run: it may never end (see above), and this file imports nothing of ours.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, device],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(child: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any]:
    """The child's answer, or a `problem` if there is none after `limit_s` seconds."""
    try:
        answer, _ = child.communicate(timeout=limit_s)
        found = json.loads(answer)
    except subprocess.TimeoutExpired:
        # Do not wait for it: it cannot end before its system call returns.
        child.kill()
        return {"present": True, "problem": f"it did not answer within {limit_s:.1f} s"}
    except ValueError:
        return {
            "present": True,
            "problem": f"the process that asks it ended with exit code {child.returncode}",
        }
    return found if isinstance(found, dict) else {"present": True, "problem": "odd answer"}


if __name__ == "__main__":
    json.dump(look(sys.argv[1] if len(sys.argv) > 1 else DEVICE), sys.stdout)
