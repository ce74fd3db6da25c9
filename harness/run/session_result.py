"""The result of a pytest session, even if other plugins change the reports of single tests."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import EXIT_GUEST, EXIT_OK
from harness.run.workbench import Workbench

WORKBENCH = pytest.StashKey[Workbench]()
"""Set in `config.stash` by a caller that has already started a guest (`inv verify`)."""

EVER_BROKE = pytest.StashKey[str]()
"""The reason why the guest broke, in the stash of the session and of the check."""
UNREACHABLE = pytest.StashKey[tuple[int, str]]()
"""The exit code and the reason if there can be no guest but --vmm-insist was given."""


class SessionResult:
    """Sets the session's exit code, even if other plugins change the reports of single tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # The clean-up after this does not wait for a guest that may hang.
        if isinstance(excinfo.value, KeyboardInterrupt):
            give_up(self._config, "the run was interrupted")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """A broken guest is a failure, even if the check was repeated or expected to fail."""
        config = self._config
        code, reason = config.stash.get(UNREACHABLE, (EXIT_OK, ""))
        broke = config.stash.get(EVER_BROKE, "")
        if output := getattr(config, "workeroutput", None):
            output["vmm"] = (code, reason, broke)
        elif code:
            session.exitstatus = code
        elif broke and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = EXIT_GUEST

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """pytest-xdist: take over the result of a worker's session."""
        code, reason, broke = getattr(node, "workeroutput", {}).get("vmm", (EXIT_OK, "", ""))
        if code:
            self._config.stash[UNREACHABLE] = (code, reason)
        if broke:
            self._config.stash[EVER_BROKE] = broke

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print once why there was no guest, or why it broke."""
        _, reason = self._config.stash.get(UNREACHABLE, (EXIT_OK, ""))
        if reason:
            terminalreporter.write_line(f"no guest: {reason}", red=True)
        if broke := self._config.stash.get(EVER_BROKE, ""):
            terminalreporter.write_line(f"the guest broke: {broke}", red=True)


def give_up(config: pytest.Config, reason: str) -> None:
    """Send no more commands to the guest."""
    bench = config.stash.get(WORKBENCH, None)
    if bench is not None and bench.guest is not None:
        bench.guest.given_up = reason
