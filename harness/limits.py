"""How much of a stranger's input is believed: one place for all bounds.

What a header, a guest or a mirror says is compared with these before anything is read, written or
kept because of it.  Where room on the disk is the true limit, the free room is asked for as well.
"""

from __future__ import annotations

ARCHIVE_HEADER_BYTES = 256 << 10
"""All headers of one member of a tar together: pax records, long names, maps of sparse files."""

ARCHIVE_MEMBERS = 1_000_000
"""Members of one archive.  FreeBSD's source has about 110,000, its base system about 30,000."""

ARCHIVE_PLAIN_BYTES = 64 << 30
"""What an archive may be long when it is unpacked, with what is passed over in it."""

ARCHIVE_TAIL_BYTES = 16 << 20
"""What may follow the end mark of a tar: padding to a whole record."""

PATH_BYTES = 1024
"""A member's path and a link's target.  FreeBSD's own limit (MAXPATHLEN) is this."""

PATH_PARTS = 128
"""Folders within folders; what is deeper cannot be removed by every tool either."""

LOG_MOST_BYTES = 1 << 30
"""What is stored of a machine's console, and what Bochs may write to its log about one guest."""

BUILD_LEAVES_BYTES = 256 << 20
"""Room that a build leaves free on its disk; what takes more is ended."""

BUILD_LEAVES_FILES = 1_000
"""Files that its file system must still be able to take."""

LEAST_FREE_BYTES = 512 << 20
"""Room that unpacking leaves free on the disk, whatever it unpacks."""

LEAST_FREE_FILES = 10_000
"""Files and folders that a file system must still be able to take while something is unpacked."""

LATEST_TIME_S = 7_258_118_400
"""The year 2200: a file's time beyond it, or before 1970, is not set."""

XZ_MEMORY_BYTES = 512 << 20
"""What an xz stream may want to be unpacked with; `xz -9` wants 65 MiB."""

DISK_BYTES = 4 << 40
"""The largest disk that is taken for one, sparse or not."""

PATCH_BYTES = 256 << 20
"""What may come in on a pipe as a series; the largest patches of FreeBSD import a compiler."""

COMMAND_OUTPUT_BYTES = 64 << 20
"""What one command in a guest may print before it is ended; what is pulled goes to a file."""
