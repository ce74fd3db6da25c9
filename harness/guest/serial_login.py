"""A login on a serial line: just enough of a shell to let SSH in.

Kernel messages get between the words there, so every command's output is fenced by marks which the
echo of the command itself cannot look like.
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
# The prompt is put together by the shell, so that the echo of this line is not taken for it.
_TAKE_SHELL = """exec env ENV= PS1=wb'# ' /bin/sh +E +V"""
_SHELL_PROMPT = r"wb# $"
_LINE_LIMIT = 255


class SerialLogin:
    """A session on a console that shows a login prompt sooner or later."""

    def __init__(self, console: Console, user: str, password: str) -> None:
        self._console = console
        self._talk = console.talk(0)
        self._user = user
        self._password = password

    def log_in(self, deadline: Deadline) -> None:
        """Wait for the prompt and log in.

        Raises CannotError when the login is refused, WaitTimeout when no prompt comes; one says how
        the image has to be for this to work.
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
                f"the image refuses {self._user} on its serial line; it has to let root in there "
                "with an empty password, as FreeBSD's CI images do, or with the one that "
                "images/freebsd-RELEASE.toml names for the release ([login], password)"
            )
        self._take_shell(deadline)

    def _take_shell(self, deadline: Deadline) -> None:
        """Whatever the login shell is, go on in sh, without start-up file, line editing or echo.

        A login's own scripts may ask the terminal for its size and swallow what is typed meanwhile
        (FreeBSD's do), so the line is typed again until its prompt comes.
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
                # A key would stop the loader; once the kernel speaks, a new line brings back a
                # prompt that its messages have broken.
                if _KERNEL_SPEAKS in said:
                    self._talk.sendline()
            else:
                return

    def run(self, command: str, deadline: Deadline) -> str:
        """Run a short command of sh's; its output. GuestError when it exits with anything but 0."""
        mark = secrets.token_hex(4)
        half, other = mark[:4], mark[4:]
        line = f"echo {half}''{other}-begin; {command}; echo {half}''{other}-end-$?"
        if len(line) >= _LINE_LIMIT:
            raise ValueError("a terminal's line would be cut off")
        self._talk.sendline(line)
        self._talk.expect_any([f"{mark}-begin"], f"`{command}` to begin", deadline)
        self._talk.expect_any([rf"{mark}-end-(\d+)\s"], f"`{command}` to end", deadline)
        match = self._talk.match
        output = "\n".join(clean_lines(str(self._talk.before)))
        code = int(match[1]) if isinstance(match, re.Match) else -1
        if code != 0:
            raise GuestError(f"`{command}` on the serial line exited with {code}", detail=output)
        return output
