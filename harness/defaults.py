"""What is meant where a user names none."""

from __future__ import annotations

RELEASE = "15.1"
"""The FreeBSD release that is booted and built for."""

TOPIC = "meminfo"
"""The topic of `patches/` whose series and checks are used."""

GUEST = "guest"
"""The name of a guest that stays."""
