//! Request / response over streams: the server of one stream, and the client's sessions, single requests and parts.
//! Hides framing I/O, deadlines, coalescing and limits. Implements "Request / response" of docs/protocol.md.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use libp2p::swarm::Stream;
use serde_json::{Value as Json, json};
use tokio::sync::{OwnedSemaphorePermit as Permit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::frames::{self, BAD_REQUEST, BUSY, Frame, Malformed, Parsed, RrError};
use crate::streams::Conduit;
use aw::cbor::Bad;
use aw::crypto::hex;

pub const IN_FLIGHT_MAX: usize = 32;
pub const ANSWER_PARTS_MAX: usize = 64 << 20;
const QUEUE_FRAMES: usize = 64;
/// What waits for a slow reader of one stream.
const QUEUE_BYTES: usize = 1 << 20;
const CHUNK: usize = 65_536;
const WRITE_BATCH: usize = 65_536;
const FIRST_BYTE: Duration = Duration::from_secs(10);
const FRAME_TOTAL: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);
/// The longest that a method takes here (x_wait).
const HANDLER_MAX: Duration = Duration::from_secs(60);
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How long a reader may keep one write waiting.
const WRITE: Duration = Duration::from_secs(30);

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    Usage(String),
    Refused(String),
    Rr(RrError),
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

impl Failure {
    pub fn json(&self) -> Json {
        let (kind, message) = match self {
            Failure::Rr(e) => {
                return json!({"kind": "rr", "message": e.message, "code": e.code, "name": e.name(),
                    "retry_after_ms": e.retry_after_ms, "detail": hex(&e.detail)});
            }
            Failure::Usage(message) => ("usage", message.as_str()),
            Failure::Refused(message) => ("refused", message.as_str()),
            Failure::Stream(message) => ("stream", message.as_str()),
            Failure::Timeout => ("timeout", "no whole answer in time"),
            Failure::TooLarge(message) => ("too_large", message.as_str()),
            Failure::NotFound(message) => ("not_found", message.as_str()),
        };
        json!({"kind": kind, "message": message})
    }
}

/// A panic elsewhere leaves maps and sets of this peer as good as they were.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum ReadError {
    Malformed(Malformed),
    /// A request of this id was above its method's limit: it was passed over, and the next frame can be read.
    TooLarge(u32),
    /// Too late, or the stream ended inside a frame, or the connection is gone.
    Gone,
}

struct FrameReader {
    stream: ReadHalf<Stream>,
    buffer: Vec<u8>,
    start: usize,
    chunk: Vec<u8>,
}

impl FrameReader {
    fn new(stream: ReadHalf<Stream>) -> Self {
        FrameReader { stream, buffer: Vec::new(), start: 0, chunk: vec![0; CHUNK] }
    }

    /// The next frame, or none at the end of the stream or of patience, which is for its first byte. Of a request that is
    /// too large no more than a chunk is held.
    async fn next(&mut self, patience: Duration) -> Result<Option<Frame>, ReadError> {
        let mut deadline = Instant::now() + if self.start < self.buffer.len() { FRAME_TOTAL } else { patience };
        let mut passing = None;
        loop {
            if passing.is_none() {
                match frames::parse(&self.buffer[self.start..]).map_err(ReadError::Malformed)? {
                    Parsed::Whole(frame, size) => {
                        self.start += size;
                        return Ok(Some(frame));
                    }
                    Parsed::TooLarge { id, size } => passing = Some((id, size)),
                    Parsed::Partial => {}
                }
            }
            if let Some((id, left)) = &mut passing {
                let passed = (self.buffer.len() - self.start).min(*left);
                (self.start, *left) = (self.start + passed, *left - passed);
                if *left == 0 {
                    return Err(ReadError::TooLarge(*id));
                }
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let begins = self.buffer.is_empty() && passing.is_none();
            let count = match timeout_at(deadline, self.stream.read(&mut self.chunk)).await {
                Ok(read) => read.map_err(|_| ReadError::Gone)?,
                // Idle: as good as ended.
                Err(_) if begins => 0,
                Err(_) => return Err(ReadError::Gone),
            };
            self.buffer.extend_from_slice(&self.chunk[..count]);
            match (count, begins) {
                (0, true) => return Ok(None),
                (0, false) => return Err(ReadError::Gone),
                (_, true) => deadline = Instant::now() + FRAME_TOTAL,
                _ => {}
            }
        }
    }
}

/// Where the frames of a stream wait for its writer, bounded by their bytes.
struct Outbox {
    queue: mpsc::Sender<(Vec<u8>, Permit)>,
    room: Arc<Semaphore>,
}

struct Inbox {
    queue: mpsc::Receiver<(Vec<u8>, Permit)>,
    room: Arc<Semaphore>,
}

fn outbox() -> (Outbox, Inbox) {
    let (room, (tell, told)) = (Arc::new(Semaphore::new(QUEUE_BYTES)), mpsc::channel(QUEUE_FRAMES));
    (Outbox { queue: tell, room: room.clone() }, Inbox { queue: told, room })
}

impl Outbox {
    /// False where nobody writes any more.
    async fn send(&self, frame: Vec<u8>) -> bool {
        let bytes = frame.len().min(QUEUE_BYTES) as u32;
        match self.room.clone().acquire_many_owned(bytes).await {
            Ok(held) => self.queue.send((frame, held)).await.is_ok(),
            Err(_) => false,
        }
    }
}

impl Drop for Inbox {
    /// Whoever waits for room is told.
    fn drop(&mut self) {
        self.room.close();
    }
}

/// Writes queued frames until the queue is closed. Small frames that are there at the same time go out as one write,
/// because each flush costs the other side a noise message and a yamux frame.
async fn write_frames(out: &mut WriteHalf<Stream>, mut inbox: Inbox) -> std::io::Result<()> {
    while let Some((mut batch, mut held)) = inbox.queue.recv().await {
        tokio::task::yield_now().await;
        while batch.len() < WRITE_BATCH {
            let Ok((next, more)) = inbox.queue.try_recv() else { break };
            batch.extend_from_slice(&next);
            held.merge(more);
        }
        let written = timeout(WRITE, async {
            out.write_all(&batch).await?;
            out.flush().await
        });
        written.await??;
    }
    Ok(())
}

pub type Answer = Result<Vec<u8>, RrError>;

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
        !self.outbox.queue.is_closed()
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
        let tell = lock(&waiting).remove(&id);
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

/// Writes any bytes and reads what comes, until the stream ends or nothing came for a second.
pub async fn exchange_raw(
    conduit: Conduit,
    data: &[u8],
    answer_max: usize,
) -> Result<(Vec<u8>, &'static str), Failure> {
    let Conduit { mut stream, mut closed, place: _place } = conduit;
    let mut answer = Vec::new();
    let mut chunk = vec![0; CHUNK];
    // The other side may reset the stream before it has read everything: what it answered is read all the same.
    let written = stream.write_all(data).await.is_ok() && stream.flush().await.is_ok();
    loop {
        let read = tokio::select! {
            read = timeout(Duration::from_secs(1), stream.read(&mut chunk)) => read,
            _ = closed.changed() => return Ok((answer, "reset")),
        };
        match read {
            Err(_) => return Ok((answer, "open")),
            // yamux reads a reset as the end; only a write tells them apart, and an empty one does.
            Ok(Ok(0)) if written && stream.write(&[]).await.is_ok() => return Ok((answer, "eof")),
            Ok(Ok(0) | Err(_)) => return Ok((answer, "reset")),
            Ok(Ok(count)) => answer.extend_from_slice(&chunk[..count]),
        }
        if answer.len() > answer_max {
            return Err(Failure::TooLarge(format!("more than {answer_max} bytes")));
        }
    }
}
