"""bhyve as data, and the programs that are taken into the guest to ask it."""
