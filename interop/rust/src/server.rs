//! The answering side of request / response: one inbound stream from its first byte to its end. Hides deadlines and limits;
//! guarantees that every request is answered once, or its stream reset. Implements "Request / response" of docs/protocol.md.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use awnet::frames::{BAD_REQUEST, BUSY, Frame, RrError};
use awnet::streams::Conduit;
use awnet::wire::{Crowd, FOREVER, FrameReader, IN_FLIGHT_MAX, Outbox, ReadError, WRITE, lock, outbox, write_frames};
use futures::future::BoxFuture;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit as Permit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::library::Library;

const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Twice as long as a client lets a session rest and still uses it.
const IDLE: Duration = Duration::from_secs(120);
const PLACE_WAIT: Duration = Duration::from_secs(1);
/// For a place on the same stream: an answer may be there before its place is free.
const HANDOVER: Duration = Duration::from_millis(100);
/// Before a reset: several libraries throw away what was not read until then.
const LINGER: Duration = Duration::from_millis(100);

type Answer = Result<Vec<u8>, RrError>;

pub enum Reply {
    Now(Answer),
    Later(BoxFuture<'static, Answer>),
    /// Parts, then the last answer; where there is none the stream is reset.
    Parts(Box<dyn Iterator<Item = Vec<u8>> + Send>, Option<Answer>),
}

fn answer_frame(id: u32, answer: Answer) -> Vec<u8> {
    match answer {
        Ok(body) => Frame::Answer { id, body },
        Err(error) => Frame::Error { id, error },
    }
    .encode()
}

/// What bounds the requests that are answered at once.
pub struct Places {
    /// Those of the peer over all its streams; none where it has too many streams.
    pub of_peer: Option<Arc<Semaphore>>,
    pub of_all: Crowd,
}

impl Places {
    /// A place of each kind, where they are free in time, and no more waits for readers than may.
    async fn take(&self, of_stream: &Arc<Semaphore>, deadline: Instant) -> Option<Vec<Permit>> {
        let of_peer = self.of_peer.as_ref().filter(|_| !self.of_all.is_full())?;
        let (mut taken, at_once) = (Vec::new(), deadline - PLACE_WAIT + HANDOVER);
        for (places, until) in [(of_stream, at_once), (of_peer, deadline), (&self.of_all.places, deadline)] {
            taken.push(timeout_at(until, places.clone().acquire_owned()).await.ok()?.ok()?);
        }
        Some(taken)
    }
}

/// How a stream ends.
enum End {
    Closed,
    Reset,
    /// With an answer in parts of this method and so many bytes.
    Sent(String, usize),
}

/// Serves one inbound stream to its end.
pub async fn serve(library: Arc<Library>, conduit: Conduit, places: Places) {
    let Conduit { stream, mut closed, place: _place } = conduit;
    let (read, mut write) = stream.split();
    let (queue, frames) = outbox(&places.of_all);
    let end = {
        let mut writing = pin!(write_frames(&mut write, frames));
        let end = tokio::select! {
            end = read_requests(&library, FrameReader::new(read), queue, places) => end,
            _ = &mut writing => return,
            _ = closed.changed() => return,
        };
        // What was told before a reset goes out too.
        if writing.await.is_err() {
            return;
        }
        end
    };
    match end {
        // A stream that is dropped before it is closed is reset.
        End::Reset => return sleep(LINGER).await,
        End::Sent(method, bytes) => library.sent(&method, bytes),
        End::Closed => {}
    }
    if timeout(WRITE, write.close()).await.is_err() {
        eprintln!("rr: a stream could not be closed in time");
    }
}

async fn read_requests(library: &Library, mut reader: FrameReader, queue: Outbox, places: Places) -> End {
    let (queue, in_flight) = (Arc::new(queue), Arc::new(Mutex::new(HashSet::new())));
    let of_stream = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut later = JoinSet::new();
    let (mut patience, mut active) = (FIRST_BYTE, Instant::now());
    loop {
        let next = reader.next(patience).await;
        while let Some(answered) = later.try_join_next() {
            // A handler that did not come to its end has left a request without an answer.
            let Ok(at) = answered else { return End::Reset };
            active = active.max(at);
        }
        let (id, request) = match next {
            Ok(Some(Frame::Request { id, method, body })) => (id, Some((method, body))),
            Err(ReadError::TooLarge(id)) => (id, None),
            Ok(Some(Frame::Answer { id, .. } | Frame::Part { id, .. } | Frame::Error { id, .. })) => {
                return bad_request(&queue, Some(id), "is no request").await;
            }
            // An answer is something that happened too.
            Err(ReadError::Idle) if active.elapsed() < patience => {
                patience = IDLE.saturating_sub(active.elapsed());
                continue;
            }
            Ok(None) | Err(ReadError::Idle) => {
                if !later.is_empty() {
                    // Fails where this end was a reset, so that places are not held for nobody.
                    queue.send(Vec::new()).await;
                }
                while later.join_next().await.is_some() {}
                return if lock(&in_flight).is_empty() { End::Closed } else { End::Reset };
            }
            Err(ReadError::Malformed(malformed)) => return bad_request(&queue, malformed.id, malformed.why).await,
            Err(ReadError::Gone) => return End::Reset,
        };
        (patience, active) = (IDLE, Instant::now());
        if lock(&in_flight).contains(&id) {
            return bad_request(&queue, Some(id), "this id is in flight").await;
        }
        // Held until the answer is on its way, however slowly it is read.
        let taken = places.take(&of_stream, reader.read_at + PLACE_WAIT).await;
        let refused = |code, why: &str| Err(RrError::new(code, why));
        let answer = match request {
            _ if taken.is_none() => refused(BUSY, "too many in flight, or too much that is not read yet"),
            None => refused(BAD_REQUEST, "the request is too large"),
            Some((method, body)) if library.has_parts(&method) => {
                if lock(&in_flight).is_empty() {
                    return send_parts(library, reader, &queue, id, method, body).await;
                }
                refused(BAD_REQUEST, "a method with parts runs alone on its stream")
            }
            Some((method, body)) => match library.answer(&method, &body) {
                Reply::Now(answer) => answer,
                Reply::Later(answer) => {
                    let (in_flight, queue) = (in_flight.clone(), queue.clone());
                    lock(&in_flight).insert(id);
                    later.spawn(async move {
                        let frame = answer_frame(id, answer.await);
                        lock(&in_flight).remove(&id);
                        // Where nobody writes any more, nobody waits for the answer either.
                        queue.send(frame).await;
                        drop(taken);
                        Instant::now()
                    });
                    continue;
                }
                Reply::Parts(..) => return End::Reset,
            },
        };
        if !queue.send(answer_frame(id, answer)).await {
            return End::Reset;
        }
        if places.of_peer.is_none() {
            return End::Closed;
        }
    }
}

/// Tells the other side where it can be told; the stream is then reset.
async fn bad_request(queue: &Outbox, id: Option<u32>, why: &str) -> End {
    if let Some(id) = id {
        // Without a writer there is nobody to tell.
        queue.send(answer_frame(id, Err(RrError::new(BAD_REQUEST, why)))).await;
    }
    End::Reset
}

async fn send_parts(
    library: &Library,
    mut reader: FrameReader,
    queue: &Outbox,
    id: u32,
    method: String,
    body: Vec<u8>,
) -> End {
    let sending = async {
        let (last, end) = match library.answer(&method, &body) {
            Reply::Parts(parts, last) => {
                let mut bytes = 0;
                for body in parts {
                    bytes += body.len();
                    if !queue.send(Frame::Part { id, body }.encode()).await {
                        return End::Reset;
                    }
                }
                (last, End::Sent(method, bytes))
            }
            Reply::Now(answer) => (Some(answer), End::Closed),
            Reply::Later(answer) => (Some(answer.await), End::Closed),
        };
        let Some(last) = last else { return End::Reset };
        if queue.send(answer_frame(id, last)).await { end } else { End::Reset }
    };
    let intruded = async {
        if let Ok(None) = reader.next(FOREVER).await {
            std::future::pending().await
        }
    };
    tokio::select! {
        // What came with the request is seen before a short answer is complete.
        biased;
        () = intruded => End::Reset, // nothing follows the request of a stream of parts
        end = sending => end,
    }
}
