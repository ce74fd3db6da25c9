"""The user and the system that run the workbench, so that remedies fit them."""

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
        """Commands that only root may run, in order, in the form to type here."""
        if self.root:
            return " && ".join(commands)
        if self.sudo:
            return " && ".join(f"sudo {it}" for it in commands)
        return f"su -c {shlex.quote(' && '.join(commands))}"

    def on_kernel(self, *commands: str) -> str:
        """Commands about the kernel, which in a container is that of its host."""
        if self.container:
            typed = " && ".join(f"sudo {it}" for it in commands)
            return f"on the container's host: {typed}"
        return self.as_root(*commands)


def look(top: Path = Path("/")) -> Surroundings:
    """Examine this system; `top` replaces the root folder in tests."""
    return Surroundings(
        root=os.geteuid() == 0, sudo=bool(shutil.which("sudo")), container=_container(top)
    )


def require_proc(top: Path = Path("/")) -> None:
    """Raise CannotError unless /proc shows this process: it is needed for memory and guests."""
    if not (top / "proc/self/stat").exists():
        raise no_proc()


def no_proc() -> CannotError:
    """The error if /proc is not mounted."""
    return CannotError(f"/proc cannot be read; run {look().as_root('mount -t proc proc /proc')}")


def _container(top: Path) -> str:
    marks = {"docker": ".dockerenv", "podman": "run/.containerenv"}
    for kind, mark in marks.items():
        if (top / mark).exists():
            return kind
    try:
        # The file that systemd-nspawn, LXC and others write for systemd.
        return (top / "run/systemd/container").read_text().strip()
    except OSError:
        pass
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return os.environ.get("container", "")  # noqa: SIM112 - systemd's name
