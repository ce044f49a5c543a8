"""Strangers who attack a network of nodes: the attacks one by one, all together for minutes, and what that costs.

`table.ATTACKS` lists them; tests run each alone, `python -m benchmarks.hostile` all of them beside honest work.
"""
