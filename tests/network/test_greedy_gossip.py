"""Strangers that ask gossip for more than anybody needs, or do not read what it sends them."""

from __future__ import annotations

import time

import trio
import varint
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.exceptions import MuxedStreamError

from p2p import cures, gossip_cures, names
from p2p.network import Verdict

TOPIC = "aw.w.action"


def accept(message):
    return Verdict.ACCEPT


def prefixed(rpc) -> bytes:
    data = rpc.SerializeToString()
    return varint.encode(len(data)) + data


class Hears:
    """A handler of gossip streams that keeps what it is sent."""

    def __init__(self):
        self.rpcs = []

    async def __call__(self, stream):
        held = b""
        while True:
            held += await stream.read(65_536)
            while held:
                length, used = decoded(held)
                if length is None or len(held) < used + length:
                    break
                rpc = rpc_pb2.RPC()
                rpc.ParseFromString(held[used : used + length])
                self.rpcs.append(rpc)
                held = held[used + length :]

    def told(self):
        """The ids of all IHAVEs, as they are written there."""
        return {name for rpc in self.rpcs for one in rpc.control.ihave for name in one.messageIDs}

    def messages(self):
        return [bytes(message.data) for rpc in self.rpcs for message in rpc.publish]


def decoded(data):
    """A varint, and how many bytes it has; None where it is not whole."""
    number = 0
    for place, byte in enumerate(data[:10]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, place + 1
    return None, 0


def message_id(node, data: bytes) -> bytes:
    """The id of what is in the message cache, as an IWANT names it."""
    for name, message in node._gossip._pubsub.router.mcache.msgs.items():
        if bytes(message.data) == data:
            return name
    raise AssertionError("not in the cache")


async def test_what_a_peer_asks_of_gossip_is_bounded(open_node, open_stranger, honest_beside, until):
    hears = Hears()
    async with open_node(1) as victim, honest_beside(victim):
        subscription = await victim.join(TOPIC, accept)
        first, second = bytes(names.GOSSIP_BYTES_MAX), b"second"
        await subscription.publish(first)
        await subscription.publish(second)
        async with open_stranger(handlers={names.GOSSIP_PROTOCOL: hears}) as stranger:
            stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
            await until(lambda: hears.rpcs)
            for names_wanted in ([message_id(victim, first)] * 5_000, [message_id(victim, second)]):
                control = rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=names_wanted)])
                await stream.write(prefixed(rpc_pb2.RPC(control=control)))
            await until(lambda: second in hears.messages())
            assert hears.messages().count(first) == 1
            for number in range(200):
                control = rpc_pb2.ControlMessage(
                    graft=[rpc_pb2.ControlGraft(topicID=f"{number}" + "x" * 10_000)],
                    ihave=[rpc_pb2.ControlIHave(topicID=f"{number}" + "y" * 10_000, messageIDs=[b"00"])],
                )
                await stream.write(prefixed(rpc_pb2.RPC(control=control)))
            await until(lambda: victim.counters().get("cure.graft_of_no_topic", 0) == 200)
            assert victim.counters()["cure.ihave_of_no_topic"] == 200
            router = victim._gossip._pubsub.router
            peer = ID(stranger.peer_id)
            assert len(router.ihave_message_limits.get(peer, {})) <= 1
            assert len(router.graft_flood_tracking.get(peer, {})) <= 1
            assert not any(prune.topicID for rpc in hears.rpcs for prune in rpc.control.prune)


async def test_a_message_that_is_asked_for_again_and_again_has_a_rate(
    open_node, open_stranger, monkeypatch, until
):
    monkeypatch.setattr(names, "GOSSIP_ASKED_BYTES_PER_S_MAX", 2 * names.GOSSIP_BYTES_MAX)
    hears = Hears()
    async with open_node(1) as victim:
        subscription = await victim.join(TOPIC, accept)
        data = bytes(names.GOSSIP_BYTES_MAX)
        await subscription.publish(data)
        async with open_stranger(handlers={names.GOSSIP_PROTOCOL: hears}) as stranger:
            stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
            await until(lambda: hears.rpcs)
            wanted = rpc_pb2.ControlIWant(messageIDs=[message_id(victim, data)])
            rpc = prefixed(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(iwant=[wanted])))
            await stream.write(rpc * 9)
            await until(lambda: victim.counters().get("cure.iwant_over_rate", 0) >= 6)


async def test_subscriptions_that_come_and_go_are_bounded(open_node, open_stranger, honest_beside, until):
    hears = Hears()
    async with open_node(1) as victim, honest_beside(victim):
        subscription = await victim.join(TOPIC, accept)
        await subscription.publish(b"once")
        async with open_stranger(handlers={names.GOSSIP_PROTOCOL: hears}) as stranger:
            stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
            await until(lambda: hears.rpcs)
            on, off = (rpc_pb2.RPC.SubOpts(subscribe=on, topicid=TOPIC) for on in (True, False))
            for _ in range(50):
                await stream.write(prefixed(rpc_pb2.RPC(subscriptions=[on, off])))
            long = rpc_pb2.RPC.SubOpts(subscribe=True, topicid="z" * (names.TOPIC_CHARS_MAX + 1))
            await stream.write(prefixed(rpc_pb2.RPC(subscriptions=[long])))
            await until(lambda: victim.counters().get("cure.subscriptions_refused", 0) >= 1)
            assert long.topicid not in victim._gossip._pubsub.peer_topics
            assert hears.messages().count(b"once") <= 1


async def test_a_peer_that_cannot_be_written_to_yet_has_been_sent_nothing(open_node):
    """It subscribes on a stream of its own, which may be there before ours: it is sent the last messages later."""
    async with open_node(1) as node:
        await node.join(TOPIC, accept)
        for _ in range(2):
            await node._gossip._pubsub._replay_recent_messages(ID(bytes(38)), TOPIC)
        assert "cure.replay_again" not in node.counters()


async def test_what_waits_for_a_deaf_peer_is_bounded(monkeypatch):
    monkeypatch.setattr(names, "GOSSIP_OUT_QUEUE_BYTES_MAX", 100_000)
    queue = cures.CountedRpcQueue()
    rpc = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(30_000))])
    before = cures.dropped["gossip.dropped_out_queue_full"]
    assert [queue.push(rpc) for _ in range(5)] == [True, True, True, False, False]
    assert cures.dropped["gossip.dropped_out_queue_full"] - before == 2
    assert await queue.pop() is rpc
    assert queue.push(rpc, priority=True)
    assert not queue.push(rpc)


async def test_gossip_goes_on_with_a_peer_that_stood_still(open_node, patience, monkeypatch):
    """The library gives a write up after 5 s without window: the stream is of no use then, and must be replaced."""
    async with open_node(1) as sender, open_node(2) as other:
        await sender.connect(other.addrs())
        ours, theirs = await sender.join(TOPIC, accept), await other.join(TOPIC, accept)
        with patience():
            await heard(ours, theirs, b"before")
            stream = sender._gossip._pubsub.peers[ID(other.peer_id)]

            async def given_up(data=b""):
                raise MuxedStreamError("no window for 5 s")

            monkeypatch.setattr(stream.muxed_stream, "write", given_up)
            monkeypatch.setattr(stream.muxed_stream, "reset", given_up)  # which must not end the node
            monkeypatch.setattr(stream, "reset", given_up)
            await heard(ours, theirs, b"after")
        assert sender._gossip._pubsub.peers[ID(other.peer_id)] is not stream


async def heard(publisher, subscriber, words: bytes) -> None:
    while True:
        await publisher.publish(words)
        with trio.move_on_after(0.5):
            while (await subscriber.receive()).data != words:
                pass
            return


async def test_a_peer_that_refuses_our_stream_leaves_nothing_behind(
    open_node, open_stranger, honest_beside, monkeypatch, until, patience
):
    """It can be sent nothing, so it is no member of a mesh; and once it is gone nothing is known of it."""
    monkeypatch.setattr(gossip_cures, "GREETING_S_MAX", 1.0)  # how long an honest peer may take for it
    async with open_node(1) as victim, honest_beside(victim):
        await victim.join(TOPIC, accept)
        router = victim._gossip._pubsub.router
        for number in (201, 202):
            async with open_stranger(number) as stranger:
                peer = stranger.host.get_id()
                stream = await stranger.stream(victim, names.GOSSIP_PROTOCOL)
                forged = rpc_pb2.Message(
                    from_id=peer.to_bytes(), seqno=bytes(8), data=b"x", topicIDs=[TOPIC], signature=bytes(64)
                )
                control = rpc_pb2.ControlMessage(
                    graft=[rpc_pb2.ControlGraft(topicID=TOPIC)],
                    idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"x"])],
                )
                await stream.write(prefixed(rpc_pb2.RPC(publish=[forged], control=control)))
                with patience():
                    await until(lambda peer=peer: peer in router.mesh[TOPIC])
                    await until(lambda peer=peer: peer not in router.mesh[TOPIC])
                assert peer in router.dont_send_message_ids
            with patience():
                await until(lambda peer=peer: peer not in gossip_cures.known_to_router(router))
        assert victim.counters()["cure.gone_peer_forgotten"] >= 2


async def test_who_was_pruned_is_not_grafted_again_at_once(open_node):
    async with open_node(1) as node:
        await node.join(TOPIC, accept)
        pubsub = node._gossip._pubsub
        router, before = pubsub.router, pubsub.peers
        crowd = {ID(names.PEER_ID_PREFIX + bytes([number]) * 32) for number in range(router.degree_high + 1)}
        router.peer_protocol.update(dict.fromkeys(crowd, names.GOSSIP_PROTOCOL))
        pubsub.peer_topics[TOPIC], router.mesh[TOPIC] = set(crowd), set(crowd)
        pubsub.peers = dict.fromkeys(crowd)
        _, pruned = router.mesh_heartbeat()
        router.mesh[TOPIC] = set(list(router.mesh[TOPIC])[: router.degree_low - 1])
        grafted, _ = router.mesh_heartbeat()
        # Their clocks began later than ours.
        router.back_off[TOPIC] = dict.fromkeys(pruned, int(time.time()))
        router.mesh[TOPIC] = set(list(router.mesh[TOPIC])[:1])
        grafted_later, _ = router.mesh_heartbeat()
        pubsub.peers = before
        assert len(pruned) == router.degree_high + 1 - router.degree
        assert grafted
        assert not pruned.keys() & (grafted.keys() | grafted_later.keys())


async def test_who_has_pruned_us_still_hears_what_there_is(open_node, open_stranger, patience, until):
    hears = Hears()
    async with (
        open_node(1) as node,
        open_stranger(handlers={names.GOSSIP_PROTOCOL: hears}) as stranger,
    ):
        subscription = await node.join(TOPIC, accept)
        router, peer = node._gossip._pubsub.router, stranger.host.get_id()
        stream = await stranger.stream(node, names.GOSSIP_PROTOCOL)
        subscribed = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)
        refused = rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=60)])
        await stream.write(prefixed(rpc_pb2.RPC(subscriptions=[subscribed], control=refused)))
        with patience():
            await until(lambda: router._check_back_off(peer, TOPIC))
        await subscription.publish(b"meanwhile")
        name = message_id(node, b"meanwhile")
        with patience():
            await until(lambda: name in hears.told())
        assert peer not in router.mesh[TOPIC]


async def test_each_peer_is_told_what_is_for_it(open_node, monkeypatch):
    one, other = (ID(names.PEER_ID_PREFIX + bytes([number]) * 32) for number in range(2))
    told = {}

    async def emit(control, peer):
        told[peer] = (
            [graft.topicID for graft in control.graft],
            [prune.topicID for prune in control.prune],
            {have.topicID: list(have.messageIDs) for have in control.ihave},
        )

    async with open_node(1) as node:
        router = node._gossip._pubsub.router
        monkeypatch.setattr(router, "emit_control_message", emit)
        await router._emit_control_msgs(
            {one: ["a"], other: ["b"]}, {one: ["c"], other: ["d"]}, {one: {"e": [b"1"]}, other: {"f": [b"2"]}}
        )
    assert told == {one: (["a"], ["c"], {"e": [b"1"]}), other: (["b"], ["d"], {"f": [b"2"]})}
