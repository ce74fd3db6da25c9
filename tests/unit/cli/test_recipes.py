"""Commands in CI's files and the docs: every task and option in them exists."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoke.exceptions import ParseError
from invoke.parser import Parser

import tasks
from harness.cli import docs as pages
from harness.cli.program import spread
from harness.files import PROJECT

PAGES = [
    PROJECT / "README.md",
    PROJECT / "action.yml",
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / ".github").rglob("*.yml")),
    *sorted((PROJECT / "ci").glob("*.sh")),
    *sorted((PROJECT / "patches").rglob("README.md")),
]
# Words of the sentence that a message continues with after a command.
_GOES_ON = {"starts", "makes", "again"}
_COMMAND = re.compile(r"(?<![\w/.])\./inv +([a-z][^`#|;&>\n]*)")


def commands(path: Path) -> Iterator[str]:
    """The `./inv ...` commands of a page, without what a shell or CI would put into them."""
    text = path.read_text()
    for found in _COMMAND.finditer(text):
        words = found[1].split("\\")[0].split(" -- ")[0]
        words = re.sub(r"\$\{\{.*?\}\}|\$\(.*?\)|\$\{?\w+[^}\s]*\}?", "X", words)
        yield re.sub(r"\[|\]|\"\$@\"|[.,:)'\"]+(?= |$)", "", words).strip()


def test_there_is_something_to_look_at() -> None:
    assert sum(len(list(commands(path))) for path in PAGES) > 20


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_command_can_be_typed(path: Path) -> None:
    wrong = []
    for command in commands(path):
        words = list(itertools.takewhile(lambda word: word not in _GOES_ON, command.split()))
        argv = [
            word
            for before, word in zip(["", *words], words, strict=False)
            # A message's variable part may be the value of an option.
            if word not in ("X", "...", "\\") and (word != "…" or before.startswith("--"))
        ]
        try:
            parse(argv)
        except ParseError as error:
            # This page may quote a message only up to the value of an option.
            quoted = path.name == "troubleshooting.md" and "needed value" in str(error)
            if not quoted or not argv[-1].startswith("--"):
                wrong.append(f"./inv {command}: {error}")
    assert not wrong, "\n".join(wrong)


def parse(argv: list[str]) -> None:
    """ParseError unless Invoke would take the command; a task's name alone is a mention of it."""
    contexts = pages.contexts(tasks.namespace)
    if len(argv) == 1 and any(argv[0] in (it.name, *it.aliases) for it in contexts):
        return
    Parser(contexts=contexts).parse_argv(_cut(spread(["inv", *argv])[1:]))


def _cut(argv: list[str]) -> list[str]:
    """The command up to where the sentence around it goes on."""
    context = next(
        (it for it in pages.contexts(tasks.namespace) if argv[0] in (it.name, *it.aliases)), None
    )
    if context is None:
        return argv
    kept, value_follows = argv[:1], False
    positional = len(context.positional_args)
    for word in argv[1:]:
        if word.startswith("-"):
            kept.append(word)
            flag = context.flags.get(word.split("=")[0])
            value_follows = flag is not None and flag.takes_value and "=" not in word
        elif value_follows or positional:
            positional -= not value_follows
            kept.append(word)
            value_follows = False
        else:
            break
    return kept


def test_a_misspelt_option_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Run `./inv verify --backend bochs --stok`, then ./inv image.fech.\n")
    for command in commands(page):
        with pytest.raises(ParseError, match=r"stok|fech"):
            parse(command.split())


@pytest.mark.parametrize("script", sorted((PROJECT / "ci").glob("*.sh")), ids=lambda it: it.name)
def test_scripts_are_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_the_cache_key_changes_with_what_it_stands_for(tmp_path: Path) -> None:
    for name in ("ci/cache-key.sh", "images/freebsd-15.1.toml", "images/freebsd-14.5.toml",
                 "images/prepare.sh", "harness/image/prepare.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    (tmp_path / "ci/cache-key.sh").chmod(0o755)

    def key(release: str = "15.1") -> str:
        said = subprocess.run(
            [tmp_path / "ci/cache-key.sh", release], capture_output=True, text=True, check=True
        )
        return said.stdout.strip()

    first = key()
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert key() == first
    assert key("14.5") != first
    for name in ("images/prepare.sh", "harness/image/prepare.py", "images/freebsd-15.1.toml"):
        before = key()
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        assert key() != before


@pytest.mark.parametrize(("switch", "asks"), [(None, False), ("0", False), ("1", True)])
def test_namespaces_are_allowed_only_where_they_are_forbidden(
    tmp_path: Path, switch: str | None, asks: bool
) -> None:
    asked = tmp_path / "asked"
    for name in ("sysctl", "sudo"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{asked}"\n')
        (tmp_path / name).chmod(0o755)
    if switch is not None:
        (tmp_path / "switch").write_text(f"{switch}\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SWITCH": str(tmp_path / "switch")}
    subprocess.run([PROJECT / "ci" / "namespaces.sh"], env=environment, check=True)
    wanted = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n"
    wanted = wanted if os.geteuid() == 0 else f"sudo -n {wanted}"
    assert (asked.read_text() if asked.exists() else "") == (wanted if asks else "")


class Inv:
    """A checkout whose `./inv` gives set answers and records its arguments."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "ci").mkdir()
        for name in ("verify.sh", "kvm.sh"):
            (top / "ci" / name).write_bytes((PROJECT / "ci" / name).read_bytes())
            (top / "ci" / name).chmod(0o755)
        (top / "inv").write_text(
            f"#!/bin/sh\nPYTHON={sys.executable} PROJECT={PROJECT}\n"
            'if [ "$1" = patch.commits ]; then PYTHONPATH=$PROJECT; export PYTHONPATH\n'
            'exec "$PYTHON" -P -m harness.cli.program "$@"; fi\n'
            'echo "$*" >>"$ASKED"\n'
            'case $1 in verify) [ "${SILENT:-}" ] || echo "verdict: played"\n'
            'exit "${VERIFY:-0}";;\n'
            'probe) exit "${PROBE:-0}";; doctor) exit "${DOCTOR:-0}";;\n'
            'image.info) exit "${INFO:-0}";; esac\n'
        )
        (top / "inv").chmod(0o755)

    def run(self, cwd: Path, **environment: str) -> tuple[int, list[str]]:
        asked = self.top / "asked"
        asked.unlink(missing_ok=True)
        keep = {"PATH": os.environ["PATH"], "HOME": str(cwd), "ASKED": str(asked)}
        done = subprocess.run(
            [self.top / "ci/verify.sh"],
            cwd=cwd,
            env={**keep, **environment},
            capture_output=True,
            text=True,
        )
        return done.returncode, asked.read_text().splitlines() if asked.exists() else []


@pytest.fixture
def inv(tmp_path: Path) -> Inv:
    (tmp_path / "bench").mkdir()
    return Inv(tmp_path / "bench")


def test_the_recipe_hands_on_what_verify_says(inv: Inv, tmp_path: Path) -> None:
    for code in ("0", "1", "4", "5"):
        assert inv.run(tmp_path, VERIFY=code, DOCTOR="3") == (
            int(code),
            ["setup", "doctor", "verify --release 15.1 --backend auto"],
        )
    assert (tmp_path / "vmm-report/verdict.txt").read_text() == "verdict: played\n"
    _, asked = inv.run(tmp_path, RELEASE="14.5", BACKEND="bochs", OPTIONS="--stock --full")
    assert asked[-1] == "verify --release 14.5 --backend bochs --stock --full"


def test_what_is_left_leads_to_no_disk(inv: Inv, tmp_path: Path) -> None:
    """An upload of the folder would follow a link to an image of several gigabytes."""
    guest = tmp_path / "vmm-report/runs/1-verify/guest"
    guest.mkdir(parents=True)
    (guest.parent.parent / "latest").symlink_to("1-verify")
    (tmp_path / "disk.raw").touch()
    (guest / "disk.img").symlink_to(tmp_path / "disk.raw")
    for name in ("overlay.qcow2", "overlay.redolog", "console.log"):
        (guest / name).touch()
    assert inv.run(tmp_path)[0] == 0
    assert [path.name for path in guest.iterdir()] == ["console.log"]
    assert (tmp_path / "disk.raw").exists()
    assert (tmp_path / "vmm-report/runs/latest/guest/console.log").exists()


def test_a_backend_that_is_not_there_may_be_no_failure(inv: Inv, tmp_path: Path) -> None:
    code, asked = inv.run(tmp_path, BACKEND="kvm", OPTIONAL="1", PROBE="3")
    assert (code, asked[-1]) == (0, "probe --backend kvm")
    assert "skipped" in (tmp_path / "vmm-report/verdict.txt").read_text()
    code, asked = inv.run(tmp_path, BACKEND="kvm", PROBE="3", VERIFY="3")
    assert (code, len(asked)) == (3, 3)


def test_commits_after_a_base_become_the_series(inv: Inv, tmp_path: Path) -> None:
    repo = tmp_path / "src"
    repo.mkdir()

    def git(*words: str) -> None:
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *settings, *words], cwd=repo, check=True, capture_output=True)

    git("init", "-q")
    for number in range(3):
        (repo / "file").write_text(f"{number}\n")
        git("add", "file")
        git("commit", "-qm", f"change {number}")
    code, asked = inv.run(repo, BASE="HEAD~2")
    series = repo / "vmm-report/series"
    assert (code, asked[-1]) == (0, f"verify --release 15.1 --backend auto --series {series}")
    names = ["0001-change-1.patch", "0002-change-2.patch"]
    assert sorted(path.name for path in series.iterdir()) == names
    verdict = repo / "vmm-report/verdict.txt"
    for base, code, reason in (
        ("HEAD", 2, "no commit after HEAD: nothing to test"),
        ("HAED", 2, "there is no commit 'HAED'"),
    ):
        assert inv.run(repo, BASE=base) == (code, [])
        assert re.fullmatch(rf"verdict: no verdict: .*: {reason}(; .*)?\n", verdict.read_text())
    git("clone", "-q", "--depth=1", repo.as_uri(), str(tmp_path / "shallow"))
    assert inv.run(tmp_path / "shallow", BASE="HEAD~2") == (3, [])
    assert "fetch-depth: 0" in (tmp_path / "shallow/vmm-report/verdict.txt").read_text()
    assert inv.run(tmp_path, BASE="HEAD") == (2, [])
    assert "not a git checkout" in (tmp_path / "vmm-report/verdict.txt").read_text()


def test_what_ends_before_the_verdict_leaves_one(inv: Inv, tmp_path: Path) -> None:
    verdict = tmp_path / "vmm-report/verdict.txt"
    assert inv.run(tmp_path, SERIES="nowhere") == (2, [])
    assert (
        verdict.read_text() == f"verdict: no verdict: {tmp_path}/nowhere: there is no such series\n"
    )
    assert inv.run(tmp_path, SERIES="https://example.org/1.patch") == (2, [])
    assert "https://example.org/1.patch: addresses are not fetched; " in verdict.read_text()
    code, _ = inv.run(tmp_path, SILENT="1", VERIFY="2")
    assert (code, verdict.read_text()) == (
        2, "verdict: no verdict: verify ended with exit code 2; the log says why\n"
    )  # fmt: skip


def test_a_series_of_the_users_is_only_read(inv: Inv, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/1.patch").write_text("x")
    _, asked = inv.run(tmp_path, SERIES="mine")
    assert asked[-1].endswith(f"--series {tmp_path}/mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["1.patch"]


def test_without_a_network_a_bundle_is_taken_in_once(inv: Inv, tmp_path: Path) -> None:
    _, asked = inv.run(tmp_path, BUNDLE="/b.tar", INFO="3")
    assert asked[3:] == [
        "image.import --release 15.1 --bundle /b.tar",
        "verify --release 15.1 --backend auto --offline",
    ]
    _, asked = inv.run(tmp_path, BUNDLE="/b.tar")
    assert not any("import" in line for line in asked)


def test_actions_are_pinned_and_leave_no_token_behind() -> None:
    """A tag can be moved; a token that remains in the checkout can be read by a patch."""
    files = [*(PROJECT / ".github/workflows").glob("*.yml"), PROJECT / "action.yml"]
    files.append(PROJECT / "docs/ci.md")
    uses = 0
    for path in files:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            found = re.match(r"\s*(?:- )?uses: (\S+)(.*)", line)
            if not found or found[1].startswith(("./", "OWNER/")):
                continue
            uses += 1
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", found[1]), f"{path}: {line}"
            assert re.match(r" # v\d", found[2]), f"{path}: {line}: which version is it?"
            if "checkout" in found[1]:
                assert "persist-credentials: false" in lines[number + 1], f"{path}: {line}"
    assert uses >= 6


def test_a_summary_cannot_be_left_from_within(tmp_path: Path) -> None:
    """Runs the action's own step on a verdict that contains code fences and workflow commands."""
    step = re.search(
        r"        code=0\n.*?(?=        echo \"verdict=)",
        (PROJECT / "action.yml").read_text(),
        re.S,
    )
    assert step is not None
    (tmp_path / "ci").mkdir()
    evil = "```\n# verified\n<img src=x>\n::error::x\nverdict: played"
    (tmp_path / "verdict.txt").write_text(evil)
    script = tmp_path / "ci/verify.sh"
    script.write_text('#!/bin/sh\ncat "$OUT/verdict.txt"\nexit 1\n')
    script.chmod(0o755)
    env = {"GITHUB_ACTION_PATH": str(tmp_path), "OUT": str(tmp_path), "PATH": os.environ["PATH"]}
    summary = tmp_path / "summary"
    said = subprocess.run(
        ["bash", "-e", "-c", step[0]],
        env={**env, "GITHUB_STEP_SUMMARY": str(summary)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    token = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", said[0])
    assert token is not None
    assert said[-1] == f"::{token[1]}::"
    assert said[1:-1] == evil.splitlines()
    written = summary.read_text().splitlines()
    assert written[0] == ""
    assert [line.removeprefix("    ") for line in written[1:]] == evil.splitlines()
    assert all(line.startswith("    ") for line in written[1:])
