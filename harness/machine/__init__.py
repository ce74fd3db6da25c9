"""Virtual computers: one interface, two kinds."""
