"""docs/tasks.md and the manual page inv-vmm(1), written from the tasks themselves."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from invoke.collection import Collection
from invoke.parser.context import ParserContext

_GROUPS = {
    "verify": "Verdicts and reports",
    "matrix": "Several runs, one report",
    "patch": "Patches and series",
    "series": "Patches of your own",
    "guest": "Guests that stay",
    "image": "Images",
    "machine": "This machine",
    "bench": "Measurements",
    "develop": "Work on the project itself",
}
"""The modules of harness.cli in the order of the page, each with its title."""

# The day on which the manual's fixed text was last changed.
_MANUAL_DATE = "November 25, 2026"

_FREEBSD_PART = r"(\(?FreeBSD(?:'s)?[.,;:)]*(?![\w.-]))"
_FREEBSD = re.compile(r"\(?FreeBSD(?:'s)?(?P<after>[.,;:)]*)(?![\w.-])")

_EXIT_CODES = (
    ("0", "Everything that was asked for held."),
    ("1", "A check failed."),
    ("2", "The command was used wrongly."),
    ("3", "This machine cannot run it, or a part was not run; the reason is printed."),
    ("4", "The guest broke: it panicked, hung or did not boot."),
    ("5", "The patch does not apply or does not build."),
    ("130", "The command was interrupted."),
)

_ENVIRONMENT = (
    ("HARNESS_CACHE", "The folder for images, builds and downloads. The default is the user's "
     "cache folder."),
    ("HARNESS_RUNS", "The folder in which each run leaves its own. The default is runs in the "
     "checkout."),
    ("HARNESS_MIRROR", "The address of a mirror of download.freebsd.org."),
    ("HARNESS_PYTHON", "The Python with which the launcher makes its environment."),
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option of a task: its flags as typed, the kind of value, and its help text."""

    flags: str
    value: str
    help: str


@dataclass(frozen=True)
class Task:
    """One task: its name as typed, its group's key, its one-line help and its options."""

    name: str
    group: str
    help: str
    options: tuple[Option, ...]


def contexts(namespace: Collection) -> list[ParserContext]:
    """The options of each task.  Invoke removes the help texts from a task when it reads them; this
    leaves them in place, so that they can be read again.
    """
    before = {name: dict(namespace[name].help) for name in namespace.task_names}
    try:
        return list(namespace.to_contexts())
    finally:
        for name, texts in before.items():
            namespace[name].help = texts


def tasks(namespace: Collection) -> Iterator[Task]:
    """Every task of a namespace, in the order of the groups and then by name."""
    found = []
    for context in contexts(namespace):
        name = str(context.name)
        body = namespace[name].body
        options: list[Option] = []
        # The dictionary has the same argument under each of its names.
        arguments = {id(it): it for it in context.args.values()}
        for argument in sorted(arguments.values(), key=lambda it: str(it.name)):
            flags = ", ".join(
                f"--{it}" if len(it) > 1 else f"-{it}" for it in sorted(argument.names, key=len)
            )
            value = "" if argument.kind is bool else argument.kind.__name__.upper()
            options.append(Option(flags, value.replace("LIST", "STR ..."), argument.help or ""))
        group = body.__module__.rpartition(".")[2]
        text = " ".join((namespace[name].__doc__ or "").split())
        found.append(Task(name, group, text, tuple(options)))
    order = list(_GROUPS)
    return iter(sorted(found, key=lambda it: (order.index(it.group), it.name)))


def markdown(namespace: Collection) -> str:
    """The page docs/tasks.md."""
    lines = [
        "# Every task and its options",
        "",
        "`./inv docs` writes this page from the tasks; `./inv --help TASK` prints the same.",
    ]
    group = ""
    for task in tasks(namespace):
        if task.group != group:
            group = task.group
            lines += ["", f"## {_GROUPS[group]}"]
        lines += ["", f"### `./inv {task.name}`", "", task.help]
        if task.options:
            lines += ["", "| option | what it does |", "|---|---|"]
        for option in task.options:
            flags = f"{option.flags} {option.value}".strip()
            lines.append(f"| `{flags}` | {option.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def manual(namespace: Collection) -> str:
    """The manual page inv-vmm(1), in mdoc."""
    lines = [
        f".Dd {_MANUAL_DATE}",
        ".Dt INV-VMM 1",
        ".Os",
        ".Sh NAME",
        ".Nm inv-vmm",
        ".Nd test patches to bhyve in a virtual machine that has VT-x",
        ".Sh SYNOPSIS",
        ".Nm ./inv",
        ".Ar task",
        ".Op Ar option ...",
        ".Sh DESCRIPTION",
        *_prose(
            "The workbench boots FreeBSD in a virtual machine that has VT-x and EPT, builds vmm.ko "
            "from a source tree with a series of patches, loads it there, and checks over SSH "
            "whether the patches do what they claim. Where KVM gives guests no VMX, the "
            "workbench uses Bochs, which emulates it."
        ),
        ".Pp",
        "The tasks are as follows:",
        ".Bl -tag -width indent",
    ]
    for task in tasks(namespace):
        lines += [f".It Cm {_escape(task.name)}", *_prose(task.help)]
        if task.options:
            lines.append(".Bl -tag -width indent -compact")
        for option in task.options:
            value = f" Ar {option.value.lower()}" if option.value else ""
            lines += [f".It Fl {_flags(option.flags)}{value}", *_prose(option.help or "See above.")]
        if task.options:
            lines.append(".El")
    lines += [".El", ".Sh ENVIRONMENT", ".Bl -tag -width HARNESS_MIRROR"]
    for name, text in _ENVIRONMENT:
        lines += [f".It Ev {name}", *_prose(text)]
    lines += [".El", ".Sh EXIT STATUS", ".Bl -tag -width 130"]
    for code, text in _EXIT_CODES:
        lines += [f".It {code}", *_prose(text)]
    lines += [".El", ".Sh SEE ALSO", "The pages in"]
    lines += [".Pa docs", "of the checkout explain each task."]
    return "\n".join(lines) + "\n"


def _flags(flags: str) -> str:
    """`-b, --backend` as the words after mdoc's Fl, which writes the first dash itself."""
    return " , Fl ".join(_escape(it.removeprefix("-")) for it in flags.split(", "))


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def _prose(text: str) -> Iterator[str]:
    """Text as lines of mdoc: each sentence begins a line, and none begins with a control."""
    for sentence in re.split(r"(?<=[.?!;]) +", text):
        for part in re.split(_FREEBSD_PART, sentence):
            if found := _FREEBSD.fullmatch(part):
                # mdoc has a macro for the name, and mandoc's lint asks for it.
                start = r".No \&( Ns Fx" if "(" in part else ".Fx"
                yield (
                    start
                    + (" Ns 's" if "'s" in part else "")
                    + "".join(f" {it}" for it in found["after"])
                )
                continue
            escaped = re.sub(r"(?<!\S)--(?!\S)", r"\-\-", part.strip().replace("\\", "\\e"))
            for line in textwrap.wrap(escaped, 78):
                yield f"\\&{line}" if line.startswith((".", "'")) else line
