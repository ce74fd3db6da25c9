"""The doctor's table, on the facts of many hosts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import host
from harness.files import PROJECT
from harness.host.facts import load
from harness.run import doctor

HOSTS = PROJECT / "tests" / "unit" / "data" / "hosts"


def facts_of(name: str) -> host.HostFacts:
    return load((HOSTS / f"{name}.json").read_text())


# Which rows keep a host from a full verify.
BLOCKING = {
    "bochs-without-broadwell": ["backend"],
    "full-disk": ["room in the cache", "room for runs", "memory"],
    "hosted-ci-runner": ["images"],
    "no-bochs": ["backend", "build tools"],
    "no-emulators": ["QEMU", "backend", "build tools"],
    "software-kvm": ["images"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in HOSTS.glob("*.json")))
def test_verdict(name: str) -> None:
    verdict = doctor.examine(facts_of(name))
    blocking = BLOCKING.get(name, [])
    assert [row.what for row in verdict.blocking] == blocking
    assert verdict.exit_code == (3 if blocking else 0)
    assert all(row.remedy for row in verdict.blocking)
    assert all(row.evidence and row.found for row in verdict.rows)
    assert verdict.closing.startswith(
        f"auto takes {verdict.decision.backend}: " if verdict.decision.ok else "no backend: "
    )
    json.dumps(verdict.to_data())


@pytest.mark.parametrize("name", sorted(path.stem for path in HOSTS.glob("*.json")))
def test_facts_survive_the_file(name: str) -> None:
    facts = facts_of(name)
    assert load(json.dumps(host.to_data(facts))) == facts


def row_of(verdict: doctor.Verdict, what: str) -> doctor.Row:
    return next(row for row in verdict.rows if row.what == what)


def test_missing_controls_have_rows_of_their_own() -> None:
    verdict = doctor.examine(facts_of("intel-no-unrestricted-guest"))
    row = row_of(verdict, "procbased2.unrestricted_guest")
    assert row.status == "note"
    assert "MSR 0x48b" in row.evidence
    assert "unrestricted_guest=1" in row.remedy
    assert row_of(verdict, "VMX capabilities").found.startswith("1 required missing")
    assert "0x48b=0x1b737f00000000" in row_of(verdict, "VMX capabilities").evidence


def test_all_controls_there() -> None:
    verdict = doctor.examine(facts_of("intel-nested"))
    assert row_of(verdict, "VMX capabilities").found == "everything that vmm.ko requires"
    assert row_of(verdict, "nesting under KVM").status == "ok"
    assert "kvm_intel.nested=Y" in row_of(verdict, "/dev/kvm").evidence


def test_amd() -> None:
    verdict = doctor.examine(facts_of("amd-nested"))
    assert row_of(verdict, "SVM capabilities").found == "nested paging and NRIP save"
    lacking = doctor.examine(facts_of("amd-no-nrips"))
    assert row_of(lacking, "svm.nrip_save").evidence == "CPUID 8000_000A EDX 0x7"


def test_no_rights() -> None:
    row = row_of(doctor.examine(facts_of("no-rights")), "/dev/kvm")
    assert row.found == "there, not openable: EACCES"
    assert "usermod -aG kvm" in row.remedy


def test_image_without_source_is_not_enough() -> None:
    facts = dataclasses.replace(facts_of("intel-nested"), images=(host.Image("15.1", source=True),))
    verdict = doctor.examine(facts)
    assert [row.what for row in verdict.blocking] == ["images"]
    assert "image.import" in verdict.blocking[0].remedy


def test_shown_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show(doctor.examine(facts_of("intel-nesting-off")))
    shown = capsys.readouterr().out
    assert "sudo modprobe kvm_intel nested=1" in shown
    assert "auto takes bochs" in shown


def test_task(tmp_path: Path) -> None:
    """With an empty cache there is no image, so no full verify is possible anywhere."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.program", "doctor", "--json"],
        cwd=PROJECT,
        env={**os.environ, "HARNESS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    data = json.loads(done.stdout)
    assert data["possible"] is False
    assert "images" in data["blocking"]
    assert doctor.examine(host.from_data(data["facts"])).to_data() == data


def test_the_sandbox_is_shown_and_where_there_is_none_the_remedy() -> None:
    facts = dataclasses.replace(facts_of("intel-nested"), sandbox="bubblewrap 0.8.0")
    assert row_of(doctor.examine(facts), "sandbox for builds").status == doctor.OK
    facts = dataclasses.replace(facts_of("intel-nested"), sandbox_refusal="forbidden: allow it")
    row = row_of(doctor.examine(facts), "sandbox for builds")
    assert (row.found, row.remedy, row.status) == ("forbidden", "allow it", doctor.MISSING)


def test_the_way_into_a_guest_is_shown_and_what_makes_it_private() -> None:
    facts = facts_of("intel-nested")
    assert not [row for row in doctor.examine(facts).rows if row.what == "way into a guest"]
    facts = dataclasses.replace(facts, network_refusal="")
    row = row_of(doctor.examine(facts), "way into a guest")
    assert (row.found, row.status) == ("no port on this machine", doctor.OK)
    facts = dataclasses.replace(facts, network_refusal="this machine forbids it (x)")
    row = row_of(doctor.examine(facts), "way into a guest")
    assert (row.status, "other users" in row.found) == (doctor.WARN, True)
    assert "forbids it (x)" in row.evidence
    assert "user namespaces" in row.remedy or "sysctl" in row.remedy
    assert host.from_data(json.loads(json.dumps(host.to_data(facts)))) == facts


def bochs_row(**about: object) -> doctor.Row:
    facts = facts_of("software-kvm")
    bochs = dataclasses.replace(facts.emulators["bochs"], **about)  # type: ignore[arg-type]
    emulators = {**facts.emulators, "bochs": bochs}
    tools = {**facts.tools, "gcc": "12.2.0"}
    return row_of(
        doctor.examine(dataclasses.replace(facts, emulators=emulators, tools=tools)), "Bochs"
    )


@pytest.mark.parametrize(
    ("about", "said", "remedy"),
    [
        (
            {"version": "2.7", "debugger": "always"},
            "saves and resumes guests, runs in its debugger",
            "Bochs 3.0 is faster by a third and more: ./inv setup --bochs 3.0 unpacks it",
        ),
        (
            {"version": "2.7", "debugger": "always", "unpacked": ("3.0",)},
            "runs in its debugger",
            "Bochs 3.0 is faster by a third and more: HARNESS_BOCHS=3.0 uses the one",
        ),
        ({"version": "3.0", "debugger": "on request"}, "a third faster and more than 2.7", ""),
        # Built by somebody without a debugger: as fast.
        ({"version": "2.8", "debugger": "never"}, "runs whole traces", ""),
        ({"version": "2.8", "debugger": ""}, "saves and resumes guests", ""),
    ],
)
def test_which_bochs_and_what_it_can_do(about: dict[str, object], said: str, remedy: str) -> None:
    row = bochs_row(**about)
    assert (row.found, row.status) == (about["version"], "ok")
    assert said in row.evidence
    assert row.remedy.startswith(remedy)
    assert bool(row.remedy) == bool(remedy)


def test_its_models_say_what_virtualization_it_has() -> None:
    models: tuple[str, ...] = ("broadwell_ult", "pentium")
    assert "2 processor models (VMX)" in bochs_row(cpu_models=models).evidence
    models = ("broadwell_ult", "zambezi", "ryzen")
    assert "3 processor models (VMX and SVM)" in bochs_row(cpu_models=models).evidence


def test_without_a_compiler_no_guest_is_saved() -> None:
    facts = dataclasses.replace(facts_of("software-kvm"), tools={})
    row = row_of(doctor.examine(facts), "Bochs")
    assert "saves no guest without a C compiler" in row.evidence


def test_a_named_bochs_that_does_not_exist_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HARNESS_BOCHS", "/nonexistent")
    verdict = doctor.examine(host.gather())
    row = row_of(verdict, "Bochs")
    assert row.found.startswith("HARNESS_BOCHS=/nonexistent: there is no usr/bin/bochs-bin in it")
    assert row.remedy == ""
    assert not {"bochs", "bochs-term"} & set(verdict.facts.packages_missing)
