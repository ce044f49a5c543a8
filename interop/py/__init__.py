"""The peer of docs/interop.md on top of this project's own p2p and runtime."""
