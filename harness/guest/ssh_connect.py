"""Making the connection to a guest's sshd: how long to wait for it, and what is a refusal.

Only the pinned host key is accepted, and the user's keys, agent and settings are left alone.
"""

from __future__ import annotations

import base64
import functools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from harness.deadline import Deadline
from harness.errors import GuestError, WaitTimeout
from harness.guest import keys, ssh_reason
from harness.guest.ssh_exec import OutOfTime, attended
from harness.machine.forward import Forward

_FIRST_TRY_S = 4.0
_TRY_S = 30.0
_PAUSE_S = 0.3

# paramiko logs a traceback for every attempt to connect to a guest that is not up yet.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class SshRefused(GuestError):
    """The guest answered but refused our login, or its host key is not the pinned one."""


class _MoreAsked(Exception):
    """The server accepted our key, but requires another step of authentication."""


@dataclass(frozen=True)
class Address:
    """The address of a guest's sshd, our user and key there, and the expected host key.

    `host_key` is `type base64`, as learned over the serial line; the port is in the network of the
    process `network_of`, or (None) in this machine's.
    """

    port: int
    private_key: Path
    host_key: str
    user: str = "root"
    host: str = "127.0.0.1"
    network_of: int | None = None


def connect(
    address: Address,
    deadline: Deadline,
    watch: Callable[[], None] = lambda: None,
    *,
    listening: bool = False,
) -> paramiko.SSHClient:
    """Connect to `address`, trying until the deadline passes.

    `watch` is called during every wait.  Where sshd is known to be `listening`, silence is
    slowness, and each try gets all the time.

    Raises SshRefused at once when the guest denies our key, shows another host key or has none
    that it may show (waiting would not help), CannotError when our key cannot be read, what
    `watch` raises when the machine dies, and WaitTimeout with the last try's reason when time
    runs out.
    """
    key = keys.load(address.private_key)
    reason = "not tried"
    hang_ups = 0
    patience_s = _TRY_S if listening else _FIRST_TRY_S
    while True:
        watch()
        client = _new_client(address)
        greeted = threading.Event()

        def stop_trying(
            client: paramiko.SSHClient = client, greeted: threading.Event = greeted
        ) -> None:
            # After the connection is closed this cannot be found out.
            transport = client.get_transport()
            if transport is not None and transport.remote_version:
                greeted.set()
            client.close()

        try:
            # The user-mode networks accept connections before the guest is up, and then send
            # nothing. So the first attempts are short, and each later one gets more time.
            attended(
                functools.partial(_connect_once, address, client, key, patience_s),
                deadline.at_most(patience_s + 2 * _TRY_S),
                watch,
                stop_trying,
            )
        except (paramiko.SSHException, _MoreAsked, OSError, EOFError) as error:
            hang_ups = hang_ups + 1 if ssh_reason.hung_up(client, error) else 0
            client.close()
            refusal = _refusal(address, error, hang_ups)
            if refusal:
                raise SshRefused(refusal) from error
            reason = ssh_reason.explain(error)
        except OutOfTime:
            hang_ups = 0
            reason = "the handshake did not end" if greeted.is_set() else ssh_reason.NO_BANNER
        except BaseException:
            client.close()
            raise
        else:
            return client
        patience_s = min(_TRY_S, patience_s * 1.5)
        if deadline.remaining_s < _PAUSE_S:
            watch()
            raise WaitTimeout(
                f"no SSH connection to {address.host}:{address.port} within "
                f"{deadline.limit_s:.0f} s; the last attempt: {reason}"
            )
        time.sleep(_PAUSE_S)


def _new_client(address: Address) -> paramiko.SSHClient:
    kind, data = address.host_key.split()[:2]
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = f"[{address.host}]:{address.port}"
    pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(data))
    client.get_host_keys().add(name, kind, pinned)
    return client


def _connect_once(
    address: Address, client: paramiko.SSHClient, key: paramiko.PKey, patience_s: float
) -> None:
    # The limit of the whole negotiation; it is longer than the banner's, so that a missing
    # banner is reported as such.
    limit_s = patience_s + _TRY_S
    forward = Forward(address.port, address.network_of)
    client.connect(
        address.host,
        port=address.port,
        sock=forward.connect(limit_s),
        username=address.user,
        pkey=key,
        allow_agent=False,
        look_for_keys=False,
        timeout=limit_s,
        banner_timeout=patience_s,
        auth_timeout=_TRY_S,
    )
    # paramiko also returns if the key was only the first of several steps.
    transport = client.get_transport()
    if transport is not None and transport.is_active() and not transport.is_authenticated():
        raise _MoreAsked


def _refusal(address: Address, error: Exception, hang_ups: int) -> str:
    """Why the guest refuses us, where waiting would not change it; otherwise an empty text."""
    settings = "out of the image's /etc/ssh/sshd_config and import it again"
    if isinstance(error, paramiko.BadHostKeyException):
        return ssh_reason.other_host_key(error, address.port)
    if isinstance(error, IncompatiblePeer):
        return (
            f"the guest's sshd and this side have no common algorithm ({error}); take the lines "
            f"KexAlgorithms, Ciphers, MACs and HostKeyAlgorithms {settings}"
        )
    if isinstance(error, _MoreAsked):
        return (
            f"the guest accepted our key for {address.user} but asks for more (two-step "
            f"authentication); take AuthenticationMethods {settings}"
        )
    if isinstance(error, paramiko.AuthenticationException) and not ssh_reason.broke_off(error):
        return f"the guest denied our key for {address.user} ({error}); import the image again"
    return ssh_reason.no_host_key() if hang_ups == ssh_reason.HANG_UPS else ""
