"""Commands and variables in messages: each task, option and variable in them exists."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from invoke.exceptions import ParseError
from test_recipes import parse

import tasks
from harness import debian
from harness.cli import docs as pages
from harness.files import PROJECT

# Stands for what a message puts in: a name and a number alike.
_FILLED = "1"
_COMMAND = re.compile(r"(?<![\w/.])(?:\./|`)inv +(-?-?[a-z][^`;,()\n]*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_VARIABLE = re.compile(r"\b(?:HARNESS_[A-Z_]+|[A-Z]+(?:_[A-Z]+)+(?==))")
_NAMED_TASK = re.compile(r"(?<![\w./])(?<!toml: )(?:image|patch|topic)\.[a-z]+\b(?!\.|/)")
_SAYS = {"say", "note", "warn", "Refusal", "Row"}
# The word with which a sentence goes on after a command.
_GOES_ON = {"starts", "makes", "again"}
# Options that messages name of other programs, with the program that stands before them.
_FOREIGN = {
    "git config --global --add": {"--global", "--add"},
    "git diff --output": {"--output"},
    "clone it without --filter": {"--filter"},
    "in a container: --security-opt": {"--security-opt"},
    "`inv --list`": {"--list", "--help"},
    "see `inv --help": {"--help"},
    # Asked of an emulator, whose answer is quoted.
    "--version": {"--version"},
    "start the container with --device": {"--device"},
    "--help cpu": {"--help"},
}


@dataclass(frozen=True)
class Text:
    """A text in harness/; `message` when it is raised or shown as it stands."""

    where: str
    text: str
    message: bool


def _filled(node: ast.expr) -> str | None:
    """A text with something for each value that is put into it; None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(it) for it in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_filled(node.left) or "") + (_filled(node.right) or "")
    if isinstance(node, ast.IfExp):
        return _filled(node.body) or _filled(node.orelse)
    return None


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.FormattedValue):
        # A variable's name is often a constant.
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        return _CONSTANTS.get(name, _FILLED)
    return str(node.value) if isinstance(node, ast.Constant) else ""


def _modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(HARNESS.rglob("*.py"))}


def _environment_names() -> dict[str, str]:
    """Constants that hold a variable's name: {"MIRROR": "HARNESS_DEBIAN_MIRROR"}."""
    found = {}
    for module in _modules().values():
        for node in module.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))):
                    if value.startswith("HARNESS_"):
                        found[name] = value
    return found


HARNESS = PROJECT / "harness"
_CONSTANTS = _environment_names()


def _documentation(module: ast.Module) -> set[int]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr)
    }


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def _texts() -> Iterator[Text]:
    for path, module in _modules().items():
        documentation = _documentation(module)
        messages: set[int] = set()
        inner: set[int] = set()
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                name = _called(node)
                if name in _SAYS or name.endswith(("Error", "Refused", "Died", "Full")):
                    messages.update(id(it) for part in node.args for it in ast.walk(part))
            elif isinstance(node, ast.JoinedStr | ast.BinOp):
                # Walked from outside in: the parts of a text that was taken whole are passed over.
                inner.update(id(it) for it in ast.walk(node) if it is not node)
        for node in ast.walk(module):
            if not isinstance(node, ast.expr) or id(node) in inner | documentation:
                continue
            if text := _filled(node):
                where = f"{path.relative_to(PROJECT)}:{node.lineno}"
                yield Text(where, text, id(node) in messages)


TEXTS = list(_texts())
CONTEXTS = pages.contexts(tasks.namespace)
TASKS = {name for it in CONTEXTS for name in (it.name, *it.aliases)}
OPTIONS = {flag for it in CONTEXTS for flag in (*it.flags, *it.inverse_flags)}


def commands(text: str) -> Iterator[list[str]]:
    """Each `./inv ...` of a text as words, without the rest of its sentence."""
    for found in _COMMAND.finditer(text):
        # Two blanks part a command from what a table says about it.
        words = found[1].split("  ")[0].split(" -- ")[0].split()
        words = list(itertools.takewhile(lambda word: word not in _GOES_ON, words))
        words = [word.rstrip(".:'\"]") for word in words if word.strip(".:'\"[]|…")]
        if words[0] not in TASKS and words[0].removesuffix(_FILLED) in TASKS:
            # `./inv down{name}`, where the name brings its own blank.
            words[0] = words[0].removesuffix(_FILLED)
        yield words


def wrong(text: str) -> list[str]:
    """What of a text cannot be typed."""
    found = []
    for words in commands(text):
        if words[0] in ("--help", "--list"):
            continue
        try:
            parse(words)
        except ParseError as error:
            found.append(f"./inv {' '.join(words)}: {error}")
    return found


def test_there_is_something_to_look_at() -> None:
    assert sum(len(list(commands(it.text))) for it in TEXTS) > 40
    assert sum(bool(_OPTION.search(it.text)) for it in TEXTS if it.message) > 40
    assert len(variables()) > 4


def test_every_command_in_a_message_can_be_typed() -> None:
    found = [f"{it.where}: {each}" for it in TEXTS for each in wrong(it.text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import one: ./inv image.import --sysroot",
        "run ./inv setups",
        "use ./inv build --sandboxed",
        f"run ./inv down{_FILLED} --everything",
    ],
)
def test_what_cannot_be_typed_is_found(text: str) -> None:
    assert wrong(text)


def test_every_option_in_a_message_exists() -> None:
    found = []
    for it in TEXTS:
        if not it.message or " " not in it.text:
            continue
        foreign = set().union(*(has for words, has in _FOREIGN.items() if words in it.text))
        strange = set(_OPTION.findall(it.text)) - OPTIONS - foreign
        found += [f"{it.where}: {option}" for option in sorted(strange)]
    assert not found, "\n".join(found)


def test_every_task_named_in_a_message_exists() -> None:
    found = [
        f"{it.where}: {name}"
        for it in TEXTS
        if it.message and " " in it.text
        for name in _NAMED_TASK.findall(it.text)
        if name not in TASKS and not (HARNESS / name).exists() and name != "image.json"
    ]
    assert not found, "\n".join(found)


def variables() -> dict[str, str]:
    """Each variable of the environment that a message names, and where."""
    return {name: it.where for it in TEXTS if " " in it.text for name in _VARIABLE.findall(it.text)}


def test_every_variable_in_a_message_is_read() -> None:
    """It stands in the code as a text of its own, or in the launcher."""
    own = {it.text for it in TEXTS}
    launcher = (PROJECT / "inv").read_text()
    lost = {
        name: where
        for name, where in variables().items()
        if name not in own and f"${{{name}" not in launcher
    }
    assert not lost


# What a text names as a package to install, beside "missing Debian packages", which lists them.
_PACKAGES = re.compile(
    r"(?:apt-get install|Debian's packages|Debian's) ((?:[a-z][a-z0-9.+-]+(?:, | and |\b))+)"
)
# Debian packages that messages name and `setup` does not install: what they are for says why.
_OPTIONAL_PACKAGES = {"gdb", "debian-archive-keyring", "bochsbios", "vgabios"}
_FILE = re.compile(r"(?<![\w/.])(?:docs|images|ci|patches|tests|harness)/[\w./-]*\w(?:#[\w-]+)?")


def test_every_package_named_in_a_message_is_known() -> None:
    known = {
        *debian.TOOLS.values(),
        *debian.FILES.values(),
        *debian.OPTIONAL.values(),
        *_OPTIONAL_PACKAGES,
    }
    named = {
        (it.where, name)
        for it in TEXTS
        for found in _PACKAGES.finditer(it.text)
        for name in re.split(r", | and ", found[1].strip())
        if it.message and "-" not in name[:1]
    }
    assert named
    strange = [
        f"{where}: {name}"
        for where, name in sorted(named)
        if name not in known and not name.startswith(("own", "apt", "name"))
    ]
    assert not strange, "\n".join(strange)


def test_every_file_named_in_a_message_exists() -> None:
    """With its anchor, where it is a page."""
    lost = []
    for it in TEXTS:
        if not it.message:
            continue
        for named in _FILE.findall(it.text):
            path, _, anchor = named.partition("#")
            # A placeholder stands in the path of what is the user's.
            if path.split("/")[1].isupper() or re.search(rf"\b(?:{_FILLED}|RELEASE|NAME)\b", path):
                continue
            if not (PROJECT / path).exists():
                lost.append(f"{it.where}: {named}")
            elif anchor and f"#{anchor}" not in anchors((PROJECT / path).read_text()):
                lost.append(f"{it.where}: {named}: no such heading")
    assert not lost, "\n".join(lost)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page, re.M)
    return {"#" + re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}
