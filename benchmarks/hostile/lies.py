"""Attacks by what is said: gossip, heads, commits, attestations, evidence, DHT records and providers, all false.

Each function is one attack as `stranger.Attack` says. What a stranger can sign, it signs well: only its authority is
missing. Messages are written as bytes on streams, since a polite publisher would not say most of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from benchmarks.hostile.stranger import (
    READ_BYTES,
    Ground,
    Pace,
    Stranger,
    Tally,
    keep_many,
    open_stranger,
    prefixed,
    quietly,
)
from p2p import frames, names
from runtime import codec, messages
from runtime import genesis as genesis_module
from runtime.evidence import Evidence, WrongRootProof, attestation_fork, commit_fork, lease_fork
from runtime.keys import SigningKey
from runtime.messages import BlockAnswer, BlockRequest, EvidenceItem, encode_batch_message
from runtime.records import (
    ActionBatch,
    ActionEnvelope,
    BlockAnnounce,
    BlockAttestation,
    Commit,
    Envelope,
    LeaseGrant,
    WorldBlock,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
)

ROUNDS_OF_ONE_KEY: Final = 100
EXPIRES_ABOVE: Final = 1_000
AHEAD: Final = 200  # a nonce that many others would have to come before
PROVIDED_AGAIN_S: Final = 2.0
SLOW_BYTE_S: Final = 1.0
LIE_BYTES: Final = 4_096
RECORDS_AT_ONCE: Final = 100
CROWD_AT_ONCE: Final = 4


class Voice:
    """A stranger's gossip: signed messages, written to one node after the other."""

    def __init__(self, ground: Ground, stranger: Stranger) -> None:
        self._ground = ground
        self._stranger = stranger
        self._streams: dict[str, Any] = {}
        self._said = ground.rng.getrandbits(60)

    async def say(self, kind: str, *datas: bytes) -> None:
        """One RPC with these messages, to a node by chance. Raises when that node has closed."""
        addr = self._ground.victim()
        if addr not in self._streams:
            self._streams[addr] = await self._stranger.stream(addr, names.GOSSIP_PROTOCOL)
        rpc = rpc_pb2.RPC(publish=[self._signed(self._ground.topic(kind), data) for data in datas])
        await self._streams[addr].write(prefixed(rpc.SerializeToString()))

    def _signed(self, topic: str, data: bytes) -> Any:
        self._said += 1
        message = rpc_pb2.Message(
            from_id=self._stranger.peer_id, data=data, seqno=self._said.to_bytes(8, "big"), topicIDs=[topic]
        )
        message.signature = self._stranger.pair.private_key.sign(
            b"libp2p-pubsub:" + message.SerializeToString()
        )
        return message


def fresh_key(ground: Ground) -> SigningKey:
    """A key that nobody has seen."""
    return SigningKey(ground.rng.randbytes(32))


def envelope_of(ground: Ground, key: SigningKey, nonce: int, height: int) -> Envelope:
    """A well-signed envelope of an actor that nobody knows."""
    return seal(
        ActionEnvelope(
            world_id=ground.world_id,
            actor_id=key.identity,
            nonce=nonce,
            expires_at_height=height + EXPIRES_ABOVE,
            timestamp_ms=0,  # before everybody else's
            atomic=False,
            actions=(("say", {"text": "I was here"}),),
        ),
        key,
    )


# --- gossip --------------------------------------------------------------------------------------------------


async def false_gossip(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Garbage and envelopes that nobody signed, in every topic of the world."""
    height = (await ground.newest_head()).commit.record.height
    async with open_stranger() as stranger:
        voice = Voice(ground, stranger)
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            unsigned = replace(envelope_of(ground, fresh_key(ground), 0, height), signature=bytes(64))
            kind, data = ground.rng.choice(
                (
                    ("action", encode_envelopes([unsigned])),
                    *((kind, ground.rng.randbytes(200)) for kind in ("action", "batch", "block", "head")),
                    ("evidence", b"\xa1"),
                )
            )
            await voice.say(kind, data)
            tally[f"said in {kind}"] += 1


async def unknown_actors(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Good envelopes of keys made a moment ago: the next nonce, and one that waits for hundreds before it."""
    async with open_stranger() as stranger:
        voice = Voice(ground, stranger)
        while True:
            await pace()
            height = (await ground.newest_head()).commit.record.height
            now, waits = (
                envelope_of(ground, fresh_key(ground), 0, height),
                envelope_of(ground, fresh_key(ground), AHEAD, height),
            )
            await voice.say("action", encode_envelopes([now]), encode_envelopes([waits]))
            tally["envelopes"] += 2


async def false_heads(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Heads with one false signature in them, as gossip; they would beat every honest head."""
    async with open_stranger() as stranger:
        voice = Voice(ground, stranger)
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            await voice.say("head", ground.rng.choice(forged_heads(ground, await ground.newest_head())))
            tally["heads"] += 1


def forged_heads(ground: Ground, head: WorldHeadAnnounce) -> list[bytes]:
    """Far above the newest, and each wrong in one signature."""
    stranger = fresh_key(ground)
    [attested, *_] = head.attestations
    beyond = replace(head.commit.record, height=head.commit.record.height + 1_000_000)
    vouched = replace(attested.record, height=beyond.height)
    forged = (
        replace(head, commit=replace(head.commit, record=beyond)),
        replace(head, commit=seal(replace(beyond, certifier_id=stranger.identity), stranger)),
        replace(
            head, attestations=(seal(replace(attested.record, executor_id=stranger.identity), stranger),)
        ),
        replace(
            head,
            commit=replace(head.commit, record=beyond),
            attestations=(replace(attested, record=vouched),),
        ),
    )
    return [one.to_bytes() for one in forged]


async def false_commits(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Batches and commits of a stranger's own, well signed: gossip takes them, the authority set does not."""
    async with open_stranger() as stranger:
        voice = Voice(ground, stranger)
        while True:
            await pace()
            await voice.say("batch", forged_batch(ground, await ground.newest_head()))
            tally["commits"] += 1


def forged_batch(ground: Ground, head: WorldHeadAnnounce) -> bytes:
    """A next batch, proposed and certified by one key of nobody."""
    key, commit = fresh_key(ground), head.commit.record
    batch = seal(
        ActionBatch(
            world_id=ground.world_id,
            epoch=commit.epoch,
            term=commit.term,
            height=commit.height + 1,
            prev_batch_hash=commit.batch_hash,
            envelope_count=1,
            actions_root=ground.rng.randbytes(32),
            actions_ref=ground.rng.randbytes(32),
            proposer_id=key.identity,
            timestamp_ms=commit.as_of_ms,
        ),
        key,
    )
    record = Commit(
        world_id=ground.world_id,
        epoch=commit.epoch,
        term=commit.term,
        height=commit.height + 1,
        batch_hash=batch.hash(),
        certifier_id=key.identity,
        as_of_ms=commit.as_of_ms,
    )
    return encode_batch_message(batch, seal(record, key))


async def false_attestations(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Blocks above the newest that nobody made, attested by keys of nobody."""
    async with open_stranger() as stranger:
        voice = Voice(ground, stranger)
        while True:
            await pace()
            await voice.say("block", forged_block(ground, await ground.newest_head()).to_bytes())
            tally["attestations"] += 1


def forged_block(ground: Ground, head: WorldHeadAnnounce) -> BlockAnnounce:
    """A next block with roots of nothing, attested by a stranger."""
    key, commit = fresh_key(ground), head.commit.record
    fields = ("state_root", "event_root", "journal_ref", "receipts_root", "receipts_ref", "history_root")
    block = WorldBlock(
        world_id=ground.world_id,
        height=commit.height + 1,
        prev_block_hash=head.block_hash,
        batch_hash=commit.batch_hash,
        **{name: ground.rng.randbytes(32) for name in fields},
        term=commit.term,
        proposer_id=key.identity,
        timestamp_ms=commit.as_of_ms,
        fuel_used=0,
    )
    vouched = BlockAttestation(ground.world_id, commit.epoch, block.height, block.hash(), key.identity)
    return BlockAnnounce(block, seal(vouched, key))


# --- evidence ------------------------------------------------------------------------------------------------


async def false_evidence(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Announces evidence and serves it: forks signed by itself, an honest attestation called wrong, other bytes."""
    head = await ground.newest_head()
    served: dict[bytes, bytes] = {}
    async with open_stranger(handlers={names.RR_PROTOCOL: partial(_serve_evidence, served, tally)}) as one:
        block = await _block_of(one, ground, head)
        voice = Voice(ground, one)
        for evidence in _forged_evidence(ground, head, block):
            await pace()
            served[evidence.hash()] = evidence.preimage()
            await voice.say("evidence", item_of(evidence).to_bytes())
            tally["announced"] += 1
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            await voice.say("evidence", unheard_of(ground))
            tally["announced"] += 1


def unheard_of(ground: Ground) -> bytes:
    """An announcement of evidence that there is not."""
    return EvidenceItem(kind="commit_fork", height=1, content_hash=ground.rng.randbytes(32)).to_bytes()


def item_of(evidence: Evidence) -> EvidenceItem:
    """How evidence is announced."""
    return EvidenceItem(kind=evidence.NAME, height=evidence.height, content_hash=evidence.hash())


def _forged_evidence(ground: Ground, head: WorldHeadAnnounce, block: WorldBlock) -> list[Evidence]:
    """Well formed, and proof of nothing: of keys without authority, of other epochs, of what is true."""
    key, commit = fresh_key(ground), head.commit.record
    commits = [
        seal(replace(commit, certifier_id=key.identity, batch_hash=ground.rng.randbytes(32)), key)
        for _ in range(2)
    ]
    later = [
        replace(head.commit, record=replace(commit, epoch=commit.epoch + 1, batch_hash=digest))
        for digest in (bytes(32), b"\1" * 32)
    ]
    grants = [
        LeaseGrant(
            world_id=ground.world_id,
            epoch=commit.epoch,
            term=commit.term,
            holder_id=fresh_key(ground).identity,
            certifier_id=key.identity,
            granted_at_ms=commit.as_of_ms,
            ttl_ms=5_000,
        )
        for _ in range(2)
    ]
    attested = head.attestations[0]
    vouched = [
        replace(attested, record=replace(attested.record, block_hash=ground.rng.randbytes(32)))
        for _ in range(2)
    ]
    return [
        commit_fork(*commits),
        commit_fork(*later),
        lease_fork(*(seal(grant, key) for grant in grants)),
        attestation_fork(*vouched),
        WrongRootProof(attested, block),
    ]


async def _block_of(stranger: Stranger, ground: Ground, head: WorldHeadAnnounce) -> WorldBlock:
    request = BlockRequest(world_id=ground.world_id, block_hash=head.block_hash)
    while True:
        answer = await stranger.ask(ground.victim(), "get_block", request.to_bytes())
        if answer:  # a node without blocks has none
            return BlockAnswer.from_bytes(answer).block


async def _serve_evidence(served: dict[bytes, bytes], tally: Tally, stream: Any) -> None:
    await quietly(_answer_evidence, served, tally, stream, tally=tally)


async def _answer_evidence(served: dict[bytes, bytes], tally: Tally, stream: Any) -> None:
    reader = frames.FrameReader()
    while True:
        request = await _next_request(reader, stream)
        if request.method != "get_evidence":
            await stream.write(frames.encode_answer(request.request_id, b""))
            continue
        asked = messages.EvidenceRequest.from_bytes(request.body).content_hash
        tally["asked for"] += 1
        data = served.get(asked or b"", b"not what you asked for")
        await stream.write(frames.encode_part(request.request_id, data))
        await stream.write(frames.encode_answer(request.request_id, messages.Empty().to_bytes()))
        await stream.close()


async def _next_request(reader: frames.FrameReader, stream: Any) -> frames.Request:
    """The next request of a serving stream. Raises whatever the library raises at its end."""
    while True:
        match reader.next_frame():
            case frames.Request() as request:
                return request
            case frames.NEED_DATA:
                reader.feed(await stream.read(READ_BYTES))


# --- the DHT -------------------------------------------------------------------------------------------------


async def dht_records(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Puts forged heads and garbage under the world's key, and anything under keys of no world."""
    async with open_stranger() as stranger:
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            forged = forged_heads(ground, await ground.newest_head())
            key, value = ground.rng.choice(
                (
                    (names.head_key(ground.world_id), ground.rng.choice(forged)),
                    (names.head_key(ground.world_id), ground.rng.randbytes(500)),
                    (names.head_key(codec.base32(ground.rng.randbytes(20))), ground.rng.choice(forged)),
                    ("/pk/" + ground.rng.randbytes(16).hex(), b"anything"),
                )
            )
            put = KadMessage(type=KadMessage.MessageType.PUT_VALUE, key=key.encode())
            put.record.key, put.record.value = key.encode(), value
            await _tell(stranger, ground.victim(), [put])
            tally["records"] += 1


async def provider_records(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Says that it provides thousands of contents, many to a stream, past what one peer may say."""
    async with open_stranger() as stranger:
        for _ in range(ROUNDS_OF_ONE_KEY):
            await pace()
            keys = [names.provider_key(ground.rng.randbytes(32)) for _ in range(RECORDS_AT_ONCE)]
            await _tell(stranger, ground.victim(), [_provides(stranger, key) for key in keys])
            tally["records"] += len(keys)


async def provider_crowd(ground: Ground, tally: Tally, pace: Pace) -> None:
    """One key after the other says that it provides the world, from an address where nobody is."""
    await keep_many(CROWD_AT_ONCE, pace, tally, lambda: _one_of_the_crowd(ground, tally))


async def _one_of_the_crowd(ground: Ground, tally: Tally) -> None:
    key = names.provider_key(genesis_module.world_content_id(ground.world_id))
    async with open_stranger() as stranger:
        for addr in ground.addrs:
            await _tell(stranger, addr, [_provides(stranger, key)])
            tally["records"] += 1


def _provides(stranger: Stranger, key: bytes, addr: str = "/ip4/127.0.0.1/tcp/9") -> Any:
    add = KadMessage(type=KadMessage.MessageType.ADD_PROVIDER, key=key)
    provider = add.providerPeers.add()
    provider.id = stranger.peer_id
    provider.addrs.append(Multiaddr(addr).to_bytes())
    return add


async def _tell(stranger: Stranger, addr: str, said: Iterable[Any]) -> None:
    stream = await stranger.stream(addr, names.KAD_PROTOCOL)
    await stream.write(b"".join(prefixed(message.SerializeToString()) for message in said))
    await stream.close()


# --- providers -----------------------------------------------------------------------------------------------


async def lying_provider(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Answers every request at once, in the right frames, with bytes that are not what was asked for."""

    async def answer(request: frames.Request, stream: Any) -> None:
        body = ground.rng.randbytes(LIE_BYTES)
        if request.method == "fetch_blob":
            await stream.write(frames.encode_part(request.request_id, body))
            body = messages.BlobEnd(size=LIE_BYTES).to_bytes()
        elif request.method == "get_bundle":
            body = messages.BundleAnswer(blobs=(body,)).to_bytes()
        elif request.method == "get_world_head":
            body = messages.HeadAnswer().to_bytes()
        await stream.write(frames.encode_answer(request.request_id, body))

    await _provide(ground, tally, pace, answer)


async def slow_provider(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Answers every request with a part that comes a byte a second."""

    async def answer(request: frames.Request, stream: Any) -> None:
        for byte in frames.encode_part(request.request_id, bytes(LIE_BYTES)):
            await stream.write(bytes([byte]))
            await trio.sleep(SLOW_BYTE_S)

    await _provide(ground, tally, pace, answer)


async def dying_provider(ground: Ground, tally: Tally, pace: Pace) -> None:
    """Ends in the middle of every answer: by a reset, in order, or with the whole connection."""

    async def answer(request: frames.Request, stream: Any) -> None:
        await stream.write(frames.encode_part(request.request_id, bytes(LIE_BYTES))[: LIE_BYTES // 2])
        end = ground.rng.choice((stream.reset, stream.close, stream.muxed_conn.secured_conn.close))
        await end()

    await _provide(ground, tally, pace, answer)


Answer = Callable[[frames.Request, Any], Any]


async def _provide(ground: Ground, tally: Tally, pace: Pace, answer: Answer) -> None:
    """Listens, is connected to every node, says at each that it provides the world and knows of evidence.

    Whoever asks for the one or the other gets `answer`.
    """

    async def serve(stream: Any) -> None:
        reader = frames.FrameReader()
        while True:
            request = await _next_request(reader, stream)
            tally[f"asked {request.method}"] += 1
            await answer(request, stream)

    async def handle(stream: Any) -> None:
        await quietly(serve, stream, tally=tally)

    key = names.provider_key(genesis_module.world_content_id(ground.world_id))
    async with open_stranger(listens=True, handlers={names.RR_PROTOCOL: handle}) as stranger:
        here = str(stranger.host.get_addrs()[0]).partition("/p2p/")[0]
        voice = Voice(ground, stranger)
        while True:
            await voice.say("evidence", unheard_of(ground))
            for addr in ground.addrs:
                await pace()
                await _tell(stranger, addr, [_provides(stranger, key, here)])
                tally["records"] += 1
            await trio.sleep(PROVIDED_AGAIN_S)
