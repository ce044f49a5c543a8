"""The whole network in one process under a seed: real services, simulated clocks, links, disks and crashes.

Start with `run.run_seed`. How to add a fault or a check: docs/testing.md.
"""
