//! Whether a connection still lives, by the bytes of its socket: on a slow link the answer to a ping waits behind all else;
//! after one refusal libp2p pings no more; and who never reads may talk on. Guarantees that a socket fails when its other
//! side is dead, also while it is being closed: libp2p first writes what waits, which a dead one never takes. Implements
//! the liveness of "Connections" of docs/protocol.md.

use std::io::{ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

/// From the end of a ping, answered or not, to the next; and how long each is waited for.
pub(crate) const PING_PERIOD: Duration = Duration::from_secs(5);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// Within it two pings were sent, and their time is over. Who has refused one is sent no more, and has to talk by itself.
const SILENCE_MAX: Duration = PING_PERIOD.saturating_add(PING_TIMEOUT).saturating_mul(2);
const WRITE_STUCK: Duration = Duration::from_secs(10);
/// This process may have stood still itself. So each is given more time once: to be asked again, and to take what waits.
const READ_DOUBT: Duration = PING_TIMEOUT;
const WRITE_DOUBT: Duration = Duration::from_secs(1);

/// How long one direction of a socket may stay as it is.
struct Patience {
    limit: Duration,
    doubt: Duration,
    alarm: Pin<Box<Sleep>>,
    is_waiting: bool,
    is_doubted: bool,
    /// For good: what was being written is lost, and nothing can follow it.
    is_over: bool,
}

impl Patience {
    fn new(limit: Duration, doubt: Duration) -> Self {
        let alarm = Box::pin(sleep(limit));
        Patience { limit, doubt, alarm, is_waiting: false, is_doubted: false, is_over: false }
    }

    /// What the socket said; an error where it has said nothing for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, said: Poll<Result<T>>) -> Poll<Result<T>> {
        if self.is_over {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        let was_waiting = std::mem::replace(&mut self.is_waiting, said.is_pending());
        if !self.is_waiting {
            return said;
        }
        if !was_waiting {
            self.is_doubted = false;
            self.alarm.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(self.alarm.as_mut().poll(cx));
        if !self.is_doubted {
            self.is_doubted = true;
            self.alarm.as_mut().reset(Instant::now() + self.doubt);
            ready!(self.alarm.as_mut().poll(cx));
        }
        self.is_over = true;
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

pub(crate) struct Socket<S> {
    socket: S,
    reading: Patience,
    writing: Patience,
}

impl<S> Socket<S> {
    pub fn over(socket: S) -> Self {
        let reading = Patience::new(SILENCE_MAX, READ_DOUBT);
        Socket { socket, reading, writing: Patience::new(WRITE_STUCK, WRITE_DOUBT) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, into);
        self.reading.judge(cx, read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.writing.judge(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}
