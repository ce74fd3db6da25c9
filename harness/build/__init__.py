"""Source tree and series in, vmm.ko, libvmmapi and tools out."""
