"""What users and their scripts rely on stays: tasks, options, help, JSON keys, exit codes.

A change that is meant refreshes the files beside this one; the diff then shows it:

    HARNESS_REFRESH_GOLDEN=1 .venv/bin/python -m pytest tests/unit/cli/test_interface.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import tasks
from harness import errors
from harness.backends import KVM_IN_BOCHS, NAMES
from harness.cli.docs import contexts
from harness.guest.panic_report import Panic
from harness.report import Check, Report, StageResult
from harness.run.bisect import Found
from harness.run.doctor import Row, Verdict
from harness.run.mutation import VariantResult

GOLDEN = Path(__file__).with_name("golden")


def hold(name: str, now: Any) -> None:
    """`now` equals the file of that name, or becomes it where that was asked for."""
    path = GOLDEN / name
    text = json.dumps(now, indent=1, sort_keys=True) + "\n"
    if os.environ.get("HARNESS_REFRESH_GOLDEN"):
        path.write_text(text)
    assert json.loads(path.read_text()) == now, f"see the first lines of {Path(__file__).name}"


def test_tasks_options_and_help() -> None:
    found = {}
    for context in contexts(tasks.namespace):
        task = tasks.namespace[str(context.name)]
        found[context.name] = {
            "aliases": sorted(context.aliases),
            "help": (task.__doc__ or "").strip(),
            "options": {
                argument.name: {
                    "default": repr(argument.default).replace("<class 'inspect._empty'>", "none"),
                    "help": argument.help or "",
                    "takes": argument.kind.__name__,
                }
                for argument in context.args.values()
            },
        }
    hold("tasks.json", found)


def test_help_names_every_backend() -> None:
    """Some tasks need virtual machines, so they have no tcg; Bochs prepares no image."""
    without = {"tcg"}, {"bochs", KVM_IN_BOCHS}, set[str]()
    sets = {frozenset(NAMES) - frozenset(names) for names in without}
    texts = {
        context.name: argument.help
        for context in contexts(tasks.namespace)
        for argument in context.args.values()
        if argument.name == "backend"
    }
    assert len(texts) >= 10
    words = {name: re.findall(r"[a-z][a-z-]*", text) for name, text in texts.items()}
    assert all(frozenset(NAMES) & set(found) in sets for found in words.values()), texts


def test_json_keys() -> None:
    kinds = (Report, Check, StageResult, Panic, Verdict, VariantResult, Found)
    found = {it.__name__: [f.name for f in dataclasses.fields(it)] for it in kinds}
    hold("keys.json", found | {"Row": list(Row("", "", "", "").to_data())})


def test_exit_codes() -> None:
    codes = {name: getattr(errors, name) for name in dir(errors) if name.startswith("EXIT_")}
    raised = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.WorkbenchError)
    }
    hold("exit_codes.json", codes | raised)
