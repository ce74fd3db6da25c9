"""Makes the "newc" archive that Linux uses as its first file system, without root."""

from __future__ import annotations

import stat


class Archive:
    """An archive to which files are added in order; missing parent folders are added too."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._names: set[str] = set()
        self._inode = 0

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder, and those above it."""
        if name in self._names:
            return
        self._parents(name)
        self._add(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self._parents(name)
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(name)
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._parents(name)
        self._add(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def closed(self) -> bytes:
        """The whole archive, closed."""
        trailer = Archive()
        trailer._add("TRAILER!!!", 0, b"")
        whole = bytes(self._data + trailer._data)
        return whole + b"\0" * (-len(whole) % 512)

    def _parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            self.folder("/".join(parts[:end]))

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._names.add(name)
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += b"\0" * (-len(self._data) % 4)
