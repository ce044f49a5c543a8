"""p2p moves bytes: peers, streams, topics, keys. It knows nothing of what a world means.

Importing this package loads neither libp2p nor trio (both are slow to import); `p2p.host` and `p2p.memory` do.
"""
