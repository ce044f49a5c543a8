//! What a record must hold beyond its shape: hashes, seals, authority sets, heads. Implements "Records", "Authorities",
//! "Head" and "Evidence" of docs/protocol.md, as far as bytes alone decide.

use ed25519_dalek::SigningKey;

use crate::cbor::{self, Result, Value, ensure, refuse};
use crate::crypto::{self, Hash};
use crate::schema::{self, Shape};

/// Decodes one record from untrusted bytes.
pub fn decode(name: &'static str, body: &[u8]) -> Result<Value> {
    ensure(body.len() <= schema::size_max(name), &format!("{name}: larger than it may be"))?;
    let value = cbor::decode(body, cbor::ITEMS_MAX)?;
    schema::check(&Shape::Record(name), &value, name)?;
    Ok(value)
}

/// Decodes the blob stored under a record's hash, which is its preimage.
pub fn decode_preimage(name: &'static str, blob: &[u8]) -> Result<Value> {
    match blob.strip_prefix(crypto::preimage(name, &[]).as_slice()) {
        Some(body) => decode(name, body),
        None => refuse(format!("is no preimage of a {name}")),
    }
}

pub fn preimage(name: &str, record: &Value) -> Vec<u8> {
    crypto::preimage(name, &record.encode())
}

pub fn hash(name: &str, record: &Value) -> Hash {
    crypto::hash(&preimage(name, record))
}

pub fn signer(name: &str) -> &'static str {
    match name {
        "envelope" => "actor_id",
        "acceptance" => "gateway_id",
        "batch" => "proposer_id",
        "lease" | "commit" => "certifier_id",
        _ => "executor_id",
    }
}

/// The record within a seal whose signature holds.
pub fn open<'a>(name: &'static str, sealed: &'a Value) -> Result<&'a Value> {
    let record = unseal(name, sealed)?;
    verify(name, sealed)?;
    Ok(record)
}

/// The signature of a seal of the right shape.
pub fn verify(name: &str, sealed: &Value) -> Result<()> {
    let [record, signature] = sealed.items()? else { return refuse(format!("{name}: no seal")) };
    crypto::verify(record.bytes(signer(name))?, &hash(name, record), signature.as_bytes()?)
}

/// The record within a seal of the right shape, whoever signed it.
pub fn unseal<'a>(name: &'static str, sealed: &'a Value) -> Result<&'a Value> {
    schema::check(&Shape::Sealed(name), sealed, name)?;
    Ok(&sealed.items()?[0])
}

pub fn seal(name: &str, record: Value, key: &SigningKey) -> Value {
    let signature = crypto::sign(key, &hash(name, &record));
    Value::List(vec![record, cbor::bytes(signature)])
}

fn ascending<T: PartialOrd>(items: &[T]) -> bool {
    items.windows(2).all(|pair| pair[0] < pair[1])
}

fn byte_strings<'a>(record: &'a Value, key: &str) -> Result<Vec<&'a [u8]>> {
    record.list(key)?.iter().map(Value::as_bytes).collect()
}

pub fn same(one: &Value, other: &Value, keys: &[&str]) -> Result<()> {
    keys.iter().try_for_each(|key| ensure(one.at(key)? == other.at(key)?, &format!("{key} differs")))
}

/// Rules between the fields of one record of the right shape.
pub fn check_rules(name: &str, record: &Value) -> Result<()> {
    match name {
        "genesis" => {
            let keys = byte_strings(record, "root_keys")?;
            ensure(ascending(&keys), "root_keys do not ascend")?;
            ensure(record.int("root_threshold")? <= keys.len() as i64, "root_threshold is above the number of keys")
        }
        "genesis_body" => check_genesis_body(record),
        "genesis_file" => {
            let (header, set) = (record.at("header")?, record.at("authorities")?);
            let body_hash = hash("genesis_body", record.at("body")?);
            ensure(header.bytes("body_hash")? == body_hash, "body_hash is not the body's")?;
            check_first_set(header, set)
        }
        "authorities" => {
            let first = record.int("epoch")? == 0;
            for (key, present) in [("world_id", !first), ("resume", !first)] {
                ensure(
                    record.get(key).is_some() == present,
                    &format!("{key}: only from epoch 1 on, and always there"),
                )?;
            }
            ["proposers", "executors"]
                .iter()
                .try_for_each(|role| ensure(ascending(&byte_strings(record, role)?), &format!("{role} do not ascend")))
        }
        "envelope" => {
            let payloads = record.list("actions")?.iter().map(|action| Ok(action.items()?[1].count_items()));
            ensure(payloads.sum::<Result<usize>>()? <= 4_096, "more than 4096 items in payloads")
        }
        "commit_fork" => check_fork(record, "batch_hash", &["world_id", "epoch", "height", "certifier_id"]),
        "lease_fork" => check_fork(record, "holder_id", &["world_id", "epoch", "term", "certifier_id"]),
        "attestation_fork" => check_fork(record, "block_hash", &["world_id", "epoch", "height", "executor_id"]),
        "authorities_fork" => {
            let [first, second] = ["first", "second"].map(|key| Ok(&record.list(key)?[0]));
            let (first, second) = (first?, second?);
            same(first, second, &["world_id", "epoch"])?;
            ensure(hash("authorities", first) < hash("authorities", second), "the sets do not ascend by hash")
        }
        "malformed_batch" => {
            let (commit, batch) = (open("commit", record.at("commit")?)?, record.at("batch")?);
            same(commit, batch, &["world_id", "height"])?;
            ensure(commit.bytes("batch_hash")? == hash("batch", batch), "the commit is of another batch")?;
            ensure(
                batch.bytes("actions_ref")? == crypto::hash(record.bytes("actions")?),
                "actions are of another batch",
            )?;
            let parent = record.get("parent").map_or(Ok(true), |parent| {
                Ok::<_, cbor::Bad>(batch.bytes("prev_batch_hash")? == hash("batch", parent))
            });
            ensure(parent?, "the parent is another one")
        }
        "wrong_root_proof" => {
            let (attestation, block) = (open("attestation", record.at("attestation")?)?, record.at("block")?);
            same(attestation, block, &["world_id", "height"])?;
            ensure(attestation.bytes("block_hash")? == hash("block", block), "the attestation is of another block")
        }
        _ => Ok(()),
    }
}

fn check_fork(record: &Value, differs: &str, equal: &[&str]) -> Result<()> {
    let kind = match differs {
        "batch_hash" => "commit",
        "holder_id" => "lease",
        _ => "attestation",
    };
    let (first, second) = (open(kind, record.at("first")?)?, open(kind, record.at("second")?)?);
    same(first, second, equal)?;
    ensure(first.bytes(differs)? < second.bytes(differs)?, &format!("do not ascend by {differs}"))
}

fn check_genesis_body(body: &Value) -> Result<()> {
    let bounds = body.at("bounds")?;
    for axis in ["x", "y", "z"] {
        let ordered = bounds.int(&format!("{axis}_min_cm"))? <= bounds.int(&format!("{axis}_max_cm"))?;
        ensure(ordered, "bounds: a minimum above its maximum")?;
    }
    let text = |value: &Value| if let Value::Text(text) = value { text.clone() } else { String::new() };
    let kinds: Vec<String> = body.list("resource_kinds")?.iter().map(text).collect();
    ensure(ascending(&kinds), "resource_kinds do not ascend")?;
    let mut totals = vec![0i64; kinds.len()];
    let mut owners: Vec<(&[u8], String)> = Vec::new();
    for balance in body.list("balances")? {
        let [owner, kind, Value::Int(amount)] = balance.items()? else { return refuse("balances: no triple") };
        let Some(at) = kinds.iter().position(|k| *k == text(kind)) else { return refuse("balances: unknown kind") };
        let Some(total) = totals[at].checked_add(*amount) else { return refuse("balances: total above 2^63-1") };
        totals[at] = total;
        owners.push((owner.as_bytes()?, text(kind)));
    }
    ensure(ascending(&owners), "balances do not ascend")
}

fn check_first_set(header: &Value, set: &Value) -> Result<()> {
    ensure(set.int("epoch")? == 0, "authorities: of another epoch than 0")?;
    ensure(header.bytes("authorities_hash")? == hash("authorities", set), "authorities: are not the header's")
}

/// `[set, [[root index, signature], ...]]` bound to the header of its world.
fn check_signed_set<'a>(header: &Value, signed: &'a Value) -> Result<&'a Value> {
    let [set, Value::List(signatures)] = signed.items()? else { return refuse("authorities: no signed set") };
    if set.int("epoch")? == 0 {
        ensure(signatures.is_empty(), "authorities: epoch 0 has no signatures")?;
        check_first_set(header, set)?;
        return Ok(set);
    }
    let world_id = crypto::world_id(&hash("genesis", header));
    ensure(set.text("world_id")? == world_id, "authorities: of another world")?;
    let threshold = header.int("root_threshold")? as usize;
    ensure(signatures.len() == threshold, "authorities: not exactly root_threshold signatures")?;
    let (keys, record_hash) = (header.list("root_keys")?, hash("authorities", set));
    let mut indexes = Vec::new();
    for pair in signatures {
        let [Value::Int(index), signature] = pair.items()? else { return refuse("authorities: no signature") };
        let Some(key) = keys.get(*index as usize) else { return refuse("authorities: no such root key") };
        crypto::verify(key.as_bytes()?, &record_hash, signature.as_bytes()?)?;
        indexes.push(*index);
    }
    ensure(ascending(&indexes), "authorities: root indexes do not ascend")?;
    Ok(set)
}

fn is_member(set: &Value, role: &str, key: &[u8]) -> Result<()> {
    ensure(byte_strings(set, role)?.contains(&key), &format!("is none of the {role} of this epoch"))
}

/// A sealed commit of the set in force.
pub fn check_commit<'a>(world_id: &str, set: &Value, sealed: &'a Value) -> Result<&'a Value> {
    let commit = unseal("commit", sealed)?;
    ensure(commit.text("world_id")? == world_id, "commit: of another world")?;
    same(commit, set, &["epoch"])?;
    is_member(set, "certifiers", commit.bytes("certifier_id")?)?;
    verify("commit", sealed)?;
    Ok(commit)
}

/// A head that holds in itself, and against its world.
#[derive(Clone, Debug)]
pub struct Head {
    pub world_id: String,
    /// Epoch, height, as_of_ms, hash of the preimage: greater is newer.
    pub order: (i64, i64, i64, Hash),
    pub value: Value,
}

impl Head {
    pub fn height(&self) -> i64 {
        self.order.1
    }
    /// When the certifier last said so: how old it may be is the reader's to judge.
    pub fn as_of_ms(&self) -> i64 {
        self.order.2
    }
    pub fn set(&self) -> Result<&Value> {
        Ok(&self.value.list("authorities")?[0])
    }
    pub fn commit(&self) -> Result<&Value> {
        Ok(&self.value.list("commit")?[0])
    }
    pub fn block_hash(&self) -> Result<&[u8]> {
        self.value.bytes("block_hash")
    }
}

pub fn check_head(body: &[u8], world_id: Option<&str>) -> Result<Head> {
    let value = decode("head", body)?;
    let header = value.at("header")?;
    let own_id = crypto::world_id(&hash("genesis", header));
    ensure(world_id.is_none_or(|id| id == own_id), "head: of another world")?;
    let set = check_signed_set(header, value.at("authorities")?)?;
    let commit = check_commit(&own_id, set, value.at("commit")?)?;
    let height = commit.int("height")?;
    if let Some(resume) = set.get("resume") {
        ensure(height >= resume.int("height")?, "head: below the height where its epoch begins")?;
        if height == resume.int("height")? {
            same(commit, resume, &["batch_hash"])?;
        }
    }
    let mut executors = Vec::new();
    for sealed in value.list("attestations")? {
        let attestation = unseal("attestation", sealed)?;
        is_member(set, "executors", attestation.bytes("executor_id")?)?;
        same(attestation, commit, &["world_id", "epoch", "height"])?;
        same(attestation, &value, &["block_hash"])?;
        verify("attestation", sealed)?;
        executors.push(attestation.bytes("executor_id")?.to_vec());
    }
    ensure(ascending(&executors), "head: attestations do not ascend by executor")?;
    let order = (commit.int("epoch")?, height, commit.int("as_of_ms")?, crypto::hash(&crypto::preimage("head", body)));
    Ok(Head { world_id: own_id, order, value })
}
