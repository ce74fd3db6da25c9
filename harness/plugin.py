"""Pytest fixtures and options over the workbench's objects."""
