"""The Invoke tasks, one file for each group."""
