//! Whether a connection still lives, by the bytes of its socket: on a slow link the answer to a ping waits behind all else;
//! after one refusal libp2p pings no more; and who never reads may talk on. Hides the sockets; guarantees that none is
//! remembered after its end. Implements the liveness of "Connections" of docs/protocol.md.

use std::collections::HashMap;
use std::io::{ErrorKind, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite};
use libp2p::Multiaddr;

use crate::wire::lock;

/// From the end of a ping, answered or not, to the next; and how long each is waited for.
pub(crate) const PING_PERIOD: Duration = Duration::from_secs(5);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// Within it two pings were sent, and their time is over. Who has refused one is sent no more, and has to talk by itself.
const SILENCE_MAX: Duration = PING_PERIOD.saturating_add(PING_TIMEOUT).saturating_mul(2);
const WRITE_STUCK: Duration = Duration::from_secs(10);

/// What is known of a socket.
struct Signs {
    read_at: Instant,
    /// Since when it takes nothing of what waits to be written.
    stuck_at: Option<Instant>,
    /// Of who waits for that.
    writer: Option<Waker>,
    /// Nothing is written any more: to close a connection libp2p first writes what waits, which a dead one never takes.
    is_given_up: bool,
}

impl Signs {
    fn are_of_a_dead(&self) -> bool {
        self.read_at.elapsed() >= SILENCE_MAX || self.stuck_at.is_some_and(|since| since.elapsed() >= WRITE_STUCK)
    }
}

type Known = Arc<Mutex<Signs>>;

/// All sockets, by the other side's address, which several may have that were dialled.
#[derive(Clone, Default)]
pub(crate) struct Liveness(Arc<Mutex<HashMap<Multiaddr, Vec<Known>>>>);

impl Liveness {
    /// The socket, which from now on tells of itself.
    pub fn over<S>(&self, socket: S, remote: &Multiaddr) -> Socket<S> {
        let signs =
            Known::new(Mutex::new(Signs { read_at: Instant::now(), stuck_at: None, writer: None, is_given_up: false }));
        lock(&self.0).entry(remote.clone()).or_default().push(signs.clone());
        Socket { socket, remote: remote.clone(), signs, all: self.clone() }
    }

    /// Whether the connection is to be closed. Of several at one address none is, as long as one of them lives.
    pub fn is_dead(&self, remote: &Multiaddr) -> bool {
        lock(&self.0).get(remote).is_none_or(|known| known.iter().all(|signs| lock(signs).are_of_a_dead()))
    }

    /// Comes before the closing of who is dead.
    pub fn give_up(&self, remote: &Multiaddr) {
        for signs in lock(&self.0).get(remote).into_iter().flatten() {
            let mut signs = lock(signs);
            signs.is_given_up = true;
            // It may be closing already, and then hears of nothing else.
            signs.writer.take().into_iter().for_each(Waker::wake);
        }
    }
}

pub(crate) struct Socket<S> {
    socket: S,
    remote: Multiaddr,
    signs: Known,
    all: Liveness,
}

impl<S> Drop for Socket<S> {
    fn drop(&mut self) {
        let mut all = lock(&self.all.0);
        if let Some(known) = all.get_mut(&self.remote) {
            known.retain(|signs| !Arc::ptr_eq(signs, &self.signs));
            if known.is_empty() {
                all.remove(&self.remote);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, into);
        if matches!(read, Poll::Ready(Ok(1..))) {
            lock(&self.signs).read_at = Instant::now();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        if lock(&self.signs).is_given_up {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        let mut signs = lock(&self.signs);
        match written {
            Poll::Ready(_) => signs.stuck_at = None,
            Poll::Pending => {
                signs.stuck_at.get_or_insert_with(Instant::now);
                signs.writer = Some(cx.waker().clone());
            }
        }
        drop(signs);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}
