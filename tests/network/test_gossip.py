"""Gossip over real hosts: what is refused before it is judged, what is judged, and what is not lost."""

from __future__ import annotations

import time

import libp2p.pubsub.utils as pubsub_utils
import pytest
import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from p2p import cures, gossip_cures, names
from p2p.gossip import make_gossip_router
from p2p.network import Message, Verdict

TOPIC = "aw.w.head"


def accept(message):
    return Verdict.ACCEPT


def prefixed(data: bytes) -> bytes:
    """A varint length and the data."""
    length, out = len(data), b""
    while length > 0x7F:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return out + bytes([length]) + data


def signed(pair, data, seqno=1, spoilt=()):
    """A message as StrictSign wants it; `spoilt` is what is changed, or left out, afterwards."""
    author = ID.from_pubkey(pair.public_key).to_bytes()
    message = rpc_pb2.Message(from_id=author, data=data, seqno=seqno.to_bytes(8, "big"), topicIDs=[TOPIC])
    message.signature = pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    message.key = pair.public_key.serialize()
    for field, value in dict(spoilt).items():
        if value is None:
            message.ClearField(field)
        else:
            setattr(message, field, value)
    return message


async def send(stranger, victim, *messages):
    """Each in an RPC of its own: messages of one RPC are judged in any order."""
    stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
    for message in messages:
        await stream.write(prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))


async def prune(stranger, victim, *prunes):
    stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
    for one in prunes:
        rpc = rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=[one]))
        await stream.write(prefixed(rpc.SerializeToString()))
    return stream


async def mesh(publisher, subscription, word=b"warm up"):
    """Publish until a message arrives: from then on none is lost for want of a mesh."""
    while True:
        await publisher.publish(word)
        with trio.move_on_after(0.3):
            while (await subscription.receive()).data != word:
                pass
            return


SPOILT = {
    "unsigned": ({"signature": None}, "gossip.refused_unsigned"),
    "no seqno": ({"seqno": None}, "gossip.refused_unsigned"),
    "another's key": (
        {"key": create_new_key_pair(b"\x42" * 32).public_key.serialize()},
        "gossip.refused_key",
    ),
    "garbage key": ({"key": b"garbage"}, "gossip.refused_key"),
    "no author": ({"from_id": None}, "gossip.refused_author"),
    "an author of another kind": ({"from_id": b"\x12\x20" + bytes(32)}, "gossip.refused_author"),
}


@pytest.mark.parametrize("spoilt", sorted(SPOILT))
async def test_a_malformed_message_is_refused_and_the_next_one_taken(
    open_node, open_stranger, honest_beside, patience, spoilt
):
    changes, counter = SPOILT[spoilt]
    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        subscription = await victim.join(TOPIC, accept)
        await send(
            stranger,
            victim,
            signed(stranger.pair, b"bad", spoilt=changes),
            signed(stranger.pair, b"good", seqno=2),
        )
        with patience():
            assert (await subscription.receive()).data == b"good"
        assert victim.counters()[counter] == 1


async def test_a_message_whose_key_is_not_its_authors_is_refused(open_node, open_stranger, patience):
    # The signature is right by the author's own key: py-libp2p would take it, rust-libp2p would punish the relay.
    other = create_new_key_pair(b"\x42" * 32).public_key.serialize()
    async with open_node(1) as victim, open_stranger() as stranger:
        subscription = await victim.join(TOPIC, accept)
        bad, good = (
            signed(stranger.pair, b"bad", spoilt={"key": other}),
            signed(stranger.pair, b"good", seqno=2),
        )
        await send(stranger, victim, bad, good)
        with patience():
            assert (await subscription.receive()).data == b"good"


@pytest.mark.parametrize("change", [{"data": b"other"}, {"signature": bytes(64)}, {"seqno": bytes(8)}])
async def test_a_message_altered_after_signing_is_not_delivered(open_node, open_stranger, patience, change):
    async with open_node(1) as victim, open_stranger() as stranger:
        subscription = await victim.join(TOPIC, accept)
        await send(
            stranger,
            victim,
            signed(stranger.pair, b"bad", spoilt=change),
            signed(stranger.pair, b"good", seqno=2),
        )
        with patience():
            assert (await subscription.receive()).data == b"good"


async def test_an_oversize_message_is_refused(open_node, open_stranger, patience):
    async with open_node(1) as victim, open_stranger() as stranger:
        subscription = await victim.join(TOPIC, accept)
        large = bytes(names.GOSSIP_BYTES_MAX + 1)
        await send(stranger, victim, signed(stranger.pair, large), signed(stranger.pair, b"good", seqno=2))
        with patience():
            assert (await subscription.receive()).data == b"good"
        assert victim.counters()["gossip.refused_size"] == 1


@pytest.fixture
def count_calls(monkeypatch):
    """Counts the calls of a library's function or method."""

    def count(owner, name):
        calls, real = [], getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1]
        )
        return calls

    return count


async def thirty_messages(one, other, patience):
    """Published by one, received by the other."""
    await one.connect(other.addrs())
    said, heard = await one.join(TOPIC, accept), await other.join(TOPIC, accept)
    with patience():
        await mesh(said, heard)
        for number in range(30):
            await said.publish(b"%d" % number)
            await heard.receive()


async def test_a_senders_record_is_verified_once(open_node, patience, count_calls):
    verified = count_calls(pubsub_utils, "consume_envelope")
    async with open_node(1) as one, open_node(2) as other:
        await thirty_messages(one, other, patience)
    assert 1 <= len(verified) <= 4


async def test_a_record_that_differs_from_the_last_one_is_verified_too(open_node, open_stranger, patience):
    """A false one after a good one: what comes with it is not looked at."""
    async with open_node(1) as victim, open_stranger() as stranger:
        subscription = await victim.join(TOPIC, accept)
        good, _ = env_to_send_in_RPC(stranger.host)
        stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
        for number, record in enumerate((good, good, good[:-1] + bytes([good[-1] ^ 1]), good), start=1):
            message = signed(stranger.pair, b"%d" % number, seqno=number)
            await stream.write(
                prefixed(rpc_pb2.RPC(publish=[message], senderRecord=record).SerializeToString())
            )
        with patience():
            received = [(await subscription.receive()).data for _ in range(3)]
        assert received == [b"1", b"2", b"4"]


async def test_the_own_record_is_not_made_for_each_rpc(open_node, patience, count_calls):
    made = count_calls(Envelope, "marshal_envelope")
    async with open_node(1) as one, open_node(2) as other:
        await thirty_messages(one, other, patience)
    assert 1 <= len(made) < 20


async def test_no_list_of_verdicts_is_searched(open_node, patience):
    async with open_node(1) as one, open_node(2) as other:
        await thirty_messages(one, other, patience)
        assert len(other._gossip._pubsub.validation_cache.access_order) == 1


async def test_an_overfull_rpc_is_cut(open_node, open_stranger, patience, until):
    async with open_node(1) as victim, open_stranger() as stranger:
        subscription = await victim.join(TOPIC, accept)
        before = cures.dropped["gossip.dropped_rpc_too_full"]
        many = [
            signed(stranger.pair, b"%d" % number, seqno=number + 1)
            for number in range(names.GOSSIP_MESSAGES_PER_RPC_MAX + 44)
        ]
        stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
        await stream.write(prefixed(rpc_pb2.RPC(publish=many).SerializeToString()))
        last = signed(stranger.pair, b"last", seqno=10_000)
        await stream.write(prefixed(rpc_pb2.RPC(publish=[last]).SerializeToString()))
        with patience():
            received = [await subscription.receive() for _ in range(names.GOSSIP_MESSAGES_PER_RPC_MAX + 1)]
        assert received[-1].data == b"last"
        assert cures.dropped["gossip.dropped_rpc_too_full"] - before == 44


async def test_a_bug_in_a_check_costs_that_message_only(open_node, open_stranger, honest_beside, patience):
    def check(message):
        return {b"good": Verdict.ACCEPT}[message.data]

    async with open_node(1) as victim, open_stranger() as stranger, honest_beside(victim):
        subscription = await victim.join(TOPIC, check)
        await send(stranger, victim, signed(stranger.pair, b"bad"), signed(stranger.pair, b"good", seqno=2))
        with patience():
            assert (await subscription.receive()).data == b"good"
        assert victim.counters()["cure.push_msg"] == 1


@pytest.mark.parametrize("verdict", [Verdict.IGNORE, Verdict.REJECT])
async def test_what_is_not_accepted_goes_no_further(open_node, patience, verdict):
    """A line of three: the one in the middle decides what the last one hears of."""

    def check(message):
        return verdict if message.data == b"bad" else Verdict.ACCEPT

    async with open_node(1) as first, open_node(2) as middle, open_node(3) as last:
        await first.connect(middle.addrs())
        await last.connect(middle.addrs())
        said = await first.join(TOPIC, accept)
        await middle.join(TOPIC, check)
        heard = await last.join(TOPIC, accept)
        with patience():
            await mesh(said, heard)
            await said.publish(b"bad")
            await said.publish(b"good")
            while (message := await heard.receive()).data == b"warm up":
                pass
        assert message == Message(TOPIC, b"good", first.peer_id, middle.peer_id)
        assert middle.counters()[f"gossip.{'ignored' if verdict is Verdict.IGNORE else 'rejected'}"] == 1


async def test_an_ignored_message_is_judged_once_and_not_forwarded(open_node, open_stranger, patience):
    judged = []

    def check(message):
        judged.append(message.data)
        return Verdict.IGNORE if message.data == b"old" else Verdict.ACCEPT

    async with open_node(1) as victim, open_stranger() as stranger:
        subscription = await victim.join(TOPIC, check)
        old = signed(stranger.pair, b"old")
        await send(stranger, victim, old, old, old, signed(stranger.pair, b"good", seqno=2))
        with patience():
            assert (await subscription.receive()).data == b"good"
        assert judged == [b"old", b"good"]
        assert "cure.push_msg" not in victim.counters()


async def test_a_burst_of_gossip_arrives_whole(open_node, patience):
    async with open_node(1) as one, open_node(2) as other:
        await one.connect(other.addrs())
        here, there = await one.join(TOPIC, accept), await other.join(TOPIC, accept)
        with patience():
            await mesh(here, there)
            for number in range(1_000):
                await here.publish(b"%d" % number)
            received = set()
            while len(received) < 1_000:
                data = (await there.receive()).data
                if data != b"warm up":
                    received.add(int(data))
        assert received == set(range(1_000))


async def test_two_writers_of_one_gossip_stream_take_turns(open_node, patience):
    async with open_node(1) as one, open_node(2) as other:
        await one.connect(other.addrs())
        here, there = await one.join(TOPIC, accept), await other.join(TOPIC, accept)
        with patience():
            await mesh(here, there)
        pubsub, pair = one._gossip._pubsub, create_new_key_pair(one.identity.seed)
        stream = pubsub.peers[ID(other.peer_id)]
        data = {bytes([number]) * 60_000 for number in range(16)}
        messages = [signed(pair, each, seqno=number + 1) for number, each in enumerate(sorted(data))]
        with patience():
            async with trio.open_nursery() as nursery:
                for half in (messages[:8], messages[8:]):
                    nursery.start_soon(pubsub.write_msg, stream, rpc_pb2.RPC(publish=half))
            while data:
                data.discard((await there.receive()).data)


async def test_overflow_of_a_topic_is_dropped_and_counted(open_node, patience, until, monkeypatch):
    monkeypatch.setattr(names, "GOSSIP_CHANNEL_MESSAGES_MAX", 8)
    async with open_node(1) as one, open_node(2) as other:
        await one.connect(other.addrs())
        here, there = await one.join(TOPIC, accept), await other.join(TOPIC, accept)
        with patience():
            await mesh(here, there)
            for number in range(100):
                await here.publish(b"%d" % number)
        await until(lambda: other.counters().get("gossip.dropped_channel_full", 0) >= 92)
        with patience():
            assert (await there.receive()).data in {b"warm up", b"0"}  # the oldest are kept


async def test_a_restarted_nodes_messages_arrive(open_node, patience):
    async with open_node(1) as other:
        there = await other.join(TOPIC, accept)
        for life in range(2):
            async with open_node(2) as one:
                await one.connect(other.addrs())
                here = await one.join(TOPIC, accept)
                with patience():
                    await mesh(here, there, b"life %d" % life)
                    for number in range(200):  # as many numbers as a second life takes long to go through
                        await here.publish(b"%d %d" % (life, number))
                    wanted = {b"%d %d" % (life, number) for number in range(200)}
                    while wanted:
                        wanted.discard((await there.receive()).data)


async def test_gossip_goes_on_over_a_restart_that_overlaps(open_node, patience, until):
    """The old life's connection ends only after the new life's has begun, as under load or after a crash."""
    async with open_node(1) as other:
        there = await other.join(TOPIC, accept)
        async with open_node(2) as new:
            async with open_node(2) as old:
                await old.connect(other.addrs())
                with patience():
                    await mesh(await old.join(TOPIC, accept), there)
                here = await new.join(TOPIC, accept)
                await new.connect(other.addrs())
                await until(lambda: other.counters()["connections.accepted"] == 2)
            with patience():
                await mesh(here, there, b"from the new life")
                await mesh(there, here, b"to the new life")


async def test_a_topic_that_is_joined_while_a_peer_is_greeted_is_told_to_it(
    open_node, open_stranger, monkeypatch, patience, until
):
    heard = b""

    async def hear(stream):
        nonlocal heard
        while True:
            heard += await stream.read(65_536)

    async with open_node(1) as node, open_stranger(handlers={names.GOSSIP_PROTOCOL: hear}) as stranger:
        new_stream = node._gossip._pubsub.host.new_stream

        async def opened(peer, protocols):
            stream = await new_stream(peer, protocols)
            if names.GOSSIP_PROTOCOL not in protocols:
                return stream
            write = stream.write

            async def joined_first(data):
                if TOPIC not in node._gossip._pubsub.topic_ids:
                    await node.join(TOPIC, accept)
                await write(data)

            stream.write = joined_first
            return stream

        monkeypatch.setattr(node._gossip._pubsub.host, "new_stream", opened)
        await stranger.dial(node)
        with patience():
            await until(lambda: TOPIC.encode() in heard)
        assert node.counters()["cure.topic_told_later"] == 1


async def test_a_peer_is_greeted_by_one_at_a_time(open_node, open_stranger, monkeypatch, patience, until):
    """Every connection of a peer greets it: the streams and senders of all but the last were left behind."""
    opening, may_go, senders, left_to_others = 0, trio.Event(), 0, 0
    async with (
        open_node(1) as node,
        open_stranger(handlers={names.GOSSIP_PROTOCOL: hear_nothing}) as stranger,
    ):
        pubsub = node._gossip._pubsub
        new_stream, send = pubsub.host.new_stream, pubsub.handle_sending_messages

        async def opened(peer, protocols):
            nonlocal opening
            if names.GOSSIP_PROTOCOL in protocols:
                opening += 1
                await may_go.wait()
            return await new_stream(peer, protocols)

        async def counted(*arguments):
            nonlocal senders
            senders += 1
            await send(*arguments)

        monkeypatch.setattr(pubsub.host, "new_stream", opened)

        async def greet_too():
            nonlocal left_to_others
            await pubsub._handle_new_peer(stranger.host.get_id())
            left_to_others += 1

        monkeypatch.setattr(pubsub, "handle_sending_messages", counted)
        await stranger.dial(node)
        with patience():
            await until(lambda: opening)
            async with trio.open_nursery() as nursery:
                for _ in range(7):
                    nursery.start_soon(greet_too)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert left_to_others == 6  # one waits: a task each would be too many
                may_go.set()
            await until(lambda: senders)
        assert (opening, senders) == (1, 1)
        assert stranger.host.get_id() in pubsub.peers


async def hear_nothing(stream):
    await trio.sleep_forever()


async def test_recent_deliveries_are_cleared(patience, until):
    router = make_gossip_router()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gossip_cures.clear_recent_deliveries, router, 0.01)
        router.recent_message_deliveries[TOPIC].append(1.0)
        await until(lambda: not router.recent_message_deliveries)
        nursery.cancel_scope.cancel()


def test_the_heartbeat_stays_at_a_second():
    router = make_gossip_router()
    assert router.heartbeat_interval == 1
    assert not router.adaptive_gossip_enabled
    assert not router.spam_protection_enabled
    assert not router.eclipse_protection_enabled


async def test_topics_have_a_limit(open_node, monkeypatch):
    monkeypatch.setattr(names, "TOPICS_MAX", 2)
    async with open_node(1) as node:
        for kind in ("head", "block"):
            await node.join(f"aw.w.{kind}", accept)
        with pytest.raises(ValueError, match="topics_max"):
            await node.join("aw.w.batch", accept)


async def test_a_prune_fills_no_memory_and_has_nobody_dialled(open_node, open_stranger, until, patience):
    async with open_node(1) as victim, open_stranger(200) as stranger, open_stranger(201) as friend:
        subscription = await victim.join(TOPIC, accept)
        router = victim._gossip._pubsub.router
        envelope, _ = env_to_send_in_RPC(friend.host)
        known = rpc_pb2.PeerInfo(peerID=friend.peer_id, signedPeerRecord=envelope)
        elsewhere = [
            rpc_pb2.ControlPrune(topicID=f"topic {number}", backoff=1 << 40) for number in range(500)
        ]
        of_ours = rpc_pb2.ControlPrune(topicID=TOPIC, backoff=1 << 40, peers=[known])
        stream = await prune(stranger, victim, *elsewhere, of_ours)
        message = signed(stranger.pair, b"behind them")
        await stream.write(prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))
        with patience():
            assert (await subscription.receive()).data == b"behind them"
        assert sum(map(len, router.back_off.values())) <= 1
        assert all(
            till <= time.time() + gossip_cures.BACK_OFF_S_MAX for till in router.back_off[TOPIC].values()
        )
        assert friend.peer_id not in victim.peers()


async def test_a_full_peerstore_leaves_a_node_its_own_keys(open_node, patience):
    async with open_node(1) as one, open_node(2) as other:
        await one.connect(other.addrs())
        theirs, ours = await other.join(TOPIC, accept), await one.join(TOPIC, accept)
        peerstore = one._host.get_peerstore()
        addr = Multiaddr("/ip4/127.0.0.1/tcp/1")
        for number in range(peerstore.max_peers + 100):
            pair = create_new_key_pair(number.to_bytes(32, "big"))
            peerstore.add_addrs(ID.from_pubkey(pair.public_key), [addr], 7_200)
        with patience():
            await mesh(ours, theirs, b"signed all the same")
