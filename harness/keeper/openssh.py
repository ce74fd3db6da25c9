"""How OpenSSH's programs get into a kept guest: their options, and the same as a file for them.

They heed nothing of the user's own set-up: keys, agent, settings and known hosts have no business
with a guest.
"""

from __future__ import annotations

import shlex

from harness import files
from harness.keeper.record import Record

CONFIG = "ssh_config"
"""The file's name in the run's folder."""

_HOST = "127.0.0.1"


def options(record: Record) -> dict[str, str]:
    """The settings that pin the guest's host key, in the run's folder, and name its own key."""
    known = record.run_dir / "known_hosts"
    files.write_atomic(known, f"[{_HOST}]:{record.ssh_port} {record.host_key}\n", mode=0o600)
    plain = {
        "IdentityFile": record.private_key,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": str(known),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "LogLevel": "ERROR",
    }
    return {name: _quoted(value) for name, value in plain.items()}


def write_config(record: Record) -> None:
    """Write a file by which `ssh -F FILE NAME`, scp, rsync and editors get into the guest.

    None is written where a name has a line break, which the file could not say.
    """
    more = {
        "HostName": _HOST,
        "Port": str(record.ssh_port),
        "User": record.user,
        **options(record),
        "ControlPath": "none",
    }
    if record.forward is not None and (command := record.forward.command()):
        line = shlex.join(command).replace("%", "%%")
        more |= {"ProxyCommand": line, "ProxyUseFdpass": "yes"}
    if not any("\n" in value for value in more.values()):
        text = "".join(f"    {name} {value}\n" for name, value in more.items())
        files.write_atomic(record.run_dir / CONFIG, f"Host {record.name}\n{text}", mode=0o600)


def _quoted(value: str) -> str:
    """A value as ssh reads it: in quotes, with `%` doubled."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
