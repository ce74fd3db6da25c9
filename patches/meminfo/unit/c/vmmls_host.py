"""A folder that stands in for /dev/vmm, and vmmls looking at it."""

from __future__ import annotations

import functools
import json
import os
import pwd
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import series_source as source

MIB, GIB = 1 << 20, 1 << 30
ENOENT, EIO, ENXIO, EBADF, EACCES, ENOTDIR, EINVAL, ENOTTY = 2, 5, 6, 9, 13, 20, 22, 25
ME = pwd.getpwuid(os.getuid()).pw_name
HEADER = ["NAME", "OWNER", "VCPUS", "STATE", "MEMORY", "WIRED", "RESIDENT"]
TOTALS = {
    "SHIM_TOTAL": str(16 * GIB),
    "SHIM_ALLOCATED": str(4 * GIB + 512 * MIB),
    "SHIM_DEVICE": str(16 * MIB),
}

# Looking for leaks takes longer than all else; the fuzzer and the faults below do it.
QUIET = {**os.environ, "POSIXLY_CORRECT": "1", "ASAN_OPTIONS": "detect_leaks=0"}

vmmls = functools.cache(source.compile_vmmls)


def memory(
    sysmem: int, wired: int = 0, resident: int = 0, low: int | None = None, high: int = 0
) -> str:
    return f"mem {sysmem} {16 * MIB} {sysmem if low is None else low} {high} {wired} {resident}"


def plain_vm(size: int) -> list[str]:
    """A VM as bhyve sets it up, that has not been started."""
    low = min(size, 3 * GIB)
    return [memory(size, low=low, high=size - low)]


def started(size: int, active: int = 0b11, halted: int = 0, debug: int = 0) -> list[str]:
    """A VM of two sockets with a core each; the rest are masks of vCPUs."""
    return [*plain_vm(size), f"cpus 2 1 1 {active:x} {halted:x} {debug:x}"]


def created(name: str, size: int) -> list[str]:
    """The row of a plain VM."""
    return [name, ME, "1", "created", str(size), "0", "0"]


@dataclass(frozen=True)
class Host:
    """A folder with a stand-in for /dev/vmm, and the release whose vmmls looks at it."""

    folder: Path
    release: str = "15.1"

    def add(self, name: str | bytes, lines: Iterable[str]) -> None:
        raw = os.fsencode(name)
        path = os.path.join(os.fsencode(self.folder), b"vm", raw)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write("".join(line + "\n" for line in lines).encode())

    def run(
        self,
        *args: str | bytes,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program or vmmls(self.release), *args],
            cwd=self.folder,
            env={**QUIET, **(TOTALS if env is None else env)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def rows(self, *args: str | bytes, **kwargs: Any) -> list[list[str]]:
        result = self.run("-Hp", *args, **kwargs)
        assert (result.returncode, result.stderr) == (0, "")
        return [line.split("\t") for line in result.stdout.splitlines()]

    def json(self, *args: str | bytes, **kwargs: Any) -> dict[str, Any]:
        result = self.run("--libxo=json", *args, **kwargs)
        assert (result.returncode, result.stderr) == (0, "")
        answer: dict[str, Any] = json.loads(result.stdout)["vmm"]
        return answer
