//! For how long nothing was heard over a connection: on a slow link the answer to a ping waits behind all else, and libp2p
//! tells only of the ping. Hides the sockets; guarantees that only open ones are remembered. Implements the liveness of
//! "Connections" of docs/protocol.md.

use std::collections::HashMap;
use std::io::Result;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite};
use libp2p::Multiaddr;

use crate::wire::lock;

type LastRead = Arc<Mutex<Instant>>;

/// By the other side's address: of several that were dialled at the same one only the last is known.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<HashMap<Multiaddr, LastRead>>>);

impl Heard {
    /// The socket, which from now on tells when bytes come.
    pub fn over<S>(&self, socket: S, remote: &Multiaddr) -> Socket<S> {
        let last_read = LastRead::new(Mutex::new(Instant::now()));
        lock(&self.0).insert(remote.clone(), last_read.clone());
        Socket { socket, remote: remote.clone(), last_read, heard: self.clone() }
    }

    /// Without end where there is no such connection.
    pub fn silence(&self, remote: &Multiaddr) -> Duration {
        lock(&self.0).get(remote).map_or(Duration::MAX, |last_read| lock(last_read).elapsed())
    }
}

pub(crate) struct Socket<S> {
    socket: S,
    remote: Multiaddr,
    last_read: LastRead,
    heard: Heard,
}

impl<S> Drop for Socket<S> {
    fn drop(&mut self) {
        let mut known = lock(&self.heard.0);
        if known.get(&self.remote).is_some_and(|last_read| Arc::ptr_eq(last_read, &self.last_read)) {
            known.remove(&self.remote);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, into);
        if matches!(read, Poll::Ready(Ok(1..))) {
            *lock(&self.last_read) = Instant::now();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}
