"""How OpenSSH's programs get into a kept guest: their options, and the same as a file for them.

They use nothing of the user's own set-up: keys, agent, settings and known hosts have no business
with a guest.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from harness import files
from harness.keeper.record import Record

CONFIG = "ssh_config"
"""The file's name in the run's folder."""

_HOST = "127.0.0.1"
_KEY, _KNOWN = "VMM_WORKBENCH_KEY", "VMM_WORKBENCH_KNOWN_HOSTS"


def options(record: Record) -> tuple[dict[str, str], dict[str, str]]:
    """The settings that pin the guest's host key, in the run's folder, and name its own key.

    The second value is what they need in the environment: ssh gives a meaning to quotes, `%` and
    `${`, and takes what a variable holds as it is.
    """
    way, environment = record.forward.for_openssh() if record.forward else ({}, {})
    environment = {**environment, _KEY: record.private_key, _KNOWN: str(_known_hosts(record))}
    return {**_plain(f"${{{_KEY}}}", f"${{{_KNOWN}}}"), **way}, environment


def _known_hosts(record: Record) -> Path:
    path = record.run_dir / "known_hosts"
    files.write_atomic(path, f"[{_HOST}]:{record.ssh_port} {record.host_key}\n", mode=0o600)
    return path


def _plain(key: str, known_hosts: str) -> dict[str, str]:
    return {
        "IdentityFile": key,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "LogLevel": "ERROR",
    }


def write_config(record: Record) -> None:
    """Write a file by which `ssh -F FILE NAME`, scp, rsync and editors get into the guest.

    None is written where a name has a line break or `${`, which the file could not say.
    """
    more = {
        "HostName": _HOST,
        "Port": str(record.ssh_port),
        "User": record.user,
        **_plain(_quoted(record.private_key), _quoted(str(_known_hosts(record)))),
        "ControlPath": "none",
    }
    if record.forward is not None and (command := record.forward.command()):
        line = shlex.join(command).replace("%", "%%")
        more |= {"ProxyCommand": line, "ProxyUseFdpass": "yes"}
    if not any("\n" in value or "${" in value for value in more.values()):
        text = "".join(f"    {name} {value}\n" for name, value in more.items())
        files.write_atomic(record.run_dir / CONFIG, f"Host {record.name}\n{text}", mode=0o600)


def _quoted(value: str) -> str:
    """A value as ssh reads it: in quotes, with `%` doubled."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
