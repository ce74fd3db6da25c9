"""Stock's answers to bad calls, to compare those of another module with.

They are collected once for each kernel, processor and set of calls, and cached.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness import files
from harness.bhyve import fuzz, vmm_module
from harness.build import builder
from harness.build.builder import Build
from harness.errors import CannotError
from harness.run.workbench import Workbench


def of_running(bench: Workbench, seed: int, calls: int) -> dict[str, str]:
    """The answers of the loaded module."""
    return _ask(bench, bench.running, str(Path(bench.loaded.path).parent), seed, calls)


def of_stock(bench: Workbench, seed: int, calls: int) -> dict[str, str]:
    """The answers of the stock module in this guest.

    If they are not cached, the stock module is loaded for that, and afterwards the earlier module
    again.  Raises CannotError if the stock module cannot be built.
    """
    stock = _stock(bench)
    guest = bench.guest
    assert guest is not None
    path = _cache(bench, stock, seed, calls)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(call): str(answer) for call, answer in data.items()}
    except (OSError, ValueError, AttributeError):
        pass
    if bench.running.build_id == stock.build_id:
        found = of_running(bench, seed, calls)
    else:
        guest.must(["kldunload", "vmm"], guest.deadline(30))
        try:
            loaded = vmm_module.load(guest, stock)
            found = _ask(bench, stock, str(Path(loaded.path).parent), seed, calls)
            guest.must(["kldunload", "vmm"], guest.deadline(30))
        finally:
            guest.must(["kldload", bench.loaded.path], guest.deadline(30))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path, json.dumps(found, indent=0) + "\n")
    return found


def _stock(bench: Workbench) -> Build:
    """The stock module, built unless it is there."""
    if bench.stock_build is not None:
        return bench.stock_build
    if bench.options.stock:
        return bench.running
    record = bench.record
    if record is None or record.source is None:
        raise CannotError("there is no source tree to build the stock module from")
    return builder.build(
        record.source, record.sysroot, None, bench.options.release, kernel=record.kernel
    )


def _cache(bench: Workbench, stock: Build, seed: int, calls: int) -> Path:
    sources = sorted(fuzz.SOURCES.glob("*.[ch]"))
    key = files.sha256_text(
        *(path.read_text(encoding="utf-8") for path in sources),
        stock.build_id,
        bench.guest.sysctl("kern.build_id") or bench.options.release,
        bench.guest.sysctl("hw.model") or "",
        f"{bench.backend} {seed} {calls} {_avoid(bench)}",
    )
    return files.cache_dir() / "answers" / f"{key[:32]}.json"


def _avoid(bench: Workbench) -> list[str]:
    """Calls that are left out: those that harm stock, and VM_RUN, whose exit depends on timing."""
    known = fuzz.load_known(bench.options.release)
    return [*(story.name for story in known if story.calls), "any-run"]


def _ask(bench: Workbench, build: Build, home: str, seed: int, calls: int) -> dict[str, str]:
    program = fuzz.compile_fuzzer(build, bench.record.sysroot)
    remote = fuzz.install(bench.guest, program, home)
    return fuzz.answers(bench.guest, remote, seed, calls, avoid=_avoid(bench))
