//! The answering side of request / response: one inbound stream from its first byte to its end. Hides deadlines and limits;
//! guarantees that every request is answered once, or its stream reset. Implements "Request / response" of docs/protocol.md.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use awnet::frames::{BAD_REQUEST, BUSY, Frame, RrError};
use awnet::streams::Conduit;
use awnet::wire::{FOREVER, FrameReader, IN_FLIGHT_MAX, Outbox, ReadError, WRITE, lock, outbox, write_frames};
use futures::future::BoxFuture;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit as Permit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

const FIRST_BYTE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(60);
/// The longest that a method takes here (x_wait).
const HANDLER_MAX: Duration = Duration::from_secs(60);

type Answer = Result<Vec<u8>, RrError>;

pub enum Reply {
    Now(Answer),
    Later(BoxFuture<'static, Answer>),
    /// Parts, then the last answer; where there is none the stream is reset.
    Parts(Box<dyn Iterator<Item = Vec<u8>> + Send>, Option<Answer>),
}

/// What answers requests. Methods that answer in parts run alone on their stream.
pub trait Service: Send + Sync + 'static {
    fn has_parts(&self, method: &str) -> bool;
    fn answer(&self, method: &str, body: &[u8]) -> Reply;
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
    pub of_all: Arc<Semaphore>,
}

impl Places {
    fn take(&self) -> Option<(Permit, Permit)> {
        let own = self.of_peer.clone()?.try_acquire_owned().ok()?;
        Some((own, self.of_all.clone().try_acquire_owned().ok()?))
    }
}

/// Serves one inbound stream to its end.
pub async fn serve(service: Arc<dyn Service>, conduit: Conduit, places: Places) {
    let Conduit { stream, mut closed, place: _place } = conduit;
    let (read, mut write) = stream.split();
    let (queue, frames) = outbox();
    let clean = {
        let mut writing = pin!(write_frames(&mut write, frames));
        let clean = tokio::select! {
            clean = read_requests(service, FrameReader::new(read), queue, places) => clean,
            _ = &mut writing => return,
            _ = closed.changed() => return,
        };
        // What was told before a reset goes out too.
        writing.await.is_ok() && clean
    };
    // A stream that is dropped before it is closed is reset.
    if clean && timeout(WRITE, write.close()).await.is_err() {
        eprintln!("rr: a stream could not be closed in time");
    }
}

/// Whether the stream ended as it should; if not it is to be reset.
async fn read_requests(service: Arc<dyn Service>, mut reader: FrameReader, queue: Outbox, places: Places) -> bool {
    let (queue, in_flight) = (Arc::new(queue), Arc::new(Mutex::new(HashSet::new())));
    let mut later = JoinSet::new();
    let mut patience = FIRST_BYTE;
    loop {
        let next = reader.next(patience).await;
        while later.try_join_next().is_some() {}
        let (id, request) = match next {
            Ok(Some(Frame::Request { id, method, body })) => (id, Some((method, body))),
            Err(ReadError::TooLarge(id)) => (id, None),
            Ok(Some(Frame::Answer { id, .. } | Frame::Part { id, .. } | Frame::Error { id, .. })) => {
                return bad_request(&queue, Some(id), "is no request").await;
            }
            Ok(None) => {
                while later.join_next().await.is_some() {}
                return true;
            }
            Err(ReadError::Malformed(malformed)) => return bad_request(&queue, malformed.id, malformed.why).await,
            Err(ReadError::Gone) => return false,
        };
        if lock(&in_flight).contains(&id) {
            return bad_request(&queue, Some(id), "this id is in flight").await;
        }
        // Held until the answer is on its way, however slowly it is read.
        let place = places.take().filter(|_| later.len() < IN_FLIGHT_MAX);
        let refused = |code, why: &str| Err(RrError::new(code, why));
        let answer = match request {
            _ if place.is_none() => refused(BUSY, "too many in flight"),
            None => refused(BAD_REQUEST, "the request is too large"),
            Some((method, body)) if service.has_parts(&method) => {
                if lock(&in_flight).is_empty() {
                    return send_parts(service, reader, &queue, id, method, body).await;
                }
                refused(BAD_REQUEST, "a method with parts runs alone on its stream")
            }
            Some((method, body)) => match service.answer(&method, &body) {
                Reply::Now(answer) => answer,
                Reply::Later(answer) => {
                    let (in_flight, queue) = (in_flight.clone(), queue.clone());
                    lock(&in_flight).insert(id);
                    later.spawn(async move {
                        let frame = answer_frame(id, answer.await);
                        lock(&in_flight).remove(&id);
                        // Where nobody writes any more, nobody waits for the answer either.
                        queue.send(frame).await;
                        drop(place);
                    });
                    patience = HANDLER_MAX + IDLE;
                    continue;
                }
                Reply::Parts(..) => return false,
            },
        };
        if !queue.send(answer_frame(id, answer)).await {
            return false;
        }
        if places.of_peer.is_none() {
            return true;
        }
        patience = if later.is_empty() { IDLE } else { HANDLER_MAX + IDLE };
    }
}

/// Tells the other side where it can be told; false, as the stream is then reset.
async fn bad_request(queue: &Outbox, id: Option<u32>, why: &str) -> bool {
    if let Some(id) = id {
        // Without a writer there is nobody to tell.
        queue.send(answer_frame(id, Err(RrError::new(BAD_REQUEST, why)))).await;
    }
    false
}

async fn send_parts(
    service: Arc<dyn Service>,
    mut reader: FrameReader,
    queue: &Outbox,
    id: u32,
    method: String,
    body: Vec<u8>,
) -> bool {
    let sending = async {
        let last = match service.answer(&method, &body) {
            Reply::Parts(parts, last) => {
                for body in parts {
                    if !queue.send(Frame::Part { id, body }.encode()).await {
                        return false;
                    }
                }
                last
            }
            Reply::Now(answer) => Some(answer),
            Reply::Later(answer) => Some(answer.await),
        };
        match last {
            Some(last) => queue.send(answer_frame(id, last)).await,
            None => false,
        }
    };
    let intruded = async {
        match reader.next(FOREVER).await {
            Ok(None) => std::future::pending().await,
            _ => (),
        }
    };
    tokio::select! {
        // What came with the request is seen before a short answer is complete.
        biased;
        () = intruded => bad_request(queue, Some(id), "nothing follows the request of a stream of parts").await,
        clean = sending => clean,
    }
}
