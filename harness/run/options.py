"""The options of a run, and the rules for combining them.

The rules are here and not in the tasks, so that verify, `up`, fuzz and pytest's plugin obey them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness import backends, defaults, keeper
from harness.build import features, in_guest
from harness.errors import CannotError, UsageError
from harness.image import store
from harness.machine.models import vendor_of
from harness.series import load as patches


@dataclass(frozen=True)
class Options:
    """What to test, and where.

    `series` names patches of the user's own, or is empty for the topic's; `stock` leaves out all
    patches.  `topic` names a folder of patches/, or is None if the user named none: see
    `topic_name`. `offline` fetches nothing; `full` also runs the checks that take minutes; without
    `module` nothing is built or loaded. `side_by_side` asks for the stock module as well as the
    patched one, `alone` leaves it out: see `with_stock`.  `go_on` starts a broken guest again, for
    the remaining checks; `only` is a pytest -k expression. `builder` says where the module is
    built: host, guest (FreeBSD's own compiler, in a separate guest), or auto, which is the host if
    it has a compiler. `coverage` builds module, library and programs so that they count which lines
    run. `guests` is the number of guests for the checks; 0 means as many as this machine has room
    for. `cpu_vendor` is intel or amd; empty means that of the backend (Intel in Bochs). Raises
    UsageError for options that exclude each other.
    """

    release: str = defaults.RELEASE
    backend: str = "auto"
    stock: bool = False
    series: tuple[Path, ...] = ()
    topic: str | None = None
    offline: bool = False
    full: bool = False
    cold: bool = False
    module: bool = True
    side_by_side: bool = False
    go_on: bool = False
    only: str = ""
    builder: str = "auto"
    cpu_vendor: str = ""
    coverage: bool = False
    guests: int = 0
    alone: bool = False

    def __post_init__(self) -> None:
        if self.stock and self.series:
            raise UsageError(
                "--stock is the stock module alone, without patches; leave out --series or --stock"
            )
        if self.stock and self.side_by_side:
            raise UsageError(
                "--stock is the stock module alone; leave out --stock or --side-by-side"
            )
        if self.alone and not self.series:
            raise UsageError(
                "--alone needs --series: only then does verify run the stock module as well"
            )
        if self.alone and self.side_by_side:
            raise UsageError(
                "--alone leaves the stock module out; leave out --side-by-side or --alone"
            )
        backends.require_known(self.backend)
        if self.cpu_vendor:
            vendor_of(self.cpu_vendor)
        if self.guests < 0:
            raise UsageError(f"--guests {self.guests}: it must be at least 1")
        in_guest.require_known(self.builder)
        if self.coverage and self.builder == "guest":
            raise UsageError("--coverage needs the compiler of this machine; leave out --builder")

    @property
    def topic_name(self) -> str:
        """The topic whose checks, features and patches are used: the named one, or the default.

        It is empty for patches of the user's own, which get only the general checks.
        """
        if self.topic is not None:
            return self.topic
        return "" if self.series else defaults.TOPIC

    @property
    def with_stock(self) -> bool:
        """Whether the stock module is also built and tried; with a series it is by default."""
        return self.side_by_side or (bool(self.series) and not self.stock and not self.alone)


def name_to_keep(keep: bool, name: str) -> str:
    """The name of a failed run's guest if it should stay; otherwise empty.

    Raises UsageError for a name without --keep, and for an invalid name.
    """
    if name and not keep:
        raise UsageError(f"--name {name} belongs to --keep, which leaves the guest up; add --keep")
    return keeper.check_name(name or "verify") if keep else ""


def load_series(options: Options, tree: Path | None = None) -> patches.Series | None:
    """The series to build, or None for the stock module.

    It is read for `tree`, or for the release's source tree if one was imported.
    """
    if options.stock:
        return None
    where = patches.chosen(options.series, options.topic_name)
    tree = tree or known_source(options)
    return patches.require_patches(patches.load_series(where, options.release, tree))


def known_source(options: Options) -> Path | None:
    """The source tree that was imported for the release; None if there is none."""
    try:
        return store.source(store.resolve(options.release))
    except CannotError:
        return None


def features_of(topic: str) -> features.Features:
    """The build options of a topic that differ from a release's."""
    return features.read(patches.PATCHES / topic) if topic else features.Features()
