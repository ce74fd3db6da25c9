"""What is imported is declared, and what is declared is used: Python's packages and Debian's."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from harness import debian
from harness.files import PROJECT

_PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
# Packages that are used without an import: text in a file that shows the use.
_WITHOUT_IMPORT: Mapping[str, tuple[str, str]] = {
    "import-linter": ("harness/cli/develop.py", "importlinter"),
    "mypy": ("harness/cli/develop.py", '"mypy"'),
    "pytest-timeout": ("harness/run/pytest_run.py", '"pytest_timeout"'),
    "pytest-xdist": ("harness/cli/develop.py", 'find_spec("xdist")'),
    "ruff": ("harness/cli/develop.py", '"ruff"'),
}
# Only for these may the packages of the group `dev` be needed.
_DEVELOPMENT = ("tests/", "patches/")


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


MAIN = {_name(it) for it in _PYPROJECT["project"]["dependencies"]}
DEV = {_name(it) for it in _PYPROJECT["project"]["optional-dependencies"]["dev"]}


@functools.cache
def _tracked(*patterns: str) -> tuple[str, ...]:
    done = subprocess.run(
        ["git", "ls-files", *patterns], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    return tuple(done.stdout.splitlines())


@functools.cache
def _local(path: str) -> frozenset[str]:
    """The names of modules that `path` can import from this project's folders."""
    folders = set(map(Path, _PYPROJECT["tool"]["mypy"]["mypy_path"]))
    if not path.startswith("harness/"):
        folders.add(Path(path).parent)
    files = [Path(it) for it in _tracked("*.py")]
    return frozenset({"harness", "tasks", *(it.stem for it in files if it.parent in folders)})


def _modules(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (it.name for it in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@functools.cache
def _imports() -> frozenset[tuple[str, str]]:
    """(file, imported package's top name) of everything outside the standard library."""
    return frozenset(
        (path, module.partition(".")[0])
        for path in _tracked("*.py")
        for module in _modules((PROJECT / path).read_text())
        if module.partition(".")[0] not in sys.stdlib_module_names | _local(path)
    )


@functools.cache
def _providers() -> Mapping[str, set[str]]:
    return {
        module: {_name(it) for it in names}
        for module, names in metadata.packages_distributions().items()
    }


def test_what_is_imported_is_declared() -> None:
    missing = sorted(
        f"{path} imports {module}"
        for path, module in _imports()
        if not _providers().get(module, set())
        & (MAIN | (DEV if path.startswith(_DEVELOPMENT) else set()))
    )
    assert not missing, missing


def test_what_is_declared_is_used() -> None:
    used = {name for _, module in _imports() for name in _providers().get(module, set())}
    for name, (path, words) in _WITHOUT_IMPORT.items():
        assert words in (PROJECT / path).read_text(), (name, path)
        used.add(name)
    # Stubs are used by mypy if the package is.
    used |= {f"types-{name}" for name in used}
    assert not (MAIN | DEV) - used
    # What only tests import does not belong to the users' dependencies.
    ours = {
        name
        for path, module in _imports()
        if not path.startswith(_DEVELOPMENT)
        for name in _providers().get(module, set())
    }
    assert not MAIN - ours - set(_WITHOUT_IMPORT)


def test_what_is_declared_is_locked() -> None:
    locked = {
        _name(line)
        for line in (PROJECT / "requirements.lock").read_text().splitlines()
        if re.match(r"[\w.-]+==", line)
    }
    assert not (MAIN | DEV) - locked


def test_each_required_program_is_used() -> None:
    files = _tracked("*.py", "*.sh", "inv", "ci/*", "images/*", "*Makefile")
    texts = [
        (PROJECT / path).read_text(errors="replace")
        for path in files
        if path not in ("harness/debian.py", "tests/unit/base/test_packages.py")
    ]
    unused = [
        program
        for program in (*debian.TOOLS, *debian.OPTIONAL)
        if not any(re.search(rf"(?<![\w-]){re.escape(program)}(?![\w-])", it) for it in texts)
    ]
    assert not unused
