//! The commands of docs/interop.md: one JSON object in, one out. Hides JSON from the rest of the peer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libp2p::gossipsub::{IdentTopic, PublishError};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, identify};
use serde_json::{Value as Json, json};
use tokio::time::{sleep, timeout};

use crate::client::{Client, TIMEOUT};
use crate::dht;
use crate::gossip::{self, Verdict};
use crate::json::from_json;
use crate::rr::{self, ANSWER_PARTS_MAX, Failure, lock};
use crate::vectors;
use aw::cbor::{self, Value, map};
use aw::crypto::{self, Hash, SigningKey, hex, unhex};
use aw::proofs;
use aw::records::{self, Head};
use aw::schema::{self, Shape};
use aw::world::World;

const LOOK_AGAIN: Duration = Duration::from_millis(10);

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
pub async fn run(client: Arc<Client>, command: Json) -> Json {
    let outcome = dispatch(&client, &Args(&command)).await;
    match outcome {
        Ok(ok) => json!({"id": command["id"], "ok": ok}),
        Err(failure) => json!({"id": command["id"], "error": failure.json()}),
    }
}

/// What a peer said of itself, as soon as it has. Libraries have no event that a command could wait for: it looks again.
async fn identified(client: &Arc<Client>, peer: PeerId) -> Result<identify::Info, Failure> {
    loop {
        if let Some(info) = client.net.with(move |node| node.identified.get(&peer).cloned()).await? {
            return Ok(info);
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn dispatch(client: &Arc<Client>, args: &Args<'_>) -> Outcome {
    match args.text("do")? {
        "dial" => dial(client, args).await,
        "identify" => {
            let peer = args.peer()?;
            // The other side may have been told of the connection before it has said what it is.
            let info = timeout(TIMEOUT, identified(client, peer)).await.map_err(|_| Failure::Timeout)??;
            let protocols: Vec<String> = info.protocols.iter().map(ToString::to_string).collect();
            Ok(json!({"protocols": protocols, "agent": info.agent_version}))
        }
        "disconnect" => {
            let peer = args.peer()?;
            let closed = client.net.with(move |node| node.swarm.disconnect_peer_id(peer)).await?;
            closed.map(|()| json!({})).map_err(|()| Failure::Stream("not connected".into()))
        }
        "peers" => {
            let peers = client.net.with(|node| node.swarm.connected_peers().map(PeerId::to_string).collect::<Vec<_>>());
            Ok(json!({"peers": peers.await?}))
        }
        "request" => {
            let (peer, method, body) = (args.peer()?, args.text("method")?, args.bytes("body")?);
            let answer = timeout(args.timeout()?, client.request(peer, method, body, args.flag("one_shot")?)).await;
            Ok(json!({"body": hex(answer.map_err(|_| Failure::Timeout)??)}))
        }
        "request_parts" => request_parts(client, args).await,
        "requests" => requests(client, args).await,
        "send_raw" => {
            let data = args.bytes("data")?;
            let exchange = async { rr::exchange_raw(client.open(args.peer()?).await?, &data, 16 << 20).await };
            let (answer, end) = timeout(args.timeout()?, exchange).await.map_err(|_| Failure::Timeout)??;
            Ok(json!({"answer": hex(answer), "end": end}))
        }
        "put_blob" => {
            let data =
                if args.has("data") { args.bytes("data")? } else { seeded(args.count("seed")?, args.count("size")?)? };
            Ok(json!({"content_hash": hex(client.library.put_blob(data)?)}))
        }
        "fetch" => {
            let (peer, hash, started) = (args.peer()?, args.hash("content_hash")?, Instant::now());
            let first = if args.has("length") { Some(args.count("length")?) } else { None };
            let blob = client.fetch(peer, &hash, first).await?;
            let size = blob.len();
            if first.is_none() {
                client.library.put_blob(blob)?;
            }
            Ok(json!({"size": size, "ms": started.elapsed().as_millis() as u64}))
        }
        "forge_blob" => {
            client.library.forge_blob(args.hash("content_hash")?, args.bytes("data")?)?;
            Ok(json!({}))
        }
        "world" => {
            let world = client.library.add_world(World::new(&args.bytes("genesis")?)?);
            Ok(json!({"world_id": world.id}))
        }
        "join" => join(client, args.text("topic")?).await,
        "mesh" => {
            let topic = IdentTopic::new(args.text("topic")?).hash();
            let peers = client.net.with(move |node| {
                let known = node.swarm.behaviour().gossip.all_peers();
                known.filter(|(_, topics)| topics.contains(&&topic)).map(|(p, _)| p.to_string()).collect::<Vec<_>>()
            });
            Ok(json!({"peers": peers.await?}))
        }
        "publish" => publish(client, args).await,
        "dht_put" => client.dht_put(args.owned("key")?, args.bytes("value")?).await.map(|()| json!({})),
        "dht_get" => {
            let head = client.dht_get(args.owned("key")?).await?;
            Ok(json!({"value": hex(head.value.encode())}))
        }
        "dht_peers" => {
            let peers = client.net.with(|node| {
                let buckets = node.swarm.behaviour_mut().kad.0.kbuckets();
                let peers =
                    buckets.flat_map(|b| b.iter().map(|e| e.node.key.preimage().to_string()).collect::<Vec<_>>());
                peers.collect::<Vec<_>>()
            });
            Ok(json!({"peers": peers.await?}))
        }
        "provide" => client.provide(args.hash("content_hash")?).await.map(|()| json!({})),
        "find_providers" => {
            let found = client.find_providers(&args.hash("content_hash")?).await?;
            let told = |(peer, addrs): (PeerId, Vec<Multiaddr>)| {
                let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
                json!({"peer": peer.to_string(), "addrs": addrs})
            };
            Ok(json!({"providers": found.into_iter().map(told).collect::<Vec<_>>()}))
        }
        "check_head" => head_json(&records::check_head(&args.bytes("head")?, None)?),
        "head" => {
            let world_id = args.world_id()?;
            let head = if args.has("peer") {
                client.world_head(args.peer()?, world_id).await?
            } else {
                client.dht_get(dht::head_key(world_id)).await?
            };
            let mut told = head_json(&head)?;
            told["head"] = json!(hex(head.value.encode()));
            Ok(told)
        }
        "state_proof" => state_proof(client, args).await,
        "receipt_proof" => receipt_proof(client, args).await,
        "submit" => submit(client, args).await,
        "mirror" => Ok(json!({"height": client.mirror(args.peer()?, args.world_id()?).await?})),
        "follow" => {
            let world_id = args.world_id()?.to_owned();
            subscribe(client, gossip::topic(&world_id, "head")).await?;
            client.net.with(move |node| *node.followed.entry(world_id).or_default()).await.map(|_| json!({}))
        }
        "vectors" => {
            let folder = args.owned("dir")?;
            let checked = tokio::task::spawn_blocking(move || vectors::check_all(Path::new(&folder))).await;
            Ok(checked.map_err(|e| Failure::Refused(e.to_string()))??)
        }
        other => Err(usage(format!("no command {other}"))),
    }
}

async fn dial(client: &Client, args: &Args<'_>) -> Outcome {
    let address: Multiaddr = args.text("addr")?.parse().map_err(|_| usage("addr is no multiaddr"))?;
    let Some(Protocol::P2p(peer)) = address.iter().last() else { return Err(usage("addr ends without /p2p/")) };
    timeout(TIMEOUT, client.net.dial(address, peer)).await.map_err(|_| Failure::Timeout)??;
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
    let last = timeout(args.timeout()?, asked).await.map_err(|_| Failure::Timeout)??;
    let hash = hex(hasher.finalize().as_bytes());
    Ok(json!({"parts": parts, "bytes": bytes, "hash": hash, "last": hex(last)}))
}

async fn requests(client: &Arc<Client>, args: &Args<'_>) -> Outcome {
    let (peer, method, body) = (args.peer()?, args.owned("method")?, args.bytes("body")?);
    let (count, one_shot, patience) = (args.count("count")? as usize, args.flag("one_shot")?, args.timeout()?);
    let next = Arc::new(AtomicUsize::new(0));
    let failures = Arc::new(std::sync::Mutex::new(Vec::new()));
    let started = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.count("in_flight")?.clamp(1, 1_024) {
        let (client, next, failures) = (client.clone(), next.clone(), failures.clone());
        let (method, body) = (method.clone(), body.clone());
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let answer = timeout(patience, client.request(peer, &method, body.clone(), one_shot)).await;
                if let Err(failure) = answer.unwrap_or(Err(Failure::Timeout)) {
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

async fn subscribe(client: &Client, topic: String) -> Result<(), Failure> {
    let subscribed = client.net.with(move |node| node.swarm.behaviour_mut().gossip.subscribe(&IdentTopic::new(topic)));
    subscribed.await?.map(|_| ()).map_err(|e| Failure::Refused(e.to_string()))
}

async fn join(client: &Client, topic: &str) -> Outcome {
    let Some((world_id, _)) = gossip::parse_topic(topic) else { return Err(usage("topic is none of a world")) };
    if client.library.world(world_id).is_none() && !client.careless {
        return Err(Failure::NotFound("the world is not known here".into()));
    }
    subscribe(client, topic.to_owned()).await.map(|()| json!({}))
}

async fn publish(client: &Client, args: &Args<'_>) -> Outcome {
    let (topic, data) = (args.owned("topic")?, args.bytes("data")?);
    let published = client.net.with(move |node| {
        if let (Verdict::Ignore | Verdict::Reject, why) = node.judge(&topic, &data) {
            return Err(Failure::Refused(why.unwrap_or_default()));
        }
        match node.swarm.behaviour_mut().gossip.publish(IdentTopic::new(topic), data) {
            // Nobody who listens is no failure: gossip is a hint.
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic) => Ok(json!({})),
            Err(error) => Err(Failure::Refused(error.to_string())),
        }
    });
    published.await?
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
    let request =
        map([("world_id", cbor::text(world_id)), ("namespace", cbor::text(namespace)), ("key", cbor::bytes(&key))]);
    let answer = client.ask(args.peer()?, "get_state_proof", request).await?;
    let cell = proofs::check_state_answer(world_id, namespace, &key, &answer)?;
    let mut told = json!({"height": cell.height, "state_root": hex(cell.state_root), "trust": "attested"});
    if let Some(value) = cell.value {
        told["value"] = json!(hex(value));
    }
    Ok(told)
}

async fn receipt_proof(client: &Client, args: &Args<'_>) -> Outcome {
    let (world_id, envelope_hash) = (args.world_id()?, args.hash("envelope_hash")?);
    let request = map([("world_id", cbor::text(world_id)), ("envelope_hash", cbor::bytes(envelope_hash))]);
    let answer = client.ask(args.peer()?, "get_receipt", request).await?;
    let proved = proofs::check_receipt_answer(world_id, &envelope_hash, &answer)?;
    let told = |(code, index): (String, Option<i64>)| match index {
        Some(index) => json!({"code": code, "index": index}),
        None => json!({"code": code}),
    };
    let receipts: Vec<Json> = proved.receipts.into_iter().map(told).collect();
    let (height, head_height) = (proved.height, proved.head_height);
    Ok(json!({"height": height, "head_height": head_height, "receipts": receipts, "trust": "attested"}))
}

async fn submit(client: &Client, args: &Args<'_>) -> Outcome {
    let (peer, world_id, key) = (args.peer()?, args.world_id()?, SigningKey::from_bytes(&args.hash("seed")?));
    let int = |name: &'static str| args.count(name).map(|n| (name, Value::Int(n)));
    let envelope = map([
        ("v", Value::Int(1)),
        ("world_id", cbor::text(world_id)),
        ("actor_id", cbor::bytes(crypto::key_id(&key))),
        ("atomic", Value::Bool(args.flag("atomic")?)),
        ("actions", from_json(&args.0["actions"]).map_err(|why| usage(why.to_string()))?),
        int("nonce")?,
        int("expires_at_height")?,
        int("timestamp_ms")?,
    ]);
    schema::check(&Shape::Record("envelope"), &envelope, "envelope")?;
    let envelope_hash = records::hash("envelope", &envelope);
    let sealed = records::seal("envelope", envelope, &key);
    let bytes = hex(sealed.encode());
    let request = map([("world_id", cbor::text(world_id)), ("envelopes", Value::List(vec![sealed]))]);
    let answer = client.ask(peer, "submit_actions", request).await?;
    let [result] = answer.list("results")? else { return Err(Failure::Refused("not one result".into())) };
    proofs::check_acceptance(world_id, &envelope_hash, &peer.to_bytes(), result)?;
    let mut told = json!({"outcome": result.text("outcome")?, "envelope_hash": hex(envelope_hash), "envelope": bytes});
    for key in ["reason", "message"] {
        if let Some(Value::Text(text)) = result.get(key) {
            told[key] = json!(text);
        }
    }
    Ok(told)
}
