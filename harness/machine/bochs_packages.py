"""The Bochs of another Debian, next to this machine's own: its packages are unpacked in the cache.

    CACHE/bochs/SUITE/    the packages' files, in Debian's layout; bochs_program runs it from there

Nothing is installed, and root is not needed.  apt finds and verifies the packages, with its own
lists and an empty status, so that it also fetches every library.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness import files, process, surroundings
from harness.deadline import Deadline
from harness.errors import CannotError, UsageError

SUITES: Mapping[str, str] = {"2.7": "bookworm", "3.0": "trixie"}
"""A version of Bochs, and the Debian that has it."""

MIRROR = "HARNESS_DEBIAN_MIRROR"

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_WANTED = ("bochs", "bochs-term", "bochsbios", "vgabios")
# Packages that apt would also fetch but Bochs does not need: daemons, data of desktops.
_PREFIXES = ("bochs", "lib", "vgabios", "zlib")
# The files that Bochs uses.
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
    """The folder of a version, which need not exist; UsageError for an unknown version."""
    if version not in SUITES:
        raise UsageError(f"Bochs {version}: unknown version; choose from {', '.join(SUITES)}")
    return files.cache_dir() / "bochs" / SUITES[version]


def there() -> dict[str, Path]:
    """The versions that are unpacked."""
    return {version: place for version in SUITES if (place := folder(version)).is_dir()}


def unpack(version: str) -> Path:
    """The folder with a version, which is unpacked if necessary (a download of about 45 MB).

    Raises UsageError for an unknown version, CannotError if its packages cannot be found or
    downloaded.
    """
    target = folder(version)
    with files.locked(target.parent / "lock", f"unpacking Bochs {version}"):
        if target.is_dir():
            return target
        # apt fetches as its own user, which could not enter the cache; in this folder it may read
        # root's files.
        with tempfile.TemporaryDirectory(prefix="vmm-bochs-") as work:
            root = Path(work) / "root"
            for deb in _download(Path(work), SUITES[version]):
                _extract(deb, root)
            with files.atomic_dir(target) as place:
                for name in _USED:
                    _copy(root / name, place / name)
    return target


def _extract(deb: Path, root: Path) -> None:
    done = process.run(["dpkg-deb", "-x", deb, root], Deadline.after(_LIMIT_S))
    if not done.ok:
        said = done.stderr.strip().splitlines() or [f"dpkg-deb exited with {done.code}"]
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
            raise CannotError(
                f"another Debian's Bochs is fetched with apt, but there is no {program}"
            )
    if not _KEYRING.exists():
        command = surroundings.look().as_root("apt-get install debian-archive-keyring")
        raise CannotError(f"{_KEYRING} is missing; run {command}")
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
    """The Debian mirror that this machine uses, or the one that the user named."""
    if named := os.environ.get(MIRROR, "").strip():
        return named
    wanted = ("indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    for line in _apt(*wanted).splitlines():
        origin, _, address = line.partition(" ")
        if origin == "Debian" and "security" not in address:
            return address
    raise CannotError(
        "another Debian's Bochs is fetched from a mirror of Debian, but apt's lists "
        "here name none; "
        f"run {surroundings.look().as_root('apt-get update')}, or name one: {MIRROR}=URL"
    )


def _apt(*arguments: str) -> str:
    try:
        # With the caller's whole environment: apt's configuration and proxies may be in it.
        done = process.run(
            ["apt-get", "-q", *arguments],
            Deadline.after(_LIMIT_S),
            environment={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except process.Unfinished as error:
        raise CannotError(f"apt-get did not end within {_LIMIT_S:.0f} s") from error
    # An update that could fetch nothing also exits with 0.
    complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed"))]
    if not done.ok or complaints:
        raise CannotError(
            "another Debian's Bochs could not be fetched with apt: "
            f"{(complaints or ['no reason given'])[0]}",
            detail=done.stderr,
        )
    return done.stdout
