"""What must hold between a peer of one language and a peer of another: one function a row of the matrix.

Hides: what is said to whom. Guarantees: a scenario ends without an error only when everything that it asserts was seen,
in processes of their own. `one` asks, `other` answers; both are fresh for each pairing and stay for its scenarios.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Final

import trio

from interop.asking import ASKING
from interop.driver import CommandFailed, Ground, Peer
from interop.steps import Scenario, connected, in_table, joined, knows_subscriber, until
from interop.witness import Listener, open_listener
from interop.worlds import CREATED_MS, HandMadeWorld
from p2p import names

FROZEN_S: Final = 60.0
HEARTBEAT_S: Final = 1.0  # of gossipsub
TOLD_S: Final = 2.0
LOOK_S: Final = 0.005  # shorter than any peer takes to dial back
AGED_MS: Final = 1_500  # of a record that is put again


# --- connections -------------------------------------------------------------------------------------------


async def connect_identify(ground: Ground, one: Peer, other: Peer) -> None:
    """Connect, learn each other's protocols."""
    del ground
    assert (await one.do("dial", addr=other.addr))["peer"] == other.peer_id
    await other.event("connected", peer=one.peer_id)
    for peer, about in ((one, other), (other, one)):
        spoken = (await peer.do("identify", peer=about.peer_id))["protocols"]
        assert {names.RR_PROTOCOL, names.KAD_PROTOCOL, names.GOSSIP_PROTOCOL} <= set(spoken), spoken
        assert about.peer_id in (await peer.do("peers"))["peers"]


async def parting(ground: Ground, one: Peer, other: Peer) -> None:
    """Who is left dials back at once: both know that they are connected, and serve each other."""
    del ground
    for leaver, left in ((one, other), (other, one)) * 3:
        before = len(left.events)

        async def is_back(leaver: Peer = leaver, left: Peer = left) -> bool:
            try:
                await left.do("dial", addr=leaver.addr)
            except CommandFailed as failure:  # the leaver is not done with leaving
                if failure.kind != "stream":
                    raise
                return False
            return left.peer_id in await peers_of(leaver) and leaver.peer_id in await peers_of(left)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(leaver.do, "disconnect", peer=left.peer_id))
            # It is never told where the leaver's own DHT has dialled again before it noticed.
            with trio.move_on_after(TOLD_S):
                while not left.lost(leaver, before):
                    await trio.sleep(LOOK_S)
            await until(is_back, f"{left.name} and {leaver.name} are connected again")
        await until(is_back, f"{left.name} and {leaver.name} stay connected")
        for asker, asked in ((leaver, left), (left, leaver)):
            await asker.do("request", peer=asked.peer_id, method="x_echo", body="a0")
    for leaver, left in ((one, other), (other, one)):
        await leaver.do("disconnect", peer=left.peer_id)
        await leaver.do("dial", addr=left.addr)  # by a new connection: the old one is ended, or ends
        await leaver.do("request", peer=left.peer_id, method="x_echo", body="a0")


async def peers_of(peer: Peer) -> list[str]:
    """Whom it says that it is connected to."""
    return list((await peer.do("peers"))["peers"])


# --- gossip ------------------------------------------------------------------------------------------------


async def gossip(ground: Ground, one: Peer, other: Peer) -> None:
    """Signed messages are heard and passed on; forged ones are rejected, one of another version is ignored."""
    world = HandMadeWorld(f"gossip-{one.name}-{other.name}")
    action, head = names.topic(world.world_id, "action"), names.topic(world.world_id, "head")
    await joined(world, action, one, other)
    await joined(world, head, one, other)
    for nonce, (sender, hearer) in enumerate(((one, other), (other, one))):
        acted, announced = world.envelope(nonce).hex(), world.head(nonce + 1).hex()
        await sender.do("publish", topic=action, data=acted)
        heard = await hearer.event("gossip", topic=action, verdict="accept", data=acted)
        assert heard["from"] == sender.peer_id, heard
        await sender.do("publish", topic=head, data=announced)
        await hearer.event("gossip", topic=head, verdict="accept", data=announced)
    bad = (
        (head, world.head(9, by=world.actor), "reject"),
        (action, world.envelope(9, by=world.executor), "reject"),
        (action, world.newer_envelope(9), "ignore"),
    )
    for topic, data, _verdict in bad:
        await one.refused("publish", "refused", topic=topic, data=data.hex())
    liar = await ground.start(one.language, 900, careless=True)
    await connected(liar, other)
    await joined(world, head, liar)
    await joined(world, action, liar)
    # It has no other neighbour, and takes whatever is passed on to it.
    async with open_listener(other.addr, (head, action)) as listener:
        for topic in (head, action):
            await knows_subscriber(other, listener, topic)
        sound = {head: map(world.head, count(20)), action: map(world.envelope, count(20))}
        for topic, messages in sound.items():
            await passed_on(one, listener, topic, messages)
        for topic, data, verdict in bad:
            await knows_subscriber(liar, other, topic)
            await liar.do("publish", topic=topic, data=data.hex())
            await other.event("gossip", topic=topic, verdict=verdict, data=data.hex())
        for topic, messages in sound.items():
            await passed_on(one, listener, topic, messages)
        refused = {(topic, data) for topic, data, _verdict in bad}
        assert refused.isdisjoint(listener.heard), f"{other.name} passes on what it refuses"
    await liar.stop()


async def passed_on(sender: Peer, listener: Listener, topic: str, messages: Iterator[bytes]) -> None:
    """One after the other is published until one is heard: to who is in no mesh yet nothing is passed on."""
    published = set[tuple[str, bytes]]()

    async def is_heard() -> bool:
        data = next(messages)
        published.add((topic, data))
        await sender.do("publish", topic=topic, data=data.hex())
        await trio.sleep(HEARTBEAT_S / 10)
        return not published.isdisjoint(listener.heard)

    await until(is_heard, f"{listener.name} hears {sender.name}")


# --- DHT ---------------------------------------------------------------------------------------------------


async def dht_heads(ground: Ground, one: Peer, other: Peer) -> None:
    """The newer head wins, a later word on an equal one too, an older or a forged one is refused: whoever puts it.

    What `other` holds is looked at, not what a look-up makes of several answers.
    """
    world = HandMadeWorld(f"dht-{one.name}-{other.name}")
    key = names.head_key(world.world_id)
    await in_table(one, other)
    await one.refused("dht_get", "not_found", key=key)
    await one.refused("dht_held", "not_found", key=key)
    newest = world.head(6, as_of_ms=CREATED_MS + 10_000)
    for writer, holder, value in (
        (one, other, world.head(5)),
        (other, one, world.head(6)),
        (one, other, newest),
    ):
        await writer.do("dht_put", key=key, value=value.hex())
        await holds(holder, key, value)
        assert (await holder.do("dht_get", key=key))["value"] == value.hex()
    await refreshed(one, other, key, newest)
    for forged in (world.head(7, by=world.actor), b"\xa0", HandMadeWorld("another").head(9)):
        await one.refused("dht_put", "refused", key=key, value=forged.hex())
    liar = await ground.start(one.language, 901, careless=True)
    await connected(liar, other)
    await in_table(liar, other)
    for bad in (world.head(4), world.head(8, by=world.actor), HandMadeWorld("another").head(9)):
        try:
            await liar.do("dht_put", key=key, value=bad.hex())
        except CommandFailed as failure:  # whether a refusal is told to whoever put it differs by library
            if failure.kind not in {"refused", "stream", "timeout"}:
                raise
        held = (await other.do("dht_held", key=key))["value"]
        assert held == newest.hex(), f"{other.name} holds what {liar.name} put"
    # So what the liar puts arrives. Whoever was refused so often may not be believed, or sent to, at once.
    later = count(CREATED_MS + 20_000)

    async def arrives() -> bool:
        honest = world.head(6, as_of_ms=next(later))
        await liar.do("dht_put", key=key, value=honest.hex())
        return await has_record(other, key, honest)

    await until(arrives, f"a sound record of {liar.name} arrives at {other.name}")
    await liar.stop()


async def refreshed(writer: Peer, holder: Peer, key: str, value: bytes) -> None:
    """The same value, put once more, is held anew."""

    async def age_ms() -> int:
        return int((await holder.do("dht_held", key=key))["age_ms"])

    async def is_old() -> bool:
        return await age_ms() >= AGED_MS

    await until(is_old, f"{holder.name} has held it for a while")
    age = await age_ms()
    put_at_ms = time.monotonic() * 1_000 - age  # or before
    await writer.do("dht_put", key=key, value=value.hex())

    async def is_put_anew() -> bool:
        asked_ms = time.monotonic() * 1_000
        return asked_ms - await age_ms() > put_at_ms + AGED_MS / 2

    await until(is_put_anew, f"{holder.name} holds anew what is put again")


async def dht_reads(ground: Ground, one: Peer, other: Peer) -> None:
    """A newcomer learns from others what nobody has put or provided to it, and the best of several answers.

    Who puts or provides something tells new servers of it, so whoever did is killed before the newcomer starts.
    """
    asking, answering = one.language, other.language
    world = HandMadeWorld(f"reads-{one.name}-{other.name}")
    key, best = names.head_key(world.world_id), world.head(6)
    writer = await ground.start(asking, 903)
    await connected(writer, other)
    await in_table(writer, other)
    await writer.do("dht_put", key=key, value=best.hex())
    await holds(other, key, best)
    content = (await writer.do("put_blob", data=f"held by {writer.name}".encode().hex()))["content_hash"]
    await writer.do("provide", content_hash=content)
    await provider_is_known(other, content, writer)
    await writer.kill()
    await other.event("disconnected", peer=writer.peer_id, within_s=FROZEN_S)

    stale = await ground.start(answering, 904)
    liar = await ground.start(answering, 905, careless=True)
    for peer, value in ((stale, world.head(5)), (liar, world.head(9, by=world.actor))):
        await peer.do("dht_put", key=key, value=value.hex())
        assert (await peer.do("dht_held", key=key))["value"] == value.hex()
    newcomer = await ground.start(asking, 906)
    for peer in (stale, liar, other):
        await connected(newcomer, peer)
        await in_table(newcomer, peer)
    assert not await has_record(newcomer, key, best), "nobody who has put the best one is there"
    assert (await newcomer.do("dht_get", key=key))["value"] == best.hex()
    await provider_is_known(newcomer, content, writer)
    for peer in (stale, liar, newcomer):
        await peer.stop()


async def provider_is_known(seeker: Peer, content_hash: str, provider: Peer) -> None:
    """The seeker finds this provider of a blob."""

    async def finds() -> bool:
        found = (await seeker.do("find_providers", content_hash=content_hash))["providers"]
        return provider.peer_id in {one["peer"] for one in found}

    await until(finds, f"{seeker.name} finds {provider.name}")


async def holds(peer: Peer, key: str, value: bytes) -> None:
    """The peer's own store has this under the key."""

    await until(partial(has_record, peer, key, value), f"{peer.name} holds what was put")


async def has_record(peer: Peer, key: str, value: bytes) -> bool:
    """Whether the peer's own store has just this under the key."""
    try:
        return bool((await peer.do("dht_held", key=key))["value"] == value.hex())
    except CommandFailed as failure:
        if failure.kind != "not_found":
            raise
        return False


async def dht_providers(ground: Ground, one: Peer, other: Peer) -> None:
    """Who provides a blob is found by its BLAKE3 multihash, with addresses that can be dialled."""
    del ground
    await in_table(one, other)
    for provider, seeker in ((one, other), (other, one)):
        put = await provider.do("put_blob", data=f"held by {provider.name}".encode().hex())
        await provider.do("provide", content_hash=put["content_hash"])
        found = (await seeker.do("find_providers", content_hash=put["content_hash"]))["providers"]
        by_peer = {one["peer"]: one["addrs"] for one in found}
        assert len(by_peer) == len(found), found
        ports = {addr.split("/p2p/")[0] for addr in by_peer[provider.peer_id]}
        assert provider.addr.split("/p2p/")[0] in ports, (by_peer, provider.addr)


# --- faults ------------------------------------------------------------------------------------------------


async def restart(ground: Ground, one: Peer, other: Peer) -> None:
    """A peer that is killed and back with its identity is asked and heard again, whichever side dials."""
    world = HandMadeWorld(f"restart-{one.name}-{other.name}")
    topic = names.topic(world.world_id, "action")
    await joined(world, topic, one, other)
    await one.do("publish", topic=topic, data=world.envelope(0).hex())
    await other.event("gossip", topic=topic, data=world.envelope(0).hex())
    language, seed = other.language, int(other.name.removeprefix(f"{other.language}-"))
    for first, redials in ((100, one), (300, None), (500, one)):  # the third time who dialled is killed
        one.events.clear()
        await other.kill()
        await one.event("disconnected", peer=other.peer_id, within_s=FROZEN_S)
        back = await ground.start(language, seed, listen=other.addr.split("/p2p/")[0])
        assert back.peer_id == other.peer_id
        await connected(*((one, back) if redials else (back, one)))
        for asker, asked in ((one, back), (back, one)):
            await asker.do("request", peer=asked.peer_id, method="x_echo", body="a0")
        await joined(world, topic, back)
        for nonce, sender, hearer in ((first, back, one), (first + 100, one, back)):
            await knows_subscriber(sender, hearer, topic)
            await heard_at_last(world, topic, sender, hearer, nonce)
        other = back


async def heard_at_last(world: HandMadeWorld, topic: str, sender: Peer, hearer: Peer, first: int) -> None:
    """Nonces from `first` on, until one is heard: what is published before the mesh has grown back reaches nobody."""
    published: set[str] = set()

    async def is_heard() -> bool:
        data = world.envelope(first + len(published)).hex()
        published.add(data)
        await sender.do("publish", topic=topic, data=data)
        await trio.sleep(HEARTBEAT_S / 2)
        return any(event.get("data") in published for event in hearer.events if event["event"] == "gossip")

    await until(is_heard, f"{hearer.name} hears {sender.name}")


async def frozen(ground: Ground, one: Peer, other: Peer) -> None:
    """A peer that says nothing any more is dropped, and does not hold up whoever asks it."""
    stuck = await ground.start(other.language, 902)
    await connected(one, stuck)
    await stuck.freeze()
    await one.refused("request", "timeout", peer=stuck.peer_id, method="x_echo", body="a0", timeout_ms=2_000)
    await one.do("request", peer=other.peer_id, method="x_echo", body="a0")
    await one.event("disconnected", peer=stuck.peer_id, within_s=FROZEN_S)
    await stuck.stop()


PAIRS: Final[dict[str, Scenario]] = {
    "connect + identify": connect_identify,
    "disconnect + dial back": parting,
    **ASKING,
    "gossip": gossip,
    "dht heads": dht_heads,
    "dht providers": dht_providers,
    "dht reads": dht_reads,
    "frozen peer": frozen,
    "restart": restart,  # the last: `other` has ended by then
}
