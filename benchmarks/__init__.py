"""What this stack costs, measured beside stock py-libp2p or a named naive baseline. `make bench` runs all of it."""
