"""Limits of records, batches, mempools, leases and worlds, unit last. docs/operations.md is made from these names.

Limits of frames, streams, gossip and the DHT are in p2p/names.py. What a genesis may set has a `_ceiling` here:
the genesis holds the value in force, and never more than the ceiling.
Implements docs/protocol.md, section "Limits".
"""

from __future__ import annotations

from typing import Final

# --- encoding ----------------------------------------------------------------------------------------------
DEPTH_MAX: Final = 32
CBOR_ITEMS_MAX: Final = (
    1 << 18
)  # keys, values and elements of what a stranger sends; lists of a block have no limit
COUNT_MAX: Final = (1 << 53) - 1  # heights, nonces, times, counts, epochs, terms, fuel: exact in JavaScript
AMOUNT_MAX: Final = (1 << 63) - 1
COORDINATE_CM_MAX: Final = (1 << 53) - 1  # absolute value
NAME_CHARS_MAX: Final = 64
WORLD_ID_CHARS: Final = 32

# --- records (canonical bytes, sealed where a record is sealed) ---------------------------------------------
GENESIS_BYTES_MAX: Final = 512 * 1024
AUTHORITIES_BYTES_MAX: Final = 2_048
ENVELOPE_BYTES_MAX: Final = 32 * 1024
ACTIONS_PER_ENVELOPE_MAX: Final = 64
ENVELOPE_ITEMS_MAX: Final = 4_096  # keys, values and elements in all payloads of an envelope
ACTION_PAYLOAD_BYTES_MAX: Final = 16 * 1024
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
GENESIS_BALANCES_MAX: Final = 4_096

# --- ceilings of genesis parameters, and their defaults ------------------------------------------------------
BATCH_ENVELOPES_CEILING: Final = 1_024
BATCH_ACTIONS_CEILING: Final = 16_384
BATCH_BYTES_CEILING: Final = 960 * 1024
BLOCK_FUEL_CEILING: Final = 100_000_000_000
AGENTS_PER_ACTOR_CEILING: Final = 1_000_000
EXPIRY_BLOCKS_CEILING: Final = 100_000
ACTION_SKEW_MS_CEILING: Final = 3_600_000
CHECKPOINT_INTERVAL_CEILING: Final = 1_000_000

BLOCK_FUEL_DEFAULT: Final = 10_000_000_000
AGENTS_PER_ACTOR_DEFAULT: Final = 65_536
EXPIRY_BLOCKS_DEFAULT: Final = 4_096
ACTION_SKEW_MS_DEFAULT: Final = 60_000
CHECKPOINT_INTERVAL_DEFAULT: Final = 1_024

# --- state -------------------------------------------------------------------------------------------------
KEY_BYTES_MAX: Final = 256
VALUE_BYTES_MAX: Final = 64 * 1024
VALUE_INLINE_BYTES_MAX: Final = 256
BUCKET_ENTRIES_MAX: Final = 16
PROOF_BYTES_MAX: Final = 256 * 1024
PROOF_DEPTH_MAX: Final = 64

# --- mempool -----------------------------------------------------------------------------------------------
MEMPOOL_ENVELOPES_MAX: Final = 16_384
MEMPOOL_BYTES_MAX: Final = 64 << 20  # in memory, as the two below
MEMPOOL_NONCES_AHEAD_MAX: Final = 256
MEMPOOL_ACTOR_BYTES_MAX: Final = 8 << 20
MEMPOOL_PEER_ENVELOPES_MAX: Final = 8_192
MEMPOOL_PEER_BYTES_MAX: Final = 32 << 20

# --- lease, order ------------------------------------------------------------------------------------------
LEASE_TTL_MS: Final = 5_000
LEASE_RENEW_MS: Final = LEASE_TTL_MS // 3
BATCH_INTERVAL_MS: Final = 200
EMPTY_BATCH_MS: Final = 10_000
BATCH_SKEW_MS: Final = 30_000
COMMIT_LEAD_MAX: Final = 32
COMMITS_KEPT_MAX: Final = 1_024
COMMIT_REFRESH_MS: Final = 10_000
HEAD_AGE_MS_MAX: Final = 60_000
HEAD_SKEW_MS: Final = 60_000

# --- gateway -----------------------------------------------------------------------------------------------
SUBMIT_ENVELOPES_MAX: Final = 1_024
OUTBOX_ENVELOPES_MAX: Final = 262_144
OUTBOX_RESEND_MS: Final = 1_000
GOSSIP_PAIR_BYTES_MAX: Final = (
    64 * 1024
)  # of a batch or block message: records of a later version may be larger
GOSSIP_ACTION_ENVELOPES_MAX: Final = 16
GOSSIP_ACTION_BYTES_MAX: Final = 60 * 1024
GOSSIP_ACTION_ITEMS_MAX: Final = 8_192  # keys, values and elements of one message

# --- gossip repair ------------------------------------------------------------------------------------------
ENVELOPES_PER_ANSWER_MAX: Final = MEMPOOL_NONCES_AHEAD_MAX
GAP_ROUND_MS: Final = 250  # between two looks for gaps
GAP_FIRST_ASK_MS: Final = 400  # a gap may close by itself: gossip comes in any order
GAP_ASK_AGAIN_MS: Final = 1_000  # doubled with each asking, up to gap_ask_again_ms_max
GAP_ASK_AGAIN_MS_MAX: Final = 30_000
GAPS_PER_ROUND_MAX: Final = 16
GAP_PEERS_MAX: Final = 3

# --- store ---------------------------------------------------------------------------------------------------
PINS_MAX: Final = 65_536  # blobs that people pinned; what a chain needs is kept without a pin
SOUND_FILES_REMEMBERED_MAX: Final = 4_096  # large blobs that are not read through again for every range
STORE_FULL_RETRY_MS: Final = 5_000
DAMAGED_BLOBS_MAX: Final = 4_096  # found damaged, waiting to be fetched again

# --- sync --------------------------------------------------------------------------------------------------
FETCH_PROVIDERS_MAX: Final = 8
FETCH_COOLDOWN_MS: Final = 5_000
SYNC_BLOCKS_AHEAD_MAX: Final = 64
BLOCKS_PER_ANSWER_MAX: Final = 256
PROOFS_AT_ONCE_MAX: Final = 4  # receipts being proved for others; each reads a block's whole list
BUNDLE_BYTES_MAX: Final = 256 * 1024  # one answer of get_bundle: others share its stream
CANDIDATE_HEADS_MAX: Final = 64
EVIDENCE_MAX: Final = 1_024
