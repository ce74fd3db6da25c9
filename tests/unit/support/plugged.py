"""Runs of pytest with the plugin and a fake guest."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench

from harness.files import PROJECT
from harness.run import plugin

SUPPORT = PROJECT / "tests/unit/support"


class Brought:
    """Hands pytest a guest that is up, as verify does."""

    def __init__(self, guest: FakeGuest) -> None:
        self.bench = fake_bench(guest)

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[plugin.WORKBENCH] = cast(Any, self.bench)


def run(pytester: pytest.Pytester, text: str, guest: FakeGuest | None) -> pytest.RunResult:
    pytester.makepyfile(text)
    plugins = [Brought(guest)] if guest else []
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", plugins=plugins)


class Own:
    """A workbench that the plugin brings up itself."""

    def __init__(self, played: FakeGuest, options: object, error: Exception | None) -> None:
        self.__dict__.update(vars(fake_bench(played)), options=options)
        self.error = error

    def up(self) -> Own:
        if self.error:
            raise self.error
        return self

    def __enter__(self) -> Own:
        return self

    def __exit__(self, *_exc: object) -> None: ...


def brought_up(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    *options: str,
    error: Exception | None = None,
) -> pytest.RunResult:
    monkeypatch.setattr(plugin, "Session", lambda o, _run: Own(FakeGuest(), o, error))
    monkeypatch.setattr(plugin, "new_run_dir", lambda _what: pytester.path)
    pytester.makepyfile(text)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rsx", *options)


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()
