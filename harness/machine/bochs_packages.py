"""Another Debian's Bochs beside this machine's own: its packages, unpacked into the cache.

    CACHE/bochs/SUITE/    as the packages' files lie on a Debian; bochs_program runs it from there

Nothing is installed and no root is needed.  apt finds and checks the packages, with lists and a
status of its own, so that it knows of none that is installed and brings every library along.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness import files
from harness.errors import CannotError, UsageError

SUITES: Mapping[str, str] = {"2.7": "bookworm", "3.0": "trixie"}
"""A version of Bochs, and the Debian that has it."""

MIRROR = "HARNESS_DEBIAN_MIRROR"

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_WANTED = ("bochs", "bochs-term", "bochsbios", "vgabios")
# Bochs needs no more of what apt would bring: no daemon, no data of desktops.
_PREFIXES = ("bochs", "lib", "vgabios", "zlib")
# What of all their files Bochs uses.
_USED = (
    "usr/bin/bochs-bin",
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/share/bochs",
    "usr/share/vgabios",
)
_LIMIT_S = 300.0


def folder(version: str) -> Path:
    """Where that version is, or will be.  UsageError for one that no Debian here has."""
    if version not in SUITES:
        raise UsageError(f"Bochs {version}: one of {', '.join(SUITES)} is meant")
    return files.cache_dir() / "bochs" / SUITES[version]


def there() -> dict[str, Path]:
    """The versions that were unpacked."""
    return {version: place for version in SUITES if (place := folder(version)).is_dir()}


def unpack(version: str) -> Path:
    """The folder with that version, unpacked if it is not there yet (some 45 MB to download).

    Raises UsageError for a version that no Debian here has, CannotError when its packages can be
    neither found nor downloaded.
    """
    target = folder(version)
    with files.locked(target.parent / "lock", f"unpacking Bochs {version}"):
        if target.is_dir():
            return target
        # apt fetches as a user of its own, which could not get into the cache; root's files may
        # be read by it here.
        with tempfile.TemporaryDirectory(prefix="vmm-bochs-") as work:
            root = Path(work) / "root"
            for deb in _download(Path(work), SUITES[version]):
                _extract(deb, root)
            with files.atomic_dir(target) as place:
                for name in _USED:
                    _copy(root / name, place / name)
    return target


def _extract(deb: Path, root: Path) -> None:
    done = subprocess.run(
        ["dpkg-deb", "-x", deb, root], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"dpkg-deb exited with {done.returncode}"]
        raise CannotError(f"{deb.name} cannot be unpacked: {said[-1]}")


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def _download(work: Path, suite: str) -> list[Path]:
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise CannotError(f"another Debian's Bochs comes with apt, and there is no {program}")
    if not _KEYRING.exists():
        raise CannotError(f"{_KEYRING} is missing; apt-get install debian-archive-keyring")
    work.chmod(0o755)
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    source = f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n"
    (work / "sources.list").write_text(source)
    options = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": work,
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": work / "status",
        "Dir::Cache": work / "cache",
        "Debug::NoLocking": "1",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
    }
    given = [f"-o{name}={value}" for name, value in options.items()]
    _apt(*given, "update")
    _apt(*given, "--yes", "--no-install-recommends", "--download-only", "install", *_WANTED)
    found = sorted((work / "cache/archives").glob("*.deb"))
    return [deb for deb in found if deb.name.startswith(_PREFIXES)]


def _mirror() -> str:
    """The archive of Debian that this machine uses, or the one that was named."""
    if named := os.environ.get(MIRROR, "").strip():
        return named
    wanted = ("indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    for line in _apt(*wanted).splitlines():
        origin, _, address = line.partition(" ")
        if origin == "Debian" and "security" not in address:
            return address
    raise CannotError(
        "another Debian's Bochs comes from a mirror of Debian, and apt's lists here name none; "
        f"run apt-get update, or name one: {MIRROR}=URL"
    )


def _apt(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["apt-get", "-q", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotError(f"apt-get did not end within {_LIMIT_S:.0f} s") from error
    # An update that could fetch nothing exits with 0 all the same.
    complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed"))]
    if done.returncode or complaints:
        raise CannotError(
            "another Debian's Bochs could not be had with apt: "
            f"{(complaints or ['no reason given'])[0]}",
            detail=done.stderr,
        )
    return done.stdout
