"""Which user runs the workbench, and in what kind of system or container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import surroundings
from harness.errors import CannotError
from harness.host import survey
from harness.machine import forward


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(name, raising=False)


def test_containers_are_known_by_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert surroundings.look(tmp_path).container == ""
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/container").write_text("lxc\n")
    assert surroundings.look(tmp_path).container == "lxc"
    (tmp_path / "run/.containerenv").touch()
    assert surroundings.look(tmp_path).container == "podman"
    (tmp_path / ".dockerenv").touch()
    assert surroundings.look(tmp_path).container == "docker"
    monkeypatch.setenv("container", "oci")
    assert surroundings.look(tmp_path / "none").container == "oci"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert surroundings.look(tmp_path / "none").container == "kubernetes"


def test_root_and_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert (
        surroundings.look(tmp_path).as_root("x a", "y 'b c'")
        == """su -c 'x a && y '"'"'b c'"'"''"""
    )
    (tmp_path / "sudo").write_text("#!/bin/sh\n")
    (tmp_path / "sudo").chmod(0o755)
    assert surroundings.look(tmp_path).as_root("x", "y") == "sudo x && sudo y"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert surroundings.look(tmp_path).as_root("x", "y") == "x && y"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "=0 allows it"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1 allows it"),
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000 allows it"),
        ("user/max_user_namespaces", "63000", "allow user namespaces here"),
    ],
)
def test_the_setting_that_forbids_namespaces_is_named(
    tmp_path: Path, name: str, value: str, expected: str
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n")
    assert expected in forward.namespace_remedy(tmp_path)


def test_namespaces_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "look", lambda: surroundings.Surroundings(container="docker"))
    assert "--security-opt apparmor=unconfined" in forward.namespace_remedy(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0")
    assert forward.namespace_remedy(tmp_path).startswith("on the container's host: sudo sysctl ")


def test_the_group_of_a_device(tmp_path: Path) -> None:
    none = {"group": "", "group_id": 0, "member": False}
    assert survey.device_group(tmp_path / "absent") == none
    device = tmp_path / "kvm"
    device.touch(mode=0o600)
    device.chmod(0o600)
    assert survey.device_group(device) == none
    if own := [it for it in os.getgroups() if it] or ([61234] if os.geteuid() == 0 else []):
        os.chown(device, -1, own[0])
        device.chmod(0o660)
        found = survey.device_group(device)
        assert found["group_id"] == own[0]
        assert found["group"]
        # It has an effect already: a member of the group need not log in again.
        assert not found["member"]


def test_without_proc_nothing_is_found_out(tmp_path: Path) -> None:
    surroundings.require_proc()
    with pytest.raises(CannotError, match=r"/proc cannot be read; run .*mount -t proc proc /proc"):
        surroundings.require_proc(tmp_path)
