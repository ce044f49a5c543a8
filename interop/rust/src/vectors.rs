//! Holds this peer against every file of interop/vectors: what must be made or accepted, and what must be refused. What a
//! file should have and lacks is an error.

use std::path::Path;

use serde_json::{Value as Json, json};

use aw::cbor::{self, Bad, ITEMS_MAX, Result, Value, ensure, refuse};
use aw::crypto::{self, Hash, hex, unhex};
use aw::merkle::{self, Peaks};
use aw::world::World;
use aw::{gossip, records, schema, state};
use awnet::frames::{self, Frame, Parsed};

use crate::chain::{Descent, Lists};
use crate::json::from_json;

/// `refused` counts the entries that must not be taken, `checked` all else.
#[derive(Default)]
struct Tally {
    checked: u64,
    refused: u64,
}

impl Tally {
    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, made: T, golden: T, what: &str) -> Result<()> {
        self.checked += 1;
        if made == golden { Ok(()) } else { refuse(format!("{what}: {made:?} instead of {golden:?}")) }
    }

    fn refused(&mut self, is_so: bool, what: &str) -> Result<()> {
        self.refused += 1;
        ensure(is_so, &format!("was judged otherwise: {what}"))
    }

    /// Entries of one list, each with its bytes under `key`.
    fn all_refused(&mut self, entries: &Json, key: &str, is_so: impl Fn(&[u8]) -> bool) -> Result<()> {
        each(entries)?.iter().try_for_each(|bad| self.refused(is_so(&hex_of(bad, key)?), str_of(bad, "reason")?))
    }
}

fn str_of<'a>(json: &'a Json, key: &str) -> Result<&'a str> {
    json[key].as_str().ok_or_else(|| Bad::Refused(format!("{key} is no text")))
}

fn hex_of(json: &Json, key: &str) -> Result<Vec<u8>> {
    unhex(str_of(json, key)?)
}

fn count_of(json: &Json, key: &str) -> Result<u64> {
    json[key].as_u64().ok_or_else(|| Bad::Refused(format!("{key} is no count")))
}

fn hash_of(json: &Json, key: &str) -> Result<Hash> {
    hex_of(json, key)?.try_into().map_err(|_| Bad::Refused(format!("{key} is no hash")))
}

fn each(json: &Json) -> Result<&[Json]> {
    json.as_array().map(Vec::as_slice).ok_or_else(|| Bad::Refused("a list is missing".into()))
}

pub fn check_all(folder: &Path) -> Result<Json> {
    type Check = fn(&mut Tally, &Json, &Path) -> Result<()>;
    let checks: [(&str, Check); 8] = [
        ("ids", ids),
        ("merkle", merkle_trees),
        ("signatures", signatures),
        ("frames", frame_bytes),
        ("records", all_records),
        ("state", states),
        ("step", step),
        ("gossip", messages),
    ];
    let mut files = serde_json::Map::new();
    for (name, check) in checks {
        let mut tally = Tally::default();
        let at = |why: Bad| Bad::Refused(format!("{name}.json: {why}"));
        check(&mut tally, &load(folder, name).map_err(at)?, folder).map_err(at)?;
        files.insert(format!("{name}.json"), json!({"checked": tally.checked, "refused": tally.refused}));
    }
    for entry in std::fs::read_dir(folder).map_err(|e| Bad::Refused(e.to_string()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        ensure(!name.ends_with(".json") || files.contains_key(&name), &format!("{name}: nobody checks it"))?;
    }
    Ok(json!({"files": files}))
}

fn load(folder: &Path, name: &str) -> Result<Json> {
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).map_err(|e| Bad::Refused(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| Bad::Refused(e.to_string()))
}

fn ids(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    let content_id = crypto::hash(&hex_of(&file["content_id"], "blob")?);
    tally.equal(hex(content_id).as_str(), str_of(&file["content_id"], "hex")?, "content id")?;
    tally.equal(crypto::cid(&content_id).as_str(), str_of(&file["content_id"], "cid")?, "cid")?;
    tally.equal(hex(crypto::provider_key(&content_id)).as_str(), str_of(file, "provider_key")?, "provider key")?;
    let key_id = crypto::key_id(&crypto::SigningKey::from_bytes(&hash_of(&file["peer"], "seed")?));
    tally.equal(hex(&key_id).as_str(), str_of(&file["peer"], "key_id")?, "key id")?;
    let peer = libp2p::PeerId::from_bytes(&key_id).map_err(|e| Bad::Refused(e.to_string()))?;
    tally.equal(peer.to_string().as_str(), str_of(&file["peer"], "text")?, "peer id")?;
    let world_id = crypto::world_id(&hash_of(&file["world_id"], "header_hash")?);
    tally.equal(world_id.as_str(), str_of(&file["world_id"], "world_id")?, "world id")?;
    tally.equal(awnet::dht::head_key(&world_id).as_str(), str_of(file, "head_key")?, "head key")?;
    let content_id = hex(crypto::world_content_id(&world_id));
    tally.equal(content_id.as_str(), str_of(file, "world_content_id")?, "world content id")?;
    for topic in each(&file["topics"])? {
        let parsed = topic.as_str().and_then(gossip::parse_topic);
        let remade = parsed.map(|(world_id, kind)| gossip::topic(world_id, kind));
        tally.equal(json!(remade), topic.clone(), "topic")?;
    }
    Ok(())
}

fn merkle_trees(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for tree in each(&file["trees"])? {
        let count = count_of(tree, "count")?;
        let items: Vec<[u8; 1]> = (0..count).map(|i| [i as u8]).collect();
        let items: Vec<&[u8]> = items.iter().map(|item| &item[..]).collect();
        let mut peaks = Peaks::default();
        items.iter().for_each(|item| peaks.push(item));
        let root = peaks.root();
        tally.equal(hex(root).as_str(), str_of(tree, "root")?, "root")?;
        tally.equal(json!(peaks.peaks.iter().map(hex).collect::<Vec<_>>()), tree["peaks"].clone(), "peaks")?;
        let paths = each(&tree["paths"])?;
        tally.equal(paths.len(), items.len(), "paths")?;
        for (index, golden) in paths.iter().enumerate() {
            let path = merkle::path(&items, index);
            tally.equal(json!(path.iter().map(hex).collect::<Vec<_>>()), golden.clone(), "path")?;
            let mut path: Vec<&[u8]> = path.iter().map(|sibling| &sibling[..]).collect();
            let holds = |item, path: &[&[u8]]| merkle::verify(&root, item, index as u64, count, path).is_ok();
            ensure(holds(items[index], &path) && !holds(b"x", &path), "path: of this item alone")?;
            path.push(&root);
            ensure(!holds(items[index], &path), "path: a longer one")?;
        }
    }
    Ok(())
}

fn signatures(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(file)? {
        let (key_id, record_hash) = (hex_of(case, "key_id")?, hash_of(case, "record_hash")?);
        tally.equal(crypto::signed_message(&record_hash), hex_of(case, "message")?, "message")?;
        let verdict = crypto::verify(&key_id, &record_hash, &hex_of(case, "signature")?);
        match case["accept"].as_bool() {
            Some(true) => tally.equal(verdict, Ok(()), str_of(case, "name")?)?,
            Some(false) => tally.refused(verdict.is_err(), str_of(case, "name")?)?,
            None => return refuse("accept is missing"),
        }
    }
    Ok(())
}

fn frame_of(case: &Json) -> Result<Frame> {
    let id = count_of(case, "id")? as u32;
    Ok(match str_of(case, "kind")? {
        "request" => Frame::Request { id, method: str_of(case, "method")?.into(), body: hex_of(case, "body")? },
        "answer" => Frame::Answer { id, body: hex_of(case, "body")? },
        "part" => Frame::Part { id, body: hex_of(case, "body")? },
        "error" => {
            let mut error = frames::RrError::new(count_of(case, "code")? as u8, str_of(case, "message")?);
            error.retry_after_ms = count_of(case, "retry_after_ms")? as u32;
            error.detail = hex_of(case, "detail")?;
            Frame::Error { id, error }
        }
        other => return refuse(format!("no frame {other}")),
    })
}

fn frame_bytes(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(&file["frames"])? {
        let (frame, golden) = (frame_of(case)?, hex_of(case, "hex")?);
        tally.equal(frame.encode(), golden.clone(), "frame")?;
        tally.equal(frames::parse(&golden), Ok(Parsed::Whole(frame, golden.len())), "frame")?;
    }
    tally.all_refused(&file["refuse"], "hex", |data| frames::parse(data).is_err())
}

fn all_records(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(file)? {
        let named = str_of(case, "record")?;
        let name = schema::record_name(named).ok_or_else(|| Bad::Refused(format!("no record {named}")))?;
        let within = |why: Bad| Bad::Refused(format!("{name}: {why}"));
        one_record(tally, name, case).map_err(within)?;
    }
    Ok(())
}

fn one_record(tally: &mut Tally, name: &'static str, case: &Json) -> Result<()> {
    let judge = |body: &[u8]| match name {
        "head" => records::check_head(body, None).map(|head| head.value),
        _ => records::decode(name, body),
    };
    let (value, body) = (from_json(&case["value"])?, hex_of(case, "body")?);
    tally.equal(value.encode(), body.clone(), "body")?;
    tally.equal(judge(&body)?, value.clone(), "value")?;
    tally.equal(hex(records::preimage(name, &value)).as_str(), str_of(case, "preimage")?, "preimage")?;
    tally.equal(hex(records::hash(name, &value)).as_str(), str_of(case, "hash")?, "hash")?;
    tally.all_refused(&case["refuse"], "hex", |body| matches!(judge(body), Err(Bad::Refused(_))))?;
    tally.all_refused(&case["ignore"], "hex", |body| matches!(judge(body), Err(Bad::Ignored(_))))?;
    if case.get("sealed").is_some() {
        let sealed = Value::List(vec![value.clone(), cbor::bytes(hex_of(case, "signature")?)]);
        tally.equal(hex(sealed.encode()).as_str(), str_of(case, "sealed")?, "sealed")?;
        tally.equal(records::open(name, &sealed)?, &value, "sealed")?;
        tally.equal(hex(value.bytes(records::signer(name))?).as_str(), str_of(case, "signer")?, "signer")?;
        let open = |sealed: &[u8]| records::open(name, &cbor::decode(sealed, ITEMS_MAX)?).map(|_| ());
        tally.all_refused(&case["refuse_sealed"], "hex", |sealed| matches!(open(sealed), Err(Bad::Refused(_))))?;
    }
    Ok(())
}

fn states(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(file)? {
        let mut cells = Vec::new();
        for cell in each(&case["cells"])? {
            let [Some(namespace), Some(key), Some(value)] = [0, 1, 2].map(|i| cell[i].as_str()) else {
                return refuse("a cell is no three texts");
            };
            cells.push((namespace.to_owned(), unhex(key)?, unhex(value)?));
        }
        let root = state::root(cells);
        tally.equal(hex(root).as_str(), str_of(case, "root")?, "root")?;
        for proof in each(&case["proofs"])? {
            let (namespace, key) = (str_of(proof, "namespace")?, hex_of(proof, "key")?);
            let value = state::verify(&root, namespace, &key, &hex_of(proof, "proof")?)?;
            tally.equal(json!(value.map(hex)), proof["value"].clone(), "value")?;
            let is_false = |data: &[u8]| state::verify(&root, namespace, &key, data).is_err();
            tally.all_refused(&proof["refuse"], "proof", is_false)?;
        }
    }
    Ok(())
}

fn step(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    let world = World::new(&hex_of(file, "genesis")?)?;
    tally.equal(world.id.as_str(), str_of(file, "world_id")?, "world id")?;
    tally.equal(hex(world.state_root()?).as_str(), str_of(file, "state_root_before")?, "state root at height 0")?;
    let head = records::check_head(&hex_of(file, "head")?, Some(&world.id))?;
    let sealed = |key: &str| cbor::decode(&hex_of(file, key)?, ITEMS_MAX);
    let (batch, commit, actions) = (sealed("batch")?, sealed("commit")?, hex_of(file, "actions")?);
    let decode = |hex: &Json| cbor::decode(&unhex(hex.as_str().unwrap_or("no text"))?, ITEMS_MAX);
    let envelopes = each(&file["envelopes"])?.iter().map(decode).collect::<Result<Vec<_>>>()?;
    for envelope in &envelopes {
        tally.equal(records::open("envelope", envelope).map(|_| ()), Ok(()), "envelope")?;
    }
    tally.equal(Value::List(envelopes).encode(), actions.clone(), "actions")?;
    let block = records::decode("block", &hex_of(file, "block")?)?;
    tally.equal(hex(records::hash("block", &block)).as_str(), str_of(file, "block_hash")?, "block hash")?;
    tally.equal(hex(block.bytes("state_root")?).as_str(), str_of(file, "state_root")?, "state root")?;
    let (receipts, events) = (from_json(&file["receipts"])?.encode(), from_json(&file["events"])?.encode());
    let Some(blobs) = file["blobs"].as_object() else { return refuse("blobs are missing") };
    for hash in blobs.keys() {
        let data = hex_of(&file["blobs"], hash)?;
        tally.equal(hex(crypto::hash(&data)).as_str(), hash, "blob")?;
        let known = data == receipts || data == events || data == records::preimage("block", &block);
        tally.equal(known, true, "a blob that the block names")?;
    }
    let lists = Lists { actions: &actions, receipts: &receipts, events: &events };
    let (record, order) = (records::open("batch", &batch)?.clone(), Some((batch.clone(), commit)));
    let mut descent = Descent::new(&world, &head)?;
    ensure(descent.push(Value::List(Vec::new())).is_err(), "another block than the head's")?;
    tally.equal(descent.push(block), Ok(()), "block")?;
    let mut chain = descent.finish()?;
    tally.equal(chain.take(1, &record, order.clone(), &lists), Ok(()), "what the block names")?;
    tally.equal(chain.steps[0].order.is_some(), true, "the seals are kept")?;
    let forged = Lists { receipts: &events, ..lists };
    ensure(chain.take(1, &record, order, &forged).is_err(), "other receipts")
}

fn messages(tally: &mut Tally, file: &Json, folder: &Path) -> Result<()> {
    let world = World::new(&hex_of(&load(folder, "step")?, "genesis")?)?;
    let envelope_bytes_max = world.limit("envelope_bytes_max")?;
    for case in each(file)? {
        let (verdict, why) = gossip::judge(str_of(case, "topic")?, &hex_of(case, "data")?, envelope_bytes_max);
        let what = format!("{} ({why:?})", str_of(case, "name")?);
        match str_of(case, "verdict")? {
            "accept" => tally.equal(verdict.name(), "accept", &what)?,
            other => tally.refused(verdict.name() == other, &what)?,
        }
    }
    Ok(())
}
