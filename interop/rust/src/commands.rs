//! The commands of docs/interop.md: one JSON object in, one out. Hides JSON from the rest of the peer.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aw::cbor::{self, Value};
use aw::crypto::{Hash, SigningKey, hex, unhex};
use aw::envelope::Envelope;
use aw::gossip;
use aw::records::{self, Head};
use aw::schema;
use aw::world::World;
use awnet::dht::head_key;
use awnet::frames::method_ok;
use awnet::{ANSWER_PARTS_MAX, Client, Failure, TIMEOUT};
use futures::{StreamExt, stream};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde_json::{Value as Json, json};
use tokio::time::timeout;

use crate::json::from_json;
use crate::mirror::mirror;
use crate::{Peer, raw, vectors};

const AT_ONCE_MAX: i64 = 1_024;

type Outcome = Result<Json, Failure>;

fn usage(why: impl Into<String>) -> Failure {
    Failure::Usage(why.into())
}

fn failure_json(why: &Failure) -> Json {
    let Failure::Rr(e) = why else { return json!({"kind": why.kind(), "message": why.to_string()}) };
    json!({"kind": why.kind(), "message": e.message, "code": e.code, "name": e.name(),
        "retry_after_ms": e.retry_after_ms, "detail": hex(&e.detail)})
}

/// The fields of a command. What is missing or of another kind is an error of usage.
struct Args<'a>(&'a Json);

impl<'a> Args<'a> {
    fn text(&self, key: &str) -> Result<&'a str, Failure> {
        self.0[key].as_str().ok_or_else(|| usage(format!("needs {key}, a text")))
    }

    fn method(&self) -> Result<&'a str, Failure> {
        Some(self.text("method")?).filter(|name| method_ok(name)).ok_or_else(|| usage("method is no name of a method"))
    }

    fn count(&self, key: &str) -> Result<i64, Failure> {
        let count = self.0[key].as_i64().filter(|n| (0..=cbor::COUNT_MAX).contains(n));
        count.ok_or_else(|| usage(format!("needs {key}, a count")))
    }

    fn has(&self, key: &str) -> bool {
        !self.0[key].is_null()
    }

    fn optional<T>(&self, key: &str, read: fn(&Self, &str) -> Result<T, Failure>) -> Result<Option<T>, Failure> {
        self.has(key).then(|| read(self, key)).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool, Failure> {
        self.0[key].as_bool().ok_or_else(|| usage(format!("needs {key}, true or false")))
    }

    fn one_shot(&self) -> Result<bool, Failure> {
        Ok(self.optional("one_shot", Self::flag)?.unwrap_or(false))
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

    fn topic(&self) -> Result<&'a str, Failure> {
        Some(self.text("topic")?).filter(|t| gossip::parse_topic(t).is_some()).ok_or_else(|| usage("topic is no topic"))
    }

    /// A list of `[kind, payload]`.
    fn actions(&self) -> Result<Value, Failure> {
        let is_pair = |item: &Json| item.as_array().is_some_and(|pair| pair.len() == 2 && pair[0].is_string());
        let are_pairs = self.0["actions"].as_array().is_some_and(|items| items.iter().all(is_pair));
        let actions = are_pairs.then(|| from_json(&self.0["actions"]));
        actions.ok_or_else(|| usage("actions are a list of [kind, payload]"))?.map_err(|why| usage(why.to_string()))
    }

    fn timeout(&self) -> Result<Duration, Failure> {
        Ok(self.optional("timeout_ms", Self::count)?.map_or(TIMEOUT, |ms| Duration::from_millis(ms as u64)))
    }
}

/// Carries out one line. A panic is the end of its command alone.
pub async fn run(own: Arc<Peer>, command: Json) -> Json {
    let id = command["id"].clone();
    let outcome = tokio::spawn(async move { dispatch(&own, &Args(&command)).await }).await;
    match outcome.unwrap_or_else(|panic| Err(Failure::Fault(panic.to_string()))) {
        Ok(ok) => json!({"id": id, "ok": ok}),
        Err(failure) => json!({"id": id, "error": failure_json(&failure)}),
    }
}

/// A peer's answer, where it comes in time.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(limit, work).await.unwrap_or(Err(Failure::Timeout))
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

async fn dispatch(own: &Peer, args: &Args<'_>) -> Outcome {
    let (client, net) = (&own.client, &own.client.net);
    match args.text("do")? {
        "dial" => dial(client, args).await,
        "identify" => {
            let peer = args.peer()?;
            if !net.peers().await?.contains(&peer) {
                return Err(Failure::NotFound("that peer is not connected".into()));
            }
            // The other side may have been told of the connection before it has said what it is.
            let info = within(TIMEOUT, net.identify(peer)).await?;
            Ok(json!({"protocols": texts(&info.protocols), "agent": info.agent_version}))
        }
        "disconnect" => net.disconnect(args.peer()?).await.map(|()| json!({})),
        "peers" => Ok(json!({"peers": texts(&net.peers().await?)})),
        "request" => {
            let (peer, method, body) = (args.peer()?, args.method()?, args.bytes("body")?);
            let asked = client.request(peer, method, body, args.one_shot()?);
            Ok(json!({"body": hex(within(args.timeout()?, asked).await?)}))
        }
        "request_parts" => request_parts(client, args).await,
        "requests" => requests(client, args).await,
        "send_raw" => {
            let (peer, data) = (args.peer()?, args.bytes("data")?);
            let exchange = async { raw::exchange(client.open(peer).await?, &data).await };
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
            let first = args.optional("length", Args::count)?;
            let blob = client.fetch(peer, &hash, first).await?;
            let told = json!({"size": blob.len(), "ms": started.elapsed().as_millis() as u64});
            if first.is_none() {
                own.library.put_blob(blob)?;
            }
            Ok(told)
        }
        "forge_blob" => {
            own.library.forge_blob(args.hash("content_hash")?, args.bytes("data")?)?;
            Ok(json!({}))
        }
        "served" => {
            let (blobs, bytes) = own.library.served();
            Ok(json!({"blobs": blobs, "bytes": bytes}))
        }
        "world" => {
            let world = own.library.add_world(World::new(&args.bytes("genesis")?)?)?;
            Ok(json!({"world_id": world.id}))
        }
        "join" => join(own, args.topic()?).await,
        "mesh" => Ok(json!({"peers": texts(&net.subscribers(args.topic()?.into()).await?)})),
        "publish" => net.publish(args.topic()?.into(), args.bytes("data")?).await.map(|()| json!({})),
        "dht_put" => net.dht_put(args.text("key")?.into(), args.bytes("value")?).await.map(|()| json!({})),
        "dht_get" => {
            let head = net.dht_get(args.text("key")?.into()).await?;
            Ok(json!({"value": hex(head.value.encode())}))
        }
        "dht_held" => net.dht_held(args.text("key")?.into()).await.map(|(v, t)| json!({"value": hex(v), "age_ms": t})),
        "dht_peers" => Ok(json!({"peers": texts(&net.dht_peers().await?)})),
        "provide" => net.provide(args.hash("content_hash")?).await.map(|()| json!({})),
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
        "follow" => net.follow(args.world_id()?.to_owned()).await.map(|()| json!({})),
        "vectors" => {
            let folder = Some(Path::new(args.text("dir")?)).filter(|path| path.is_dir());
            let folder = folder.ok_or_else(|| usage("dir is no folder"))?;
            Ok(tokio::task::block_in_place(|| vectors::check_all(folder))?)
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
    let asked = client.request_parts(args.peer()?, args.method()?, args.bytes("body")?, take);
    let last = within(args.timeout()?, asked).await?;
    let hash = hex(hasher.finalize().as_bytes());
    Ok(json!({"parts": parts, "bytes": bytes, "hash": hash, "last": hex(last)}))
}

async fn requests(client: &Client, args: &Args<'_>) -> Outcome {
    let (peer, method, body) = (args.peer()?, args.method()?, args.bytes("body")?);
    let (count, at_once) = (args.count("count")?, args.count("in_flight")?.min(AT_ONCE_MAX));
    let (one_shot, patience, started) = (args.one_shot()?, args.timeout()?, Instant::now());
    if count < 1 || at_once < 1 {
        return Err(usage("count and in_flight are 1 or more"));
    }
    let asked = (0..count).map(|_| within(patience, client.request(peer, method, body.clone(), one_shot)));
    let mut answers = stream::iter(asked).buffer_unordered(at_once as usize);
    let (mut failed, mut told) = (0, json!({}));
    while let Some(answer) = answers.next().await {
        if let Err(failure) = answer {
            failed += 1;
            if failed == 1 {
                told["first_error"] = failure_json(&failure);
            }
        }
    }
    let ms = started.elapsed().as_millis() as u64;
    (told["ok"], told["failed"], told["ms"]) = (json!(count - failed), json!(failed), json!(ms));
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
    let is_known = gossip::parse_topic(topic).is_some_and(|(world_id, _)| own.library.world(world_id).is_some());
    if !is_known && !own.client.net.careless {
        return Err(Failure::NotFound("the world is not known here".into()));
    }
    own.client.net.subscribe(topic.to_owned()).await.map(|()| json!({}))
}

fn head_json(head: &Head) -> Outcome {
    let ((epoch, height, as_of_ms, _), block_hash) = (head.order, hex(head.block_hash()?));
    Ok(json!({"world_id": head.world_id, "epoch": epoch, "height": height, "as_of_ms": as_of_ms,
        "block_hash": block_hash}))
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
        actions: args.actions()?,
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
