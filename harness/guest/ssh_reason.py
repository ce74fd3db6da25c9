"""Why a try to connect failed, and which failures no waiting can change."""

from __future__ import annotations

import socket

import paramiko

from harness.guest import keys

NO_BANNER = "connected, but no SSH banner came (sshd is not up yet, or hangs)"
# A guest that is going down may hang up on us in this way once; it does not come back so soon.
HANG_UPS = 3


def broke_off(error: paramiko.AuthenticationException) -> bool:
    """Whether an authentication did not come to its end, which paramiko calls a failed one too."""
    text = str(error).lower()
    return "timeout" in text or "shut down" in text or "eof" in text


def explain(error: BaseException) -> str:
    """Why a try failed, each kind by its own words: nobody listens, silence, no banner, cut off."""
    text = str(error)
    if isinstance(error, ConnectionRefusedError) or "Unable to connect" in text:
        return "connection refused (sshd is not up, or the network is not)"
    if "banner" in text:
        return NO_BANNER
    if isinstance(error, TimeoutError | socket.timeout):
        return "no answer"
    if isinstance(error, EOFError | ConnectionResetError) or "shut down" in text:
        return "the connection was cut off"
    return text or type(error).__name__


def hung_up(client: paramiko.SSHClient, error: BaseException) -> bool:
    """Whether sshd greeted and hung up before both sides agreed on anything.

    sshd does so on every connection when its HostKeyAlgorithms leave it no host key to show: it
    ends before it says what it can speak.  Ask before the client is closed.
    """
    transport = client.get_transport()
    return (
        isinstance(error, EOFError | ConnectionResetError)
        and transport is not None
        and bool(transport.remote_version)
        and transport.host_key_type is None
    )


def no_host_key() -> str:
    """What to say when sshd hung up so HANG_UPS times in a row."""
    return (
        f"the guest's sshd greets and hangs up before the key exchange, {HANG_UPS} times in a row, "
        "as it does when its HostKeyAlgorithms fit none of its host keys; take the lines "
        "HostKeyAlgorithms and HostKey out of the image's /etc/ssh/sshd_config and import it again "
        "(sshd's own reason is in the guest's /var/log/auth.log)"
    )


def other_host_key(error: paramiko.BadHostKeyException, port: int) -> str:
    """What to say when another host key was shown than the pinned one."""
    shown, pinned = error.key, error.expected_key
    if shown.get_name() != pinned.get_name():
        return (
            f"the guest's sshd shows only a host key of the kind {shown.get_name()}, and the "
            f"prepared image's is {pinned.get_name()}; take the lines HostKeyAlgorithms and "
            "HostKey out of the image's /etc/ssh/sshd_config and import it again, or find out who "
            f"answers on port {port}"
        )
    return (
        f"the guest shows the host key {keys.fingerprint(shown)}, the prepared image's is "
        f"{keys.fingerprint(pinned)}; import the image again, or find out who answers on port "
        f"{port}"
    )
