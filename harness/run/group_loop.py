"""Runs a guest's share of the checks in pytest: groups of checks, until none are left."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from harness.run.workbench import Workbench


class DistributedLoop:
    """A pytest plugin that runs the groups that it gets, instead of all tests in order."""

    def __init__(
        self,
        next_group: Callable[[list[pytest.Item]], tuple[str, ...]],
        begun: Callable[[str], None],
        usable: Callable[[], bool],
    ) -> None:
        """`begun` gets the node id of each check before it runs; the loop ends when the guest is
        not `usable`.
        """
        self._next = next_group
        self._begun = begun
        self._usable = usable

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> object:
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted("errors during collection")
        items = {item.nodeid: item for item in session.items}
        while self._usable() and (names := self._next(session.items)):
            for name, after in itertools.zip_longest(names, names[1:]):
                self._begun(name)
                item = items[name]
                # After the last check of a group its shared fixtures are torn down.
                following = items[after] if after else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        return True


def goes_on(bench: Workbench) -> bool:
    """Whether the guest can run more checks; the plugin resets go_on if a broken guest does not
    come up again.
    """
    return bench.options.go_on


def key(item: pytest.Item) -> str:
    """The key that keeps checks together: their mark `together`, or the fixtures that they share.

    A fixture of a file or class is set up once for a group, so the checks that use it form one
    group.
    """
    if (mark := item.get_closest_marker("together")) and mark.args:
        return f"{item.path}::{mark.args[0]}"
    info = getattr(item, "_fixtureinfo", None)
    definitions = [it for each in info.name2fixturedefs.values() for it in each] if info else []
    shared = any(it.scope in ("module", "class", "package") for it in definitions)
    return str(item.path) if shared else item.nodeid


def planned(items: list[pytest.Item]) -> list[tuple[str, str]]:
    """The checks of a run: the key of each one's group, and its node id.

    Those that take minutes come first, because groups whose times are not known keep this order.
    """
    found = sorted(items, key=lambda item: item.get_closest_marker("minutes") is None)
    return [(key(item), item.nodeid) for item in found]
