"""An interrupt is never lost, wherever Python is when the signal arrives.

Python runs a signal's handler between any two instructions, also within a destructor or a weak
reference's callback (an import runs many).  It does not let exceptions out of those: it prints
"Exception ignored in ..." and goes on, and the program waits as if nobody had pressed Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_S = 0.01


def never_lost() -> None:
    """Send this process a SIGINT again if the KeyboardInterrupt of one was ignored.

    For the main thread, which alone runs handlers.  Code that replaces sys.unraisablehook later (as
    pytest does) must be followed by another call.
    """
    before = sys.unraisablehook

    def hook(ignored: UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # This hook runs within the callback, too: the signal must arrive after both have ended.
            threading.Thread(target=_again, name="interrupt again", daemon=True).start()
        else:
            before(ignored)

    sys.unraisablehook = hook


def _again() -> None:
    time.sleep(_AGAIN_S)
    main = threading.main_thread().ident
    assert main is not None
    # To the thread and not only to the process: it ends a system call in which the thread waits.
    signal.pthread_kill(main, signal.SIGINT)
