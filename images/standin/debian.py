"""The packages of the stand-in: found and downloaded with apt, but not installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import CannotError

# The first of these kernels that the distribution has: Debian's, then Ubuntu's.
KERNELS = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64")
# Libraries that every Debian or Ubuntu system has (libc, zlib, libcrypt) are taken from this one.
PACKAGES = (
    "busybox-static",
    "dropbear-bin",
    "grub-common",
    "grub-pc-bin",
    "libdevmapper1.02.1",
    "libgmp10",
    "libtomcrypt1",
    "libtommath1",
    "openssh-sftp-server",
)


def _apt(cache: Path, *arguments: str, cwd: Path | None = None, own_lists: bool = False) -> str:
    """Run an apt command; CannotError with its last line if it fails."""
    options: list[str] = []
    if own_lists:
        # Use separate lists, so that refreshing them needs no root and changes nothing on this
        # system.
        state = cache / "apt"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (state / "cache").mkdir(exist_ok=True)
        options = [f"-oDir::State::Lists={state / 'lists'}", f"-oDir::Cache={state / 'cache'}"]
    command = [arguments[0], *options, "-q", *arguments[1:]]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError as error:
        raise CannotError(
            f"the stand-in guest is made from Debian packages, but there is no {arguments[0]} here"
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise CannotError(
            f"the stand-in guest needs Debian packages; `{' '.join(arguments[:2])}` failed: "
            f"{(lines or ['no reason given'])[0]}"
        )
    return done.stdout


def resolve(cache: Path, kernels: Sequence[str] = KERNELS) -> list[str]:
    """The packages by name and version (`busybox-static=1:1.35.0-4`); refreshes the lists if
    needed.

    The kernel is the first of `kernels` that the distribution has.
    """
    try:
        return _candidates(cache, kernels, own_lists=False)
    except CannotError:
        _apt(cache, "apt-get", "update", own_lists=True)
        return _candidates(cache, kernels, own_lists=True)


def _candidates(cache: Path, kernels: Sequence[str], own_lists: bool) -> list[str]:
    shown = _apt(cache, "apt-cache", "show", "--no-all-versions", *PACKAGES, own_lists=own_lists)
    found = [f"{p['Package']}={p['Version']}" for p in _stanzas(shown)]
    if len(found) < len(PACKAGES):
        lacking = sorted(set(PACKAGES) - {package.split("=")[0] for package in found})
        raise CannotError(
            f"the stand-in guest is made from Debian packages, but apt's lists lack {lacking[0]}; "
            "is there a network, and does apt-get update work?"
        )
    return found + _kernel_packages(cache, kernels, own_lists)


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        pairs = (line.split(": ", 1) for line in block.splitlines() if ": " in line)
        stanza = {key: value for key, value in pairs if not key.startswith(" ")}
        if "Package" in stanza:
            yield stanza


def _kernel_packages(cache: Path, kernels: Sequence[str], own_lists: bool) -> list[str]:
    """The kernel's own packages, which the name for the newest kernel depends on."""
    for name in kernels:
        try:
            meta = next(_stanzas(_apt(cache, "apt-cache", "show", name, own_lists=own_lists)))
        except (CannotError, StopIteration):
            continue
        real = [d.split()[0] for d in meta["Depends"].split(",") if "linux-image-" in d]
        image = next(_stanzas(_apt(cache, "apt-cache", "show", real[0], own_lists=own_lists)))
        names = [d.strip().split()[0] for d in image["Depends"].split(",")]
        extra = [n for n in names if n.startswith("linux-modules-")]
        shown = _apt(cache, "apt-cache", "show", real[0], *extra, own_lists=own_lists)
        newest: dict[str, str] = {}
        for stanza in _stanzas(shown):
            newest.setdefault(stanza["Package"], stanza["Version"])
        return [f"{package}={version}" for package, version in newest.items()]
    raise CannotError(f"the stand-in guest: apt's lists have none of {', '.join(kernels)}")


def unpack(packages: list[str], cache: Path, root: Path) -> None:
    """Download the packages and unpack their files below `root`."""
    debs = root.parent / "debs"
    debs.mkdir()
    try:
        _apt(cache, "apt-get", "download", *packages, cwd=debs)
    except CannotError:
        # The system's lists have versions that the archive no longer has, or there are no lists.
        _apt(cache, "apt-get", "update", own_lists=True)
        names = [package.split("=")[0] for package in packages]
        _apt(cache, "apt-get", "download", *names, cwd=debs, own_lists=True)
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
