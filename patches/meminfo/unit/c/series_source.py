"""The C that the series adds, written out of the patches and compiled here against the shims.

The patches are the only copy: a test compiles what `git apply` makes of them in an empty folder.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PATCHES = HERE.parents[1]
RELEASES = ("15.1", "15.0", "14", "main")

ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
TSAN = ("-fsanitize=thread", "-O1")
PLAIN = ("-O2",)
# vmmls has one option more on amd64, whatever this machine is.
TARGET_CPU = ("-D__amd64__=1",)
WARNINGS = ("-std=gnu17", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")

ACCT = "sys/dev/vmm/vmm_acct.c"
ACCT_HEADER = re.compile(r"sys/(dev/vmm/vmm_mem|amd64/include/vmm)\.h")
VMMLS = "usr.sbin/vmmls/vmmls.c"


def patches(release: str) -> list[Path]:
    """The release's patches in the order of its series file."""
    folder = PATCHES / release
    lines = (folder / "series").read_text().splitlines()
    names = [line.split("#", 1)[0].strip() for line in lines]
    return [(folder / name).resolve() for name in names if name]


def added_files(patch: Path) -> list[str]:
    """The paths that a patch creates."""
    return re.findall(r"^--- /dev/null\n\+\+\+ b/(\S+)$", patch.read_text(), re.MULTILINE)


def hunks(patch: Path, path: str) -> str:
    """What a patch says about one path, from its `diff --git` line to the next."""
    for part in re.split(r"^(?=diff --git )", patch.read_text(), flags=re.MULTILINE):
        if part.startswith(f"diff --git a/{path} b/{path}\n"):
            return part
    raise LookupError(f"{patch.name} does not touch {path}")


def _workspace() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="series-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tree(release: str) -> Path:
    """A folder with every file the release's series adds, as the whole series leaves it."""
    folder = _workspace()
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    added: list[str] = []
    for patch in patches(release):
        added += added_files(patch)
        wanted = [f"--include={path}" for path in added]
        if not wanted:
            continue
        subprocess.run(
            ["git", "apply", *wanted, str(patch)],
            cwd=folder,
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
    for patch in patches(release):
        _write_prototypes(folder, patch)
    _write_libvmmapi(folder, release)
    return folder


def _write_prototypes(folder: Path, patch: Path) -> None:
    """The account's functions are declared in a header of the tree's own: take what is added.

    That is vmm_mem.h in 15 and vmm.h in 14; here it is the former, which the shim's vmm.h includes.
    """
    header = folder / "sys" / "dev" / "vmm" / "vmm_mem.h"
    lines = header.read_text().splitlines() if header.is_file() else []
    for path in re.findall(r"^diff --git a/(\S+) ", patch.read_text(), re.MULTILINE):
        if not ACCT_HEADER.fullmatch(path):
            continue
        for line in hunks(patch, path).split("\n@@", 1)[1].splitlines()[1:]:
            if line.startswith("-") and "vmm_acct" in line:
                lines.remove(line[1:])
            elif re.match(r"\+\w+ vmm_acct_", line):
                lines.append(line[1:])
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("\n".join([*lines, ""]))


def compile_steps(release: str) -> list[str]:
    """Compile the kernel's account as each of the release's patches leaves it: their names."""
    folder = _workspace()
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    shim = HERE / "kernel"
    compiled: list[str] = []
    for patch in patches(release):
        if f" b/{ACCT}\n" not in patch.read_text():
            continue
        only = f"--include={ACCT}"
        subprocess.run(["git", "apply", only, str(patch)], cwd=folder, env=env, check=True)
        _write_prototypes(folder, patch)
        flags = (*WARNINGS, "-D_KERNEL", f"-I{shim}", f"-I{folder / 'sys'}")
        _cc(*flags, "-c", folder / ACCT, "-o", folder / "step.o")
        compiled.append(patch.name)
    return compiled


def _write_libvmmapi(folder: Path, release: str) -> None:
    """libvmmapi's functions go into a file of the tree's own: take the lines that are added."""
    path = "lib/libvmmapi/vmmapi.c"
    (patch,) = (p for p in patches(release) if "\n+vmm_get_mem(" in p.read_text())
    body = hunks(patch, path).split("\n@@", 1)[1]
    lines = [line[1:] for line in body.splitlines()[1:] if line.startswith("+")]
    text = "\n".join(["#include <sys/sysctl.h>", "#include <vmmapi.h>", *lines, ""])
    target = folder / "lib" / "libvmmapi"
    target.mkdir(parents=True, exist_ok=True)
    (target / "vmmapi_mem.c").write_text(text)


def _cc(*args: str | Path) -> None:
    """A compiler error fails the test with the compiler's own words."""
    argv = [os.environ.get("CC", "cc"), *map(str, args)]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@functools.cache
def _compile(source: Path, flags: tuple[str, ...]) -> Path:
    target = _workspace() / f"{source.stem}.o"
    _cc(*WARNINGS, *flags, "-c", source, "-o", target)
    return target


def _build(sources: list[Path], flags: tuple[str, ...]) -> Path:
    """One program; what several programs share is compiled once."""
    program = _workspace() / "program"
    _cc(*flags, *(_compile(source, flags) for source in sources), "-o", program, "-lpthread")
    return program


def compile_ledger(
    driver: str, flags: tuple[str, ...], source: Path | None = None, release: str = "15.1"
) -> Path:
    """A driver with the kernel's account of guest memory, or with a changed copy of it."""
    top = tree(release)
    shim = HERE / "kernel"
    flags = (*flags, "-D_KERNEL", f"-I{shim}", f"-I{top / 'sys'}")
    return _build([shim / "shim.c", source or top / ACCT, HERE / driver], flags)


def compile_vmmls(release: str, source: Path | None = None) -> Path:
    """vmmls as one release has it, or a changed copy."""
    return _compile_user(release, source or tree(release) / VMMLS)


def compile_fuzzer(release: str) -> Path:
    return _compile_user(release, HERE / "vmmls_fuzz.c")


def compile_libvmmapi(release: str) -> Path:
    return _compile_user(release, HERE / "libvmmapi_driver.c")


def _compile_user(release: str, main: Path) -> Path:
    top = tree(release)
    shim = HERE / "user"
    flags = (*ASAN, *TARGET_CPU, f"-I{shim}", f"-I{(top / VMMLS).parent}")
    return _build([shim / "shim.c", top / "lib/libvmmapi/vmmapi_mem.c", main], flags)


def mutant(path: str, old: str, new: str, release: str = "15.1") -> Path:
    """A copy of one source file with one fault put in."""
    text = (tree(release) / path).read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
    copy = _workspace() / Path(path).name
    copy.write_text(text.replace(old, new))
    return copy
