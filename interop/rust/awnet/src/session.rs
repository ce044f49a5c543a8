//! The asking side of request / response: sessions, single requests and parts. Hides ids and who waits for what; guarantees
//! that each ends with its answer, a [`Failure`], or its caller. Implements "Request / response" of docs/protocol.md.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use aw::cbor::Bad;

use crate::frames::{self, Frame, RrError};
use crate::streams::Conduit;
use crate::wire::{Crowd, FOREVER, FrameReader, IN_FLIGHT_MAX, Outbox, ReadError, WRITE, lock, outbox, write_frames};

pub const ANSWER_PARTS_MAX: usize = 64 << 20;
const PART_MAX: usize = 256 << 10;
const PART_LEAST: usize = 64; // what one counts, so that empty ones have an end
const SESSION_IDLE: Duration = Duration::from_secs(60);

/// Why something was not done.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for makes no sense.
    Usage(String),
    /// These bytes are not taken here.
    Refused(String),
    /// The other peer answered with an error.
    Rr(RrError),
    /// This peer itself is at fault.
    Fault(String),
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

impl Failure {
    /// As docs/interop.md names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Rr(_) => "rr",
            Failure::Usage(_) => "usage",
            Failure::Refused(_) => "refused",
            Failure::Fault(_) => "fault",
            Failure::Stream(_) => "stream",
            Failure::Timeout => "timeout",
            Failure::TooLarge(_) => "too_large",
            Failure::NotFound(_) => "not_found",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Failure::*;
        match self {
            Rr(error) => write!(f, "{}: {}", error.name(), error.message),
            Timeout => f.write_str("no whole answer in time"),
            Usage(why) | Refused(why) | Fault(why) | Stream(why) | TooLarge(why) | NotFound(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

type Answer = Result<Vec<u8>, RrError>;
type Place = OwnedSemaphorePermit;

/// A request that the server has not answered yet. It keeps its place when nobody waits for it any more, because it is
/// still in flight at the server.
struct Asked {
    tell: oneshot::Sender<Answer>,
    _place: Place,
}

struct State {
    waiting: HashMap<u32, Asked>,
    /// When a request or an answer last went over the stream.
    active: Instant,
}

/// What both sides of a session know.
struct Shared {
    /// Those of requests in flight. Closed when the stream has ended.
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

impl Shared {
    /// For what goes over the stream: one that rested is not used again.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        state.active = Instant::now();
        work(&mut state)
    }

    /// Whoever waits is told that no answer comes.
    fn end(&self) {
        self.places.close();
        lock(&self.state).waiting.clear();
    }
}

/// The client's side of a stream with any number of requests.
pub struct Session {
    outbox: Outbox,
    next_id: AtomicU32,
    shared: Arc<Shared>,
    task: AbortHandle,
}

fn too_large() -> Failure {
    Failure::Usage("a request larger than a frame".into())
}

fn ended() -> Failure {
    Failure::Stream("the stream ended before the answer".into())
}

impl Session {
    pub fn start(conduit: Conduit) -> Arc<Session> {
        let Conduit { stream, mut closed, .. } = conduit;
        let (read, mut write) = stream.split();
        let (outbox, frames) = outbox(&Crowd::new(IN_FLIGHT_MAX)); // nobody waits for what one session holds
        let state = Mutex::new(State { waiting: HashMap::new(), active: Instant::now() });
        let shared = Arc::new(Shared { places: Arc::new(Semaphore::new(IN_FLIGHT_MAX)), state });
        let answered = shared.clone();
        let task = tokio::spawn(async move {
            let unused = tokio::select! {
                biased; // answers that came before the end are taken
                () = read_answers(FrameReader::new(read), &answered) => false,
                // There is nothing more to write when nobody holds the session any more.
                written = write_frames(&mut write, frames) => written.is_ok(),
                _ = closed.changed() => false,
            };
            answered.end();
            if unused {
                // Nobody waits for this end; a stream that cannot be closed is reset when it is dropped.
                let _ = timeout(WRITE, write.close()).await;
            }
        });
        Arc::new(Session { outbox, next_id: AtomicU32::new(1), shared, task: task.abort_handle() })
    }

    /// Whether a request may begin here: the server ends a session that rests for twice as long.
    pub fn is_fresh(&self) -> bool {
        !self.shared.places.is_closed() && lock(&self.shared.state).active.elapsed() < SESSION_IDLE
    }

    /// A place among the requests in flight, once there is one; none when the stream has ended.
    pub async fn place(&self) -> Option<Place> {
        self.shared.places.clone().acquire_owned().await.ok()
    }

    pub async fn request(&self, place: Place, method: &str, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = frames::request(id, method, body).ok_or_else(too_large)?;
        let (tell, told) = oneshot::channel();
        let mut waiter = Waiter { session: self, id, is_sent: false, told };
        self.shared.with(|state| state.waiting.insert(id, Asked { tell, _place: place }));
        waiter.is_sent = self.outbox.send(frame).await;
        if !waiter.is_sent {
            return Err(ended());
        }
        (&mut waiter.told).await.map_err(|_| ended())?.map_err(Failure::Rr)
    }
}

/// Whoever waits for an answer. When nobody does any more for all that can be in flight, the stream is reset: a server that
/// is silent holds up nobody, since requests that wait for a place go to a new one.
struct Waiter<'a> {
    session: &'a Session,
    id: u32,
    is_sent: bool,
    told: oneshot::Receiver<Answer>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.told.close();
        let mut state = lock(&self.session.shared.state);
        if !self.is_sent {
            state.waiting.remove(&self.id);
        }
        let is_stuck = state.waiting.len() == IN_FLIGHT_MAX && state.waiting.values().all(|a| a.tell.is_closed());
        drop(state);
        if is_stuck {
            self.session.shared.end();
            self.session.task.abort();
        }
    }
}

/// Ends with the stream, or where the server does not keep to the protocol.
async fn read_answers(mut reader: FrameReader, shared: &Shared) {
    loop {
        let (id, answer) = match reader.next(FOREVER).await {
            Ok(Some(Frame::Answer { id, body })) => (id, Ok(body)),
            Ok(Some(Frame::Error { id, error })) => (id, Err(error)),
            _ => return,
        };
        let Some(Asked { tell, .. }) = shared.with(|state| state.waiting.remove(&id)) else { return };
        // The caller may have stopped waiting.
        let _ = tell.send(answer);
    }
}

/// One request on a stream of its own: every part goes to `take`, the last answer is returned.
pub async fn request_alone(
    conduit: Conduit,
    method: &str,
    body: Vec<u8>,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Vec<u8>, Failure> {
    let Conduit { mut stream, mut closed, .. } = conduit;
    let request = frames::request(0, method, body).ok_or_else(too_large)?;
    let written = async {
        stream.write_all(&request).await?;
        stream.flush().await
    };
    tokio::select! {
        written = written => written.map_err(|e| Failure::Stream(e.to_string()))?,
        _ = closed.changed() => return Err(ended()),
    }
    let (read, mut write) = stream.split();
    let mut reader = FrameReader::new(read);
    let mut total = 0;
    loop {
        let next = tokio::select! {
            biased; // an answer that came before the end is one
            next = reader.next(FOREVER) => next,
            _ = closed.changed() => Err(ReadError::Gone),
        };
        match next {
            Ok(Some(Frame::Part { id: 0, body })) if body.len() <= PART_MAX => {
                total += body.len().max(PART_LEAST);
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
