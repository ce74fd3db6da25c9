"""bhyve as data, and the programs that test it inside the guest."""
