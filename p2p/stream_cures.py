"""py-libp2p 0.8.1's faults between a stream and its socket: frames, windows, noise messages, system calls.

Hides: yamux, noise and the raw stream. The same kind of functions as in cures.py, whose table holds them: what the
library does wrong, what is done about it here, the test that fails without it. What they cost and gave is in
docs/performance.md. `write_patiently` and `read_promptly` are the way of a stream that has one reader and one writer.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.io import msgio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import MuxedStreamClosed
from libp2p.stream_muxer.yamux import yamux

from p2p import names

PIECE_BYTES_MAX: Final = MAX_PLAINTEXT_LENGTH - yamux.HEADER_SIZE  # one frame, one noise message
WINDOW_POLL_S: Final = 0.1  # for the end of a stream that waits for window
SOCKET_READ_BYTES_MAX: Final = 128 * 1024  # what one system call may bring


def shield_yamux_writes() -> None:
    """A cancelled write leaves half a noise frame or a burnt nonce, and the whole connection dies with it.

    yamux.py:874 `_write_frame`, and the window update that `read` sends. Both are shielded: a frame goes out whole. No
    deadline ends them then, so `stuck_s` says how long the socket has taken nothing, and connections.py closes it.
    Tests: test_cancelled_writes_do_not_kill_the_connection, test_who_stops_reading_its_socket_is_closed.
    """
    for owner, name in (
        (yamux.Yamux, "_write_frame"),
        (yamux.YamuxStream, "_auto_tune_and_send_window_update"),
    ):
        setattr(owner, name, _shielded(getattr(owner, name)))


def _shielded(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def whole(owner: Any, *args: Any, **kwargs: Any) -> Any:
        held = owner.__dict__
        held["_aw_writes"] = held.get("_aw_writes", 0) + 1
        if held["_aw_writes"] == 1:
            held["_aw_moved_s"] = trio.current_time()
        try:
            with trio.CancelScope(shield=True):
                return await original(owner, *args, **kwargs)
        finally:
            held["_aw_writes"] -= 1
            held["_aw_moved_s"] = trio.current_time()

    return whole


def stuck_s(conn: Any) -> float:
    """How long something has waited to be written to a connection while nothing was; 0 where nothing waits."""
    held = conn.muxed_conn.__dict__
    return trio.current_time() - held["_aw_moved_s"] if held.get("_aw_writes") else 0.0


def cap_receive_windows() -> None:
    """Each read doubles a stream's window, up to 16 MiB: ten streams that nobody reads on accepted 76 MiB.

    yamux.py:149. Test: test_what_a_slow_reader_is_sent_is_bounded.
    """
    yamux.MAX_WINDOW_SIZE = names.STREAM_WINDOW_BYTES_MAX


class WindowExceeded(trio.TooSlowError):
    """A peer has sent more than it was given room for: of the kind for which the library closes the connection."""


def hold_to_windows() -> None:
    """Bytes past a stream's window are kept all the same: a stranger that sends on is given all the memory.

    yamux.py:1299, 1436, 1508 log it and set the window to 0. Here the connection ends, as in go-yamux: what was
    granted counts from before the grant is sent, so that no honest peer is ever past it.
    Test: test_who_sends_more_than_its_window_is_closed.
    """

    def left(stream: Any, size: int) -> None:
        if size < 0:
            raise WindowExceeded
        stream.__dict__["_aw_recv_window"] = size

    yamux.YamuxStream.recv_window = property(lambda stream: stream.__dict__["_aw_recv_window"], left)  # type: ignore[assignment]


def name_ipv6_clients() -> None:
    """The address of an IPv6 client is not told, since it has four parts: all of them look like one.

    io/trio.py:107. Test: test_ipv6_clients_are_told_apart.
    """

    def remote_address(stream: Any) -> tuple[str, int] | None:
        if stream._cached_remote_address is None:  # noqa: SLF001
            try:
                host, port = stream.stream.socket.getpeername()[:2]
            except OSError:  # it is gone already
                return None
            stream._cached_remote_address = (str(host), int(port))  # noqa: SLF001
        cached: tuple[str, int] = stream._cached_remote_address  # noqa: SLF001
        return cached

    setattr(TrioTCPStream, "get_remote_address", remote_address)  # noqa: B010  # mypy minds the assignment


def batch_window_updates() -> None:
    """Every small read sends a WINDOW_UPDATE frame of its own: a request of 200 bytes costs the peer two frames.

    yamux.py:447 ("partial slack"). Each such frame is encrypted, sent, received and decrypted while a bulk sender waits
    for the same lock. Room is given back in one frame once half of the window has been read, as go-yamux does; the
    window still grows as the library lets it. Test: test_small_reads_send_no_window_updates.
    """

    async def give_room_back(stream: Any, *, bytes_read: int = 0) -> None:
        stream._pending_recv_release += bytes_read  # noqa: SLF001
        if stream._pending_recv_release < stream.target_recv_window // 2:  # noqa: SLF001
            return
        increment, stream._pending_recv_release = stream._pending_recv_release, 0  # noqa: SLF001
        stream.recv_window += increment
        unread = len(stream.conn.stream_buffers.get(stream.stream_id, b""))
        increment += stream._apply_autotune_epoch(unread)  # noqa: SLF001
        await stream.send_window_update(increment)

    setattr(yamux.YamuxStream, "_auto_tune_and_send_window_update", give_room_back)  # noqa: B010  # of another type


def fit_frames_to_noise() -> None:
    """A full yamux frame is 65,536 bytes and a noise message at most 65,519: each frame goes as two messages.

    yamux.py:150 and noise/io.py:33. The second carries 17 bytes and costs as many turns, calls and system calls as the
    first, on both sides. Frames are as large as one message. Test: test_a_full_frame_is_one_noise_message.
    """
    yamux.MAX_MESSAGE_SIZE = MAX_PLAINTEXT_LENGTH


def read_ahead() -> None:
    """Each noise message is read in two system calls or more, two bytes of length first, with turns between.

    io/trio.py:56. Whatever has arrived is taken at once, up to SOCKET_READ_BYTES_MAX, and the parts are served from it:
    many small messages cost one call. Test: test_many_messages_are_read_in_few_calls.
    """
    receive = TrioTCPStream.read
    setattr(TrioTCPStream, "read", _served(lambda stream: receive(stream, SOCKET_READ_BYTES_MAX)))  # noqa: B010


def read_what_is_there() -> None:
    """A secured read of n bytes copies each message three times and waits until all n are there.

    secure_session.py:95. It gives what has come, at least one byte, out of the message as it was decrypted.
    Test: test_a_secured_read_gives_what_is_there.
    """

    async def message(session: Any) -> bytes:
        data: bytes = await session.conn.read_msg()
        if not data:
            raise ConnectionClosedError("Connection closed")
        session.__dict__["_aw_heard"] = session.__dict__.get("_aw_heard", 0) + 1
        return data

    setattr(SecureSession, "read", _served(message))  # noqa: B010


def messages_heard(conn: Any) -> int:
    """How many noise messages have come over a connection: that it grows is a sign of life."""
    heard: int = conn.muxed_conn.secured_conn.__dict__.get("_aw_heard", 0)
    return heard


def _served(more: Callable[[Any], Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    """A `read(n)` that gives out pieces of 1..n bytes of what `more` brings; b"" when that is b""."""

    async def read(reader: Any, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        data: bytes
        data, at = reader.__dict__.get("_aw_held", (b"", 0))
        if at == len(data):
            data, at = await more(reader), 0
        end = len(data) if n is None else min(at + n, len(data))
        reader.__dict__["_aw_held"] = (b"", 0) if end == len(data) else (data, end)
        return data if end - at == len(data) else data[at:end]

    return read


def read_without_copies() -> None:
    """`read_exactly` copies everything twice, also what came whole, and gives up after 100 pieces, about 6 MB.

    io/utils.py:11, imported by name by those who read messages and frames. Test: test_what_comes_whole_is_not_copied.
    """

    async def read_exactly(reader: Any, n: int, retry_count: int = 0) -> bytes:  # noqa: ARG001  # its signature
        data: bytes = await reader.read(n)
        if len(data) == n:
            return data
        pieces, size = [data], len(data)
        while size < n:
            piece: bytes = await reader.read(n - size)
            if not piece:
                raise IncompleteReadError(
                    f"Connection closed: expected {n} bytes, received {size}",
                    expected_bytes=n,
                    received_bytes=size,
                )
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    for module in (msgio, yamux):
        setattr(module, "read_exactly", read_exactly)  # noqa: B010  # imported there, not exported


def wake_writers() -> None:
    """A writer without window looks again every 10 ms; on a quick link it then sleeps most of the time.

    yamux.py:283. The window is a property that wakes `write_patiently` when it opens.
    Test: test_a_writer_is_woken_when_the_window_opens.
    """

    def opened(stream: Any, size: int) -> None:
        stream.__dict__["_aw_window"] = size
        room = stream.__dict__.pop("_aw_room", None)
        if room is not None:
            room.set()

    yamux.YamuxStream.send_window = property(lambda stream: stream.__dict__["_aw_window"], opened)  # type: ignore[assignment]


def tell_waiting_readers() -> None:
    """A stream that is reset on this side drops the event that its reader waits for: the reader hangs for ever.

    With it hang the session, and whoever asks through it. yamux.py:947.
    Test: test_a_reader_is_told_when_its_own_side_resets_the_stream.
    """
    original = yamux.Yamux._finalize_stream_locked  # noqa: SLF001

    def told(conn: Any, stream: Any, *, fully_closed: bool) -> None:
        event = conn.stream_events.get(stream.stream_id)
        original(conn, stream, fully_closed=fully_closed)
        if fully_closed and event is not None:
            event.set()

    setattr(yamux.Yamux, "_finalize_stream_locked", told)  # noqa: B010  # mypy minds the assignment


OF_STREAMS: Final = (
    batch_window_updates,  # before the next, which shields it
    shield_yamux_writes,
    cap_receive_windows,
    hold_to_windows,
    name_ipv6_clients,
    fit_frames_to_noise,
    read_ahead,
    read_what_is_there,
    read_without_copies,
    wake_writers,
    tell_waiting_readers,
)


# --- the way of a stream ------------------------------------------------------------------------------------


async def write_patiently(stream: Any, data: bytes) -> None:
    """A writer is given up after 5 s without window, whatever the reader's own deadline is (yamux.py:280).

    Here the window is waited for, and whoever owns the stream bounds the wait by resetting it. The frames are made here
    too: the library takes four locks around each, a turn of the scheduler for each lock, for a stream that has one
    writer. Test: test_a_sender_waits_for_window_longer_than_the_library_would.
    """
    muxed, sent = stream.muxed_stream, 0
    while sent < len(data):
        while muxed.send_window <= 0 and not (muxed.closed or muxed.send_closed):
            room = muxed.__dict__.setdefault("_aw_room", trio.Event())
            with trio.move_on_after(WINDOW_POLL_S):  # its end is told to nobody
                await room.wait()
        if muxed.closed or muxed.send_closed:
            raise MuxedStreamClosed
        piece = data[sent : sent + min(muxed.send_window, PIECE_BYTES_MAX)]
        muxed.send_window -= len(piece)
        head = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, muxed.stream_id, len(piece))
        await muxed.conn._write_frame(head + piece)  # noqa: SLF001
        sent += len(piece)


async def read_promptly(stream: Any, bytes_max: int) -> bytes:
    """A read takes three locks, a turn of the scheduler for each, for a stream that has one reader (net_stream.py:197).

    What has come is taken here; every end of a stream is the library's to tell.
    Test: test_a_request_and_its_answer_take_few_turns.
    """
    muxed = stream.muxed_stream
    conn, name = muxed.conn, muxed.stream_id
    while not (
        muxed.closed or muxed.recv_closed or muxed.reset_received or conn.event_shutting_down.is_set()
    ):
        unread, event = conn.stream_buffers.get(name), conn.stream_events.get(name)
        if unread is None or event is None:
            break
        if unread:
            with memoryview(unread) as view:
                data = bytes(view[:bytes_max])
            del unread[:bytes_max]
            await muxed._auto_tune_and_send_window_update(bytes_read=len(data))  # noqa: SLF001
            return data
        await event.wait()
        if name in conn.stream_events:
            conn.stream_events[name] = trio.Event()
    return bytes(await stream.read(bytes_max))
