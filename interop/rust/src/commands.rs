//! The commands of docs/interop.md: one JSON object in, one out. Hides JSON from the rest of the peer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aw::cbor::{self, Value};
use aw::crypto::{Hash, SigningKey, hex, unhex};
use aw::envelope::Envelope;
use aw::gossip;
use aw::records::{self, Head};
use aw::schema;
use aw::world::World;
use awnet::dht::head_key;
use awnet::wire::lock;
use awnet::{ANSWER_PARTS_MAX, Client, TIMEOUT};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde_json::{Value as Json, json};
use tokio::time::timeout;

use crate::json::from_json;
use crate::mirror::mirror;
use crate::{Peer, raw, vectors};

/// Why a command did not do what it was asked.
enum Failure {
    Usage(String),
    Other(awnet::Failure),
}

impl<T: Into<awnet::Failure>> From<T> for Failure {
    fn from(why: T) -> Self {
        Failure::Other(why.into())
    }
}

impl Failure {
    fn json(&self) -> Json {
        use awnet::Failure::{NotFound, Refused, Rr, Stream, Timeout, TooLarge};
        let (kind, message) = match self {
            Failure::Usage(message) => ("usage", message.clone()),
            Failure::Other(Rr(e)) => {
                return json!({"kind": "rr", "message": e.message, "code": e.code, "name": e.name(),
                    "retry_after_ms": e.retry_after_ms, "detail": hex(&e.detail)});
            }
            Failure::Other(why @ Refused(_)) => ("refused", why.to_string()),
            Failure::Other(why @ Stream(_)) => ("stream", why.to_string()),
            Failure::Other(why @ Timeout) => ("timeout", why.to_string()),
            Failure::Other(why @ TooLarge(_)) => ("too_large", why.to_string()),
            Failure::Other(why @ NotFound(_)) => ("not_found", why.to_string()),
        };
        json!({"kind": kind, "message": message})
    }
}

type Outcome = Result<Json, Failure>;

fn usage(why: impl Into<String>) -> Failure {
    Failure::Usage(why.into())
}

/// The fields of a command. What is missing or of another kind is an error of usage.
struct Args<'a>(&'a Json);

impl<'a> Args<'a> {
    fn text(&self, key: &str) -> Result<&'a str, Failure> {
        self.0[key].as_str().ok_or_else(|| usage(format!("needs {key}, a text")))
    }

    fn owned(&self, key: &str) -> Result<String, Failure> {
        self.text(key).map(str::to_owned)
    }

    fn count(&self, key: &str) -> Result<i64, Failure> {
        let count = self.0[key].as_i64().filter(|n| (0..=cbor::COUNT_MAX).contains(n));
        count.ok_or_else(|| usage(format!("needs {key}, a count")))
    }

    fn has(&self, key: &str) -> bool {
        !self.0[key].is_null()
    }

    fn flag(&self, key: &str) -> Result<bool, Failure> {
        if self.has(key) {
            self.0[key].as_bool().ok_or_else(|| usage(format!("{key} is true or false")))
        } else {
            Ok(false)
        }
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>, Failure> {
        unhex(self.text(key)?).map_err(|_| usage(format!("{key} is no lower-case hex")))
    }

    fn hash(&self, key: &str) -> Result<Hash, Failure> {
        self.bytes(key)?.try_into().map_err(|_| usage(format!("{key} is no hash of 32 bytes")))
    }

    fn peer(&self) -> Result<PeerId, Failure> {
        self.text("peer")?.parse().map_err(|_| usage("peer is no peer id"))
    }

    fn world_id(&self) -> Result<&'a str, Failure> {
        Some(self.text("world_id")?).filter(|id| schema::world_ok(id)).ok_or_else(|| usage("world_id is no world id"))
    }

    fn timeout(&self) -> Result<Duration, Failure> {
        if self.has("timeout_ms") { Ok(Duration::from_millis(self.count("timeout_ms")? as u64)) } else { Ok(TIMEOUT) }
    }
}

/// Carries out one line.
pub async fn run(own: Arc<Peer>, command: Json) -> Json {
    let outcome = dispatch(&own, &Args(&command)).await;
    match outcome {
        Ok(ok) => json!({"id": command["id"], "ok": ok}),
        Err(failure) => json!({"id": command["id"], "error": failure.json()}),
    }
}

/// A peer's answer, where it comes in time.
async fn within<T, E: Into<Failure>>(limit: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    timeout(limit, work).await.map_err(|_| Failure::Other(awnet::Failure::Timeout))?.map_err(Into::into)
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

async fn dispatch(own: &Arc<Peer>, args: &Args<'_>) -> Outcome {
    let (client, net) = (&own.client, &own.client.net);
    match args.text("do")? {
        "dial" => dial(client, args).await,
        "identify" => {
            // The other side may have been told of the connection before it has said what it is.
            let info = within(TIMEOUT, net.identify(args.peer()?)).await?;
            Ok(json!({"protocols": texts(&info.protocols), "agent": info.agent_version}))
        }
        "disconnect" => Ok(net.disconnect(args.peer()?).await.map(|()| json!({}))?),
        "peers" => Ok(json!({"peers": texts(&net.peers().await?)})),
        "request" => {
            let (peer, method, body) = (args.peer()?, args.text("method")?, args.bytes("body")?);
            let one_shot = args.flag("one_shot")?;
            Ok(json!({"body": hex(within(args.timeout()?, client.request(peer, method, body, one_shot)).await?)}))
        }
        "request_parts" => request_parts(client, args).await,
        "requests" => requests(own, args).await,
        "send_raw" => {
            let (peer, data) = (args.peer()?, args.bytes("data")?);
            let exchange = async { raw::exchange_raw(client.open(peer).await?, &data, 16 << 20).await };
            let (answer, end) = within(args.timeout()?, exchange).await?;
            Ok(json!({"answer": hex(answer), "end": end}))
        }
        "put_blob" => {
            let data =
                if args.has("data") { args.bytes("data")? } else { seeded(args.count("seed")?, args.count("size")?)? };
            Ok(json!({"content_hash": hex(own.library.put_blob(data)?)}))
        }
        "fetch" => {
            let (peer, hash, started) = (args.peer()?, args.hash("content_hash")?, Instant::now());
            let first = if args.has("length") { Some(args.count("length")?) } else { None };
            let blob = client.fetch(peer, &hash, first).await?;
            let size = blob.len();
            if first.is_none() {
                own.library.put_blob(blob)?;
            }
            Ok(json!({"size": size, "ms": started.elapsed().as_millis() as u64}))
        }
        "forge_blob" => {
            own.library.forge_blob(args.hash("content_hash")?, args.bytes("data")?)?;
            Ok(json!({}))
        }
        "world" => {
            let world = own.library.add_world(World::new(&args.bytes("genesis")?)?);
            Ok(json!({"world_id": world.id}))
        }
        "join" => join(own, args.text("topic")?).await,
        "mesh" => Ok(json!({"peers": texts(&net.subscribers(args.owned("topic")?).await?)})),
        "publish" => Ok(net.publish(args.owned("topic")?, args.bytes("data")?).await.map(|()| json!({}))?),
        "dht_put" => Ok(net.dht_put(args.owned("key")?, args.bytes("value")?).await.map(|()| json!({}))?),
        "dht_get" => {
            let head = net.dht_get(args.owned("key")?).await?;
            Ok(json!({"value": hex(head.value.encode())}))
        }
        "dht_peers" => Ok(json!({"peers": texts(&net.dht_peers().await?)})),
        "provide" => Ok(net.provide(args.hash("content_hash")?).await.map(|()| json!({}))?),
        "find_providers" => {
            let found = net.find_providers(&args.hash("content_hash")?).await?;
            let told =
                |(peer, addrs): (PeerId, Vec<Multiaddr>)| json!({"peer": peer.to_string(), "addrs": texts(&addrs)});
            Ok(json!({"providers": found.into_iter().map(told).collect::<Vec<_>>()}))
        }
        "check_head" => head_json(&records::check_head(&args.bytes("head")?, None)?),
        "head" => {
            let world_id = args.world_id()?;
            let head = if args.has("peer") {
                client.world_head(args.peer()?, world_id).await?
            } else {
                net.dht_get(head_key(world_id)).await?
            };
            let mut told = head_json(&head)?;
            told["head"] = json!(hex(head.value.encode()));
            Ok(told)
        }
        "state_proof" => state_proof(client, args).await,
        "receipt_proof" => receipt_proof(client, args).await,
        "submit" => submit(client, args).await,
        "mirror" => Ok(json!({"height": mirror(own, args.peer()?, args.world_id()?).await?})),
        "follow" => Ok(net.follow(args.world_id()?.to_owned()).await.map(|()| json!({}))?),
        "vectors" => {
            let folder = args.owned("dir")?;
            let checked = tokio::task::spawn_blocking(move || vectors::check_all(Path::new(&folder))).await;
            Ok(checked.map_err(|e| awnet::Failure::Refused(e.to_string()))??)
        }
        other => Err(usage(format!("no command {other}"))),
    }
}

async fn dial(client: &Client, args: &Args<'_>) -> Outcome {
    let address: Multiaddr = args.text("addr")?.parse().map_err(|_| usage("addr is no multiaddr"))?;
    let Some(Protocol::P2p(peer)) = address.iter().last() else { return Err(usage("addr ends without /p2p/")) };
    within(TIMEOUT, client.net.dial(address, peer)).await?;
    Ok(json!({"peer": peer.to_string()}))
}

async fn request_parts(client: &Client, args: &Args<'_>) -> Outcome {
    let (mut parts, mut bytes, mut hasher) = (0u64, 0, blake3::Hasher::new());
    let take = |part: &[u8]| {
        (parts, bytes) = (parts + 1, bytes + part.len());
        hasher.update(part);
        Ok(())
    };
    let asked = client.request_parts(args.peer()?, args.text("method")?, args.bytes("body")?, take);
    let last = within(args.timeout()?, asked).await?;
    let hash = hex(hasher.finalize().as_bytes());
    Ok(json!({"parts": parts, "bytes": bytes, "hash": hash, "last": hex(last)}))
}

async fn requests(own: &Arc<Peer>, args: &Args<'_>) -> Outcome {
    let (peer, method, body) = (args.peer()?, args.owned("method")?, args.bytes("body")?);
    let (count, one_shot, patience) = (args.count("count")? as usize, args.flag("one_shot")?, args.timeout()?);
    let next = Arc::new(AtomicUsize::new(0));
    let failures = Arc::new(std::sync::Mutex::new(Vec::new()));
    let started = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.count("in_flight")?.clamp(1, 1_024) {
        let (own, next, failures) = (own.clone(), next.clone(), failures.clone());
        let (method, body) = (method.clone(), body.clone());
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let asked = own.client.request(peer, &method, body.clone(), one_shot);
                if let Err(failure) = within(patience, asked).await {
                    lock(&failures).push(failure.json());
                }
            }
        });
    }
    while workers.join_next().await.is_some() {}
    let failures = lock(&failures);
    let ms = started.elapsed().as_millis() as u64;
    let mut told = json!({"ok": count - failures.len(), "failed": failures.len(), "ms": ms});
    if let Some(first) = failures.first() {
        told["first_error"] = first.clone();
    }
    Ok(told)
}

/// BLAKE3's extended output of a seed: test data that both sides can make.
fn seeded(seed: i64, size: i64) -> Result<Vec<u8>, Failure> {
    if size > ANSWER_PARTS_MAX as i64 {
        return Err(usage("size: at most 64 MiB"));
    }
    let mut data = vec![0; size as usize];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut data);
    Ok(data)
}

async fn join(own: &Peer, topic: &str) -> Outcome {
    let Some((world_id, _)) = gossip::parse_topic(topic) else { return Err(usage("topic is none of a world")) };
    if own.library.world(world_id).is_none() && !own.careless {
        return Err(awnet::Failure::NotFound("the world is not known here".into()).into());
    }
    Ok(own.client.net.subscribe(topic.to_owned()).await.map(|()| json!({}))?)
}

fn head_json(head: &Head) -> Outcome {
    let (epoch, height, as_of_ms, _) = head.order;
    let block_hash = hex(head.block_hash()?);
    Ok(
        json!({"world_id": head.world_id, "epoch": epoch, "height": height, "as_of_ms": as_of_ms, "block_hash": block_hash}),
    )
}

async fn state_proof(client: &Client, args: &Args<'_>) -> Outcome {
    let (world_id, namespace, key) = (args.world_id()?, args.text("namespace")?, args.bytes("key")?);
    let cell = client.state_proof(args.peer()?, world_id, namespace, &key).await?;
    let mut told = json!({"height": cell.height, "state_root": hex(cell.state_root), "trust": "attested"});
    if let Some(value) = cell.value {
        told["value"] = json!(hex(value));
    }
    Ok(told)
}

async fn receipt_proof(client: &Client, args: &Args<'_>) -> Outcome {
    let (world_id, envelope_hash) = (args.world_id()?, args.hash("envelope_hash")?);
    let proved = client.receipts(args.peer()?, world_id, &envelope_hash).await?;
    let told = |(code, index): (String, Option<i64>)| match index {
        Some(index) => json!({"code": code, "index": index}),
        None => json!({"code": code}),
    };
    let receipts: Vec<Json> = proved.receipts.into_iter().map(told).collect();
    let (height, head_height) = (proved.height, proved.head.height());
    Ok(json!({"height": height, "head_height": head_height, "receipts": receipts, "trust": "attested"}))
}

async fn submit(client: &Client, args: &Args<'_>) -> Outcome {
    let (peer, world_id, key) = (args.peer()?, args.world_id()?, SigningKey::from_bytes(&args.hash("seed")?));
    let envelope = Envelope {
        world_id,
        nonce: args.count("nonce")?,
        expires_at_height: args.count("expires_at_height")?,
        timestamp_ms: args.count("timestamp_ms")?,
        atomic: args.flag("atomic")?,
        actions: from_json(&args.0["actions"]).map_err(|why| usage(why.to_string()))?,
    };
    let (envelope_hash, sealed) = envelope.seal(&key)?;
    let bytes = hex(sealed.encode());
    let result = client.submit(peer, sealed).await?;
    let mut told = json!({"outcome": result.text("outcome")?, "envelope_hash": hex(envelope_hash), "envelope": bytes});
    for key in ["reason", "message"] {
        if let Some(Value::Text(text)) = result.get(key) {
            told[key] = json!(text);
        }
    }
    Ok(told)
}
