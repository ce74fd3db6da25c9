"""Mutants: deliberately wrong variants of a series, to measure what the checks catch.

`patches/TOPIC/mutants/NAME.patch` is a small patch on top of the series.  Its header says what is
wrong (`Subject:`) and which checks should notice it (`Caught-by:`, node ids, which run first).  A
correct variant, which must pass every check, has `Expect: held`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.parser
import email.policy
import functools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from harness import defaults
from harness.bhyve.vmm import compile_vmtool
from harness.build import builder, targets
from harness.build.features import Features
from harness.build.job import Made
from harness.errors import PatchError, UsageError
from harness.files import PROJECT
from harness.run.related import related
from harness.run.trials import Variant
from harness.series.load import Patch, Series, read_patch
from harness.series.staging import apply_patch, copy_touched, staged

PATCHES = PROJECT / "patches"
MUTANTS = PATCHES / defaults.TOPIC / "mutants"
Expect = Literal["caught", "held"]


@dataclass(frozen=True)
class Mutant:
    """One variant; without a `patch` it is the series itself, or the stock module."""

    name: str
    wrong: str
    expect: Expect
    caught_by: tuple[str, ...] = ()
    patch: Patch | None = None

    def series(self, base: Series | None, release: str = "") -> Series | None:
        """The series to build: `base` with this variant's patch; None for the stock module.

        Without a base the series consists of this patch only, for `release`.
        """
        if self is STOCK:
            return None
        if self.patch is None:
            return base
        if base is None:
            return Series(self.name, release, self.patch.path.parent, (self.patch,))
        patches = (*base.patches, self.patch)
        return dataclasses.replace(base, topic=f"{base.topic}+{self.name}", patches=patches)


STOCK = Mutant(
    "stock",
    "the whole patch is missing",
    "caught",
    ("test_sysctls.py::test_sysctls_are_unsigned_64_bit",),
)
SERIES = Mutant("series", "nothing: this is the series itself", "held")


def has_some(topic: str) -> bool:
    """Whether a topic has mutants."""
    return any((PATCHES / topic / "mutants").glob("*.patch"))


def folder_of(topic: str) -> Path:
    """The folder of a topic's mutants; UsageError if it has none."""
    folder = PATCHES / topic / "mutants"
    if not has_some(topic):
        has = sorted(path.parent.parent.name for path in PATCHES.glob("*/mutants/*.patch"))
        raise UsageError(
            f"--topic {topic}: it has no mutants ({folder}/NAME.patch); these topics have some: "
            f"{', '.join(dict.fromkeys(has)) or 'no topic'}"
        )
    return folder


def load(
    folder: Path = MUTANTS, only: Sequence[str] = (), *, stock: bool = True
) -> tuple[Mutant, ...]:
    """The variants, sorted by name, with those that must pass first.

    `only` chooses some by name; `stock` includes the module without the series.  Raises UsageError
    for an unknown name, and PatchError for an incomplete header.
    """
    found = [SERIES, *((STOCK,) if stock else ())]
    found += [_read(path) for path in sorted(folder.glob("*.patch"))]
    found.sort(key=lambda mutant: mutant.expect != "held")
    known = [mutant.name for mutant in found]
    if strange := [name for name in only if name not in known]:
        raise UsageError(
            f"--only {strange[0]}: there is no such variant; choose from {', '.join(known)}"
        )
    return tuple(mutant for mutant in found if not only or mutant.name in only)


def _read(path: Path) -> Mutant:
    patch = read_patch(path)
    head = email.parser.BytesHeaderParser(policy=email.policy.default).parsebytes(patch.data)
    expect = str(head.get("Expect", "caught"))
    wrong = " ".join(str(head.get("Subject", "")).split())
    caught_by = tuple(str(head.get("Caught-by", "")).split())
    if expect not in ("caught", "held"):
        raise PatchError(f"{path.name}: Expect: {expect}: it must be caught or held")
    if not wrong:
        raise PatchError(f"{path.name}: it has no Subject: line that says what is wrong")
    if (expect == "caught") != bool(caught_by):
        raise PatchError(
            f"{path.name}: Caught-by: is only for variants that are expected to be caught"
        )
    return Mutant(path.stem, wrong, cast(Expect, expect), caught_by, patch)


class VariantBuilder:
    """Builds the variants of the series `base`, or without one, of FreeBSD's own source."""

    def __init__(
        self,
        source: Path,
        sysroot: Path,
        base: Series | None,
        release: str,
        wanted: Features = Features(),  # noqa: B008  (frozen)
        kernel: Sequence[str] = (),
    ) -> None:
        self._source = source
        self._sysroot = sysroot
        self._base = base
        self._release = release
        self._wanted = wanted
        self._kernel = kernel

    def apply_each(self, chosen: Sequence[Mutant]) -> None:
        """Try to apply each variant to the source; PatchError names the one that does not apply."""
        if self._base is None:
            for mutant in chosen:
                if (series := mutant.series(None, self._release)) is not None:
                    with _named(mutant), staged(series, self._source):
                        pass
            return
        # The series is applied once, and each variant to a copy of the result.
        with staged(self._base, self._source) as (folder, _):
            for mutant in chosen:
                if mutant.patch is not None:
                    with _named(mutant):
                        _try_on(folder, mutant.patch, self._base, self._source)

    def build(self, mutant: Mutant) -> Variant:
        """Build a variant; for a mutant only the part that its patch touches is built again.

        Raises PatchError when it does not compile.
        """
        with _named(mutant):
            series = mutant.series(self._base, self._release)
            maker = targets.make_all
            if mutant.patch is not None:
                before = self._base_parts
                touched = mutant.patch.touched
                maker = functools.partial(targets.make_again, before=before, touched=touched)
            made = self._make(series, maker)
            tool = compile_vmtool(made, self._sysroot)
            paths = map(str, mutant.patch.touched) if mutant.patch is not None else ()
            used = self._base or series
            return Variant(mutant.name, made, tool, mutant.caught_by, related(paths), used)

    @functools.cached_property
    def _base_parts(self) -> Made:
        """The parts that a mutant has in common with the series."""
        return _parts(self._make(self._base, targets.make_all))

    def _make(self, series: Series | None, maker: builder.Maker) -> builder.Build:
        return builder.build(
            self._source,
            self._sysroot,
            series,
            self._release,
            kernel=self._kernel,
            maker=maker,
            wanted=self._wanted,
        )


@contextlib.contextmanager
def _named(mutant: Mutant) -> Iterator[None]:
    try:
        yield
    except PatchError as error:
        raise PatchError(f"{mutant.name}: {error.message}", detail=error.detail) from error


def _try_on(folder: Path, patch: Patch, base: Series, source: Path) -> None:
    """Apply a patch to a copy of `folder`, which has the files of `source` that `base` touches."""
    with tempfile.TemporaryDirectory(prefix="vmm-stage-") as name:
        copy = Path(name) / "tree"
        shutil.copytree(folder, copy)
        copy_touched([path for path in patch.touched if path not in base.touched], source, copy)
        apply_patch(copy, patch)


def _parts(built: builder.Build) -> Made:
    return Made(
        built.module,
        built.library,
        built.tool,
        built.include,
        warnings=0,
        not_built=built.not_built,
        symbols=built.symbols,
        programs=built.programs,
    )
