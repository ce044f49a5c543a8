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
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::cbor::Bad;
use crate::crypto::hex;
use crate::frames::{self, BAD_REQUEST, BUSY, Frame, Malformed, RrError};
use crate::streams::Conduit;

pub const IN_FLIGHT_MAX: usize = 32;
pub const ANSWER_PARTS_MAX: usize = 64 << 20;
const QUEUE_FRAMES: usize = 64;
const CHUNK: usize = 65_536;
const WRITE_BATCH: usize = 65_536;
const FIRST_BYTE: Duration = Duration::from_secs(10);
const FRAME_TOTAL: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);
/// The longest that a method takes here (x_wait).
const HANDLER_MAX: Duration = Duration::from_secs(60);
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How long a reader may keep one write waiting.
const WRITE: Duration = Duration::from_secs(10);

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

    /// The next frame, or none at the end of the stream or of patience, which is for its first byte.
    async fn next(&mut self, patience: Duration) -> Result<Option<Frame>, ReadError> {
        let mut deadline = Instant::now() + if self.start < self.buffer.len() { FRAME_TOTAL } else { patience };
        loop {
            if let Some((frame, size)) = frames::parse(&self.buffer[self.start..]).map_err(ReadError::Malformed)? {
                self.start += size;
                return Ok(Some(frame));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let begins = self.buffer.is_empty();
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

/// Writes queued frames until the queue is closed. Small frames that are there at the same time go out as one write,
/// because each flush costs the other side a noise message and a yamux frame.
async fn write_frames(out: &mut WriteHalf<Stream>, mut queue: mpsc::Receiver<Vec<u8>>) -> std::io::Result<()> {
    while let Some(mut batch) = queue.recv().await {
        tokio::task::yield_now().await;
        while batch.len() < WRITE_BATCH {
            let Ok(next) = queue.try_recv() else { break };
            batch.extend_from_slice(&next);
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

/// Serves one inbound stream to its end. `places` are those of all streams together.
pub async fn serve(service: Arc<dyn Service>, conduit: Conduit, places: Arc<Semaphore>) {
    let Conduit { stream, mut closed, place: _place } = conduit;
    let (read, mut write) = stream.split();
    let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
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
async fn read_requests(
    service: Arc<dyn Service>,
    mut reader: FrameReader,
    queue: mpsc::Sender<Vec<u8>>,
    places: Arc<Semaphore>,
) -> bool {
    let in_flight = Arc::new(Mutex::new(HashSet::new()));
    let mut later = JoinSet::new();
    let mut is_first = true;
    loop {
        let patience = if later.is_empty() { IDLE } else { HANDLER_MAX + IDLE };
        let next = reader.next(if is_first { FIRST_BYTE } else { patience }).await;
        while later.try_join_next().is_some() {}
        let (id, method, body) = match next {
            Ok(Some(Frame::Request { id, method, body })) => (id, method, body),
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
        if service.has_parts(&method) {
            if is_first {
                return send_parts(service, reader, queue, id, method, body).await;
            }
            return bad_request(&queue, Some(id), "a method with parts runs alone on its stream").await;
        }
        is_first = false;
        if lock(&in_flight).contains(&id) {
            return bad_request(&queue, Some(id), "this id is in flight").await;
        }
        let place = places.clone().try_acquire_owned().ok().filter(|_| later.len() < IN_FLIGHT_MAX);
        let answer = match place {
            None => Err(RrError::new(BUSY, "too many in flight")),
            Some(place) => match service.answer(&method, &body) {
                Reply::Now(answer) => answer,
                Reply::Later(answer) => {
                    let (in_flight, queue) = (in_flight.clone(), queue.clone());
                    lock(&in_flight).insert(id);
                    later.spawn(async move {
                        let frame = answer_frame(id, answer.await);
                        lock(&in_flight).remove(&id);
                        // Where nobody writes any more, nobody waits for the answer either.
                        let _ = queue.send(frame).await;
                        drop(place);
                    });
                    continue;
                }
                Reply::Parts(..) => return false,
            },
        };
        if queue.send(answer_frame(id, answer)).await.is_err() {
            return false;
        }
    }
}

/// Tells the other side where it can be told; false, as the stream is then reset.
async fn bad_request(queue: &mpsc::Sender<Vec<u8>>, id: Option<u32>, why: &str) -> bool {
    if let Some(id) = id {
        // Without a writer there is nobody to tell.
        let _ = queue.send(answer_frame(id, Err(RrError::new(BAD_REQUEST, why)))).await;
    }
    false
}

async fn send_parts(
    service: Arc<dyn Service>,
    mut reader: FrameReader,
    queue: mpsc::Sender<Vec<u8>>,
    id: u32,
    method: String,
    body: Vec<u8>,
) -> bool {
    let sending = async {
        let last = match service.answer(&method, &body) {
            Reply::Parts(parts, last) => {
                for body in parts {
                    if queue.send(Frame::Part { id, body }.encode()).await.is_err() {
                        return false;
                    }
                }
                last
            }
            Reply::Now(answer) => Some(answer),
            Reply::Later(answer) => Some(answer.await),
        };
        match last {
            Some(last) => queue.send(answer_frame(id, last)).await.is_ok(),
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
        () = intruded => bad_request(&queue, Some(id), "nothing follows the request of a stream of parts").await,
        clean = sending => clean,
    }
}

type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<Answer>>>>;

/// The client's side of a stream with any number of requests.
pub struct Session {
    queue: mpsc::Sender<Vec<u8>>,
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
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
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
        Arc::new(Session { queue, waiting, next_id: AtomicU32::new(1), slots: Semaphore::new(IN_FLIGHT_MAX) })
    }

    pub fn is_open(&self) -> bool {
        !self.queue.is_closed()
    }

    pub async fn request(&self, method: &str, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let _slot = self.slots.acquire().await.map_err(|_| ended())?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        let _forget = Forget { waiting: &self.waiting, id };
        lock(&self.waiting).insert(id, tell);
        let frame = Frame::Request { id, method: method.into(), body }.encode();
        self.queue.send(frame).await.map_err(|_| ended())?;
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
