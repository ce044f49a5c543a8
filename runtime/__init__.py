"""runtime is the world: records, kernel, chain, stores; runtime.services is where it meets the network.

Everything above `services/` is synchronous and knows nothing of trio, of libp2p, of the clock or of chance.
"""
