"""vmm-workbench: boot FreeBSD on virtual VT-x/EPT, load a patched vmm.ko, and check the patch."""
