"""The completion scripts in real shells, as CONTRIBUTING.md says to install them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from harness.files import PROJECT

_LIMIT_S = 120
Script = Callable[[str], Path]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """`inv` on the PATH; makes the script for a shell, and skips if the shell is missing."""
    command = tmp_path / "bin" / "inv"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={PROJECT} exec {sys.executable} -m harness.cli.program "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))

    def make(shell: str) -> Path:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        path = tmp_path / f"inv.{shell}"
        path.write_text(_output("inv", "--print-completion-script", shell))
        return path

    return make


def _output(*words: str) -> str:
    done = subprocess.run(
        words, cwd="/", check=True, capture_output=True, text=True, timeout=_LIMIT_S
    )
    return done.stdout


def test_bash(script: Script) -> None:
    ask = 'source "$1"; COMP_WORDS=(inv $2); _complete_inv inv "$3" inv; echo "${COMPREPLY[*]}"'
    source = str(script("bash"))
    assert _output("bash", "-c", ask, "sh", source, "ver", "ver") == "verify\n"
    assert _output("bash", "-c", ask, "sh", source, "verify --bac", "--bac") == "--backend\n"


def test_fish(script: Script) -> None:
    ask = "source $argv[1]; complete -C $argv[2]"
    source = str(script("fish"))
    assert _output("fish", "--no-config", "-c", ask, source, "inv ver").split() == ["verify"]
    found = _output("fish", "--no-config", "-c", ask, source, "inv verify --bac")
    assert found.split() == ["--backend"]


@pytest.mark.parametrize(("typed", "rest"), [("ver", "ify"), ("verify --bac", "kend")])
def test_zsh(script: Script, typed: str, rest: str) -> None:
    source = script("zsh")
    environment = {**os.environ, "TERM": "xterm", "PS1": "> "}
    with pexpect.spawn(
        "zsh", ["-f"], encoding="utf-8", timeout=_LIMIT_S, env=environment, dimensions=(24, 200)
    ) as zsh:
        zsh.sendline("autoload -U compinit; compinit -u -D")
        zsh.sendline(f"source {source}")
        # The shell joins the parts, so that the echo of the line is not taken for its output.
        zsh.sendline("echo rea''dy")
        zsh.expect("ready\r\n")
        zsh.send(f"inv {typed}\t")
        zsh.expect_exact(rest)
