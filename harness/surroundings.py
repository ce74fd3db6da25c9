"""Who runs the workbench, and in what: a remedy has to be one that can be typed here."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CannotError


@dataclass(frozen=True)
class Surroundings:
    """Whether this is root, whether there is sudo, and the kind of the container, if it is one."""

    root: bool = False
    sudo: bool = True
    container: str = ""

    def as_root(self, *commands: str) -> str:
        """Commands that only root may run, one after the other, as they can be typed here."""
        if self.root:
            return " && ".join(commands)
        if self.sudo:
            return " && ".join(f"sudo {it}" for it in commands)
        return f"su -c {shlex.quote(' && '.join(commands))}"

    def on_kernel(self, *commands: str) -> str:
        """Commands about the kernel: in a container, the kernel is its host's."""
        if self.container:
            typed = " && ".join(f"sudo {it}" for it in commands)
            return f"on the container's host: {typed}"
        return self.as_root(*commands)


def look(top: Path = Path("/")) -> Surroundings:
    """Find it out; `top` stands for the root folder."""
    return Surroundings(
        root=os.geteuid() == 0, sudo=bool(shutil.which("sudo")), container=_container(top)
    )


def require_proc(top: Path = Path("/")) -> None:
    """CannotError unless /proc shows this process: memory, processors and guests are read there."""
    if not (top / "proc/self/stat").exists():
        raise no_proc()


def no_proc() -> CannotError:
    """What to say where /proc is not there."""
    return CannotError(f"/proc cannot be read; run {look().as_root('mount -t proc proc /proc')}")


def _container(top: Path) -> str:
    marks = {"docker": ".dockerenv", "podman": "run/.containerenv"}
    for kind, mark in marks.items():
        if (top / mark).exists():
            return kind
    try:
        # What systemd-nspawn, LXC and others leave there for systemd.
        return (top / "run/systemd/container").read_text().strip()
    except OSError:
        pass
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return os.environ.get("container", "")  # noqa: SIM112 - systemd's name
