"""A real wheel in a new environment outside the checkout says that a checkout is needed.

README and CONTRIBUTING say the same: only an editable install works.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.files import PROJECT

_NEEDED = ("harness", "tasks.py", "pyproject.toml", "README.md", "LICENSE")
Run = Callable[..., subprocess.CompletedProcess[str]]


def _pip(*words: str | Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    done = subprocess.run([*pip, *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the Python of an environment that has the wheel, in an empty folder."""
    top = tmp_path_factory.mktemp("wheel")
    source = top / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *_NEEDED], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in filter(None, tracked.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((PROJECT / name).read_bytes())
    _pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", top, source)
    (wheel,) = top.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", top / "venv"], check=True)
    python = top / "venv/bin/python"
    _pip("--python", python, "install", "--no-index", "--no-deps", wheel)
    # The dependencies come from this environment, without its own (editable) install.
    (packages,) = (top / "venv/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    elsewhere = top / "elsewhere"
    elsewhere.mkdir()

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *words],
            cwd=elsewhere,
            env={
                "PATH": "/usr/bin:/bin",
                "HARNESS_CACHE": str(top / "cache"),
                "HARNESS_RUNS": str(top / "runs"),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return start


@pytest.mark.parametrize("words", [("-c", "import tasks"), ("-m", "harness.cli.program", "-l")])
def test_the_tasks_say_that_a_checkout_is_needed(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (3, "")
    assert "site-packages is not a checkout of vmm-workbench (images/prepare.sh" in done.stderr
    assert done.stderr.endswith("clone the repository and work there\n")
    assert done.stderr.count("\n") == 1


def test_the_library_is_complete(run: Run) -> None:
    """Its data files are in the wheel: templates, C sources, known faults, the list of cases."""
    data = [
        path.relative_to(PROJECT)
        for path in (PROJECT / "harness").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    code = "import harness, pathlib; print(pathlib.Path(harness.__file__).parent.parent)"
    place = Path(run("-c", code).stdout.strip())
    assert place.name == "site-packages"
    assert data
    assert not [path for path in data if not (place / path).is_file()]


def test_the_plugin_skips_what_needs_a_guest(run: Run, tmp_path: Path) -> None:
    test = tmp_path / "test_mine.py"
    test.write_text("def test_plain(): pass\n\n\ndef test_guest(guest): pass\n")
    done = run("-m", "pytest", "-rs", "-p", "no:cacheprovider", str(test))
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert "there can be no FreeBSD guest here" in done.stdout
    assert "is not a checkout of vmm-workbench" in done.stdout
    insisted = run("-m", "pytest", "-p", "no:cacheprovider", "--vmm-insist", str(test))
    assert insisted.returncode == 3, insisted.stdout
    assert "is not a checkout of vmm-workbench" in insisted.stdout


def test_the_pages_say_the_same() -> None:
    text = " ".join((PROJECT / "CONTRIBUTING.md").read_text().split())
    assert "Only an editable install (`pip install -e .`) works" in text
    readme = " ".join((PROJECT / "README.md").read_text().split())
    assert "Work in a checkout" in readme
