"""Options and a configuration file with which OpenSSH's programs connect to a guest.

They do not use the user's own keys, agent, settings and known hosts, because these are not for a
guest.
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
    """The options that pin the guest's host key (a file in the run's folder) and name its user key.

    The second value is the environment that they need: ssh interprets quotes, `%` and `${` in
    options, but uses the value of a variable unchanged.
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
    """Write a file with which `ssh -F FILE NAME`, scp, rsync and editors connect to the guest.

    No file is written if a name has a line break or `${`, which the format cannot express.
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
    """A value in the syntax of ssh: in quotes, with `%` doubled."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
