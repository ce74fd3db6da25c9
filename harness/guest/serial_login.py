"""A login on a serial line, with as much of a shell as the set-up of SSH needs.

Kernel messages may appear between its output, so every command's output is enclosed by marks that
differ from the echo of the command itself.
"""

from __future__ import annotations

import re
import secrets

from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, WaitTimeout
from harness.machine.console import Console, clean_lines

_PROMPT = r"login: *$"
_KERNEL_SPEAKS = "Copyright (c) 1992"
_RESEND_S = 20.0
# The shell joins the parts of the prompt, so that the echo of this line does not look like it.
_TAKE_SHELL = """exec env ENV= PS1=wb'# ' /bin/sh +E +V"""
_SHELL_PROMPT = r"wb# $"
_LINE_LIMIT = 255


class SerialLogin:
    """A session on a console that will show a login prompt."""

    def __init__(self, console: Console, user: str, password: str) -> None:
        self._console = console
        self._talk = console.talk(0)
        self._user = user
        self._password = password

    def log_in(self, deadline: Deadline) -> None:
        """Wait for the prompt and log in.

        Raises CannotError if the login is refused, WaitTimeout if no prompt comes; both name the
        requirement on the image.
        """
        self._await_prompt(deadline)
        self._talk.sendline(self._user)
        refused = "Login incorrect"
        asked = self._talk.expect_any(
            [r"[Pp]assword:", refused, r"[#$%>] $"], "an answer to the login", deadline
        )
        if asked == 0:
            self._talk.sendline(self._password)
            asked = self._talk.expect_any(
                [r"[Pp]assword:", refused, r"[#$%>] $"], "an answer to the password", deadline
            )
        if asked < 2:
            raise CannotError(
                f"the image refuses {self._user} on its serial line; it must let root log in there "
                "with an empty password, as FreeBSD's CI images do, or with the one that "
                "images/freebsd-RELEASE.toml names for the release ([login], password)"
            )
        self._take_shell(deadline)

    def _take_shell(self, deadline: Deadline) -> None:
        """Continue in sh, whatever the login shell is, without start-up file, line editing or echo.

        A login script may query the terminal's size and lose text that is typed meanwhile
        (FreeBSD's do), so the line is typed again until the prompt appears.
        """
        while True:
            self._talk.sendline(_TAKE_SHELL)
            try:
                self._talk.expect_any([_SHELL_PROMPT], "sh's prompt", deadline.at_most(_RESEND_S))
            except WaitTimeout:
                if deadline.expired:
                    raise
            else:
                break
        self._talk.sendline("stty -echo; PS1=; PS2=")
        self.run("true", deadline)

    def _await_prompt(self, deadline: Deadline) -> None:
        while True:
            try:
                self._talk.expect_any([_PROMPT], "login prompt", deadline.at_most(_RESEND_S))
            except WaitTimeout as error:
                said = self._console.since(0)
                if deadline.expired:
                    silent = not said.strip()
                    why = (
                        "nothing came over the serial line: the image needs boot_serial and "
                        'console="comconsole" in loader.conf'
                        if silent
                        else "the serial line shows no login prompt: the image needs a getty on "
                        "its console (ttyu0 in /etc/ttys)"
                    )
                    raise CannotError(
                        f"{why}; the console's log is {self._console.log}", detail=error.detail
                    ) from error
                # A key would stop the loader.  Once the kernel prints messages, a new line restores
                # a prompt that they have broken.
                if _KERNEL_SPEAKS in said:
                    self._talk.sendline()
            else:
                return

    def run(self, command: str, deadline: Deadline) -> str:
        """Run a short command in sh; returns its output.  GuestError if it does not exit with 0."""
        mark = secrets.token_hex(4)
        half, other = mark[:4], mark[4:]
        line = f"echo {half}''{other}-begin; {command}; echo {half}''{other}-end-$?"
        if len(line) >= _LINE_LIMIT:
            raise ValueError("the line is too long for a terminal")
        self._talk.sendline(line)
        self._talk.expect_any([f"{mark}-begin"], f"`{command}` to begin", deadline)
        self._talk.expect_any([rf"{mark}-end-(\d+)\s"], f"`{command}` to end", deadline)
        match = self._talk.match
        output = "\n".join(clean_lines(str(self._talk.before)))
        code = int(match[1]) if isinstance(match, re.Match) else -1
        if code != 0:
            raise GuestError(f"`{command}` on the serial line exited with {code}", detail=output)
        return output
