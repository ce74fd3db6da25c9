"""Source trees and patches small enough to be made again for each test."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

NEWVERS = 'TYPE="FreeBSD"\nREVISION="15.1"\nBRANCH="RELEASE"\n'
PARAM = "#undef __FreeBSD_version\n#define __FreeBSD_version 1501000\n"
NUMBERED = "".join(f"line {number}\n" for number in range(1, 41))
# Enough of a share/mk for bmake, and a module of one file that lies where FreeBSD's would.
SYS_MK = "CC?=cc\n"
MODULE_MK = """\
CFLAGS=-ffreestanding -nostdinc -Wall -I${SRCTOP}/sys -MD -MF.depend.vmm.o
CFLAGS+=-include ${KERNBUILDDIR}/opt_global.h
OUT=${MAKEOBJDIRPREFIX}${SRCTOP}/amd64.amd64/sys/modules/vmm
all:
	@mkdir -p ${OUT}
	@echo "--- vmm.o ---"
	cd ${OUT} && ${CC} ${CFLAGS} -c ${SRCTOP}/sys/dev/vmm/vmm.c -o vmm.o
	cd ${OUT} && ${LD} -r --build-id=sha1 -o vmm.ko vmm.o
"""
VMM_C = """\
#include "dev/vmm/vmm.h"
int vmm_number(void);
const char *vmm_where = __FILE__;
int
vmm_number(void)
{
\treturn (NUMBER);
}
"""

BASE: Mapping[str, str] = {
    "sys/conf/newvers.sh": NEWVERS,
    "sys/sys/param.h": PARAM,
    "sys/conf/options": "# comment\nINVARIANTS opt_global.h\nNUMA opt_global.h\nDDB\n",
    "sys/conf/options.amd64": "HAMMER opt_cpu.h\nDEV_ACPI opt_acpi.h\n",
    "sys/amd64/conf/DEFAULTS": "machine amd64\noptions NUMA\n",
    "sys/amd64/conf/GENERIC": "cpu HAMMER\noptions \tDDB # debugger\ndevice acpi\n",
    "share/mk/sys.mk": SYS_MK,
    "sys/modules/vmm/Makefile": MODULE_MK,
    "sys/dev/vmm/vmm.c": VMM_C,
    "sys/dev/vmm/vmm.h": "#define NUMBER 1\n",
    "share/man/man4/vmm.4": NUMBERED,
}


def make_tree(folder: Path, more: Mapping[str, str] | None = None) -> Path:
    """A tree with the files that the harness reads, and some more."""
    for path, text in {**BASE, **(more or {})}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def diff(folder: Path, before: Mapping[str, str | None], after: Mapping[str, str | None]) -> bytes:
    """What git says is between two sets of files; None is a file that is not there."""
    repository = folder / "repository"
    subprocess.run(["rm", "-rf", str(repository)], check=True)
    repository.mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(folder),
    }

    def git(*arguments: str) -> bytes:
        return subprocess.run(
            ["git", *arguments], cwd=repository, env=environment, check=True, capture_output=True
        ).stdout

    def put(files: Mapping[str, str | None]) -> None:
        for path, text in files.items():
            target = repository / path
            if text is None:
                target.unlink(missing_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(text.encode())

    git("init", "-q")
    put(before)
    git("add", "-A")
    tree = git("write-tree").decode().strip()
    put(after)
    git("add", "-A")
    return git("diff", "--cached", "-M", tree)


def mail(
    body: bytes, subject: str = "vmm: Change a thing", message: str = "It was wrong."
) -> bytes:
    """A diff in the format of git format-patch."""
    head = (
        "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n"
        "From: A Hacker <a@example.org>\n"
        "Date: Mon, 23 Nov 2026 08:00:00 +0000\n"
        f"Subject: [PATCH] {subject}\n\n{message}\n\n"
        "Signed-off-by: A Hacker <a@example.org>\n---\n\n"
    )
    return head.encode() + body + b"-- \n2.39.5\n\n"


def make_series(
    folder: Path, patches: Mapping[str, bytes], common: Mapping[str, bytes] | None = None
) -> Path:
    """A topic with a series for 15.1; returns the topic's folder."""
    release = folder / "15.1"
    release.mkdir(parents=True)
    (folder / "common").mkdir()
    entries = []
    for name, data in patches.items():
        (release / name).write_bytes(data)
        entries.append(name)
    for name, data in (common or {}).items():
        (folder / "common" / name).write_bytes(data)
        entries.append(f"../common/{name}")
    (release / "series").write_text("# FreeBSD 15.1\n\n" + "".join(f"{it}\n" for it in entries))
    return folder


def snapshot(folder: Path) -> dict[str, tuple[str, int, int, int]]:
    """Everything under `folder`: digest or link target, mode, inode and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_dir():
            what = "folder"
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (
            what,
            state.st_mode,
            state.st_ino,
            state.st_mtime_ns,
        )
    return found


def content(folder: Path) -> dict[str, str]:
    """The same without times and inodes, which a rename changes."""
    return {path: f"{what} {mode:o}" for path, (what, mode, _, _) in snapshot(folder).items()}
