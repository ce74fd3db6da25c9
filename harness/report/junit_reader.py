"""A run read back from its JUnit file, where that is all there is of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from harness import checked
from harness.errors import EXIT_CANNOT
from harness.report.data import AS_STOCK as _AS_STOCK
from harness.report.data import Report

# A document type may define entities that grow without end or name other files; ours has none.
_FORBIDDEN = re.compile(rb"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_KNOWN = ("release", "backend", "series", "topic", "stock")


def read(text: bytes, folder: Path) -> Report:
    """The run that a JUnit file of this program describes; ValueError where it is none.

    What the file does not say (the exit code of a run that ended early, evidence) is left out.
    """
    if _FORBIDDEN.search(text) or b"\0" in text:
        raise ValueError("it is no JUnit file of this program: it defines a document type")
    try:
        top = ET.fromstring(text)  # noqa: S314  (without a document type there are no entities)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"it is no XML: {error}") from error
    stages, checks = _suite(top, "stages"), _suite(top, "checks")
    properties = {
        str(it.get("name")): str(it.get("value")) for it in stages.findall("properties/property")
    }
    errors = [
        str(found.get("message")) for it in stages.findall("testcase") for found in it.iter("error")
    ]
    return checked.convert(
        Report,
        {
            "release": properties.get("release", ""),
            "backend": properties.get("backend", ""),
            "series": properties.get("series", ""),
            "topic": properties.get("topic", ""),
            "stock": properties.get("stock") == "true",
            "started_at": stages.get("timestamp") or "",
            "run_dir": folder,
            "stages": [
                {
                    "name": str(it.get("name")),
                    "outcome": _stage_outcome(it),
                    "seconds": _seconds(it),
                    "note": "",
                }
                for it in stages.findall("testcase")
            ],
            "checks": list(_checks(checks)),
            "properties": {key: it for key, it in properties.items() if key not in _KNOWN},
            "error": errors[0] if errors else "",
            "error_exit_code": EXIT_CANNOT if errors else 0,
        },
    )


def _suite(top: ET.Element, name: str) -> ET.Element:
    found = [it for it in top.findall("testsuite") if it.get("name") == name]
    if top.tag != "testsuites" or len(found) != 1:
        raise ValueError(f"it is no JUnit file of this program: it has no suite of {name}")
    return found[0]


def _seconds(case: ET.Element) -> float:
    return float(case.get("time") or "0")


def _stage_outcome(case: ET.Element) -> str:
    if case.find("error") is not None:
        return "failed"
    return "ok" if case.find("skipped") is None else "not run"


def _checks(suite: ET.Element) -> Iterator[dict[str, object]]:
    """The checks as a report has them."""
    for case in suite.findall("testcase"):
        outcome, message, detail = "passed", "", ""
        for kind, meaning in (("failure", "failed"), ("skipped", "skipped")):
            if (found := case.find(kind)) is not None:
                outcome, message = meaning, found.get("message") or ""
                detail = found.text or ""
                break
        name = str(case.get("name"))
        # Such a check was skipped in the file, as it does not count against the series.
        as_stock = message.startswith(_AS_STOCK)
        yield {
            "name": name,
            "title": name,
            # One that had to fail on the stock module is in the file as one that held.
            "outcome": "failed" if as_stock else outcome,
            "on_stock": "failed" if as_stock else "",
            "stock_message": message.removeprefix(_AS_STOCK) if as_stock else "",
            "of_patch": False,
            "seconds": _seconds(case),
            "message": message,
            "detail": detail,
        }
