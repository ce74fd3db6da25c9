"""`inv topic.new`: makes the folder of a new topic that can be run immediately."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from harness import defaults, files
from harness import release as releases
from harness.errors import UsageError
from harness.series import listing, load

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_LONGEST = 40

_SERIES = """\
# The patches of {name} for FreeBSD {release}, one a line, in the order in which they apply.
# git format-patch makes them; ../common/NAME.patch is one that fits every release.
"""

_CHECKS = '''\
"""{name}: what its patches claim.

The general checks of any vmm.ko (tests/guest) run beside these.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.bhyve.vmm import Vmm
from harness.units import MiB


@pytest.mark.vtx
@pytest.mark.tools
def test_a_vm_of_64_mib_comes_and_goes(vmm: Vmm, vm: Callable[..., None]) -> None:
    """{name}: a VM of 64 MiB is made and destroyed"""
    vm("{short}", 64 * MiB)
    assert vmm.names() == ["{short}"]
    vmm.destroy("{short}")
    assert vmm.names() == []


# A claim of the patches' own is marked so: on the stock module it must fail, or it proves nothing.
#
# @pytest.mark.patch
# def test_the_new_sysctl_is_there(guest) -> None:
#     """hw.vmm.{short} is 0 without a VM"""
#     assert guest.sysctl("hw.vmm.{short}") == "0"
'''

_NOTES = """\
# {name}

What the patches do, and why.

    ./inv patch.check --topic {name}         does it apply, style(9), manuals, sign-off
    ./inv verify --topic {name}              boot FreeBSD, build, load, check: the verdict
    ./inv verify --topic {name} --side-by-side   stock and patched in one guest
    ./inv fuzz --topic {name}                bad calls on both modules

- `{release}/series` names the patches for FreeBSD {release}; a folder `common/` may hold what fits
  every release.
- `tests/` holds the checks of what they claim, pytest over the fixtures `guest`, `vmm`, `vm`, `l2`.
"""


def new(name: str, release: str, root: Path = load.PATCHES, like: str = "") -> Path:
    """Make a topic, completely or not at all; returns its folder.

    `like` is a topic to copy: its checks, sources, mutants and patches.  The copy gets a series for
    `release` only if that is not empty.  Raises UsageError for an invalid name (it has lower-case
    letters and digits, with `-` and `_` between them), an existing one, or an unknown topic to
    copy.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or name == listing.COMMON:
        raise UsageError(
            f"{name!r} cannot be a topic's name: lower-case letters and digits, with - or _ "
            f"between them, at most {_LONGEST}, and not {listing.COMMON}"
        )
    known = releases.read(release)
    if (known is None or known.kind) and not (like and not release):
        raise UsageError(f"{release!r}: it must be a release like {defaults.RELEASE} or 14")
    folder = root / name
    if folder.exists():
        raise UsageError(f"{folder} already exists; choose another name")
    short = re.sub("[-_]", "", name)
    words = {"name": name, "release": release, "short": short}
    root.mkdir(parents=True, exist_ok=True)
    if like:
        return _copy(root, like, folder, _SERIES.format(**words) if release else "", release)
    with files.atomic_dir(folder) as work:
        work.chmod(0o755)
        (work / release).mkdir()
        (work / release / "series").write_text(_SERIES.format(**words))
        (work / "tests").mkdir()
        module = f"test_{name.replace('-', '_')}.py"
        (work / "tests" / module).write_text(_CHECKS.format(**words))
        (work / "README.md").write_text(_NOTES.format(**words))
    return folder


def _copy(root: Path, like: str, folder: Path, series: str, release: str) -> Path:
    """Copy a topic, with the new topic's name in its files."""
    known = (*load.topics(root), *load.suites(root))
    if like not in known:
        raise UsageError(f"--like {like}: no such topic; choose from {', '.join(known) or 'none'}")
    # The places where the name means the topic, and not just its subject.
    said = re.compile(
        rf"(?P<before>\btest_|\bpatches/|--topic |^# |^\"\"\"){re.escape(like)}\b(?!-)", re.M
    )

    def renamed(text: str) -> str:
        return said.sub(
            lambda found: found["before"] + (module if found["before"] == "test_" else folder.name),
            text,
        )

    module = folder.name.replace("-", "_")
    with files.atomic_dir(folder) as work:
        work.chmod(0o755)
        for path in sorted((root / like).rglob("*")):
            place = path.relative_to(root / like)
            if path.is_symlink() or "__pycache__" in place.parts:
                continue
            target = work / place.with_name(renamed(place.name))
            if path.is_dir():
                target.mkdir(exist_ok=True)
            elif path.is_file():
                data = path.read_bytes()
                with contextlib.suppress(UnicodeDecodeError):
                    data = renamed(data.decode()).encode()
                target.write_bytes(data)
        if series and not (work / release).exists():
            (work / release).mkdir()
            (work / release / "series").write_text(series)
    return folder
