"""Every program is started by harness/process.py, or a comment says why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from harness.files import PROJECT

_STARTS = {
    "subprocess": {
        "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput", "Popen",
    },
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"},
    "pty": {"spawn", "fork"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}  # fmt: skip
_REASON = "Not by process.run"
# A reason may precede the call by this many lines: `with` blocks and a comment of two lines.
_LINES = 7


def _starts_program(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
        return False
    module, name = node.func.value.id, node.func.attr
    family = module == "os" and name.startswith(("exec", "spawn"))
    return family or name in _STARTS.get(module, set())


def unexplained(text: str) -> Iterator[int]:
    """The lines of a module that start a program without process.run and without a reason."""
    lines = text.splitlines()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in _STARTS:
            named = {it.name for it in node.names}
            if named & _STARTS[node.module]:
                yield node.lineno
        if isinstance(node, ast.Call) and _starts_program(node):
            before = lines[max(0, node.lineno - 1 - _LINES) : node.lineno]
            if not any(_REASON in line for line in before):
                yield node.lineno


def test_each_program_is_started_in_one_way() -> None:
    own = PROJECT / "harness" / "process.py"
    found = [
        f"{path.relative_to(PROJECT)}:{number}"
        for path in sorted((PROJECT / "harness").rglob("*.py"))
        if path != own
        for number in unexplained(path.read_text())
    ]
    assert not found, f"use harness.process.run, or add a comment '{_REASON}: ...': {found}"


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\nsubprocess.run(['x'])\n",
        "import subprocess\nsubprocess.check_output(['x'])\n",
        "from subprocess import Popen\n",
        "import os\nos.system('x')\n",
        "import os\nos.execv('x', ['x'])\n",
        "import os\nos.spawnl(os.P_WAIT, 'x')\n",
        "import asyncio\nasyncio.create_subprocess_exec('x')\n",
    ],
)
def test_another_way_is_found(text: str) -> None:
    assert list(unexplained(text))


def test_a_reason_is_accepted() -> None:
    text = "import subprocess\n# Not by process.run: it outlives us.\nsubprocess.Popen(['x'])\n"
    assert not list(unexplained(text))
    assert list(unexplained(text + "\n" * 9 + "subprocess.Popen(['y'])\n"))
