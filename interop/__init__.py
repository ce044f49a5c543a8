"""Peers of a world in four languages, and what drives every pairing of them: docs/interop.md."""
