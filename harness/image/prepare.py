"""The first boot of an imported disk, which prepares it for runs.

Only the key and sshd's settings go over the serial line; the host key comes back over it and is
pinned.  Everything else is one script, `images/prepare.sh`, run over SSH.  The imported disk is
only read, through an overlay, and only the flattened result is stored.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Callable
from pathlib import Path

from harness import machine as machines
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError
from harness.files import PROJECT, human_bytes, require_room, write_atomic
from harness.guest.freebsd import Access, Guest
from harness.guest.keys import make_key
from harness.guest.serial_login import SerialLogin
from harness.image.disk import ZFS_REFUSED
from harness.image.model import Imported, Prepared
from harness.machine.console import Console
from harness.machine.models import BOCHS_RUNS, Backend
from harness.machine.qemu import QemuMachine, flatten

VERSION = 8
"""Increase this if the preparation changes, so that an older image does not count as current."""

SCRIPT = PROJECT / "images" / "prepare.sh"

_BOOT_S = 60.0
_STEP_S = 20.0
# A kernel with WITNESS and INVARIANTS, as main's, takes several times as long as a release's.
_CHANGES_S = 180.0
_MEMORY_BYTES = 1 << 30

# Each line is sent separately; sshd uses the first value of a setting, so ours precede its file's.
_SSHD = (
    "PermitRootLogin prohibit-password",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "PermitEmptyPasswords no",
    "UseDNS no",
    # An emulated clock leaps while the guest is idle, so a grace time could run out in the
    # handshake.
    "LoginGraceTime 0",
    "MaxStartups 100",
)


def prepare(
    imported: Imported,
    folder: Path,
    backend: Backend,
    live: Callable[[str], None] = lambda _line: None,
) -> Prepared:
    """Boot `imported` once under `backend` (kvm or tcg), and write the prepared image to `folder`.

    `folder` gets `disk.raw`, the private key, the serial line's password and the boot's logs.
    Raises CannotError if there is no login, GuestError if the guest breaks.
    """
    if backend.name in BOCHS_RUNS:
        raise CannotError("images are prepared under kvm or tcg; use --backend tcg")
    require_room(folder, imported.disk_bytes, f"preparing {imported.disk.name}")
    key = folder / "id_ed25519"
    public = make_key(key, "vmm-workbench")
    password = secrets.token_urlsafe(12)
    write_atomic(folder / "console-password", password + "\n", mode=0o600)
    spec = machines.Spec(
        run_dir=folder / "boot",
        drive=machines.Drive(imported.disk, imported.disk_format),
        memory_bytes=_MEMORY_BYTES,
        cpus=2,
        screen=True,
        name=f"preparing {imported.release}",
    )
    machine = machines.make(backend, spec)
    if not isinstance(machine, QemuMachine):
        raise TypeError("only QEMU leaves an overlay that can be flattened")
    with machine:
        machine.start(Deadline.after(30))
        scale = machine.traits.time_scale
        with machine.booting():
            host_key = _let_ssh_in(machine.console, imported, public, scale, live)
        with Guest(machine, Access(key, host_key, imported.login.user)) as guest:
            live("waiting for SSH")
            guest.wait_ready()
            # The partitions of a qcow2 disk were not examined.
            if re.search(r"\s/\s+zfs\s", guest.must(["mount", "-p"])):
                raise CannotError(f"{imported.disk}: {ZFS_REFUSED}")
            live("changing the image")
            limit = guest.deadline(_CHANGES_S)
            done = guest.script(SCRIPT.read_text(), password, deadline=limit)
            uname = guest.must(["uname", "-a"]).strip()
            osversion = guest.number("kern.osreldate")
            kernel = _configuration(guest)
            live("shutting down")
            guest.shut_down()
        if not machine.powered_off():
            raise GuestError(f"{spec.name}: the guest did not power off cleanly")
    live(f"writing {human_bytes(imported.disk_bytes)}, sparse")
    disk = folder / "disk.raw"
    flatten(machine.overlay, disk)
    machine.overlay.unlink()
    disk.chmod(0o400)
    changes = [line.removeprefix("changed: ") for line in done.stdout.splitlines()]
    return Prepared(
        disk_raw=disk,
        private_key=key,
        host_key=host_key,
        osversion=osversion,
        uname=uname,
        changes=("sshd: keys only, for root; our key is the only one", *changes),
        kernel=kernel,
    )


def _configuration(guest: Guest) -> tuple[str, ...]:
    """The running kernel's configuration, with single blanks; empty if the kernel lacks it.

    A kernel made without INCLUDE_CONFIG_FILE has it neither, nor says so (kern.conftxt is empty).
    """
    lines = (guest.sysctl("kern.conftxt") or "").splitlines()
    return tuple(text for line in lines if (text := " ".join(line.split())))


def _let_ssh_in(
    console: Console,
    imported: Imported,
    public_key: str,
    scale: float,
    live: Callable[[str], None],
) -> str:
    """Log in on the serial line, install the key and start sshd; returns the host key."""
    login = SerialLogin(console, imported.login.user, imported.login.password)
    live("waiting for the login prompt")
    login.log_in(Deadline.scaled(_BOOT_S, scale))
    live("installing the key")
    limit = Deadline.scaled(_STEP_S * 3, scale)
    login.run("umask 077; mkdir -p ~/.ssh", limit)
    login.run(f"echo {shlex.quote(public_key)} >~/.ssh/authorized_keys", limit)
    login.run("cd /etc/ssh; umask 022; : >sshd_config.new", limit)
    for line in _SSHD:
        login.run(f"echo {shlex.quote(line)} >>sshd_config.new", limit)
    # Newer servers lock out an address whose connections are interrupted, as happens while we wait
    # for a boot; older ones do not know the setting.
    penalty = "PerSourcePenalties no"
    login.run(
        f"if /usr/sbin/sshd -T -o {shlex.quote(penalty)} >/dev/null 2>&1; "
        f"then echo {shlex.quote(penalty)} >>sshd_config.new; fi",
        limit,
    )
    login.run("cat sshd_config >>sshd_config.new; mv sshd_config.new sshd_config", limit)
    login.run("ssh-keygen -A >/dev/null", limit)
    host_key = " ".join(login.run("cat ssh_host_ed25519_key.pub", limit).split()[:2])
    if not host_key.startswith("ssh-ed25519 AAAA"):
        raise GuestError(f"instead of a host key the serial line showed: {host_key[:60]}")
    login.run("sysrc -q sshd_enable=YES >/dev/null", limit)
    login.run("service sshd onerestart >/dev/null 2>&1", limit)
    login.run("ps -axo command | grep -q '[s]shd'", limit)
    return host_key
