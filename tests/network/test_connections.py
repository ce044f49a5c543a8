"""Dialling, redialling, noticing the dead, and ending: over real sockets, with real processes where it matters."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from p2p import connections, names
from p2p.errors import ListenFailed, NetworkError, Unreachable
from p2p.identity import Identity
from p2p.network import PartsRoute, Verdict

SILENT_NODE = Path(__file__).with_name("silent_node.py")
DISCARD = "/ip4/127.0.0.1/tcp/1"


def accept(message):
    return Verdict.ACCEPT


def at(addr, peer_id):
    return f"{addr}/p2p/{names.peer_text(peer_id)}"


@asynccontextmanager
async def process_node(number):
    """A node of its own process: (its address, the process)."""
    process = subprocess.Popen(  # noqa: ASYNC220  # starting it takes no time
        [sys.executable, SILENT_NODE, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        with trio.fail_after(60):
            line = await trio.to_thread.run_sync(process.stdout.readline)
        assert line, "the process did not start"
        yield line.strip(), process
    finally:
        process.kill()
        with process:  # closes the pipes
            process.wait()


@asynccontextmanager
async def silent_server():
    """A TCP server that takes connections and says nothing: its address without a peer id."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def say_nothing(stream):
        await stream.receive_some()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, say_nothing, listeners)
        yield f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


# --- who one is


def test_a_seed_makes_the_peer_id_that_libp2p_makes():
    for number in (0, 1, 255):
        seed = bytes([number]) * 32
        lib_id = ID.from_pubkey(create_new_key_pair(seed).public_key)
        assert Identity(seed).peer_id == lib_id.to_bytes()
        assert names.peer_text(Identity(seed).peer_id) == lib_id.to_base58()
        assert names.peer_from_text(lib_id.to_base58()) == lib_id.to_bytes()


# --- listening


async def test_started_means_bound_to_real_ports(open_node):
    async with open_node(1) as node:
        (addr,) = node.addrs()
        assert addr.endswith("/p2p/" + names.peer_text(node.peer_id))
        port = int(addr.split("/")[4])
        assert port > 0
        async with await trio.open_tcp_stream("127.0.0.1", port):
            pass


async def test_a_port_in_use_is_told_and_nothing_runs(open_node):
    # Listeners of the library share a port with others of the same user, and its peers between them.
    async with open_node(1) as first:
        taken = first.addrs()[0].partition("/p2p/")[0]
        with pytest.raises(ListenFailed) as failed:
            async with open_node(2, listen=[taken]):
                pass
        assert failed.value.addr == taken
        assert "in use" in failed.value.why


async def test_a_port_is_free_again_right_after_a_stop(open_node):
    async with open_node(1) as first, open_node(2) as other:
        await other.connect(first.addrs())
        listen = first.addrs()[0].partition("/p2p/")[0]
    async with open_node(1, listen=[listen]) as again:
        assert again.addrs()[0].startswith(listen)


@pytest.mark.parametrize(
    "addr",
    [
        "nonsense",
        "/ip4/127.0.0.1/udp/4001/quic-v1",
        "/dns4/localhost/tcp/0",
        "/ip4/127.0.0.1/tcp/0/wss",
        "/ip4/127.0.0.1/tcp/0/ws/ws",
        "/memory/1",
        "",
    ],
)
async def test_what_is_no_tcp_address_is_refused(open_node, addr):
    with pytest.raises(ListenFailed, match="tcp"):
        async with open_node(1, listen=[addr]):
            pass


async def test_an_address_of_another_machine_is_refused(open_node):
    with pytest.raises(ListenFailed, match="assign"):
        async with open_node(1, listen=["/ip4/203.0.113.1/tcp/0"]):
            pass


async def test_an_unspecified_address_is_announced_by_the_interfaces(open_node):
    async with open_node(1, listen=["/ip4/0.0.0.0/tcp/0"]) as node, open_node(2) as other:
        assert not any("0.0.0.0" in addr for addr in node.addrs())
        assert await other.connect(node.addrs()) == node.peer_id


async def test_announced_addresses_stand_instead_of_all_others(open_node):
    public = "/dns4/peer.example/tcp/4001"
    async with open_node(1, announce=(public,)) as node:
        assert node.addrs() == [at(public, node.peer_id)]


async def test_noise_and_yamux_are_all_that_is_offered(open_node):
    def says(text):
        return bytes([len(text) + 1]) + text.encode() + b"\n"

    async with open_node(1) as node:
        port = int(node.addrs()[0].split("/")[4])
        for security in ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(says("/multistream/1.0.0") + says(security))
                answer = b""
                with trio.fail_after(30):
                    while says("na") not in answer:
                        data = await stream.receive_some()
                        assert data, f"closed without an answer to {security}: {answer!r}"
                        answer += data


# --- dialling


async def test_every_address_is_tried(open_node):
    async with open_node(1) as one, open_node(2) as other:
        dead = [at(DISCARD, one.peer_id), at("/ip4/127.0.0.1/tcp/2", one.peer_id)]
        assert await other.connect([*dead, *one.addrs()]) == one.peer_id
        assert await other.request(one.peer_id, "echo", b"here") == b"here"


async def test_a_server_that_says_nothing_is_given_up(open_node, monkeypatch):
    monkeypatch.setattr(names, "DIAL_MS_MAX", 300)
    async with open_node(1) as one, open_node(2) as other, silent_server() as silent:
        with pytest.raises(Unreachable, match="no answer within 300 ms"):
            await other.connect([at(silent, one.peer_id)])
        assert await other.connect([at(silent, one.peer_id), *one.addrs()]) == one.peer_id


async def test_a_dial_that_is_given_up_closes_its_socket(open_node, monkeypatch, patience):
    monkeypatch.setattr(names, "DIAL_MS_MAX", 300)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_node(1) as node, listener:
        addr = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        with pytest.raises(Unreachable):
            await node.connect([at(addr, Identity(bytes(32)).peer_id)])
        async with await listener.accept() as stream:
            with patience():
                while await stream.receive_some():
                    pass  # the dialler's half of a handshake, then its end


async def test_another_peer_behind_an_address_is_not_taken_for_the_one_that_was_meant(open_node):
    async with open_node(1) as one, open_node(2) as other:
        meant = Identity(b"\x77" * 32).peer_id
        with pytest.raises(Unreachable, match="another peer answered"):
            await other.connect([at(one.addrs()[0].partition("/p2p/")[0], meant)])
        assert meant not in other.peers()


async def test_a_failed_dial_says_why_in_words(open_node):
    async def hang_up(stream):
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 8)

    meant = Identity(b"\x77" * 32).peer_id
    async with open_node(1) as node, trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        web = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        for addr, told in ((web, "speaks no libp2p"), ("/ip4/127.0.0.1/tcp/1", "connection refused")):
            with pytest.raises(Unreachable, match=told):
                await node.connect([at(addr, meant)])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "addrs", [[], ["nonsense"], ["/ip4/127.0.0.1/tcp/1"], ["/ip4/127.0.0.1/tcp/1/p2p/x"]]
)
async def test_what_is_no_address_of_a_peer_is_unreachable(open_node, addrs):
    async with open_node(1) as node:
        with pytest.raises(Unreachable):
            await node.connect(addrs)


async def test_dials_of_one_peer_at_once_make_one_connection(open_node):
    async with open_node(1) as one, open_node(2) as other:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(other.connect, one.addrs())
        assert other.counters()["connections.dialled"] == 1


async def test_a_cancelled_dial_does_not_fail_the_others(open_node, patience, until):
    async with open_node(1) as one, open_node(2) as other, silent_server() as silent:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def give_up():
                with scope:
                    await other.connect([at(silent, one.peer_id)])

            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(other.connect, one.addrs())  # waits for the dial under way
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not other.peers()
            scope.cancel()
            await until(lambda: other.peers() == [one.peer_id])


async def test_a_request_to_a_known_peer_that_is_not_connected_dials_it(open_node, until):
    async with open_node(1) as one:
        listen = one.addrs()[0].partition("/p2p/")[0]
        async with open_node(2) as other:
            await other.connect(one.addrs())
            for conn in other._host.get_network().get_connections():
                await conn.muxed_conn.secured_conn.close()
            await until(lambda: not other.peers())
            assert await other.request(one.peer_id, "echo", b"again") == b"again"
            assert listen in other.addrs_of(one.peer_id)[0]


async def test_nobody_is_dialled_unasked(open_node):
    """The library would connect to whoever it has an address of."""
    async with open_node(1) as hub, open_node(2) as one, open_node(3) as other:
        await one.connect(hub.addrs())
        one._host.get_peerstore().add_addrs(ID(other.peer_id), other._host.get_transport_addrs(), 3_600)
        connector = one._host.get_network().auto_connector
        await connector.start()
        with trio.move_on_after(2):  # it runs in tasks of the swarm; a dial takes milliseconds
            await connector.maybe_connect()
        for _ in range(50):
            await one.request(hub.peer_id, "echo", b"time passes")
        assert one.peers() == [hub.peer_id]


async def test_a_bootstrap_peer_is_dialled_until_it_is_there_and_again_when_it_is_back(
    open_node, until, monkeypatch
):
    monkeypatch.setattr(names, "REDIAL_FIRST_MS", 20)
    monkeypatch.setattr(names, "REDIAL_LAST_MS", 100)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"
    boot = Identity(bytes([1]) * 32).peer_id
    async with open_node(2, bootstrap=(at(listen, boot), at(DISCARD, boot), "nonsense")) as node:
        await until(lambda: node.counters().get("connections.dial_failed", 0) >= 3)
        for _ in range(2):
            async with open_node(1, listen=[listen]):
                await until(lambda: node.peers() == [boot])
                assert await node.request(boot, "echo", b"hello") == b"hello"
            await until(lambda: not node.peers())


# --- streams


async def test_cancelled_writes_do_not_kill_the_connection(open_node, open_stranger, patience, monkeypatch):
    """py's own code, and anybody's, may cancel a write; the connection and its other streams live on."""
    received = 0
    send_all = trio.SocketStream.send_all

    async def send_in_pieces(socket_stream, data):
        """What a kernel with a full buffer does to a frame; without it, how often depends on the machine."""
        for start in range(0, len(data), 4_096):
            await send_all(socket_stream, data[start : start + 4_096])

    monkeypatch.setattr(trio.SocketStream, "send_all", send_in_pieces)

    async def drain(stream):
        nonlocal received
        with contextlib.suppress(StreamError):  # a handler that raises would end the stranger's host
            while True:
                received += len(await stream.read(65_536))

    async with open_node(1) as node, open_stranger(handlers={"/drain/1": drain}) as stranger:
        await node.connect([str(stranger.host.get_addrs()[0])])
        (conn,) = node._host.get_network().get_connections(ID(stranger.peer_id))
        for number in range(60):
            stream = await node._host.new_stream(ID(stranger.peer_id), ["/drain/1"])
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cut(scope=scope, turns=number % 20):
                        for _ in range(turns):  # at every moment of a frame
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(stream.write, bytes(1 << 20))
                    nursery.start_soon(cut)
            await stream.reset()
        assert not conn.muxed_conn.is_closed
        assert received
        with patience():
            stream = await node._host.new_stream(ID(stranger.peer_id), ["/drain/1"])
            await stream.write(bytes(1_000))


async def test_what_a_slow_reader_is_sent_is_bounded(open_node, until, monkeypatch):
    # A peer that answers pings late looks far away, and for those the window doubles with every update.
    monkeypatch.setattr(YamuxStream, "_effective_rtt", lambda stream: 1.0)
    sent = 0

    async def flood(caller, body, send_part):
        nonlocal sent
        while sent < 400:
            await send_part(bytes(names.PART_BYTES_MAX))
            sent += 1
        return b""

    async with open_node(1, routes={"flood": PartsRoute(flood)}) as server, open_node(2) as client:
        await client.connect(server.addrs())
        async with client.request_parts(server.peer_id, "flood", b"") as answer:
            for _ in range(40):  # read quickly, so that the window grows; then stop
                await answer.part()
            for _ in range(100):  # time passes, and nobody reads
                await client.request(server.peer_id, "echo", b"x")
            room = (names.STREAM_WINDOW_BYTES_MAX + (1 << 20)) // names.PART_BYTES_MAX
            assert sent <= 40 + 2 * room, sent


# --- the dead


@pytest.fixture
def unanswered_pings(monkeypatch):
    """Every ping is sent, and none is answered; they are counted."""
    pinged = []

    async def never_answered(conn, answered, scope):
        with scope:
            pinged.append(conn)
            await trio.sleep_forever()

    monkeypatch.setattr(connections, "_probe", never_answered)
    return pinged


@pytest.mark.parametrize(
    ("pause_s", "pings"), [(0.12, range(20, 10_000)), (0.0, range(1))], ids=["now and then", "always"]
)
async def test_a_peer_that_is_heard_and_answers_no_ping_stays(
    open_node, monkeypatch, unanswered_pings, pause_s, pings
):
    """One that is busy answers pings late; to close it costs both a handshake, and makes them busier.

    Who is heard in every period is not even asked.
    """
    monkeypatch.setattr(names, "LIVENESS_PERIOD_MS", 50 if pause_s else 1_000)
    monkeypatch.setattr(names, "LIVENESS_TIMEOUT_MS", 200)
    async with open_node(1) as one, open_node(2) as other:
        await one.connect(other.addrs())
        (before,) = one._host.get_network().get_connections(ID(other.peer_id))
        began = trio.current_time()
        while len(unanswered_pings) < pings.start or trio.current_time() - began < 3:
            await one.request(other.peer_id, "echo", b"here I am")
            await trio.sleep(pause_s)
        assert len(unanswered_pings) in pings
        assert one._host.get_network().get_connections(ID(other.peer_id)) == [before]
        assert not one.counters().get("connections.found_dead")


async def test_a_peer_whose_process_is_stopped_is_noticed_and_closed(
    open_node, honest_beside, until, monkeypatch
):
    monkeypatch.setattr(names, "LIVENESS_PERIOD_MS", 300)
    monkeypatch.setattr(names, "LIVENESS_TIMEOUT_MS", 1_500)
    async with process_node(9) as (addr, process), open_node(1) as node, honest_beside(node):
        peer = await node.connect([addr])
        assert await node.request(peer, "echo", b"alive") == b"alive"
        os.kill(process.pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def ask():
                with pytest.raises(NetworkError):
                    await node.request(peer, "echo", bytes(60_000), deadline_ms=50_000)

            for _ in range(40):  # more than the sockets hold: their writers are stuck
                nursery.start_soon(ask)
            await until(lambda: peer not in node.peers())
        assert node.counters()["connections.found_dead"] >= 1
        os.kill(process.pid, signal.SIGCONT)
        await node.connect([addr])
        assert await node.request(peer, "echo", b"back") == b"back"


async def test_a_killed_peer_is_gone_at_once(open_node, until):
    async with process_node(9) as (addr, process), open_node(1) as node:
        peer = await node.connect([addr])
        process.kill()
        await until(lambda: peer not in node.peers())
        with pytest.raises(Unreachable):
            await node.request(peer, "echo", b"")


async def test_a_node_ends_although_a_peer_has_stopped(open_node, patience):
    """The stopped peer takes nothing more: an orderly goodbye would wait for ever."""
    async with process_node(9) as (addr, process):
        with patience():
            async with open_node(1) as node:
                peer = await node.connect([addr])
                os.kill(process.pid, signal.SIGSTOP)
                async with trio.open_nursery() as nursery:
                    for _ in range(40):
                        nursery.start_soon(node.request, peer, "echo", bytes(60_000))
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    nursery.cancel_scope.cancel()


async def test_leaving_closes_what_was_dialled(open_node, until):
    async with open_node(1) as stays:
        async with open_node(2) as leaves:
            await leaves.connect(stays.addrs())
            await until(stays.peers)
        await until(lambda: not stays.peers())


# --- the log


def test_libp2p_logs_through_our_handlers(caplog):
    from p2p import cures

    cures.apply_process_cures()
    with caplog.at_level(logging.DEBUG, logger="p2p"):
        logging.getLogger("libp2p.kad_dht").error("told")
        logging.getLogger("libp2p.kad_dht").warning("not told")
        logging.getLogger("libp2p.host.basic_host").error("a stranger hung up")
        logging.getLogger("libp2p.network.auto_connector").info("chatter")
    assert [record.message for record in caplog.records] == ["told"]
