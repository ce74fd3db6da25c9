"""The Invoke tasks, one file a group."""
