//! Frames in and out of one stream, for both of its sides. Hides buffers and batches; guarantees that a frame is whole or an
//! error, that it is read within its time, and that what waits to be written is bounded in bytes.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use libp2p::swarm::Stream;
use tokio::sync::{OwnedSemaphorePermit as Permit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::frames::{self, Frame, Malformed, Parsed};

/// Requests in flight on one stream.
pub const IN_FLIGHT_MAX: usize = 32;
pub const FOREVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How long a reader may keep one write waiting.
pub const WRITE: Duration = Duration::from_secs(30);
const QUEUE_FRAMES: usize = 64;
/// What waits for a slow reader of one stream.
const QUEUE_BYTES: usize = 1 << 20;
/// The same of all streams of a server.
const WAITING_BYTES: usize = 128 << 20;
/// For one write while others wait for what it holds.
const HURRIED: Duration = Duration::from_secs(1);
const CHUNK: usize = 65_536;
const WRITE_BATCH: usize = 65_536;
const FRAME_TOTAL: Duration = Duration::from_secs(30);

/// A panic elsewhere leaves maps and sets of this peer as good as they were.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub enum ReadError {
    Malformed(Malformed),
    /// A request of this id was above its method's limit: it was passed over, and the next frame can be read.
    TooLarge(u32),
    /// No frame began in time.
    Idle,
    /// Too late, or the stream ended inside a frame, or the connection is gone.
    Gone,
}

pub struct FrameReader {
    stream: ReadHalf<Stream>,
    buffer: Vec<u8>,
    start: usize,
    chunk: Vec<u8>,
    /// When the last bytes came.
    pub read_at: Instant,
}

impl FrameReader {
    pub fn new(stream: ReadHalf<Stream>) -> Self {
        FrameReader { stream, buffer: Vec::new(), start: 0, chunk: vec![0; CHUNK], read_at: Instant::now() }
    }

    /// The next frame, or none at the end of the stream. `patience` is for its first byte. Of a request that is too large no
    /// more than a chunk is held.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Frame>, ReadError> {
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
                Err(_) if begins => return Err(ReadError::Idle),
                Err(_) => return Err(ReadError::Gone),
            };
            self.buffer.extend_from_slice(&self.chunk[..count]);
            self.read_at = Instant::now();
            match (count, begins) {
                (0, true) => return Ok(None),
                (0, false) => return Err(ReadError::Gone),
                (_, true) => deadline = Instant::now() + FRAME_TOTAL,
                _ => {}
            }
        }
    }
}

/// What several streams hold together: places of requests, and bytes that wait for who reads them.
#[derive(Clone)]
pub struct Crowd {
    pub places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Crowd {
    pub fn new(places: usize) -> Self {
        Crowd { places: Arc::new(Semaphore::new(places)), waiting: Arc::default() }
    }

    /// Whether more waits than should: nobody should be given more to wait for.
    pub fn is_full(&self) -> bool {
        self.waiting.load(Relaxed) > WAITING_BYTES
    }

    /// Ends when others wait for what a write holds that takes so long.
    async fn hurries(&self) {
        loop {
            sleep(HURRIED).await;
            if self.is_full() || self.places.available_permits() == 0 {
                return;
            }
        }
    }
}

/// The room that a frame takes while it waits.
struct Held(Permit, Crowd);

impl Drop for Held {
    fn drop(&mut self) {
        self.1.waiting.fetch_sub(self.0.num_permits(), Relaxed);
    }
}

/// Where the frames of a stream wait for its writer, bounded by their bytes.
pub struct Outbox {
    queue: mpsc::Sender<(Vec<u8>, Held)>,
    room: Arc<Semaphore>,
    crowd: Crowd,
}

pub struct Inbox {
    queue: mpsc::Receiver<(Vec<u8>, Held)>,
    room: Arc<Semaphore>,
    crowd: Crowd,
}

pub fn outbox(crowd: &Crowd) -> (Outbox, Inbox) {
    let (room, (tell, told)) = (Arc::new(Semaphore::new(QUEUE_BYTES)), mpsc::channel(QUEUE_FRAMES));
    (
        Outbox { queue: tell, room: room.clone(), crowd: crowd.clone() },
        Inbox { queue: told, room, crowd: crowd.clone() },
    )
}

impl Outbox {
    /// False where nobody writes any more.
    pub async fn send(&self, frame: Vec<u8>) -> bool {
        let bytes = frame.len().min(QUEUE_BYTES) as u32;
        match self.room.clone().acquire_many_owned(bytes).await {
            Ok(room) => {
                self.crowd.waiting.fetch_add(room.num_permits(), Relaxed);
                self.queue.send((frame, Held(room, self.crowd.clone()))).await.is_ok()
            }
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
/// because each flush costs the other side a noise message and a yamux frame. An empty frame fails where the other side has
/// reset the stream: yamux tells that only to who writes.
pub async fn write_frames(out: &mut WriteHalf<Stream>, mut inbox: Inbox) -> std::io::Result<()> {
    while let Some((mut batch, held)) = inbox.queue.recv().await {
        let mut held = vec![held]; // until they are written
        tokio::task::yield_now().await;
        while batch.len() < WRITE_BATCH {
            let Ok((next, more)) = inbox.queue.try_recv() else { break };
            batch.extend_from_slice(&next);
            held.push(more);
        }
        let written = timeout(WRITE, async {
            if batch.is_empty() {
                out.write(&[]).await.map(drop)?;
            }
            out.write_all(&batch).await?;
            out.flush().await
        });
        tokio::select! {
            written = written => written??,
            () = inbox.crowd.hurries() => return Err(ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}
