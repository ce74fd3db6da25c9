"""Pieces of images/prepare.sh that can be tried without FreeBSD."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.image import prepare
from harness.image.model import ANNOUNCEMENT
from harness.image.prepare import SCRIPT

RULES = """\
# A comment.
[first=1]
add hide

[second=2]
add path null unhide
add path 'tty[pq]*' unhide

[both=4]
add include $first
add include $second
add path zfs unhide
"""
LOADED = """\
rule -s 1 delset
rule -s 1 add -
hide
rule -s 2 delset
rule -s 2 add -
path null unhide
path tty[pq]* unhide
rule -s 4 delset
rule -s 4 add -
include 1
include 2
path zfs unhide
devfs_start: 1
"""


def here(name: str) -> str:
    """A here-document of the script's."""
    found = re.search(rf"<<'{name}'\n(.*?)^{name}$", SCRIPT.read_text(), re.S | re.M)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("setting", "loaded"),
    [
        ("", LOADED),
        ("devfs_system_ruleset=mine", "devfs_start:\n"),
        ("devfs_load_rulesets=NO", "devfs_start:\n"),
    ],
)
def test_freebsds_rules_are_loaded_set_by_set(tmp_path: Path, setting: str, loaded: str) -> None:
    (tmp_path / "rules").write_text(RULES)
    # At that time of a boot nothing can be written yet.
    text = here("RULES")
    assert ">" not in text.replace("2>/dev/null", "")
    script = f"""
devfs_rulesets="{tmp_path}/rules /etc/devfs.rules"
devfs_load_rulesets=YES
checkyesno() {{ eval [ "\\$$1" = YES ]; }}
devfs() {{ echo "$@"; [ "$4" = delset ] || cat; }}
devfs_start() {{ echo "devfs_start:${{devfs_rulesets_init:+ 1}}"; }}
{setting}
{text}
$start_cmd
"""
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (loaded, "")


def test_the_announcement_waits_for_sshd_s_pid_file(tmp_path: Path) -> None:
    """sshd's first process ends before its second one listens; the second writes the file then."""
    text = here("READY").replace("/var/run/", f"{tmp_path}/").replace("/dev/console", "/dev/stdout")
    pid = tmp_path / "sshd.pid"
    pid.write_text("an old one")
    script = f"""
{text}
eval "$start_precmd"
[ ! -e {pid} ] || echo "the old one is still there"
(sleep 0.5; echo listens; echo 1 >{pid}) &
$start_postcmd
"""
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["listens", ANNOUNCEMENT, ""]


def test_a_boot_generates_no_host_key(tmp_path: Path) -> None:
    """An RSA key takes more than a minute where KVM runs in an emulator."""
    text = here("READY").replace("/var/run/", f"{tmp_path}/")
    # As in FreeBSD's rc.d/sshd, which reads these settings last.
    script = f"""
start_precmd=sshd_precmd
sshd_precmd() {{ echo "Generating RSA host key."; }}
{text}
eval "$start_precmd"
"""
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_preparation_generates_host_keys_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the image before sshd starts for the first time, as no boot generates one."""
    lines: list[str] = []

    class Login:
        def __init__(self, *_about: object) -> None:
            pass

        def log_in(self, _deadline: Deadline) -> None:
            pass

        def run(self, line: str, _deadline: Deadline) -> str:
            lines.append(line)
            return "ssh-ed25519 AAAA root@freebsd"

    monkeypatch.setattr(prepare, "SerialLogin", Login)
    imported: Any = SimpleNamespace(login=SimpleNamespace(user="root", password=""))
    console: Any = None
    prepare._let_ssh_in(console, imported, "ssh-ed25519 AAAA ours", 1.0, lambda _line: None)
    (made,) = (at for at, line in enumerate(lines) if line.startswith("ssh-keygen -A"))
    started = lines.index("service sshd onerestart >/dev/null 2>&1")
    assert made < started


@pytest.mark.parametrize(
    ("fstab", "moved"),
    [
        ("/dev/gpt/rootfs / ufs rw 1 1\n#/dev/vtbd0p2 none swap sw 0 0\n", True),
        ("/dev/gpt/swapfs none swap sw 0 0\n", False),
    ],
)
def test_a_script_with_something_to_do_stays(tmp_path: Path, fstab: str, moved: bool) -> None:
    scripts = tmp_path / "rc.d"
    scripts.mkdir()
    (tmp_path / "rc.d.off").mkdir()
    for name in ("swap", "swaplate", "netoptions", "sshd", "geli"):
        (scripts / name).touch()
    (tmp_path / "fstab").write_text(fstab)
    (tmp_path / "rc.conf").write_text('geli_devices="da0"\ndumpdev="NO"\n')
    text = SCRIPT.read_text()
    begin = text.index("while read -r name sign")
    end = text.index("UNUSED\n", text.index("<<'UNUSED'") + 10) + len("UNUSED\n")
    loop = text[begin:end].replace("/etc/", f"{tmp_path}/")
    subprocess.run(["/bin/sh", "-euc", loop], check=True)
    there = set(os.listdir(scripts))
    assert {"swap", "swaplate"} & there == (set() if moved else {"swap", "swaplate"})
    assert {"sshd", "geli"} <= there
    assert "netoptions" not in there
