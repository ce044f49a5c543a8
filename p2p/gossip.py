"""Gossipsub as the port wants it: a topic is a bounded channel with a check that gives three verdicts.

Hides: py-libp2p's Pubsub. Guarantees: a message is judged before it is forwarded; REJECT and IGNORE are never
delivered, and IGNORE costs nobody; what overflows is dropped and counted. Implements docs/protocol.md, "Gossip".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from p2p import gossip_cures, names
from p2p.network import Check, Gauge, Message, PeerId, Verdict

WAITING_FOR_HELLO_MAX: Final = 32
WAITING_FOR_HELLO_S: Final = 5.0
_COUNTED: Final = {Verdict.ACCEPT: "accepted", Verdict.REJECT: "rejected", Verdict.IGNORE: "ignored"}


class Libp2pSubscription:
    """A joined topic. Its channel holds GOSSIP_CHANNEL_MESSAGES_MAX messages and drops the newest when full."""

    def __init__(self, gossip: Gossip, topic: str, check: Check) -> None:
        self._gossip = gossip
        self._topic = topic
        self.check: Final = check
        self._send, self._receive = trio.open_memory_channel[Message](names.GOSSIP_CHANNEL_MESSAGES_MAX)

    @property
    def topic(self) -> str:
        return self._topic

    async def receive(self) -> Message:
        return await self._receive.receive()

    async def publish(self, data: bytes) -> None:
        if len(data) > names.GOSSIP_BYTES_MAX:
            raise ValueError(f"gossip message: {len(data)} bytes, at most {names.GOSSIP_BYTES_MAX}")
        own = self._gossip.peer_id
        verdict = self.check(Message(self._topic, data, own, own))
        if verdict is not Verdict.ACCEPT:
            raise ValueError(f"gossip message: the own check of {self._topic} says {verdict.value}")
        await self._gossip.publish(self._topic, data)

    def gauge(self) -> Gauge:
        """Messages that wait to be read."""
        return Gauge(
            "gossip_messages_waiting",
            self._send.statistics().current_buffer_used,
            "gossip_channel_messages_max",
            names.GOSSIP_CHANNEL_MESSAGES_MAX,
            {"topic": self._topic},
        )

    def offer(self, message: Message) -> bool:
        """Deliver, or say that there is no room."""
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True


class Gossip:
    """All topics of one node."""

    def __init__(
        self,
        pubsub: Pubsub,
        peer_id: PeerId,
        counters: Counter[str],
        judged: Callable[[PeerId, Verdict], None],
    ) -> None:
        self._pubsub = pubsub
        self._judged = judged
        self.peer_id: Final = peer_id
        self._counters = counters
        self._joined: dict[str, Libp2pSubscription] = {}
        self._accepted: tuple[rpc_pb2.Message, Message] | None = None
        gossip_cures.deliver_to(pubsub, self._deliver)

    async def join(self, topic: str, check: Check) -> Libp2pSubscription:
        """Subscribe with a check. Raises ValueError for a topic that is joined already, or past TOPICS_MAX."""
        if topic in self._joined:
            raise ValueError(f"topic {topic} is joined already")
        if len(self._joined) >= names.TOPICS_MAX:
            raise ValueError(f"topic {topic}: {names.TOPICS_MAX} topics are joined (topics_max)")
        subscription = self._joined[topic] = Libp2pSubscription(self, topic, check)
        self._pubsub.set_topic_validator(topic, self._validator(topic, check), is_async_validator=False)
        await self._pubsub.subscribe(topic)
        return subscription

    def _validator(self, topic: str, check: Check) -> Callable[[ID, rpc_pb2.Message], bool]:
        def validate(forwarder: ID, message: rpc_pb2.Message) -> bool:
            sender = forwarder.to_bytes()
            if sender == self.peer_id:
                return True  # judged by publish
            received = Message(topic, message.data, message.from_id, sender)
            verdict = check(received)
            self._counters[f"gossip.{_COUNTED[verdict]}"] += 1
            self._judged(sender, verdict)
            match verdict:
                case Verdict.IGNORE:
                    raise gossip_cures.IgnoredMessage
                case Verdict.ACCEPT:
                    self._accepted = (message, received)
            return verdict is Verdict.ACCEPT

        return validate

    def _deliver(self, message: rpc_pb2.Message) -> None:
        """Called right after the validator, in the same turn; own messages have not been through it."""
        accepted, self._accepted = self._accepted, None
        if accepted is None or accepted[0] is not message:
            return
        received = accepted[1]
        if not self._joined[received.topic].offer(received):
            self._counters["gossip.dropped_channel_full"] += 1

    def gauges(self) -> list[Gauge]:
        """Messages that wait to be read, by topic."""
        return [subscription.gauge() for subscription in self._joined.values()]

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand to the mesh what has passed size and check."""
        self._counters["gossip.published"] += 1
        await self._pubsub.publish(topic, data)


def make_gossip_router() -> GossipSub:
    """Gossipsub that keeps its heartbeat: by default it slows to 30-60 s when it finds the mesh unhealthy.

    gossipsub.py:2864. Its spam limits also stop one's own publishes. Test: test_the_heartbeat_stays_at_a_second.
    What is published while a peer has not yet said what it subscribes to waits for it: a hundred messages for 30 s, of
    every peer that subscribes to nothing, gone through for every message. A few for the moment of a greeting will do.
    """
    return GossipSub(
        protocols=[TProtocol(names.GOSSIP_PROTOCOL)],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
        max_pending_messages_per_peer=WAITING_FOR_HELLO_MAX,
        pending_messages_ttl=WAITING_FOR_HELLO_S,
    )
