"""The bare-metal probe (images/vtxprobe) in a backend, and its TAP judged."""
