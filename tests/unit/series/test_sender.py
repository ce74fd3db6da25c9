"""The sender of a series: a placeholder is replaced by a person, other authors stay as they are."""

from __future__ import annotations

import email
import subprocess
from pathlib import Path

import pytest
from faketree import diff, mail, make_series, make_tree

from harness.cli import patch_commands
from harness.errors import PatchError, UsageError
from harness.series import load, mailbox, sender

ME = "Ada Löv <ada@freebsd.org>"
NOBODY = "Seed 1 maintainers <maintainers@users.noreply.r-seed-1.example>"


@pytest.mark.parametrize(
    "author",
    [NOBODY, "A <a@x.example>", "A <a@x.invalid>", "A <1+a@users.noreply.github.com>"],
)
def test_an_address_that_nobody_reads(author: str) -> None:
    assert sender.is_placeholder(author)
    with pytest.raises(UsageError, match="nobody reads mail there"):
        sender.parse(author, True)


@pytest.mark.parametrize("author", [ME, "B <b@examples.org>", "C <c@mail.example.dev>"])
def test_an_address_that_somebody_may_read(author: str) -> None:
    assert not sender.is_placeholder(author)
    parsed = sender.parse(author, False)
    assert parsed is not None
    assert parsed.mailbox == author


@pytest.mark.parametrize(
    "author",
    ["Ada", "ada@freebsd.org", "<ada@freebsd.org>", "Ada <ada>", "A\nB <a@b.org>", "A <a b@c.org>"],
)
def test_no_name_and_address(author: str) -> None:
    with pytest.raises(UsageError, match="give it as"):
        sender.parse(author, True)


def test_a_sign_off_is_somebodys() -> None:
    assert sender.parse("", False) is None
    with pytest.raises(UsageError, match="--signoff needs a name"):
        sender.parse("", True)


PATCH = f"""From: Seed 1 maintainers
 <maintainers@users.noreply.r-seed-1.example>
Subject: [PATCH] vmm: Do it

Why.

Signed-off-by: {NOBODY}
Reviewed-by: B <b@b.org>
---
 a | 1 +

diff --git a/a b/a
+Signed-off-by: {NOBODY}
""".encode()


def test_the_sender_takes_the_place_of_nobody() -> None:
    ada = sender.parse(ME, True)
    assert ada is not None
    text = sender.put(PATCH, NOBODY, ada).decode()
    assert text.startswith(f"From: {ME}\nSubject: [PATCH] vmm: Do it\n\nWhy.\n")
    message, _, rest = text.partition("\n---\n")
    assert NOBODY not in message
    assert message.endswith(f"Reviewed-by: B <b@b.org>\n\nSigned-off-by: {ME}")
    assert rest == PATCH.decode().partition("\n---\n")[2]
    unsigned = sender.put(PATCH, NOBODY, sender.Sender("A", "a@a.org", False)).decode()
    assert "Signed-off-by" not in unsigned.partition("\n---\n")[0]


def test_somebody_elses_patch_stays_theirs() -> None:
    ada = sender.Sender("A", "a@a.org", True)
    theirs = PATCH.replace(NOBODY.encode(), b"B <b@b.org>").replace(
        b"From: Seed 1 maintainers\n <maintainers@users.noreply.r-seed-1.example>",
        b"From: B <b@b.org>",
    )
    text = sender.put(theirs, "B <b@b.org>", ada).decode()
    assert text.startswith("From: B <b@b.org>\n")
    message = text.partition("\n---\n")[0]
    assert "Signed-off-by: B <b@b.org>\n" in message
    assert message.endswith("Signed-off-by: A <a@a.org>")
    assert sender.put(text.encode(), "B <b@b.org>", ada) == text.encode()


def test_the_projects_own_series_is_refused_until_somebody_sends_it(tmp_path: Path) -> None:
    out = tmp_path / "out.mbox"
    with pytest.raises(PatchError, match=r"0001-.*placeholder; name the sender: --author"):
        patch_commands.export([], "meminfo", "15.1", str(out))
    assert not out.exists()
    assert patch_commands.export([], "meminfo", "15.1", str(out), ME, True) == 0
    text = out.read_bytes()
    assert b"noreply" not in text
    assert text.count(f"\nSigned-off-by: {ME}\n".encode()) == len(
        load.load_series("meminfo", "15.1").patches
    )


def test_git_takes_what_was_exported(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "src")
    path = "sys/dev/vmm/vmm.c"
    before = (tree / path).read_text()
    data = mail(diff(tmp_path, {path: before}, {path: before + "x\n"}))
    author = email.message_from_bytes(data)["From"]
    data = data.replace(f"From: {author}".encode(), f"From: {NOBODY}".encode(), 1)
    series = load.load_series(make_series(tmp_path / "topic", {"1.patch": data}), "15.1")
    out = tmp_path / "out.mbox"
    mailbox.export(series, out, sender.parse(ME, True))
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tree)]
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-qm", "x"],
        ["am", "-q", str(out)],
    ):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    shown = subprocess.run(
        [*git, "log", "-1", "--format=%an <%ae>%n%b"], check=True, capture_output=True, text=True
    ).stdout
    assert shown.startswith(ME)
    assert shown.rstrip().endswith(f"Signed-off-by: {ME}")
