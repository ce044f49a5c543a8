"""Gossipsub as the port wants it: a topic is a bounded channel with a check that gives three verdicts.

Hides: py-libp2p's Pubsub. Guarantees: a message is judged before it is forwarded; REJECT and IGNORE are never
delivered, and IGNORE costs nobody; what overflows is dropped and counted. Implements docs/protocol.md, "Gossip".
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from p2p import names
from p2p.cures import CuredPubsub, IgnoredMessage
from p2p.network import Check, Message, PeerId, Verdict


class Libp2pSubscription:
    """A joined topic. The library's channel of GOSSIP_CHANNEL_MESSAGES_MAX drops the newest when it is full."""

    def __init__(self, gossip: Gossip, topic: str, check: Check, channel: Any) -> None:
        self._gossip = gossip
        self._topic = topic
        self._check = check
        self._channel = channel

    @property
    def topic(self) -> str:
        return self._topic

    async def receive(self) -> Message:
        while True:
            message = await self._channel.get()
            if message.from_id != self._gossip.peer_id:
                return Message(self._topic, message.data, message.from_id, message.from_id)

    async def publish(self, data: bytes) -> None:
        if len(data) > names.GOSSIP_BYTES_MAX:
            raise ValueError(f"gossip message: {len(data)} bytes, at most {names.GOSSIP_BYTES_MAX}")
        own = self._gossip.peer_id
        verdict = self._check(Message(self._topic, data, own, own))
        if verdict is not Verdict.ACCEPT:
            raise ValueError(f"gossip message: the own check of {self._topic} says {verdict.value}")
        await self._gossip.publish(self._topic, data)


class Gossip:
    """All topics of one node."""

    def __init__(self, pubsub: CuredPubsub, peer_id: PeerId, counters: Counter[str]) -> None:
        self._pubsub = pubsub
        self.peer_id = peer_id
        self._counters = counters
        self._joined: set[str] = set()

    async def join(self, topic: str, check: Check) -> Libp2pSubscription:
        """Subscribe with a check. Raises ValueError for a topic that is joined already, or past TOPICS_MAX."""
        if topic in self._joined:
            raise ValueError(f"topic {topic} is joined already")
        if len(self._joined) >= names.TOPICS_MAX:
            raise ValueError(f"topic {topic}: {names.TOPICS_MAX} topics are joined (topics_max)")
        self._joined.add(topic)
        self._pubsub.set_topic_validator(topic, self._validator(topic, check), is_async_validator=False)
        channel = await self._pubsub.subscribe(topic)
        return Libp2pSubscription(self, topic, check, channel)

    def _validator(self, topic: str, check: Check) -> Any:
        def validate(forwarder: ID, message: rpc_pb2.Message) -> bool:
            sender = forwarder.to_bytes()
            if sender == self.peer_id:
                return True  # judged by publish
            verdict = check(Message(topic, message.data, message.from_id, sender))
            self._counters[f"gossip.{_COUNTED[verdict]}"] += 1
            if verdict is Verdict.IGNORE:
                raise IgnoredMessage
            return verdict is Verdict.ACCEPT

        return validate

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand to the mesh what has passed size and check."""
        self._counters["gossip.published"] += 1
        await self._pubsub.publish(topic, data)


_COUNTED = {Verdict.ACCEPT: "accepted", Verdict.REJECT: "rejected", Verdict.IGNORE: "ignored"}
