"""Builds vmm.ko, libvmmapi and tools from a source tree and a series."""
