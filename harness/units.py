"""Amounts of memory, for checks that read like their claims: `512 * MiB`."""

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
