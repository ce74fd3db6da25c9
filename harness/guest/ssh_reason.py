"""The reasons of failed attempts to connect, and which of them waiting cannot change."""

from __future__ import annotations

import socket

import paramiko

from harness.guest import keys

NO_BANNER = "connected, but no SSH banner came (sshd is not up yet, or hangs)"
# A guest that shuts down may close the connection in this way once, but not so soon again.
HANG_UPS = 3


def broke_off(error: paramiko.AuthenticationException) -> bool:
    """Whether an authentication was interrupted, which paramiko also reports as a failed one."""
    text = str(error).lower()
    return "timeout" in text or "shut down" in text or "eof" in text


def explain(error: BaseException) -> str:
    """Why an attempt failed: nobody listens, no answer, no banner, or a closed connection."""
    text = str(error)
    if isinstance(error, ConnectionRefusedError) or "Unable to connect" in text:
        return "connection refused (sshd is not up, or the network is not)"
    if "banner" in text:
        return NO_BANNER
    if isinstance(error, TimeoutError | socket.timeout):
        return "no answer"
    if isinstance(error, EOFError | ConnectionResetError) or "shut down" in text:
        return "the connection was closed by the guest"
    return text or type(error).__name__


def hung_up(client: paramiko.SSHClient, error: BaseException) -> bool:
    """Whether sshd sent its banner and closed the connection before the key exchange.

    sshd does that on every connection if its HostKeyAlgorithms allow none of its host keys: it ends
    before it names its algorithms.  Call this before the client is closed.
    """
    transport = client.get_transport()
    return (
        isinstance(error, EOFError | ConnectionResetError)
        and transport is not None
        and bool(transport.remote_version)
        and transport.host_key_type is None
    )


def no_host_key() -> str:
    """The message if sshd closed the connection in this way HANG_UPS times in a row."""
    return (
        f"the guest's sshd closes the connection before the key exchange, {HANG_UPS} "
        f"times in a row, "
        "as it does if its HostKeyAlgorithms allow none of its host keys; take the lines "
        "HostKeyAlgorithms and HostKey out of the image's /etc/ssh/sshd_config and import it again "
        "(sshd's own reason is in the guest's /var/log/auth.log)"
    )


def other_host_key(error: paramiko.BadHostKeyException, port: int) -> str:
    """The message if the guest's host key is not the pinned one."""
    shown, pinned = error.key, error.expected_key
    if shown.get_name() != pinned.get_name():
        return (
            f"the guest's sshd has only a host key of the type {shown.get_name()}, but "
            f"the "
            f"prepared image's is {pinned.get_name()}; take the lines HostKeyAlgorithms and "
            "HostKey out of the image's /etc/ssh/sshd_config and import it again, or "
            "find out which program "
            f"answers on port {port}"
        )
    return (
        f"the guest shows the host key {keys.fingerprint(shown)}, but the prepared image's is "
        f"{keys.fingerprint(pinned)}; import the image again, or find out who answers on port "
        f"{port}"
    )
