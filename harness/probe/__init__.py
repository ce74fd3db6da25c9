"""Runs the bare-metal probe (images/vtxprobe) in a backend, and evaluates its TAP output."""
