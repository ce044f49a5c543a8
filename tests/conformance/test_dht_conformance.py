"""What every DistributedDht does. Run on each kind of network by the `make_nodes` fixture."""

from __future__ import annotations

import pytest
import trio

from p2p import names
from p2p.errors import RecordRefused

KEY = names.head_key("w" * 32)
PATIENCE_S = 30


async def test_a_record_is_read_back_by_another_node(make_nodes):
    async with make_nodes(3) as nodes:
        await nodes[0].dht.put_record(KEY, b"v1:first")
        for node in nodes:
            assert await node.dht.get_record(KEY) == b"v1:first"


async def test_a_missing_record_is_none(make_nodes):
    async with make_nodes(2) as (one, _):
        assert await one.dht.get_record(KEY) is None


async def test_an_older_record_is_refused_and_the_newer_one_stays(make_nodes):
    async with make_nodes(2) as (one, other):
        await one.dht.put_record(KEY, b"v2:newer")
        with pytest.raises(RecordRefused) as refused:
            await one.dht.put_record(KEY, b"v1:older")
        assert refused.value.key == KEY
        assert await other.dht.get_record(KEY) == b"v2:newer"
        assert await one.dht.get_record(KEY) == b"v2:newer"


async def test_the_same_record_may_be_put_again(make_nodes):
    async with make_nodes(2) as (one, other):
        await one.dht.put_record(KEY, b"v1:same")
        await one.dht.put_record(KEY, b"v1:same")
        await other.dht.put_record(KEY, b"v1:same")
        assert await other.dht.get_record(KEY) == b"v1:same"


async def test_an_invalid_record_is_refused_and_not_stored(make_nodes):
    async with make_nodes(2) as (one, other):
        with pytest.raises(RecordRefused):
            await one.dht.put_record(KEY, b"no version")
        assert await one.dht.get_record(KEY) is None
        assert await other.dht.get_record(KEY) is None


async def test_a_record_over_the_limit_is_refused(make_nodes):
    async with make_nodes(2) as (one, _):
        with pytest.raises(RecordRefused):
            await one.dht.put_record(KEY, b"v1:" + bytes(names.RECORD_BYTES_MAX))


async def test_a_read_sees_what_is_newer_than_the_own_copy(make_nodes):
    async with make_nodes(3) as (one, other, third):
        await one.dht.put_record(KEY, b"v1:first")
        assert await other.dht.get_record(KEY) == b"v1:first"
        await third.dht.put_record(KEY, b"v2:second")
        with trio.fail_after(PATIENCE_S):
            for node in (one, other, third):
                assert await node.dht.get_record(KEY) == b"v2:second"


async def test_providers_are_found_once_each_and_without_the_asker(make_nodes):
    content_id = bytes(range(32))
    async with make_nodes(3) as nodes:
        for node in nodes[:2]:
            await node.dht.provide(content_id)
            await node.dht.provide(content_id)
        providers = [node.network.peer_id for node in nodes[:2]]
        found = await nodes[2].dht.find_providers(content_id)
        assert sorted(info.peer_id for info in found) == sorted(providers)
        assert [info.peer_id for info in await nodes[0].dht.find_providers(content_id)] == providers[1:]
        assert len(await nodes[2].dht.find_providers(content_id, 1)) == 1


async def test_a_found_provider_can_be_dialled(make_nodes):
    content_id = bytes(32)
    async with make_nodes(2) as (one, other):
        await one.dht.provide(content_id)
        (info,) = await other.dht.find_providers(content_id)
        if info.addrs:
            assert await other.network.connect(info.addrs) == one.network.peer_id
        else:
            assert one.network.peer_id in other.network.peers()


async def test_content_that_nobody_provides_has_no_providers(make_nodes):
    async with make_nodes(2) as (one, _):
        assert await one.dht.find_providers(b"\x07" * 32) == []


async def test_a_content_id_is_32_bytes(make_nodes):
    async with make_nodes(1) as (node,):
        with pytest.raises(ValueError, match="32"):
            await node.dht.provide(b"short")
