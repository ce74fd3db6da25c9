"""All bounds for input from outside, in one place.

Sizes and counts from a header, a guest or a mirror are compared with these bounds before anything
is read, written or stored.  If the real limit is the room on the disk, the free room is checked as
well.
"""

from __future__ import annotations

ARCHIVE_HEADER_BYTES = 256 << 10
"""All headers of one member of a tar together: pax records, long names, maps of sparse files."""

ARCHIVE_MEMBERS = 1_000_000
"""Members of one archive.  FreeBSD's source has about 110,000, its base system about 30,000."""

ARCHIVE_PLAIN_BYTES = 64 << 30
"""The length of an unpacked archive, including the members that are skipped."""

ARCHIVE_TAIL_BYTES = 16 << 20
"""Bytes that may follow the end mark of a tar: padding to a full record."""

PATH_BYTES = 1024
"""The length of a member's path and of a link's target, as FreeBSD's MAXPATHLEN."""

PATH_PARTS = 128
"""The depth of nested folders; some tools cannot remove deeper ones."""

LOG_MOST_BYTES = 1 << 30
"""Bytes stored of a machine's console, and bytes that Bochs may write to its log for one guest."""

BUILD_LEAVES_BYTES = 256 << 20
"""Room that a build must leave free on its disk; a build that takes more is ended."""

BUILD_LEAVES_FILES = 1_000
"""The number of files that its file system must still have room for."""

LEAST_FREE_BYTES = 512 << 20
"""Room that unpacking must leave free on the disk."""

LEAST_FREE_FILES = 10_000
"""The number of files that a file system must still have room for during unpacking."""

LATEST_TIME_S = 7_258_118_400
"""The year 2200: a file's time beyond it, or before 1970, is not set."""

XZ_MEMORY_BYTES = 512 << 20
"""The memory that unpacking an xz stream may need; `xz -9` needs 65 MiB."""

DISK_BYTES = 4 << 40
"""The size of the largest disk that is accepted, sparse or not."""

PATCH_BYTES = 256 << 20
"""What may come in on a pipe as a series; the largest patches of FreeBSD import a compiler."""

COMMAND_OUTPUT_BYTES = 64 << 20
"""Bytes that one command in a guest may print before it is ended; `pull` has no such bound."""

REPORT_BYTES = 64 << 20
"""One file of a run's report.  A run of all checks leaves about 2 MB."""

MERGED_REPORTS = 512
"""Reports that are merged into one; GitHub and GitLab start fewer jobs at once."""

MERGED_FILES = 200_000
"""Files and folders that are looked at below one folder to find reports there."""

MERGED_PARTS = 8
"""Folders within folders below one that is merged."""
