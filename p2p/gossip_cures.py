"""What py-libp2p 0.8.1's gossip does wrong: one function each, as in cures.py, which applies them.

Hides: Pubsub and GossipSub from the inside. Guarantees: each cure names the test that fails without it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import libp2p.pubsub.gossipsub as gossipsub_module
import libp2p.pubsub.pubsub as pubsub_module
import trio
from libp2p.network.stream.net_stream import StreamState
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.utils import safe_bytes_from_hex

from p2p import names
from p2p.loads import TokenBucket

DELIVERIES_CLEARED_S: Final = 60.0
BACK_OFFS_MAX: Final = 1_024  # of a topic; the older half is forgotten then
BACK_OFF_S_MAX: Final = 600
BACK_OFF_SLACK_S: Final = 2
RESET_S_MAX: Final = 1.0
REPLAY_AGAIN_S: Final = 10.0
REPLAYS_REMEMBERED_MAX: Final = 4_096
RECORD_AGAIN_S: Final = 60.0  # the peerstore keeps what a record says for two hours
RECORDS_REMEMBERED_MAX: Final = names.CONNECTIONS_MAX
GREETING_S_MAX: Final = 2.0 * names.NEGOTIATION_S
OWN_RECORD_S: Final = 1.0  # so soon a changed address is told
_UNWRITABLE: Final = {
    StreamState.RESET,
    StreamState.ERROR,
    StreamState.CLOSE_WRITE,
    StreamState.CLOSE_BOTH,
}
_log = logging.getLogger(__name__)


class IgnoredMessage(Exception):
    """Raised by a topic's validator for a message that is neither forwarded nor held against anybody."""


class Rates:
    """So much a second for each peer, of as many peers as are connected; the one seen longest ago is forgotten."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._buckets = OrderedDict[ID, TokenBucket]()

    def take(self, peer: ID, count: int) -> bool:
        """Whether the peer has so much left, which is then taken."""
        now_s = trio.current_time()
        bucket = self._buckets.pop(peer, None) or TokenBucket(self._per_s, now_s)
        self._buckets[peer] = bucket
        while len(self._buckets) > names.CONNECTIONS_MAX:
            self._buckets.popitem(last=False)
        if bucket.wait_ms(count, now_s):
            return False
        bucket.take(count)
        return True


_Consumed: TypeAlias = OrderedDict[ID, tuple[bytes, float]]


def consume_records_once() -> None:
    """Every RPC carries its sender's signed record: each is decoded, verified and stored, a tenth of a node's time.

    pubsub.py:565. A record of the same bytes as the last one of its peer is consumed again after RECORD_AGAIN_S.
    Test: test_a_senders_record_is_verified_once.
    """
    consume = pubsub_module.maybe_consume_signed_record  # type: ignore[attr-defined]
    of_hosts = WeakKeyDictionary[Any, _Consumed]()

    def once(rpc: rpc_pb2.RPC, host: Any, peer: ID) -> bool:
        consumed = of_hosts.setdefault(host, OrderedDict())
        digest, now_s = blake2b(rpc.senderRecord, digest_size=16).digest(), trio.current_time()
        before = consumed.get(peer)
        if before is not None and before[0] == digest and now_s - before[1] < RECORD_AGAIN_S:
            return True
        if not consume(rpc, host, peer):
            return False
        consumed.pop(peer, None)
        consumed[peer] = (digest, now_s)
        while len(consumed) > RECORDS_REMEMBERED_MAX:
            consumed.popitem(last=False)
        return True

    setattr(pubsub_module, "maybe_consume_signed_record", once)  # noqa: B010  # not exported


def keep_own_record() -> None:
    """For every RPC that is sent the own addresses are listed, and compared with those of the own signed record.

    pubsub.py:1384, gossipsub.py:1007. Its bytes are kept for OWN_RECORD_S.
    Test: test_the_own_record_is_not_made_for_each_rpc.
    """
    make = pubsub_module.env_to_send_in_RPC  # type: ignore[attr-defined]
    of_hosts = WeakKeyDictionary[Any, tuple[bytes, float]]()

    def kept(host: Any) -> tuple[bytes, bool]:
        record, made_s = of_hosts.get(host, (b"", -OWN_RECORD_S))
        now_s = trio.current_time()
        if now_s - made_s < OWN_RECORD_S and record:
            return record, False
        record, is_new = make(host)
        of_hosts[host] = (record, now_s)
        return record, is_new

    for module in (pubsub_module, gossipsub_module):
        setattr(module, "env_to_send_in_RPC", kept)  # noqa: B010  # not exported


def forget_verdicts(pubsub: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """The cache of verdicts is a list that is searched from its start for every message (pubsub.py:294).

    What was seen before is dropped ahead of it, so that nothing is ever found there: it holds the last one only.
    Test: test_no_list_of_verdicts_is_searched.
    """
    pubsub.validation_cache.max_size = 1


def bound_prunes(pubsub: Any, counters: Counter[str]) -> None:
    """A PRUNE is noted for any topic and any time, without end, and the peers that it names are dialled.

    gossipsub.py:1894 and 1670: a stranger fills the memory with names of topics, and the outbound connections, which no
    limit holds, with its friends. Only topics of one's own count, for a bounded time, and nobody is dialled.
    Test: test_a_prune_fills_no_memory_and_has_nobody_dialled.
    """
    router = pubsub.router
    handle = router.handle_prune

    async def handle_prune(message: rpc_pb2.ControlPrune, sender: ID) -> None:
        if message.topicID not in router.mesh:
            counters["cure.prune_of_no_topic"] += 1
            return
        bound_back_offs(router, message.topicID)
        del message.peers[:]
        message.backoff = min(message.backoff, BACK_OFF_S_MAX)
        await handle(message, sender)

    router.handle_prune = handle_prune


def bound_back_offs(router: Any, topic: str) -> None:
    """Make room for another one."""
    back_offs = router.back_off.get(topic, {})
    if len(back_offs) >= BACK_OFFS_MAX:
        for peer in list(back_offs)[: BACK_OFFS_MAX // 2]:
            del back_offs[peer]


def note_own_prunes(pubsub: Any, counters: Counter[str]) -> None:
    """Whom a heartbeat prunes the next one may graft again: the peer refuses it so soon, and holds it against us.

    gossipsub.py:1449. The specification has the back-off of a PRUNE hold for both sides.
    Test: test_who_was_pruned_is_not_grafted_again_at_once.
    """
    router = pubsub.router
    beat, check = router.mesh_heartbeat, router._check_back_off  # noqa: SLF001

    def is_in_back_off(peer: ID, topic: str) -> bool:
        """As we choose: somewhat longer than they refuse, whose clock began later."""
        till_s = router.back_off.get(topic, {}).get(peer, 0)
        return bool(till_s + BACK_OFF_SLACK_S > time.time() or check(peer, topic))

    def mesh_heartbeat() -> Any:
        router._check_back_off = is_in_back_off  # noqa: SLF001
        try:
            grafts, prunes = beat()
        finally:
            router._check_back_off = check  # noqa: SLF001
        for peer, topics in prunes.items():
            for topic in topics:
                bound_back_offs(router, topic)
                router._add_back_off(peer, topic, False)  # noqa: SLF001
                counters["cure.own_prune_noted"] += 1
        return grafts, prunes

    router.mesh_heartbeat = mesh_heartbeat


def gossip_to_who_has_pruned_us(pubsub: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """A peer that may not be grafted yet gets no IHAVE either: of what is published for a minute it hears nothing.

    gossipsub.py:1511. The specification asks nothing of the kind of whom it tells.
    Test: test_who_has_pruned_us_still_hears_what_there_is.
    """
    router = pubsub.router
    beat, select = router.gossip_heartbeat, router._get_in_topic_gossipsub_peers_from_minus  # noqa: SLF001

    def gossip_heartbeat() -> Any:
        def select_all(topic: str, count: int, minus: Any, backoff_check: bool = False) -> Any:  # noqa: ARG001  # its shape
            return select(topic, count, minus)

        router._get_in_topic_gossipsub_peers_from_minus = select_all  # noqa: SLF001
        try:
            return beat()
        finally:
            router._get_in_topic_gossipsub_peers_from_minus = select  # noqa: SLF001

    router.gossip_heartbeat = gossip_heartbeat


def tell_each_what_is_for_it(pubsub: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """What a heartbeat says to one peer it says to those after it too: GRAFTs, PRUNEs and IHAVEs add up.

    gossipsub.py:1243. So peers take us into meshes in which we do not have them, and send us all of it; or leave ours.
    Test: test_each_peer_is_told_what_is_for_it.
    """
    router = pubsub.router

    async def emit(grafts: Any, prunes: Any, gossip: Any) -> None:
        for peer in dict.fromkeys((*grafts, *prunes, *gossip)):
            control = rpc_pb2.ControlMessage()
            control.graft.extend(rpc_pb2.ControlGraft(topicID=topic) for topic in grafts.get(peer, ()))
            control.prune.extend(rpc_pb2.ControlPrune(topicID=topic) for topic in prunes.get(peer, ()))
            for topic, ids in gossip.get(peer, {}).items():
                control.ihave.add(topicID=topic, messageIDs=ids)
            await router.emit_control_message(control, peer)

    router._emit_control_msgs = emit  # noqa: SLF001


def bound_asking(pubsub: Any, counters: Counter[str]) -> None:
    """One IWANT may name a message 11,000 times, and is answered with as many copies in one turn: 650 MB.

    gossipsub.py:1809, and :490, 1739, 1851: an IHAVE or a GRAFT of any topic is remembered, and the second answered
    with the name of it, of up to 1 MiB. Each message that is asked for counts once, within a rate of bytes for each
    peer; only topics of one's own count. Test: test_what_a_peer_asks_of_gossip_is_bounded.
    """
    router, rates = pubsub.router, Rates(names.GOSSIP_ASKED_BYTES_PER_S_MAX)
    handle_iwant, handle_ihave, handle_graft = router.handle_iwant, router.handle_ihave, router.handle_graft

    async def iwant(message: rpc_pb2.ControlIWant, sender: ID) -> None:
        wanted = []
        for name in dict.fromkeys(message.messageIDs):
            held = router.mcache.get(safe_bytes_from_hex(name) or b"")
            if held is not None and not rates.take(sender, held.ByteSize()):
                counters["cure.iwant_over_rate"] += 1
                break
            wanted += [] if held is None else [name]
        if wanted:
            await handle_iwant(rpc_pb2.ControlIWant(messageIDs=wanted), sender)

    async def ihave(message: rpc_pb2.ControlIHave, sender: ID) -> None:
        if message.topicID not in router.mesh:
            counters["cure.ihave_of_no_topic"] += 1
            return
        del message.messageIDs[names.GOSSIP_OFFERED_IDS_MAX :]
        await handle_ihave(message, sender)

    async def graft(message: rpc_pb2.ControlGraft, sender: ID) -> None:
        if message.topicID not in router.mesh:
            counters["cure.graft_of_no_topic"] += 1
            return
        await handle_graft(message, sender)

    router.handle_iwant, router.handle_ihave, router.handle_graft = iwant, ihave, graft


def bound_subscriptions(pubsub: Any, counters: Counter[str]) -> None:
    """A topic's name may have 1 MiB, and each time that a peer subscribes anew it is sent the last messages again.

    pubsub.py:1273 and 987: 100 such names of a peer are kept; {unsubscribe, subscribe} in a few bytes costs three
    tasks and all of the message cache. Names are short, changes have a rate, and the last messages of a topic are sent
    once in REPLAY_AGAIN_S. Test: test_subscriptions_that_come_and_go_are_bounded.
    """
    subscribed, replay = pubsub.handle_subscription, pubsub._replay_recent_messages  # noqa: SLF001
    rates = Rates(names.GOSSIP_SUBSCRIPTIONS_PER_S_MAX)
    replayed = OrderedDict[tuple[ID, str], float]()

    def handle_subscription(origin: ID, change: rpc_pb2.RPC.SubOpts) -> None:
        if len(change.topicid) > names.TOPIC_CHARS_MAX or not rates.take(origin, 1):
            counters["cure.subscriptions_refused"] += 1
            return
        subscribed(origin, change)

    async def replay_now_and_then(peer: ID, topic: str) -> None:
        now_s = trio.current_time()
        if peer not in pubsub.peers:
            return  # it cannot be written to yet: the library replays when it can
        if now_s - replayed.get((peer, topic), -math.inf) < REPLAY_AGAIN_S:
            counters["cure.replay_again"] += 1
            return
        replayed.pop((peer, topic), None)
        replayed[peer, topic] = now_s
        while len(replayed) > REPLAYS_REMEMBERED_MAX:
            replayed.popitem(last=False)
        await replay(peer, topic)

    pubsub.handle_subscription = handle_subscription
    pubsub._replay_recent_messages = replay_now_and_then  # noqa: SLF001


def ignore_messages(pubsub: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """A validator says yes or no, and no costs the forwarder; there is no IGNORE (pubsub.py:1603).

    An IgnoredMessage raised by a validator leaves before cache, penalty and forwarding; the message is marked as
    seen, so that its copies cost nothing. Test: test_an_ignored_message_is_judged_once_and_not_forwarded.
    """
    push = pubsub.push_msg

    async def push_msg(forwarder: ID, message: rpc_pb2.Message) -> None:
        try:
            await push(forwarder, message)
        except IgnoredMessage:
            pubsub._mark_msg_seen(message)  # noqa: SLF001

    pubsub.push_msg = push_msg


def guard_push_msg(pubsub: Any, counters: Counter[str]) -> None:
    """A message whose `from` embeds no key and whose `key` is garbage raises out of the service: the node ends.

    validators.py:62 raises again; so does any bug of a validator. Caught and counted, except for one's own messages.
    Test: test_a_bug_in_a_check_costs_that_message_only.
    """
    push = pubsub.push_msg

    async def push_msg(forwarder: ID, message: rpc_pb2.Message) -> None:
        try:
            await push(forwarder, message)
        except Exception as error:
            if forwarder == pubsub.my_id:
                raise
            counters["cure.push_msg"] += 1
            _log.info("gossip message failed: %s", type(error).__name__)

    pubsub.push_msg = push_msg


def keep_restarted_peers(pubsub: Any, counters: Counter[str]) -> None:
    """A peer that restarts is back before its old stream is found dead: gossip to it is then dead for good.

    pubsub.py:1129. The end of the old connection is taken for the end of the peer, and forgets what the new one has
    said; or the dead stream stays in `peers`, and "already has a stream" (pubsub.py:892) keeps a new one from being
    opened. While a peer is connected, only a stream that is closed is dropped, what the peer subscribed to stays, and
    a new stream is opened. Test: test_gossip_goes_on_over_a_restart_that_overlaps.
    """
    end = pubsub._handle_dead_peer  # noqa: SLF001

    def ended(peer: ID) -> None:
        if not pubsub._peer_is_connected(peer):  # noqa: SLF001
            end(peer)
            return
        stream = pubsub.peers.get(peer)
        if stream is not None:
            if not is_closed(stream):
                return  # that of an older connection has ended
            counters["cure.gossip_stream_replaced"] += 1
            pubsub.manager.run_task(_reset, stream)  # half of a message may be on it
            del pubsub.peers[peer]
            queue = pubsub.peer_queues.pop(peer, None)
            if queue is not None:
                queue.close()
            pubsub.router.remove_peer(peer)
        pubsub._schedule_peer_stream_retry(peer)  # noqa: SLF001

    pubsub._handle_dead_peer = ended  # noqa: SLF001


def tell_topics_joined_meanwhile(pubsub: Any, counters: Counter[str]) -> None:
    """A topic that is joined while a new peer's hello is being written is told to that peer never.

    pubsub.py:913: the hello is made before it is written, and only then is the peer among those to whom a subscription
    is announced. What has changed in between is announced afterwards.
    Test: test_a_topic_that_is_joined_while_a_peer_is_greeted_is_told_to_it.
    """
    greet = pubsub._handle_new_peer  # noqa: SLF001

    async def handle_new_peer(peer: ID) -> None:
        was_there, before = peer in pubsub.peers, set(pubsub.topic_ids)
        await greet(peer)
        queue = pubsub.peer_queues.get(peer)
        if was_there or queue is None:
            return
        for topic in sorted(before ^ set(pubsub.topic_ids)):
            packet, change = pubsub._build_announce_rpc(topic, subscribe=topic not in before)  # noqa: SLF001
            pubsub._enqueue_or_retry_announce(peer, queue, packet, change)  # noqa: SLF001
            counters["cure.topic_told_later"] += 1

    pubsub._handle_new_peer = handle_new_peer  # noqa: SLF001


def greet_by_one_at_a_time(pubsub: Any, counters: Counter[str]) -> None:
    """Each connection of a peer greets it, and so does whoever wants a stream to it, before another one has ended.

    pubsub.py:892 looks for the peer only at the beginning. The last stream and queue replace the others, whose senders
    wait for their queues until the node ends: a stranger with eight connections leaves seven each time. One greets, for
    a bounded time; one waits, and greets for all others if the first did not succeed; nobody is dialled for it. A peer
    that has gone by the end of its greeting is forgotten. Test: test_a_peer_is_greeted_by_one_at_a_time.
    """
    greet = pubsub._handle_new_peer  # noqa: SLF001
    turns = dict[ID, trio.Lock]()

    async def in_turn(peer: ID) -> None:
        turn = turns.setdefault(peer, trio.Lock())
        if turn.statistics().tasks_waiting:  # tasks have a limit (1,000), past which the service ends
            return
        try:
            async with turn:
                if not pubsub._peer_is_connected(peer):  # noqa: SLF001
                    return
                with trio.move_on_after(GREETING_S_MAX) as time:
                    await greet(peer)
                counters["cure.greeting_given_up"] += time.cancelled_caught
        finally:
            if not turn.locked():
                turns.pop(peer, None)
        if peer in pubsub.peers and not pubsub._peer_is_connected(peer):  # noqa: SLF001
            counters["cure.gone_when_greeted"] += 1
            pubsub._handle_dead_peer(peer)  # noqa: SLF001

    pubsub._handle_new_peer = in_turn  # noqa: SLF001


def forget_who_is_gone(pubsub: Any, counters: Counter[str]) -> None:
    """What a peer to whom no stream was opened has left in gossip's tables stays there for good.

    pubsub.py:1128 keeps its end from the router; score.py makes entries of whoever sends a message, gossipsub.py:2214
    of an IDONTWANT, and :1867 lets anybody into the mesh. Strangers that refuse our stream fill memory, what each
    heartbeat walks through, and the mesh, out of which honest peers are then pruned. A heartbeat does not count whoever
    cannot be sent to, who leaves the mesh when that lasts longer than a greeting; and what is known of those who are
    not connected is dropped. Test: test_a_peer_that_refuses_our_stream_leaves_nothing_behind.
    """
    router = pubsub.router
    beat = router.mesh_heartbeat
    silent_since = dict[ID, float]()

    def mesh_heartbeat() -> Any:
        now_s = trio.current_time()
        silent = {topic: peers - pubsub.peers.keys() for topic, peers in router.mesh.items()}
        for peer in silent_since.keys() - set[ID]().union(*silent.values()):
            del silent_since[peer]
        for topic, peers in silent.items():
            router.mesh[topic].difference_update(peers)
        for peer in known_to_router(router) - pubsub.peers.keys() - {pubsub.my_id}:
            if not pubsub._peer_is_connected(peer):  # noqa: SLF001
                router.remove_peer(peer)
                counters["cure.gone_peer_forgotten"] += 1
        grafts_and_prunes = beat()
        for topic, peers in silent.items():  # a peer that has just grafted us is being greeted
            may_stay = {
                peer for peer in peers if now_s - silent_since.setdefault(peer, now_s) < GREETING_S_MAX
            }
            router.mesh[topic].update(may_stay)
            counters["cure.left_the_mesh"] += len(peers - may_stay)
        return grafts_and_prunes

    router.mesh_heartbeat = mesh_heartbeat


def known_to_router(router: Any) -> set[ID]:
    """Every peer of which the router or its scorer holds anything but a place in a mesh."""
    scorer = router.scorer
    tables = [
        router.dont_send_message_ids,
        router.peer_protocol,
        router._pending_messages,  # noqa: SLF001
        router._pending_control,  # noqa: SLF001
    ]
    if scorer is not None:
        tables += [
            scorer.time_in_mesh,
            scorer.first_message_deliveries,
            scorer.mesh_message_deliveries,
            scorer.invalid_messages,
            scorer.behavior_penalty,
            scorer.app_specific_scores,
            scorer.graft_flood_penalties,
            scorer.iwant_spam_penalties,
            scorer.ihave_spam_penalties,
            scorer.equivocation_penalties,
        ]
    return set[ID]().union(*tables)


async def _reset(stream: Any) -> None:
    """Whatever it says: an error in a task of the service would end the node."""
    with trio.move_on_after(RESET_S_MAX):
        try:
            await stream.reset()
        except Exception as error:  # noqa: BLE001
            _log.debug("reset of a gossip stream: %s", type(error).__name__)


def is_closed(stream: Any) -> bool:
    """Whether nothing can be sent over a gossip stream any more; a write that was given up is the end of it too."""
    muxed = stream.muxed_stream
    is_given_up = stream._state in _UNWRITABLE  # noqa: SLF001
    return bool(is_given_up or muxed.closed or muxed.send_closed or stream.muxed_conn.is_closed)


def take_turns_in_writing(pubsub: Any, counters: Counter[str]) -> None:  # noqa: ARG001  # one shape for all
    """Two tasks may write one gossip stream: the queue's sender, and gossipsub's flush of messages that waited.

    gossipsub.py:704 and :788. Past 64 KiB their writes interleave, the peer reads garbage, resets the stream, and
    gossip between two honest peers is dead. One RPC is written at a time.
    Test: test_two_writers_of_one_gossip_stream_take_turns.
    """
    write, turns = pubsub.write_msg, WeakKeyDictionary[Any, trio.Lock]()

    async def in_turn(stream: Any, rpc: rpc_pb2.RPC) -> bool:
        async with turns.setdefault(stream, trio.Lock()):
            return bool(await write(stream, rpc))

    pubsub.write_msg = in_turn


def check_authors(pubsub: Any, counters: Counter[str]) -> None:
    """The library takes any size up to its RPC, several topics, and a `key` field of another key than `from`.

    rust-libp2p refuses that key, so a relay of it would be held against us. Such messages go no further.
    Tests: test_a_message_whose_key_is_not_its_authors_is_refused, test_an_oversize_message_is_refused.
    """
    push = pubsub.push_msg

    async def push_msg(forwarder: ID, message: rpc_pb2.Message) -> None:
        reason = None if forwarder == pubsub.my_id else _refusal(message)
        if reason is None:
            await push(forwarder, message)
        else:
            counters[f"gossip.refused_{reason}"] += 1

    pubsub.push_msg = push_msg


def _refusal(message: rpc_pb2.Message) -> str | None:
    """Why a message is malformed, or None. An Ed25519 peer id is a prefix and the protobuf of its public key."""
    author = bytes(message.from_id)
    if len(message.data) > names.GOSSIP_BYTES_MAX:
        return "size"
    if len(message.topicIDs) != 1:
        return "topics"
    if len(author) != len(names.PEER_ID_PREFIX) + 32 or not author.startswith(names.PEER_ID_PREFIX):
        return "author"
    if message.key and bytes(message.key) != author[2:]:
        return "key"
    if len(message.seqno) != 8 or not message.signature:
        return "unsigned"
    return None


def count_from_now(pubsub: Any, now_ms: int) -> None:
    """The sequence number starts at seconds, so that a restarted node repeats numbers that its peers have seen.

    pubsub.py:478. The number is the time in ns instead. Test: test_a_restarted_nodes_messages_arrive.
    """
    pubsub.counter = now_ms * 1_000_000


def deliver_to(pubsub: Any, deliver: Callable[[rpc_pb2.Message], None]) -> None:
    """A topic's channel holds 32 messages, its overflow is only logged, and nobody is told the forwarder.

    pubsub.py:1372. `deliver` takes each message instead, in the same turn as its validator accepted it.
    Tests: test_a_burst_of_gossip_arrives_whole, test_overflow_of_a_topic_is_dropped_and_counted.
    """
    pubsub.notify_subscriptions = deliver


async def clear_recent_deliveries(router: GossipSub, period_s: float = DELIVERIES_CLEARED_S) -> None:
    """With a steady heartbeat a list of recent deliveries is never pruned: 280 MB a day at 100 messages a second.

    gossipsub.py:1089. Runs until cancelled. Test: test_recent_deliveries_are_cleared.
    """
    while True:
        await trio.sleep(period_s)
        router.recent_message_deliveries.clear()


OF_GOSSIP_MODULES: Final = (consume_records_once, keep_own_record)
OF_GOSSIP: Final = (
    forget_verdicts,
    bound_prunes,
    note_own_prunes,
    gossip_to_who_has_pruned_us,
    tell_each_what_is_for_it,
    bound_asking,
    bound_subscriptions,
    ignore_messages,
    guard_push_msg,
    keep_restarted_peers,
    tell_topics_joined_meanwhile,
    greet_by_one_at_a_time,
    forget_who_is_gone,
    take_turns_in_writing,
    check_authors,
)
OF_A_START: Final = (count_from_now,)
