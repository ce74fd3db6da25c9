"""A run in JUnit's XML, for CI."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from harness.report.data import Report


def junit(report: Report) -> bytes:
    """The run in JUnit's XML: a suite of stages and a suite of checks."""
    return junit_of_all([("", report)])


def junit_of_all(
    reports: Iterable[tuple[str, Report]], missing: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Several runs in one file: the two suites of each, with its label before their names.

    What is missing, each with the reason, becomes a suite of its own with a case that was skipped.
    """
    top = ET.Element("testsuites", name="vmm-workbench")
    for label, report in reports:
        _add(top, report, f"{label}: " if label else "")
    for label, why in missing:
        suite = ET.SubElement(top, "testsuite", name=_xml(label), tests="1", failures="0")
        suite.set("errors", "0")
        suite.set("skipped", "1")
        case = ET.SubElement(suite, "testcase", classname="run", name=_xml(label), time="0.000")
        ET.SubElement(case, "skipped", message=_xml(f"not run: {why}"))
    ET.indent(top)
    return bytes(ET.tostring(top, encoding="utf-8", xml_declaration=True))


def _add(top: ET.Element, report: Report, label: str) -> None:
    """The two suites of one run."""
    stages = _suite(top, f"{label}stages", report, sum(s.seconds for s in report.stages))
    for stage in report.stages:
        case = ET.SubElement(
            stages, "testcase", classname="stage", name=stage.name, time=f"{stage.seconds:.3f}"
        )
        if stage.outcome == "failed":
            ET.SubElement(case, "error", message=_xml(stage.note))
        elif stage.outcome == "not run":
            ET.SubElement(case, "skipped", message=_xml(stage.note or "not run"))
    checks = _suite(top, f"{label}checks", report, sum(c.seconds for c in report.checks))
    for check in report.checks:
        status, why = report.status(check)
        case = ET.SubElement(
            checks,
            "testcase",
            classname="check",
            name=_xml(check.name),
            time=f"{check.seconds:.3f}",
        )
        if check.figures:
            measured = ET.SubElement(case, "properties")
            for key, value in check.figures:
                ET.SubElement(measured, "property", name=_xml(key), value=_xml(value))
        if status == "FAILED":
            failure = ET.SubElement(case, "failure", message=_xml(why))
            failure.text = _xml(check.detail)
        elif status in ("not run", "as stock", "n/a"):
            ET.SubElement(case, "skipped", message=_xml(why))
    for suite in (stages, checks):
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
        suite.set("errors", str(sum(case.find("error") is not None for case in cases)))
        suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))


def _suite(top: ET.Element, name: str, report: Report, seconds: float) -> ET.Element:
    suite = ET.SubElement(
        top, "testsuite", name=_xml(name), time=f"{seconds:.3f}", timestamp=report.started_at
    )
    properties = ET.SubElement(suite, "properties")
    known = {
        "release": report.release,
        "backend": report.backend,
        "series": report.series,
        **({"topic": report.topic} if report.topic else {}),
        "stock": str(report.stock).lower(),
        **report.properties,
    }
    for key, value in known.items():
        ET.SubElement(properties, "property", name=key, value=_xml(value))
    return suite


def _xml(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot contain, which a console may print."""
    return "".join(
        c if c in "\t\n" or " " <= c < "\ud800" or "\ue000" <= c < "\ufffe" or c > "\uffff" else "?"
        for c in text
    )
