"""Limits of records, batches, mempools, leases and worlds, unit last. docs/operations.md is made from these names.

Limits of frames, streams, gossip and the DHT are in p2p/names.py. What a genesis may set has a `_ceiling` here:
the genesis holds the value in force, and never more than the ceiling.
Implements docs/protocol.md, section "Limits".
"""

from __future__ import annotations

from typing import Final

# --- encoding ----------------------------------------------------------------------------------------------
DEPTH_MAX: Final = 32  # nested arrays and maps
CBOR_ITEMS_MAX: Final = (  # in one body
    1 << 18
)  # keys, values and elements of what a stranger sends; lists of a block have no limit
COUNT_MAX: Final = (1 << 53) - 1  # heights, nonces, times, counts, epochs, terms, fuel: exact in JavaScript
AMOUNT_MAX: Final = (1 << 63) - 1  # of a balance, and of all balances of a kind together
COORDINATE_CM_MAX: Final = (1 << 53) - 1  # absolute value
NAME_CHARS_MAX: Final = 64
WORLD_ID_CHARS: Final = 32

# --- records (canonical bytes, sealed where a record is sealed) ---------------------------------------------
GENESIS_BYTES_MAX: Final = 512 * 1024
AUTHORITIES_BYTES_MAX: Final = 2_048
ENVELOPE_BYTES_MAX: Final = 32 * 1024  # sealed
ACTIONS_PER_ENVELOPE_MAX: Final = 64
ENVELOPE_ITEMS_MAX: Final = 4_096  # keys, values and elements in all payloads of an envelope
ACTION_PAYLOAD_BYTES_MAX: Final = 16 * 1024  # one action
BATCH_RECORD_BYTES_MAX: Final = (
    1_024  # the sealed batch record; the limit of its list of envelopes is the genesis' batch_bytes_max
)
LEASE_BYTES_MAX: Final = 512
COMMIT_BYTES_MAX: Final = 512
BLOCK_BYTES_MAX: Final = 1_024
ATTESTATION_BYTES_MAX: Final = 512
ACCEPTANCE_BYTES_MAX: Final = 512
HEAD_BYTES_MAX: Final = 5_120
RECEIPT_BYTES_MAX: Final = 1_024
EVENT_BYTES_MAX: Final = 4_096
LIST_BYTES_MAX: Final = 64 << 20  # a block's event or receipt list

ROOT_KEYS_MAX: Final = 8
PROPOSERS_MAX: Final = 16
EXECUTORS_MAX: Final = 16
CERTIFIERS_V1: Final = 1
ATTESTATIONS_PER_HEAD_MAX: Final = 4
RESOURCE_KINDS_MAX: Final = 64
ENDOW_KINDS_MAX: Final = 16  # in one register_agent: its price in fuel is one number
GENESIS_BALANCES_MAX: Final = 4_096  # initial balances

# --- ceilings of genesis parameters, and their defaults ------------------------------------------------------
BATCH_ENVELOPES_CEILING: Final = 1_024  # envelopes in one batch
BATCH_ACTIONS_CEILING: Final = 16_384  # actions in one batch
BATCH_BYTES_CEILING: Final = 960 * 1024  # all envelopes of a batch
BLOCK_FUEL_CEILING: Final = 100_000_000_000  # work in one block
AGENTS_PER_ACTOR_CEILING: Final = 1_000_000  # agents that one key may register
EXPIRY_BLOCKS_CEILING: Final = 100_000  # how far ahead an envelope's last height may be
ACTION_SKEW_MS_CEILING: Final = 3_600_000  # an envelope's time against its batch's
CHECKPOINT_INTERVAL_CEILING: Final = 1_000_000  # kept, without effect in this version

BLOCK_FUEL_DEFAULT: Final = 10_000_000_000
AGENTS_PER_ACTOR_DEFAULT: Final = 65_536
EXPIRY_BLOCKS_DEFAULT: Final = 4_096
ACTION_SKEW_MS_DEFAULT: Final = 60_000
CHECKPOINT_INTERVAL_DEFAULT: Final = 1_024

# --- state -------------------------------------------------------------------------------------------------
KEY_BYTES_MAX: Final = 256
VALUE_BYTES_MAX: Final = 64 * 1024
VALUE_INLINE_BYTES_MAX: Final = 256  # larger ones stand in a trie as a hash
BUCKET_ENTRIES_MAX: Final = 16  # cells in a leaf of the trie before it is split
PROOF_BYTES_MAX: Final = 256 * 1024
PROOF_DEPTH_MAX: Final = 64

# --- mempool -----------------------------------------------------------------------------------------------
MEMPOOL_ENVELOPES_MAX: Final = 16_384  # all envelopes that wait for a batch; above it submitters get Busy
MEMPOOL_BYTES_MAX: Final = 64 << 20  # in memory, as the two below
MEMPOOL_NONCES_AHEAD_MAX: Final = 256  # above the actor's next nonce
MEMPOOL_ACTOR_BYTES_MAX: Final = 8 << 20  # of one actor
MEMPOOL_PEER_ENVELOPES_MAX: Final = 8_192  # that came from one peer
MEMPOOL_PEER_BYTES_MAX: Final = 32 << 20  # that came from one peer

# --- lease, order ------------------------------------------------------------------------------------------
LEASE_TTL_MS: Final = 5_000  # a silent leader is followed after so long
LEASE_RENEW_MS: Final = LEASE_TTL_MS // 3  # how often a leader renews
BATCH_INTERVAL_MS: Final = 200  # between two batches of a leader
EMPTY_BATCH_MS: Final = 10_000  # without a batch; then an empty one, if what waits is for later heights only
BATCH_SKEW_MS: Final = 30_000  # a batch's time against its certifier's clock
COMMIT_LEAD_MAX: Final = 32  # heights certified above the newest attested one
COMMITS_KEPT_MAX: Final = 1_024  # that a coordinator answers get_commit from
COMMIT_REFRESH_MS: Final = 10_000  # how often the newest commit is signed anew, with its time
HEAD_AGE_MS_MAX: Final = 60_000  # of an older head a peer's word is not enough: the DHT is asked too
HEAD_SKEW_MS: Final = 60_000  # a head's time above our clock

# --- gateway -----------------------------------------------------------------------------------------------
SUBMIT_ENVELOPES_MAX: Final = 1_024  # in one request
OUTBOX_ENVELOPES_MAX: Final = 262_144  # promised and not yet taken; above it submitters get Busy
OUTBOX_RESEND_MS: Final = 1_000  # how often what no block has taken is sent again
GOSSIP_PAIR_BYTES_MAX: Final = (
    64 * 1024
)  # of a batch or block message: records of a later version may be larger
GOSSIP_ACTION_ENVELOPES_MAX: Final = 16  # envelopes in one gossip message
GOSSIP_ACTION_BYTES_MAX: Final = 60 * 1024  # and their bytes
GOSSIP_ACTION_ITEMS_MAX: Final = 8_192  # keys, values and elements of one message

# --- gossip repair ------------------------------------------------------------------------------------------
ENVELOPES_PER_ANSWER_MAX: Final = MEMPOOL_NONCES_AHEAD_MAX  # of get_envelopes
GAP_ROUND_MS: Final = 250  # between two looks for gaps
GAP_FIRST_ASK_MS: Final = 400  # a gap may close by itself: gossip comes in any order
GAP_ASK_AGAIN_MS: Final = 1_000  # doubled with each asking, up to gap_ask_again_ms_max
GAP_ASK_AGAIN_MS_MAX: Final = 30_000  # the longest pause before the same gap is asked for again
GAPS_PER_ROUND_MAX: Final = 16  # asked for at a time
GAP_PEERS_MAX: Final = 3  # asked for one gap

# --- store ---------------------------------------------------------------------------------------------------
PINS_MAX: Final = 65_536  # blobs that people pinned; what a chain needs is kept without a pin
SOUND_FILES_REMEMBERED_MAX: Final = 4_096  # large blobs that are not read through again for every range
STORE_FULL_RETRY_MS: Final = 5_000  # what a submitter is told to wait
DAMAGED_BLOBS_MAX: Final = 4_096  # found damaged, waiting to be fetched again

# --- sync --------------------------------------------------------------------------------------------------
FETCH_PROVIDERS_MAX: Final = 8  # asked for one thing
FETCH_COOLDOWN_MS: Final = 5_000  # a source that failed rests so long
SYNC_BLOCKS_AHEAD_MAX: Final = 64  # fetched before they are executed
BLOCKS_PER_ANSWER_MAX: Final = 256  # of get_blocks
PROOFS_AT_ONCE_MAX: Final = 4  # receipts being proved for others; each reads a block's whole list
BUNDLE_BYTES_MAX: Final = 256 * 1024  # one answer of get_bundle: others share its stream
CANDIDATE_HEADS_MAX: Final = 64  # heard and not yet followed
EVIDENCE_MAX: Final = 1_024  # kept of one world
