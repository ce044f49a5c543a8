//! Holds this peer against every file of interop/vectors: what must be made or accepted, and what must be refused.

use std::path::Path;

use serde_json::{Value as Json, json};

use aw::cbor::{self, Bad, ITEMS_MAX, Result, Value, ensure, refuse};
use aw::crypto::{self, hex, unhex};
use aw::merkle::{self, Peaks};
use aw::world::World;
use aw::{gossip, records, schema, state};
use awnet::frames::{self, Frame, Parsed};

use crate::chain::{Descent, Lists};
use crate::json::from_json;

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

    fn refused<T>(&mut self, result: Result<T>, what: &str) -> Result<()> {
        self.refused += 1;
        ensure(matches!(result, Err(Bad::Refused(_))), &format!("was not refused: {what}"))
    }
}

fn str_of<'a>(json: &'a Json, key: &str) -> Result<&'a str> {
    json[key].as_str().ok_or_else(|| Bad::Refused(format!("{key} is no text")))
}

fn hex_of(json: &Json, key: &str) -> Result<Vec<u8>> {
    unhex(str_of(json, key)?)
}

fn each(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().into_iter().flatten()
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
    let seed = hex_of(&file["peer"], "seed")?.try_into().map_err(|_| Bad::Refused("seed".into()))?;
    let key_id = crypto::key_id(&crypto::SigningKey::from_bytes(&seed));
    tally.equal(hex(&key_id).as_str(), str_of(&file["peer"], "key_id")?, "key id")?;
    let peer = libp2p::PeerId::from_bytes(&key_id).map_err(|e| Bad::Refused(e.to_string()))?;
    tally.equal(peer.to_string().as_str(), str_of(&file["peer"], "text")?, "peer id")?;
    let header_hash = hex_of(&file["world_id"], "header_hash")?.try_into().map_err(|_| Bad::Refused("hash".into()))?;
    let world_id = crypto::world_id(&header_hash);
    tally.equal(world_id.as_str(), str_of(&file["world_id"], "world_id")?, "world id")?;
    tally.equal(awnet::dht::head_key(&world_id).as_str(), str_of(file, "head_key")?, "head key")?;
    let content_id = hex(crypto::world_content_id(&world_id));
    tally.equal(content_id.as_str(), str_of(file, "world_content_id")?, "world content id")?;
    for topic in each(&file["topics"]).filter_map(Json::as_str) {
        let remade = gossip::parse_topic(topic).map(|(world_id, kind)| gossip::topic(world_id, kind));
        tally.equal(remade.as_deref(), Some(topic), "topic")?;
    }
    Ok(())
}

fn merkle_trees(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for tree in each(&file["trees"]) {
        let count = tree["count"].as_u64().unwrap_or_default();
        let items: Vec<[u8; 1]> = (0..count).map(|i| [i as u8]).collect();
        let items: Vec<&[u8]> = items.iter().map(|item| &item[..]).collect();
        let mut peaks = Peaks::default();
        items.iter().for_each(|item| peaks.push(item));
        let root = peaks.root();
        tally.equal(hex(root).as_str(), str_of(tree, "root")?, "root")?;
        tally.equal(json!(peaks.peaks.iter().map(hex).collect::<Vec<_>>()), tree["peaks"].clone(), "peaks")?;
        for (index, golden) in each(&tree["paths"]).enumerate() {
            let path = merkle::path(&items, index);
            tally.equal(json!(path.iter().map(hex).collect::<Vec<_>>()), golden.clone(), "path")?;
            let mut path: Vec<&[u8]> = path.iter().map(|sibling| &sibling[..]).collect();
            let at = index as u64;
            merkle::verify(&root, items[index], at, count, &path)?;
            tally.refused(merkle::verify(&root, b"x", at, count, &path), "another item")?;
            path.push(&root);
            tally.refused(merkle::verify(&root, items[index], at, count, &path), "a longer path")?;
        }
    }
    Ok(())
}

fn signatures(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(file) {
        let record_hash = hex_of(case, "record_hash")?.try_into().map_err(|_| Bad::Refused("hash".into()))?;
        let verdict = crypto::verify(&hex_of(case, "key_id")?, &record_hash, &hex_of(case, "signature")?);
        if case["accept"] == json!(true) {
            tally.equal(verdict, Ok(()), str_of(case, "name")?)?;
        } else {
            tally.refused(verdict, str_of(case, "name")?)?;
        }
    }
    Ok(())
}

fn frame_of(case: &Json) -> Result<Frame> {
    let id = case["id"].as_u64().unwrap_or_default() as u32;
    Ok(match str_of(case, "kind")? {
        "request" => Frame::Request { id, method: str_of(case, "method")?.into(), body: hex_of(case, "body")? },
        "answer" => Frame::Answer { id, body: hex_of(case, "body")? },
        "part" => Frame::Part { id, body: hex_of(case, "body")? },
        _ => {
            let mut error = frames::RrError::new(case["code"].as_u64().unwrap_or(1) as u8, str_of(case, "message")?);
            error.retry_after_ms = case["retry_after_ms"].as_u64().unwrap_or_default() as u32;
            error.detail = hex_of(case, "detail")?;
            Frame::Error { id, error }
        }
    })
}

fn frame_bytes(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(&file["frames"]) {
        let (frame, golden) = (frame_of(case)?, hex_of(case, "hex")?);
        tally.equal(frame.encode(), golden.clone(), "frame")?;
        tally.equal(frames::parse(&golden), Ok(Parsed::Whole(frame, golden.len())), "frame")?;
    }
    for case in each(&file["refuse"]) {
        let parsed = frames::parse(&hex_of(case, "hex")?);
        tally.refused(parsed.map_err(|e| Bad::Refused(e.why.into())), str_of(case, "reason")?)?;
    }
    Ok(())
}

fn all_records(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(file) {
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
    if case.get("sealed").is_some() {
        let sealed = Value::List(vec![value.clone(), cbor::bytes(hex_of(case, "signature")?)]);
        tally.equal(hex(sealed.encode()).as_str(), str_of(case, "sealed")?, "sealed")?;
        tally.equal(records::open(name, &sealed)?, &value, "sealed")?;
        tally.equal(hex(value.bytes(records::signer(name))?).as_str(), str_of(case, "signer")?, "signer")?;
    }
    for bad in each(&case["refuse"]) {
        tally.refused(judge(&hex_of(bad, "hex")?), str_of(bad, "reason")?)?;
    }
    for bad in each(&case["refuse_sealed"]) {
        let opened = cbor::decode(&hex_of(bad, "hex")?, ITEMS_MAX);
        let opened = opened.and_then(|sealed| records::open(name, &sealed).map(|_| ()));
        tally.refused(opened, str_of(bad, "reason")?)?;
    }
    for newer in each(&case["ignore"]) {
        let ignored = matches!(judge(&hex_of(newer, "hex")?), Err(Bad::Ignored(_)));
        tally.equal(ignored, true, "a record of another version must be told apart")?;
    }
    Ok(())
}

fn states(tally: &mut Tally, file: &Json, _: &Path) -> Result<()> {
    for case in each(file) {
        let mut cells = Vec::new();
        for cell in each(&case["cells"]) {
            let [namespace, key, value] = [0, 1, 2].map(|i| cell[i].as_str().unwrap_or_default());
            cells.push((namespace.to_owned(), unhex(key)?, unhex(value)?));
        }
        let root = state::root(cells);
        tally.equal(hex(root).as_str(), str_of(case, "root")?, "root")?;
        for proof in each(&case["proofs"]) {
            let (namespace, key) = (str_of(proof, "namespace")?, hex_of(proof, "key")?);
            let value = state::verify(&root, namespace, &key, &hex_of(proof, "proof")?)?;
            tally.equal(json!(value.map(hex)), proof["value"].clone(), "value")?;
            for bad in each(&proof["refuse"]) {
                let verdict = state::verify(&root, namespace, &key, &hex_of(bad, "proof")?);
                tally.refused(verdict, str_of(bad, "reason")?)?;
            }
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
    let envelopes = each(&file["envelopes"]).map(|e| cbor::decode(&unhex(e.as_str().unwrap_or_default())?, ITEMS_MAX));
    let envelopes = envelopes.collect::<Result<Vec<_>>>()?;
    for envelope in &envelopes {
        tally.equal(records::open("envelope", envelope).map(|_| ()), Ok(()), "envelope")?;
    }
    tally.equal(Value::List(envelopes).encode(), actions.clone(), "actions")?;
    let block = records::decode("block", &hex_of(file, "block")?)?;
    tally.equal(hex(records::hash("block", &block)).as_str(), str_of(file, "block_hash")?, "block hash")?;
    tally.equal(hex(block.bytes("state_root")?).as_str(), str_of(file, "state_root")?, "state root")?;
    let lists = ["receipts", "events"].map(|key| from_json(&file[key]).map(|list| list.encode()));
    let [receipts, events] = lists.map(|list| list.unwrap_or_default());
    for blob in file["blobs"].as_object().into_iter().flatten() {
        let data = unhex(blob.1.as_str().unwrap_or_default())?;
        tally.equal(hex(crypto::hash(&data)).as_str(), blob.0, "blob")?;
        let known = data == receipts || data == events || data == records::preimage("block", &block);
        tally.equal(known, true, "a blob that the block names")?;
    }
    let lists = Lists { actions: &actions, receipts: &receipts, events: &events };
    let (record, order) = (records::open("batch", &batch)?.clone(), Some((batch.clone(), commit)));
    let mut descent = Descent::new(&world, &head)?;
    tally.refused(descent.push(Value::List(Vec::new())), "another block than the head's")?;
    tally.equal(descent.push(block), Ok(()), "block")?;
    let mut chain = descent.finish()?;
    tally.equal(chain.take(1, &record, order.clone(), &lists), Ok(()), "what the block names")?;
    tally.equal(chain.steps[0].order.is_some(), true, "the seals are kept")?;
    let forged = Lists { receipts: &events, ..lists };
    tally.refused(chain.take(1, &record, order, &forged), "other receipts")
}

fn messages(tally: &mut Tally, file: &Json, folder: &Path) -> Result<()> {
    let world = World::new(&hex_of(&load(folder, "step")?, "genesis")?)?;
    let envelope_bytes_max = world.limit("envelope_bytes_max")?;
    for case in each(file) {
        let (verdict, why) = gossip::judge(str_of(case, "topic")?, &hex_of(case, "data")?, envelope_bytes_max);
        let what = format!("{} ({why:?})", str_of(case, "name")?);
        tally.equal(verdict.name(), str_of(case, "verdict")?, &what)?;
        tally.refused += u64::from(verdict == gossip::Verdict::Reject);
    }
    Ok(())
}
