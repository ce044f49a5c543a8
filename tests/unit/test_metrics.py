"""The metrics page: names and units by Prometheus conventions, one address, bounded readers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from bootstrap import metrics
from bootstrap.config import ConfigMistakes
from bootstrap.metrics import MetricsPage, open_metrics, page_of
from p2p import names
from runtime.messages import GaugeReading, StatusAnswer, WorldStatus

WORLD = "a" * 32


def account() -> StatusAnswer:
    world = WorldStatus(
        world_id=WORLD, name="lab", epoch=0, head_height=12, executed=11, head_age_ms=2_500, halted=True
    )
    topic = f"aw.{WORLD}.head"
    return StatusAnswer(
        peer_id=names.PEER_ID_PREFIX + bytes(32),
        roles=("executor",),
        worlds=(world,),
        peers=(),
        counters={
            "gossip.rejected": 2,
            "gateway.refused.Busy": 1,
            "gateway.refused.Denied": 4,
            "fetch.bytes": 9,
            "connections.open": 3,
        },
        limits={"disk_bytes_max": 100},
        gauges=(
            GaugeReading("mempool_envelopes", 7, {"world": WORLD}, "mempool_envelopes_max", 16_384),
            GaugeReading(
                "gossip_messages_waiting", 1, {"topic": topic}, "gossip_channel_messages_max", 4_096
            ),
            GaugeReading("disk_bytes", 50, {}, "disk_bytes_max", 100),
        ),
        uptime_ms=1_500,
        versions={"libp2p": "0.8.1"},
    )


def samples_of(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_an_account_is_told_in_names_and_units_of_prometheus() -> None:
    samples = samples_of(page_of(account()).decode())
    world = ("world", WORLD)
    assert samples["aw_height", (("cursor", "head"), world)] == 12
    assert samples["aw_height", (("cursor", "executed"), world)] == 11
    assert ("aw_height", (("cursor", "verified"), world)) not in samples
    assert samples["aw_head_age_seconds", (world,)] == 2.5
    assert samples["aw_halted", (world,)] == 1
    assert samples["aw_uptime_seconds", ()] == 1.5
    assert samples["aw_build_info", (("part", "libp2p"), ("version", "0.8.1"))] == 1
    assert samples["aw_mempool_envelopes", (world,)] == 7
    assert samples["aw_gossip_messages_waiting", (("topic", f"aw.{WORLD}.head"),)] == 1
    assert samples["aw_limit", (("name", "mempool_envelopes_max"),)] == 16_384
    assert samples["aw_limit", (("name", "disk_bytes_max"),)] == 100
    assert samples["aw_gossip_rejected_total", (("reason", ""),)] == 2
    assert samples["aw_gateway_refused_total", (("reason", "Denied"),)] == 4
    assert samples["aw_fetch_bytes_total", (("reason", ""),)] == 9
    assert not any(name.startswith("aw_connections") for name, _labels in samples)
    assert any(name == "aw_process_resident_memory_bytes" for name, _labels in samples)


@asynccontextmanager
async def served() -> AsyncIterator[MetricsPage]:
    async def ask() -> StatusAnswer:
        await trio.lowlevel.checkpoint()
        return account()

    async with open_metrics("127.0.0.1:0") as page, trio.open_nursery() as nursery:
        assert page is not None
        nursery.start_soon(page.serve, ask)
        yield page
        nursery.cancel_scope.cancel()


def port_of(page: MetricsPage) -> int:
    return int(page.url.rpartition(":")[2].partition("/")[0])


async def answer_to(page: MetricsPage, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(page))
    async with stream:
        await stream.send_all(request)
        read = b""
        while data := await stream.receive_some(65_536):
            read += data
        return read


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1", b"200 OK"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200 OK"),
        (b"HEAD /metrics HTTP/1.1", b"200 OK"),
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"\x16\x03\x01", b"405 Method Not Allowed"),
        (b"GET /" + b"x" * metrics.METRICS_REQUEST_BYTES_MAX, b"405 Method Not Allowed"),
    ],
    ids=lambda value: value[:24].decode("latin-1"),
)
async def test_only_the_page_is_served_whatever_is_asked(request_line: bytes, status: bytes) -> None:
    async with served() as page:
        answer = await answer_to(page, request_line + b"\r\nHost: x\r\n\r\n")
    head, _blank, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert (b"aw_height" in body) is (request_line.startswith(b"GET /metrics"))


async def test_silent_readers_take_no_more_than_their_places_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "METRICS_MS_MAX", 300)
    async with served() as page:
        silent = [
            await trio.open_tcp_stream("127.0.0.1", port_of(page)) for _ in range(metrics.METRICS_READERS_MAX)
        ]
        with trio.fail_after(20):
            while page._readers < metrics.METRICS_READERS_MAX:
                await trio.sleep(0.01)
            one_more = await trio.open_tcp_stream("127.0.0.1", port_of(page))
            assert await one_more.receive_some(1) == b""
            while page._readers:
                await trio.sleep(0.01)
            assert b"200 OK" in await answer_to(page, b"GET /metrics HTTP/1.1\r\n\r\n")
        for stream in (*silent, one_more):
            await stream.aclose()


async def test_an_address_in_use_is_told_and_one_that_was_served_is_free_again() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigMistakes, match="metrics.listen.*cannot be bound.*takes a free port"):
            async with open_metrics(listen):
                raise AssertionError("bound what another listens on")
    async with served() as page:
        port = port_of(page)
    async with open_metrics(f"127.0.0.1:{port}") as again:
        assert again is not None


async def test_without_an_address_nothing_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("bound something")

    monkeypatch.setattr(trio, "open_tcp_listeners", never)
    async with open_metrics(None) as page:
        assert page is None
