"""Wire strings, and the limits of streams, frames, gossip and the DHT.

Hides: how a topic, a DHT key or a protocol id is spelled, and how much of anything a peer may hold.
Guarantees: pure constants and functions; every limit ends in its unit (`_bytes_max`, `_ms`, `_max`).
Implements docs/protocol.md, sections "Names" and "Limits".
"""

from __future__ import annotations

from typing import Final

# --- names -----------------------------------------------------------------------------------------------

RR_PROTOCOL: Final = "/aw/rr/1"
KAD_PROTOCOL: Final = "/aw/kad/1.0.0"
GOSSIP_PROTOCOL: Final = "/meshsub/1.1.0"

TOPIC_KINDS: Final = ("action", "batch", "block", "head", "event", "evidence")

# blake3 is multihash code 0x1e; a digest is always 0x20 = 32 bytes here.
MULTIHASH_BLAKE3_PREFIX: Final = b"\x1e\x20"

# An Ed25519 peer id is an identity multihash of the protobuf {type: 1, key: 32 bytes}.
PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")


def topic(world_id: str, kind: str) -> str:
    """Gossip topic `aw.<world_id>.<kind>`; `kind` is one of TOPIC_KINDS."""
    if kind not in TOPIC_KINDS:
        raise ValueError(f"topic kind: {kind!r} is none of {', '.join(TOPIC_KINDS)}")
    return f"aw.{world_id}.{kind}"


def head_key(world_id: str) -> str:
    """DHT record key of a world's newest head, 47 bytes for a 32-character world id."""
    return f"/aw/world/{world_id}/head"


def provider_key(content_id: bytes) -> bytes:
    """DHT provider key of a 32-byte BLAKE3 content id: its multihash, 34 bytes."""
    if len(content_id) != 32:
        raise ValueError(f"content id: {len(content_id)} bytes, not 32")
    return MULTIHASH_BLAKE3_PREFIX + content_id


_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def peer_text(peer_id: bytes) -> str:
    """A peer id as people and multiaddrs spell it: base58, `12D3Koo...`."""
    number, text = int.from_bytes(peer_id, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(peer_id) - len(peer_id.lstrip(b"\0"))) + text


def peer_from_text(text: str) -> bytes:
    """The bytes of a base58 peer id of at most 64 characters. Raises ValueError."""
    if not 1 <= len(text) <= 64 or any(character not in _BASE58 for character in text):
        raise ValueError(f"peer id: {text[:80]!r} is not 1..64 characters of base58")
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


# --- frames and streams of /aw/rr/1 ------------------------------------------------------------------------

FRAME_BYTES_MAX: Final = 1 << 20  # what the length prefix may say: head and body together
FRAME_LENGTH_BYTES_MAX: Final = 3  # a minimal varint up to FRAME_BYTES_MAX takes three bytes
METHOD_BYTES_MAX: Final = 64  # of a method's name
REQUEST_ID_MAX: Final = (1 << 32) - 1
RETRY_AFTER_MS_MAX: Final = (1 << 32) - 1  # what an error may ask a client to wait
ERROR_MESSAGE_BYTES_MAX: Final = 1_024  # text for people in an error frame

REQUEST_BYTES_MAX: Final = 64 * 1024  # a request frame, unless its route says more
REQUEST_LARGE_BYTES_MAX: Final = FRAME_BYTES_MAX  # submit_actions, commit_batch, execute_batch
PART_BYTES_MAX: Final = 256 * 1024  # what one part of a streamed answer carries
ANSWER_BYTES_MAX: Final = FRAME_BYTES_MAX - 64  # body of one last answer
ANSWER_PARTS_BYTES_MAX: Final = 64 << 20  # all parts of one streamed answer, unless the caller says less

IN_FLIGHT_PER_SESSION_MAX: Final = 32  # requests without an answer on one stream
IN_FLIGHT_PER_PEER_MAX: Final = 64
IN_FLIGHT_TOTAL_MAX: Final = 1_024
ANSWERS_WAITING_BYTES_MAX: Final = (  # answers that nobody has read yet, of all peers together
    128 << 20
)  # of all peers; strangers wait above it, and who does not read is closed
STREAMS_PER_PEER_MAX: Final = 64
SESSION_QUEUE_FRAMES_MAX: Final = 64  # answers that wait to be written to one stream
SESSION_WRITE_BATCH_BYTES_MAX: Final = 64 * 1024  # small frames are joined up to this much per write

REQUESTS_PER_S_PER_PEER_MAX: Final = 2_000
REQUEST_BYTES_AS_ONE: Final = (  # a stranger's request counts one more for each
    1_024  # so many bytes of a stranger's request count as one more: they have to be decoded
)
IN_FLIGHT_OF_STRANGERS_PER_CENT: Final = 75  # of the places in flight; the rest is for authorities and peers
REQUEST_BYTES_PER_S_PER_PEER_MAX: Final = 64 << 20

REQUEST_FIRST_BYTE_MS: Final = 10_000  # from the opened stream to its first byte
REQUEST_TOTAL_MS: Final = 30_000  # for the whole of a request to arrive
HANDLER_MS_MAX: Final = 30_000  # for a handler to answer; then TIMEOUT
SESSION_IDLE_MS: Final = 60_000  # a client ends a session that rested so long, a server after twice that

# --- gossip ------------------------------------------------------------------------------------------------

GOSSIP_BYTES_MAX: Final = 64 * 1024  # one message
GOSSIP_CHANNEL_MESSAGES_MAX: Final = 4_096  # heard and not yet read, per topic; more are dropped and counted
GOSSIP_OUT_QUEUE_RPCS_MAX: Final = 2_048  # not yet written to one neighbour; more are dropped and counted
GOSSIP_OUT_QUEUE_BYTES_MAX: Final = 16 << 20  # of RPCs that wait for one peer
GOSSIP_MESSAGES_PER_RPC_MAX: Final = 256  # of one RPC; the rest is not read
GOSSIP_ASKED_BYTES_PER_S_MAX: Final = 4 << 20  # of messages that one peer asks for again
GOSSIP_OFFERED_IDS_MAX: Final = 5_000  # of one offer of messages that are looked at
GOSSIP_SUBSCRIPTIONS_PER_S_MAX: Final = 256  # changes by one peer
TOPIC_CHARS_MAX: Final = 128
TOPICS_MAX: Final = 256  # that this node joins

# --- DHT ---------------------------------------------------------------------------------------------------

RECORD_KEY_BYTES_MAX: Final = 49  # py-libp2p resets a FIND_NODE of more than 50 bytes that is no multihash
RECORD_BYTES_MAX: Final = 8 * 1024  # one value in the DHT
PROVIDERS_PER_KEY_MAX: Final = 20  # that a DHT server keeps
PROVIDER_CACHE_TTL_MS: Final = 600_000
HEAD_CACHE_TTL_MS: Final = 300_000
PROVIDERS_CACHED_PER_KEY_MAX: Final = 8  # that a client remembers of a look-up
PROVIDED_KEYS_MAX: Final = 65_536  # that this node provides and says again
PROVIDER_REPUBLISH_MS: Final = 300_000
DHT_LOOKUP_MS: Final = 15_000  # for one question to the DHT
ADD_PROVIDER_PER_10_S_PER_PEER_MAX: Final = 500  # provider records of one peer; more are dropped and counted
RECORDS_HELD_MAX: Final = 4_096  # for others, as a server
PROVIDER_RECORDS_HELD_MAX: Final = 16_384  # of others, that a DHT server keeps: a key and a peer each
DHT_STREAMS_MAX: Final = 1_024  # DHT streams open at a time
DHT_STREAMS_PER_PEER_MAX: Final = 16
DHT_IDLE_MS: Final = 30_000  # without a byte on a DHT stream; then it is reset
DHT_PEERS_MAX: Final = 20  # of each kind in one DHT message; the rest is not read
DHT_MESSAGE_BYTES_MAX: Final = 256 * 1024  # twice twenty peers with all that is kept of each

# --- connections -------------------------------------------------------------------------------------------

DIAL_MS_MAX: Final = 5_000  # one address, up to the encrypted connection
REDIAL_FIRST_MS: Final = 250  # the first pause before a lost peer is dialled again; then twice as long
REDIAL_LAST_MS: Final = 30_000  # the longest such pause
LIVENESS_PERIOD_MS: Final = 5_000  # a connection over which nothing is heard so long is pinged
LIVENESS_TIMEOUT_MS: Final = 4_000  # and closed when it is silent so long after that
WRITE_STUCK_MS: Final = (  # a connection whose socket takes no byte for so long is closed
    10_000  # without one frame that is taken, while one waits: then the connection is closed
)
NEGOTIATION_S: Final = 4  # for a protocol to be agreed on a new stream
CONNECTIONS_MAX: Final = 512  # of one node; who must go for a newcomer: docs/protocol.md
CONNECTIONS_KEPT_MAX: Final = 64  # of them, places that strangers cannot take
CONNECTIONS_PER_IP_MAX: Final = 32  # inbound, of one IPv4 address or IPv6 /56; not of loopback
CONNECTIONS_PER_PEER_MAX: Final = 8  # inbound, of one peer id
HANDSHAKES_MAX: Final = 64  # inbound and unfinished; past it the oldest is closed
HANDSHAKE_MS_MAX: Final = 5_000  # for noise and yamux on a new connection
PEER_REFUSED_MS: Final = 300_000  # after marks past the limit
STREAM_WINDOW_BYTES_MAX: Final = 2 << 20  # what a peer may send on a stream before it is read
INBOUND_STREAMS_PER_PEER_MAX: Final = 256  # of all protocols, negotiated or not
ADDRS_PER_PEER_MAX: Final = 16
ADDR_BYTES_MAX: Final = 128  # one multiaddr that a peer tells; longer ones are not read
IDENTIFY_BYTES_MAX: Final = 8 * 1024  # one identify message
PROTOCOLS_PER_PEER_MAX: Final = 64  # that identify tells; the rest is not read
PROTOCOL_CHARS_MAX: Final = 128
SIGNED_RECORD_BYTES_MAX: Final = 2 * 1024  # a peer's addresses under its signature
KNOWN_PEERS_MAX: Final = 1_024
