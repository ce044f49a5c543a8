"""The command `aw`."""
