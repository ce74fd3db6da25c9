"""Several mails as one series: which belong to it, and in which order.

A mailbox from a list's archive has its mails as they arrived: the second before the first, answers
with a diff in them, the same mail twice.  git am takes them all, in that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from harness.errors import PatchError

_TAG = re.compile(r"\[([^\]\n]*)\]")
_NUMBER = re.compile(r"\b(\d{1,4})/(\d{1,4})\b")
_VERSION = re.compile(r"\bv(\d{1,3})\b", re.I)
_MOST = 500
_REPLY = re.compile(r"(?:re|aw|sv|antw)(?:\[\d+\])?:", re.I)


@dataclass(frozen=True)
class Tags:
    """What a subject says beside its words: [PATCH v2 3/7] is version 2, number 3 of 7.

    All are 0 where it says nothing; `version` is 1 where it says PATCH or a number alone.
    """

    number: int = 0
    total: int = 0
    version: int = 0
    reply: bool = False


def tags(subject: str) -> Tags:
    """Read the tags of a whole subject."""
    number = total = version = 0
    for tag in _TAG.findall(subject):
        if found := _NUMBER.search(tag):
            number, total = int(found[1]), int(found[2])
        if found := _VERSION.search(tag):
            version = int(found[1])
        elif "patch" in tag.lower() or number:
            version = version or 1
    return Tags(number, total, version, bool(_REPLY.match(subject.strip())))


class Tagged(Protocol):
    """A patch that came in a mail."""

    @property
    def name(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def tags(self) -> Tags: ...
    @property
    def diff(self) -> bytes: ...


T = TypeVar("T", bound=Tagged)


def arranged(patches: Sequence[T], where: str) -> tuple[list[T], list[str]]:
    """The patches of a mailbox or a folder that are its series, in order, and notes on the others.

    PatchError: it has the patches of several versions of a series.
    """
    notes: list[str] = []
    own = [it for it in patches if not it.tags.reply] or list(patches)
    for it in patches:
        if it not in own:
            notes.append(f"{it.name}: an answer, whose diff is not applied: {it.subject}")
    once: dict[tuple[str, bytes], T] = {}
    for it in own:
        first = once.setdefault((it.subject, it.diff), it)
        if first is not it:
            notes.append(f"{it.name}: the same patch as {first.name}")
    found = list(once.values())
    if several := sorted({it.tags.version for it in found if it.tags.version}):
        _require_one_version(found, several, where)
    return _in_order(found, where, notes), notes


def _require_one_version(found: Sequence[Tagged], several: Sequence[int], where: str) -> None:
    versions: dict[str, set[int]] = {}
    for it in found:
        versions.setdefault(it.subject, set()).add(it.tags.version)
    totals = {(it.tags.version, it.tags.total) for it in found if it.tags.total}
    again = any(len(it) > 1 for it in versions.values())
    if len(several) > 1 and (again or len(totals) > 1):
        raise PatchError(
            f"{where}: it has the patches of several versions "
            f"({', '.join(f'v{it}' for it in several)}); leave those of one in it"
        )


def _in_order(found: list[T], where: str, notes: list[str]) -> list[T]:
    numbers = [it.tags.number for it in found]
    totals = {it.tags.total for it in found}
    if len(found) < 2 or len(totals) > 1 or 0 in numbers or len(set(numbers)) < len(numbers):
        return found
    ordered = sorted(found, key=lambda it: it.tags.number)
    if ordered != found:
        notes.append(f"{where}: taken in the order of their subjects ({_few(sorted(numbers))})")
    return ordered


def lacking(patches: Iterable[Tagged]) -> list[str]:
    """Which patches of a series are not there, by the numbers in the subjects of the others."""
    groups: dict[tuple[int, int], set[int]] = {}
    for it in patches:
        if it.tags.total and not it.tags.reply:
            groups.setdefault((it.tags.version, it.tags.total), set()).add(it.tags.number)
    notes = []
    for (version, total), numbers in sorted(groups.items()):
        # A subject may say anything; nobody sends so many.
        if total <= _MOST and (missing := set(range(1, total + 1)) - numbers):
            which = f" of version {version}" if version > 1 else ""
            notes.append(
                f"by their subjects there are {total} patches{which}; absent: "
                f"{_few(sorted(missing))}"
            )
    return notes


def _few(numbers: Iterable[int]) -> str:
    given = [str(it) for it in numbers]
    return ", ".join(given[:5]) + (", ..." if len(given) > 5 else "")
