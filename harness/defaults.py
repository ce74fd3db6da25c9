"""Default values for options that the user leaves out."""

from __future__ import annotations

RELEASE = "15.1"
"""The FreeBSD release that is booted and built for."""

TOPIC = "meminfo"
"""The topic of `patches/` whose series and checks are used."""

GUEST = "guest"
"""The name of a guest that stays."""
