"""FreeBSD inside a machine: SSH, the serial login, sysctls, modules, panics, snapshots, gdb."""
