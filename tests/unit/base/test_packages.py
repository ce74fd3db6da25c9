"""What has to be installed, and what may be."""

from __future__ import annotations

import shutil

import pytest

from harness import debian
from harness.debian import Missing
from harness.errors import CannotError

Asked = list[tuple[str, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What would have been installed, on a machine without ccache."""
    found: Asked = []
    monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    monkeypatch.setattr(debian, "_install", lambda lacking: found.append(lacking.packages))
    return found


def needs(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(debian, "missing", lambda: Missing(names))


def test_what_only_saves_time_is_no_reason_to_install(
    monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    needs(monkeypatch)
    debian.ensure()
    assert asked == []
    debian.ensure(optional=True)
    assert asked == [("ccache",)]


def test_it_comes_along_with_what_is_needed(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    needs(monkeypatch, "bmake", "qemu-utils")
    debian.ensure()
    assert asked == [("bmake", "ccache", "qemu-utils")]


def test_where_it_cannot_be_had_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_lacking: Missing) -> None:
        raise CannotError("no rights")

    needs(monkeypatch)
    monkeypatch.setattr(debian, "_install", refused)
    debian.ensure(optional=True)
    said = capsys.readouterr()
    assert "continuing without ccache, which only saves time: no rights" in said.out + said.err
    needs(monkeypatch, "bmake")
    with pytest.raises(CannotError):
        debian.ensure()
