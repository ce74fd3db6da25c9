"""A separate program that starts an emulator in its own network, and connects to that network.

    enter_network.py run COMMAND...     run COMMAND in a new network that has only loopback
    enter_network.py connect PID PORT   connect to 127.0.0.1:PORT in the network of process PID, and
                                        send the connected socket over standard output, which is a
                                        socket itself (OpenSSH calls this ProxyUseFdpass)

On failure its exit code is the error's number, and a line on standard error says why.  It is run by
its path in an interpreter without site packages, so that it starts fast and imports no foreign
code.  Only a process with a single thread may enter another user namespace, so the harness cannot
do this itself.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys

# From <sched.h>, <linux/sockios.h> and <linux/if.h>.
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_INTERFACE = "16sh22x"
_CONNECT_S = 10.0
_OUTPUT = 1


def run(command: list[str]) -> None:
    """Become `command` in a new network, as the same process: number, parent and signals stay."""
    user, group = os.geteuid(), os.getegid()
    try:
        # root needs no user namespace, and would lose its rights to other users' files in one.
        _call("unshare", _CLONE_NEWNET)
    except PermissionError:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
        own = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, text in own.items():
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack(_INTERFACE, b"lo", 0)
        name, flags = struct.unpack(_INTERFACE, fcntl.ioctl(any_socket, _SIOCGIFFLAGS, asked))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_INTERFACE, name, flags | _IFF_UP))
    # Not by process.run: this process becomes the emulator.
    os.execvp(command[0], command)  # noqa: S606


def connect(pid: int, port: int) -> None:
    """Pass on a socket that is connected to a port in the network of process `pid`."""
    try:
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        owner = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    except FileNotFoundError:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the emulator has ended") from None
    # Its number may now belong to another process, and this machine's own ports are not a guest's.
    if os.path.samestat(os.fstat(network), os.stat("/proc/self/ns/net")):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the emulator has ended")
    try:
        _call("setns", network, _CLONE_NEWNET)
    except PermissionError:
        _call("setns", owner, _CLONE_NEWUSER)
        _call("setns", network, _CLONE_NEWNET)
    with socket.create_connection(("127.0.0.1", port), _CONNECT_S) as connection:
        connection.setblocking(True)
        with socket.socket(fileno=_OUTPUT) as output:
            socket.send_fds(output, [b"\0"], [connection.fileno()])


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library that Python offers only from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main(arguments: list[str]) -> int:
    """Run the command in the first argument; returns the exit code, an error's number."""
    try:
        if arguments[0] == "run":
            run(arguments[1:])
        else:
            connect(int(arguments[1]), int(arguments[2]))
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        # An exception for one of Python's own time limits has no number.
        return error.errno or errno.ETIMEDOUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
