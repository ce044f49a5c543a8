//! The asking side of request / response: sessions, single requests and parts. Hides ids and who waits for what; guarantees
//! that every request ends with its answer or a [`Failure`]. Implements "Request / response" of docs/protocol.md.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, oneshot};

use aw::cbor::Bad;

use crate::frames::{Frame, RrError};
use crate::streams::Conduit;
use crate::wire::{FOREVER, FrameReader, IN_FLIGHT_MAX, Outbox, ReadError, lock, outbox, write_frames};

pub const ANSWER_PARTS_MAX: usize = 64 << 20;

/// Why something was not done.
#[derive(Debug)]
pub enum Failure {
    /// These bytes are not taken here.
    Refused(String),
    /// The other peer answered with an error.
    Rr(RrError),
    /// There is no connection or stream, or not any more.
    Stream(String),
    Timeout,
    TooLarge(String),
    NotFound(String),
}

impl From<Bad> for Failure {
    fn from(bad: Bad) -> Self {
        Failure::Refused(bad.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Rr(error) => write!(f, "{}: {}", error.name(), error.message),
            Failure::Timeout => f.write_str("no whole answer in time"),
            Failure::Refused(why) | Failure::Stream(why) | Failure::TooLarge(why) | Failure::NotFound(why) => {
                f.write_str(why)
            }
        }
    }
}

impl std::error::Error for Failure {}

type Answer = Result<Vec<u8>, RrError>;
type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<Answer>>>>;

/// The client's side of a stream with any number of requests.
pub struct Session {
    outbox: Outbox,
    waiting: Waiting,
    next_id: AtomicU32,
    slots: Semaphore,
}

fn ended() -> Failure {
    Failure::Stream("the stream ended before the answer".into())
}

impl Session {
    pub fn start(conduit: Conduit) -> Arc<Session> {
        let Conduit { stream, mut closed, place: _place } = conduit;
        let (read, mut write) = stream.split();
        let (outbox, frames) = outbox();
        let waiting = Waiting::default();
        let answers = waiting.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = read_answers(FrameReader::new(read), &answers) => {},
                _ = write_frames(&mut write, frames) => {},
                _ = closed.changed() => {},
            }
            // The queue is closed by now: nobody is added any more, and whoever waits is told.
            lock(&answers).clear();
        });
        Arc::new(Session { outbox, waiting, next_id: AtomicU32::new(1), slots: Semaphore::new(IN_FLIGHT_MAX) })
    }

    pub fn is_open(&self) -> bool {
        !self.outbox.is_closed()
    }

    pub async fn request(&self, method: &str, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let _slot = self.slots.acquire().await.map_err(|_| ended())?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        let _forget = Forget { waiting: &self.waiting, id };
        lock(&self.waiting).insert(id, tell);
        let frame = Frame::Request { id, method: method.into(), body }.encode();
        if !self.outbox.send(frame).await {
            return Err(ended());
        }
        told.await.map_err(|_| ended())?.map_err(Failure::Rr)
    }
}

/// Takes a request off the list when its caller stops waiting.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.id);
    }
}

async fn read_answers(mut reader: FrameReader, waiting: &Waiting) {
    loop {
        let (id, answer) = match reader.next(FOREVER).await {
            Ok(Some(Frame::Answer { id, body })) => (id, Ok(body)),
            Ok(Some(Frame::Error { id, error })) => (id, Err(error)),
            _ => return,
        };
        let tell = lock(waiting).remove(&id);
        if let Some(tell) = tell {
            // The caller may have stopped waiting in this moment.
            let _ = tell.send(answer);
        }
    }
}

/// One request on a stream of its own: every part goes to `take`, the last answer is returned.
pub async fn request_alone(
    conduit: Conduit,
    method: &str,
    body: Vec<u8>,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Vec<u8>, Failure> {
    let Conduit { mut stream, mut closed, place: _place } = conduit;
    let request = Frame::Request { id: 0, method: method.into(), body }.encode();
    let written = async {
        stream.write_all(&request).await?;
        stream.flush().await
    };
    written.await.map_err(|e| Failure::Stream(e.to_string()))?;
    let (read, mut write) = stream.split();
    let mut reader = FrameReader::new(read);
    let mut total = 0;
    loop {
        let next = tokio::select! {
            next = reader.next(FOREVER) => next,
            _ = closed.changed() => Err(ReadError::Gone),
        };
        match next {
            Ok(Some(Frame::Part { id: 0, body })) => {
                total += body.len();
                if total > ANSWER_PARTS_MAX {
                    return Err(Failure::TooLarge(format!("more than {ANSWER_PARTS_MAX} bytes")));
                }
                take(&body)?;
            }
            Ok(Some(Frame::Answer { id: 0, body })) => {
                // The answer is here: that the stream cannot be closed any more does not change it.
                let _ = write.close().await;
                return Ok(body);
            }
            Ok(Some(Frame::Error { id: 0, error })) => return Err(Failure::Rr(error)),
            _ => return Err(ended()),
        }
    }
}
