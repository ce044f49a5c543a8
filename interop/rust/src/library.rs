//! What this peer holds and serves: blobs, worlds, mirrored chains, and the test methods. Implements "Methods" of
//! docs/protocol.md and the x_ methods of docs/interop.md.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aw::cbor::{self, COUNT_MAX, ITEMS_MAX, Value, ensure, map};
use aw::crypto::{self, Hash};
use aw::records::Head;
use aw::schema::{self, Shape};
use aw::world::World;
use awnet::frames::{BAD_REQUEST, NOT_AVAILABLE, NOT_FOUND, RrError, UNSUPPORTED};
use awnet::wire::{IN_FLIGHT_MAX, lock};

use crate::chain::Step;
use crate::server::Reply;

const PART_MAX: usize = 262_144;
const BLOBS_BYTES_MAX: usize = 1 << 30;
const BLOCKS_PER_PART: usize = 128;
const WORLDS_KNOWN_MAX: usize = 1_024;
/// As many as an answer to hello names.
const MIRRORS_MAX: usize = 64;

/// Requests of the methods that are there for tests.
fn test_method(name: &str) -> Option<Shape> {
    const COUNT: Shape = Shape::Int(0, COUNT_MAX);
    Some(Shape::Open(match name {
        "x_echo" => &[],
        "x_error" => &[
            ("code", Shape::Int(1, 10)),
            ("retry_after_ms", Shape::Int(0, 4_294_967_295)),
            ("message", Shape::Text(0, 1_024)),
            ("detail", Shape::Bytes(0, 65_536)),
        ],
        "x_wait" => &[("ms", Shape::Int(0, 60_000))],
        "x_parts" => &[("count", COUNT), ("size", Shape::Int(0, 262_144))],
        "x_reset" => &[("after", COUNT)],
        _ => return None,
    }))
}

type Blob = Arc<Vec<u8>>;

/// A world whose chain this peer fetched and checked.
pub struct Mirror {
    pub world: Arc<World>,
    pub head: Head,
    pub steps: Vec<Step>,
}

#[derive(Default)]
pub struct Library {
    /// By hash, and their bytes in all.
    blobs: Mutex<(HashMap<Hash, Blob>, usize)>,
    worlds: Mutex<HashMap<String, Arc<World>>>,
    mirrors: Mutex<BTreeMap<String, Arc<Mirror>>>,
    /// Blobs that went out whole, and their bytes.
    served: Mutex<(u64, u64)>,
}

impl Library {
    pub fn put_blob(&self, data: Vec<u8>) -> cbor::Result<Hash> {
        let hash = crypto::hash(&data);
        self.forge_blob(hash, data)?;
        Ok(hash)
    }

    /// Keeps any bytes under any hash.
    pub fn forge_blob(&self, hash: Hash, data: Vec<u8>) -> cbor::Result<()> {
        let (blobs, held) = &mut *lock(&self.blobs);
        let bytes = *held + data.len() - blobs.get(&hash).map_or(0, |replaced| replaced.len());
        ensure(bytes <= BLOBS_BYTES_MAX, "more than 1 GiB of blobs")?;
        blobs.insert(hash, Arc::new(data));
        *held = bytes;
        Ok(())
    }

    pub fn blob(&self, hash: &[u8]) -> Option<Blob> {
        lock(&self.blobs).0.get(hash).cloned()
    }

    pub fn served(&self) -> (u64, u64) {
        *lock(&self.served)
    }

    pub fn add_world(&self, world: World) -> cbor::Result<Arc<World>> {
        let mut worlds = lock(&self.worlds);
        ensure(worlds.len() < WORLDS_KNOWN_MAX || worlds.contains_key(&world.id), "too many worlds")?;
        let world = Arc::new(world);
        worlds.insert(world.id.clone(), world.clone());
        Ok(world)
    }

    pub fn world(&self, id: &str) -> Option<Arc<World>> {
        lock(&self.worlds).get(id).cloned()
    }

    pub fn mirror(&self, world_id: &str) -> Option<Arc<Mirror>> {
        lock(&self.mirrors).get(world_id).cloned()
    }

    /// Serves a chain from now on, where none of a newer head is served. The height that is.
    pub fn add_mirror(&self, mirror: Mirror) -> cbor::Result<i64> {
        let mut mirrors = lock(&self.mirrors);
        match mirrors.get(&mirror.world.id) {
            Some(held) if held.head.order >= mirror.head.order => return Ok(held.head.height()),
            held => ensure(held.is_some() || mirrors.len() < MIRRORS_MAX, "too many mirrored worlds")?,
        }
        let height = mirror.head.height();
        mirrors.insert(mirror.world.id.clone(), Arc::new(mirror));
        Ok(height)
    }

    fn read(&self, method: &str, body: &[u8]) -> Result<Value, RrError> {
        let Some(shape) = schema::method(method).map(|(shape, _)| shape).or_else(|| test_method(method)) else {
            return Err(RrError::new(UNSUPPORTED, format!("no method {method} here")));
        };
        let request = cbor::decode(body, ITEMS_MAX)?;
        schema::check(&shape, &request, method)?;
        Ok(request)
    }

    fn reply(&self, method: &str, request: &Value, body: &[u8]) -> Result<Reply, RrError> {
        let answer = match method {
            "hello" => {
                let worlds = lock(&self.mirrors).keys().map(cbor::text).collect();
                let versions = ("versions", Value::List(vec![Value::Int(1)]));
                map([versions, ("max_in_flight", Value::Int(IN_FLIGHT_MAX as i64)), ("worlds", Value::List(worlds))])
            }
            "x_echo" => return Ok(Reply::Now(Ok(body.to_vec()))),
            "x_error" => {
                let mut error = RrError::new(request.int("code")? as u8, "");
                error.retry_after_ms = request.int("retry_after_ms")? as u32;
                error.message = request.text("message")?.to_owned();
                error.detail = request.bytes("detail")?.to_vec();
                return Err(error);
            }
            "x_wait" => {
                let pause = Duration::from_millis(request.int("ms")? as u64);
                return Ok(Reply::Later(Box::pin(async move {
                    tokio::time::sleep(pause).await;
                    Ok(map([]).encode())
                })));
            }
            "x_parts" => {
                let (count, size) = (request.int("count")?, request.int("size")?);
                let parts = (0..count).map(move |number| vec![number as u8; size as usize]);
                let last = map([("count", Value::Int(count))]).encode();
                return Ok(Reply::Parts(Box::new(parts), Some(Ok(last))));
            }
            "x_reset" => {
                let after = request.int("after")?;
                return Ok(Reply::Parts(Box::new((0..after).map(|number| vec![number as u8; 1_024])), None));
            }
            "has_blobs" => {
                let hashes = request.list("hashes")?.iter();
                let has = hashes.map(|hash| Value::Bool(hash.as_bytes().is_ok_and(|h| self.blob(h).is_some())));
                map([("has", Value::List(has.collect()))])
            }
            "fetch_blob" => return self.blob_parts(request),
            "get_genesis" | "get_world_head" | "get_block" | "get_blocks" | "get_batch" => {
                return self.of_world(method, request);
            }
            _ => return Err(RrError::new(UNSUPPORTED, format!("{method} is not served here"))),
        };
        Ok(Reply::Now(Ok(answer.encode())))
    }

    fn blob_parts(&self, request: &Value) -> Result<Reply, RrError> {
        let hash = request.bytes("content_hash")?;
        let blob = self.blob(hash).ok_or_else(|| RrError::new(NOT_FOUND, "no such blob here"))?;
        let optional = |key: &str, otherwise: usize| request.int(key).map_or(otherwise, |n| n as usize);
        let from = optional("offset", 0);
        if from > blob.len() {
            return Err(RrError::new(BAD_REQUEST, "the offset is behind the end"));
        }
        let end = from + optional("length", blob.len()).min(blob.len() - from);
        let last = map([("size", Value::Int(blob.len() as i64))]).encode();
        let cuts = (from..end).step_by(PART_MAX);
        let parts = cuts.map(move |at| blob[at..end.min(at + PART_MAX)].to_vec());
        Ok(Reply::Parts(Box::new(parts), Some(Ok(last))))
    }

    fn of_world(&self, method: &str, request: &Value) -> Result<Reply, RrError> {
        let missing = || RrError::new(NOT_FOUND, "not held here");
        let Some(mirror) = self.mirror(request.text("world_id")?) else {
            return Err(RrError::new(NOT_AVAILABLE, "the world is not served here"));
        };
        let at = |height: i64| usize::try_from(height - 1).ok().and_then(|at| mirror.steps.get(at));
        let answer = match method {
            "get_genesis" => map([("genesis", mirror.world.genesis.clone())]),
            "get_world_head" => map([("head", mirror.head.value.clone())]),
            "get_block" => {
                let step = match (request.get("height"), request.get("block_hash")) {
                    (Some(Value::Int(height)), None) => at(*height),
                    (None, Some(Value::Bytes(hash))) => mirror.steps.iter().find(|s| s.block_hash == hash.as_slice()),
                    _ => return Err(RrError::new(BAD_REQUEST, "needs a height or a block_hash, not both")),
                };
                map([("block", step.ok_or_else(missing)?.block.clone())])
            }
            "get_batch" => {
                let step = at(request.int("height")?);
                let (batch, commit) = step.and_then(|step| step.order.clone()).ok_or_else(missing)?;
                map([("batch", batch), ("commit", commit)])
            }
            // get_blocks
            _ => {
                let from = request.int("from_height")?;
                let heights = from..from + request.int("count")?;
                let blocks: Vec<Value> = heights.map_while(at).map(|step| step.block.clone()).collect();
                let part = |blocks: &[Value]| Value::List(blocks.to_vec()).encode();
                let parts: Vec<Vec<u8>> = blocks.chunks(BLOCKS_PER_PART).map(part).collect();
                return Ok(Reply::Parts(Box::new(parts.into_iter()), Some(Ok(map([]).encode()))));
            }
        };
        Ok(Reply::Now(Ok(answer.encode())))
    }

    /// Methods that answer in parts run alone on their stream.
    pub fn has_parts(&self, method: &str) -> bool {
        ["fetch_blob", "get_blocks", "x_parts", "x_reset"].contains(&method)
    }

    pub fn answer(&self, method: &str, body: &[u8]) -> Reply {
        let reply = self.read(method, body).and_then(|request| self.reply(method, &request, body));
        reply.unwrap_or_else(|error| Reply::Now(Err(error)))
    }

    /// Is told of an answer in parts that went out whole, of so many bytes.
    pub fn sent(&self, method: &str, bytes: usize) {
        if method == "fetch_blob" {
            let mut served = lock(&self.served);
            *served = (served.0 + 1, served.1 + bytes as u64);
        }
    }
}
