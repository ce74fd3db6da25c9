"""Patches and series: read, check, apply, refresh and export them; no FreeBSD needed."""
