"""Another Debian release's Bochs, with a fake apt that creates the files it would have
downloaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import CannotError, UsageError
from harness.machine import bochs_packages, bochs_program

# What it is asked goes to a file; a download lays one package down beside the lists.
APT = """\
#!/bin/sh
echo "$*" >>"$APT_LOG"
case "$*" in
*indextargets*) cat "$APT_SOURCES" ;;
*update*) [ -z "$APT_FAILS" ] || echo "W: Failed to fetch the list" >&2 ;;
*install*)
	for word; do case $word in -oDir::Cache=*) cache=${word#-oDir::Cache=} ;; esac; done
	for deb in bochs_3.0 libc6_2.41 systemd_257; do touch "$cache/archives/${deb}_amd64.deb"; done
	;;
esac
"""
DPKG = """\
#!/bin/sh
# dpkg-deb -x PACKAGE ROOT
case "$2" in
*/bochs_*) mkdir -p "$3/usr/bin" "$3/usr/share/doc/bochs"; touch "$3/usr/bin/bochs-bin" ;;
*/libc6_*) mkdir -p "$3/usr/lib64"; touch "$3/usr/lib64/ld-linux-x86-64.so.2" ;;
*) mkdir -p "$3/usr/lib64"; touch "$3/usr/lib64/not-wanted" ;;
esac
"""


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the log of what apt was asked, and its sources."""
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "sources").write_text(
        "Debian http://mirror/debian-security/\nDebian http://mirror/debian/\n"
    )
    (tmp_path / "keyring").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("APT_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("APT_SOURCES", str(tmp_path / "sources"))
    monkeypatch.setenv("APT_FAILS", "")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_DEBIAN_MIRROR", raising=False)
    monkeypatch.setattr(bochs_packages, "_KEYRING", tmp_path / "keyring")
    return tmp_path


def test_it_is_unpacked_once_and_found_then(played: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bochs_packages.there() == {}
    place = bochs_packages.unpack("3.0")
    assert place == played / "cache" / "bochs" / "trixie"
    files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert files == ["usr/bin/bochs-bin", "usr/lib64/ld-linux-x86-64.so.2"]
    assert bochs_packages.there() == {"3.0": place}
    asked = (played / "log").read_text()
    assert "--download-only install bochs bochs-term bochsbios vgabios\n" in asked
    assert bochs_packages.unpack("3.0") == place
    assert (played / "log").read_text() == asked, "it was there"
    monkeypatch.setattr(bochs_program, "installed", lambda: None)
    assert bochs_program.locate({"HARNESS_BOCHS": "3.0"}).root == place
    with pytest.raises(CannotError, match=r"neither installed nor .*\./inv setup --bochs 2\.7"):
        bochs_program.locate({"HARNESS_BOCHS": "2.7"})


def test_an_update_that_fetched_nothing_leaves_nothing(
    played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt-get exits with 0 then."""
    monkeypatch.setenv("APT_FAILS", "yes")
    with pytest.raises(
        CannotError, match="could not be fetched with apt: W: Failed to fetch the list"
    ):
        bochs_packages.unpack("2.7")
    assert bochs_packages.there() == {}


def test_what_was_not_unpacked_whole_is_none(played: Path) -> None:
    failing = played / "bin" / "dpkg-deb"
    failing.write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(CannotError, match=r"bochs_3\.0_amd64\.deb cannot be unpacked"):
        bochs_packages.unpack("3.0")
    assert bochs_packages.there() == {}


def test_where_it_comes_from_is_the_machine_s_mirror_or_a_named_one(
    played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bochs_packages._mirror() == "http://mirror/debian/"
    (played / "sources").write_text("Ubuntu http://archive/ubuntu/\n")
    with pytest.raises(CannotError, match="HARNESS_DEBIAN_MIRROR=URL"):
        bochs_packages._mirror()
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", "http://other/debian")
    assert bochs_packages._mirror() == "http://other/debian"


def test_what_is_lacking_is_named(played: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"Bochs 2\.6: unknown version; choose from 2\.7, 3\.0"):
        bochs_packages.unpack("2.6")
    (played / "keyring").unlink()
    with pytest.raises(CannotError, match="apt-get install debian-archive-keyring"):
        bochs_packages.unpack("3.0")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CannotError, match="there is no apt-get"):
        bochs_packages.unpack("3.0")
