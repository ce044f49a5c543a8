"""The Prometheus page of a node: the counters and gauges of `aw status`, at one address, off unless configured.

Hides: HTTP, and how names of ours become names of Prometheus. Guarantees: only the configured address is bound; a page
is one consistent account of the node, written by a thread; a slow or silent reader costs one of METRICS_READERS_MAX
places for METRICS_MS_MAX, no more; nothing is served after the node has ended.
Documented in docs/operations.md, section "Metrics".
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

import trio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bootstrap.config import ConfigMistakes, Mistake, parse_metrics_addr
from runtime.messages import StatusAnswer, WorldStatus

METRICS_READERS_MAX: Final = 8
METRICS_MS_MAX: Final = 10_000  # for one request, from its first byte to the last of the answer
METRICS_REQUEST_BYTES_MAX: Final = 8_192
_CURSORS: Final = ("committed", "stored", "executed", "verified")
_NO_COUNTERS: Final = frozenset({"connections.open"})  # told among the counters, but it goes down too
_log = logging.getLogger(__name__)

Account: TypeAlias = Callable[[], Awaitable[StatusAnswer]]


# --- names and values --------------------------------------------------------------------------------------


def metrics_of(account: StatusAnswer) -> list[Metric]:
    """The account as Prometheus has it: `aw_*`, counters end in `_total`, times are in seconds."""
    build = GaugeMetricFamily("aw_build_info", "What the node is made of.", labels=["part", "version"])
    for part, version in (account.versions or {}).items():
        build.add_metric([part, version], 1)
    uptime = GaugeMetricFamily("aw_uptime_seconds", "Since the node was started.")
    uptime.add_metric([], (account.uptime_ms or 0) / 1_000)
    peers = GaugeMetricFamily("aw_peers_connected", "Connected peers.")
    peers.add_metric([], len(account.peers))
    return [build, uptime, peers, *_worlds(account.worlds), *_gauges(account), *_counters(account.counters)]


def _worlds(worlds: Iterable[WorldStatus]) -> Iterator[Metric]:
    height = GaugeMetricFamily(
        "aw_height", "Height by cursor; `head` is the best head known here.", labels=["world", "cursor"]
    )
    age = GaugeMetricFamily(
        "aw_head_age_seconds", "Since the certifier last vouched for the best head.", labels=["world"]
    )
    epoch = GaugeMetricFamily("aw_epoch", "Epoch of the authority set in force.", labels=["world"])
    halted = GaugeMetricFamily("aw_halted", "1 when evidence has halted the world here.", labels=["world"])
    for world in worlds:
        height.add_metric([world.world_id, "head"], world.head_height)
        for cursor in _CURSORS:
            if (at := getattr(world, cursor)) is not None:
                height.add_metric([world.world_id, cursor], at)
        if world.head_age_ms is not None:
            age.add_metric([world.world_id], world.head_age_ms / 1_000)
        epoch.add_metric([world.world_id], world.epoch)
        halted.add_metric([world.world_id], int(world.halted))
    yield from (height, age, epoch, halted)


def _gauges(account: StatusAnswer) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    bounds = dict(account.limits)
    for gauge in account.gauges or ():
        labels = sorted(gauge.labels)
        if gauge.name not in families:
            families[gauge.name] = GaugeMetricFamily(
                f"aw_{_word(gauge.name)}", "A quantity as it is now.", labels=labels
            )
        families[gauge.name].add_metric([gauge.labels[label] for label in labels], gauge.value)
        if gauge.limit is not None and gauge.limit_value is not None:
            bounds[gauge.limit] = gauge.limit_value
    limit = GaugeMetricFamily(
        "aw_limit", "Limits in force, by name; units are in the names.", labels=["name"]
    )
    for name, value in sorted(bounds.items()):
        limit.add_metric([name], value)
    yield from (*families.values(), limit)


def _counters(counters: dict[str, int]) -> Iterator[Metric]:
    """`gateway.refused.Busy` is `aw_gateway_refused_total{reason="Busy"}`; others have an empty reason."""
    families: dict[str, CounterMetricFamily] = {}
    for name, count in sorted(counters.items()):
        if name in _NO_COUNTERS:
            continue
        area, _dot, rest = name.partition(".")
        what, _dot, reason = rest.partition(".")
        base = _word(f"{area}_{what}")
        if base not in families:
            families[base] = CounterMetricFamily(
                f"aw_{base}", f"The node's counter {area}.{what}.", labels=["reason"]
            )
        families[base].add_metric([reason], count)
    yield from families.values()


def _word(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


class _Snapshot(Collector):
    """One account, for one page."""

    def __init__(self, account: StatusAnswer) -> None:
        self._account = account

    def collect(self) -> Iterable[Metric]:
        return metrics_of(self._account)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known when the account is."""
        return ()


def page_of(account: StatusAnswer) -> bytes:
    """The text of the page, with what the process itself uses."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(account))
    ProcessCollector(namespace="aw", registry=registry)
    return generate_latest(registry)


# --- serving -----------------------------------------------------------------------------------------------


class MetricsPage:
    """A bound address; `serve` answers there until it is cancelled."""

    def __init__(self, listeners: list[trio.SocketListener], host: str) -> None:
        self._listeners = listeners
        self._readers = 0
        port = listeners[0].socket.getsockname()[1]
        self.url = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    async def serve(self, account: Account) -> None:
        """Answer GET /metrics with an account taken at that moment."""
        await trio.serve_listeners(partial(self._answer, account), self._listeners)

    async def _answer(self, account: Account, stream: trio.SocketStream) -> None:
        if self._readers >= METRICS_READERS_MAX:
            await stream.aclose()
            return
        self._readers += 1
        try:
            async with stream:
                with trio.move_on_after(METRICS_MS_MAX / 1_000):
                    await stream.send_all(await self._respond(account, await _request_line(stream)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("metrics: the reader has gone (%s)", type(error).__name__)
        finally:
            self._readers -= 1

    @staticmethod
    async def _respond(account: Account, request: bytes) -> bytes:
        method, _space, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", b"only GET\n")
        if path != b"/metrics":
            return _response("404 Not Found", b"see /metrics\n")
        page = await trio.to_thread.run_sync(page_of, await account())
        return _response("200 OK", page, CONTENT_TYPE_LATEST, with_body=method == b"GET")


def _response(
    status: str, body: bytes, content_type: str = "text/plain; charset=utf-8", *, with_body: bool = True
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")


async def _request_line(stream: trio.SocketStream) -> bytes:
    """The first line of a request, read to the end of its head; b"" for one that is too long or ends early."""
    read = b""
    while b"\r\n\r\n" not in read:
        data = await stream.receive_some(METRICS_REQUEST_BYTES_MAX)
        read += data
        if not data or len(read) > METRICS_REQUEST_BYTES_MAX:
            return b""
    return read.partition(b"\r\n")[0]


@asynccontextmanager
async def open_metrics(listen: str | None) -> AsyncIterator[MetricsPage | None]:
    """Bind the address, and free it at the end; None without one. Raises ConfigMistakes when it cannot be bound."""
    if listen is None:
        yield None
        return
    host, port = parse_metrics_addr(listen)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        why = f"{listen} cannot be bound ({error.strerror or error}); --metrics-listen {host}:0 takes a free port"
        raise ConfigMistakes([Mistake("metrics.listen", why)]) from error
    try:
        yield MetricsPage(listeners, host)
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
