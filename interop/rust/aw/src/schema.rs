//! The shape of every record and rr body, as one table, and the one function that holds bytes against it. Implements
//! the tables of "Records" and "Methods" of docs/protocol.md, and docs/protocol.cddl.

use crate::cbor::{Bad, COUNT_MAX, Result, Value, ensure, refuse};
use crate::crypto::KEY_ID_PREFIX;
use crate::records;

pub enum Shape {
    /// `v`: 1 is known, another integer is ignored.
    Version,
    Bool,
    Key,
    World,
    Name,
    Int(i64, i64),
    Bytes(usize, usize),
    Text(usize, usize),
    Letters,
    Word(&'static [&'static str]),
    List(usize, usize, &'static Shape),
    Tuple(&'static [Shape]),
    Either(&'static Shape, &'static Shape),
    /// Closed: an unknown key is refused. A name that ends in `?` may be absent.
    Map(Fields),
    /// Open: unknown keys are passed over.
    Open(Fields),
    AnyMap,
    Record(&'static str),
    /// `[record, signature]`.
    Sealed(&'static str),
}

pub type Fields = &'static [(&'static str, Shape)];
use Shape::*;

const HASH: Shape = Bytes(32, 32);
const SIGNATURE: Shape = Bytes(64, 64);
const COUNT: Shape = Int(0, COUNT_MAX);
const HEIGHT: Shape = Int(1, COUNT_MAX);
const AMOUNT: Shape = Int(0, i64::MAX);
const COORDINATE: Shape = Int(-COUNT_MAX, COUNT_MAX);
const SIGNED_SET: Shape = Tuple(&[Record("authorities"), List(0, 8, &Tuple(&[Int(0, 7), SIGNATURE]))]);
const SNAPSHOT: Shape = Map(&[("height", HEIGHT), ("ref", HASH)]);

/// Name, greatest size of the body in bytes, fields. `v` comes first, so that it is judged first.
#[rustfmt::skip]
const RECORDS: &[(&str, usize, Fields)] = &[
    ("genesis", 1_024, &[
        ("v", Version), ("name", Name), ("root_keys", List(1, 8, &Key)), ("root_threshold", Int(1, 8)),
        ("authorities_hash", HASH), ("body_hash", HASH), ("created_ms", COUNT),
    ]),
    ("genesis_body", 524_288, &[
        ("bounds", Map(&[
            ("x_min_cm", COORDINATE), ("x_max_cm", COORDINATE), ("y_min_cm", COORDINATE),
            ("y_max_cm", COORDINATE), ("z_min_cm", COORDINATE), ("z_max_cm", COORDINATE),
        ])),
        ("max_move_cm", COUNT), ("resource_kinds", List(0, 64, &Name)),
        ("balances", List(0, 4_096, &Tuple(&[Key, Name, AMOUNT]))),
        ("limits", Map(&[
            ("batch_envelopes_max", Int(1, 1_024)), ("batch_actions_max", Int(64, 16_384)),
            ("batch_bytes_max", Int(32_776, 983_040)), ("envelope_bytes_max", Int(1_024, 32_768)),
            ("block_fuel_max", Int(1, 100_000_000_000)), ("agents_per_actor_max", Int(1, 1_000_000)),
            ("expiry_blocks_max", Int(1, 100_000)), ("action_skew_ms", Int(0, 3_600_000)),
        ])),
        ("checkpoint_interval", Int(1, 1_000_000)), ("max_block_gap_ms", COUNT), ("admission", Word(&["open"])),
    ]),
    ("genesis_file", 524_288, &[
        ("v", Version), ("header", Record("genesis")), ("body", Record("genesis_body")),
        ("authorities", Record("authorities")),
    ]),
    ("authorities", 2_048, &[
        ("v", Version), ("epoch", COUNT), ("proposers", List(1, 16, &Key)), ("executors", List(1, 16, &Key)),
        ("certifiers", List(1, 1, &Key)), ("commit_threshold", Int(1, 1)), ("world_id?", World),
        ("resume?", Map(&[("height", COUNT), ("batch_hash", HASH)])),
    ]),
    ("envelope", 32_768 - 67, &[
        ("v", Version), ("world_id", World), ("actor_id", Key), ("nonce", COUNT), ("expires_at_height", HEIGHT),
        ("timestamp_ms", COUNT), ("atomic", Bool), ("actions", List(1, 64, &Tuple(&[Text(1, 64), AnyMap]))),
    ]),
    ("acceptance", 512, &[
        ("v", Version), ("world_id", World), ("envelope_hash", HASH), ("gateway_id", Key),
        ("accepted_at_ms", COUNT), ("stage", Word(&["local", "replicated"])),
    ]),
    ("batch", 1_024, &[
        ("v", Version), ("world_id", World), ("epoch", COUNT), ("term", COUNT), ("height", HEIGHT),
        ("prev_batch_hash", HASH), ("envelope_count", COUNT), ("actions_root", HASH), ("actions_ref", HASH),
        ("proposer_id", Key), ("timestamp_ms", COUNT),
    ]),
    ("lease", 512, &[
        ("v", Version), ("world_id", World), ("epoch", COUNT), ("term", COUNT), ("holder_id", Key),
        ("granted_at_ms", COUNT), ("ttl_ms", COUNT), ("certifier_id", Key),
    ]),
    ("commit", 512, &[
        ("v", Version), ("world_id", World), ("epoch", COUNT), ("term", COUNT), ("height", HEIGHT),
        ("batch_hash", HASH), ("certifier_id", Key), ("as_of_ms", COUNT),
    ]),
    ("block", 1_024, &[
        ("v", Version), ("world_id", World), ("height", HEIGHT), ("prev_block_hash", HASH), ("batch_hash", HASH),
        ("state_root", HASH), ("event_root", HASH), ("journal_ref", HASH), ("receipts_root", HASH),
        ("receipts_ref", HASH), ("history_root", HASH), ("term", COUNT), ("proposer_id", Key),
        ("timestamp_ms", COUNT), ("fuel_used", COUNT), ("manifest_hash?", HASH),
    ]),
    ("attestation", 512, &[
        ("v", Version), ("world_id", World), ("epoch", COUNT), ("height", HEIGHT), ("block_hash", HASH),
        ("executor_id", Key), ("snapshot?", SNAPSHOT),
    ]),
    ("head", 5_120, &[
        ("v", Version), ("header", Record("genesis")), ("authorities", SIGNED_SET), ("commit", Sealed("commit")),
        ("attestations", List(1, 4, &Sealed("attestation"))), ("block_hash", HASH),
    ]),
    ("receipt", 1_024, &[("envelope_hash", HASH), ("code", Letters), ("index?", Int(0, 63))]),
    ("event", 4_096, &[("kind", Letters), ("envelope_hash", HASH), ("index", Int(0, 63)), ("data", AnyMap)]),
    ("commit_fork", 5_264, &[("v", Version), ("first", Sealed("commit")), ("second", Sealed("commit"))]),
    ("lease_fork", 5_264, &[("v", Version), ("first", Sealed("lease")), ("second", Sealed("lease"))]),
    ("attestation_fork", 5_264, &[("v", Version), ("first", Sealed("attestation")), ("second", Sealed("attestation"))]),
    ("malformed_batch", 985_731, &[
        ("v", Version), ("commit", Sealed("commit")), ("batch", Record("batch")),
        ("actions", Bytes(0, 983_040)), ("parent?", Record("batch")),
    ]),
    ("wrong_root_proof", 5_264, &[("v", Version), ("attestation", Sealed("attestation")), ("block", Record("block"))]),
    ("authorities_fork", 5_264, &[("v", Version), ("first", SIGNED_SET), ("second", SIGNED_SET)]),
];

/// Kinds of evidence that this version knows.
pub const EVIDENCE: [&str; 6] =
    ["commit_fork", "malformed_batch", "authorities_fork", "lease_fork", "attestation_fork", "wrong_root_proof"];
pub const EVIDENCE_ITEM: Shape = Open(&[("kind", Name), ("height", COUNT), ("content_hash", HASH)]);
const TRIE_PATH: Shape = Map(&[("siblings", List(0, 64, &Bytes(480, 480))), ("bucket", List(0, 16, &ENTRY))]);
const ENTRY: Shape = Either(
    &Tuple(&[Bytes(1, 256), Int(0, 0), Bytes(1, 256)]),
    &Tuple(&[Bytes(1, 256), Int(1, 1), HASH, Int(257, 65_536)]),
);
pub const STATE_PROOF: Shape = Map(&[("top", TRIE_PATH), ("cells?", TRIE_PATH), ("value?", Bytes(257, 65_536))]);
const PATH: Shape = List(0, 64, &HASH);
const PROVED_RECEIPT: Shape =
    Open(&[("receipt", Record("receipt")), ("index", COUNT), ("count", COUNT), ("path", PATH)]);
const WORLD: Fields = &[("world_id", World)];

/// Method, request, (last) answer: those that light clients and mirrors know.
#[rustfmt::skip]
const METHODS: &[(&str, Fields, Fields)] = &[
    ("hello", &[], &[("versions", List(1, 16, &COUNT)), ("max_in_flight", COUNT), ("worlds", List(0, 64, &World))]),
    ("has_blobs", &[("hashes", List(1, 1_024, &HASH))], &[("has", List(1, 1_024, &Bool))]),
    ("fetch_blob", &[("content_hash", HASH), ("offset?", COUNT), ("length?", COUNT)], &[("size", COUNT)]),
    ("get_genesis", WORLD, &[("genesis", Record("genesis_file"))]),
    ("get_world_head", WORLD, &[("head?", Record("head"))]),
    ("get_block", &[("world_id", World), ("height?", HEIGHT), ("block_hash?", HASH)], &[("block", Record("block"))]),
    ("get_blocks", &[("world_id", World), ("from_height", HEIGHT), ("count", Int(1, 256))], &[]),
    ("get_batch", &[("world_id", World), ("height", HEIGHT)],
        &[("batch", Sealed("batch")), ("commit", Sealed("commit"))]),
    ("get_receipt", &[("world_id", World), ("envelope_hash", HASH)], &[
        ("head", Record("head")), ("head_block", Record("block")), ("block", Record("block")), ("history_path", PATH),
        ("receipts", List(1, 64, &PROVED_RECEIPT)), ("after?", PROVED_RECEIPT),
    ]),
    ("get_state_proof", &[("world_id", World), ("namespace", Name), ("key", Bytes(1, 256))],
        &[("head", Record("head")), ("block", Record("block")), ("proof", Bytes(1, 262_144))]),
    ("submit_actions", &[("world_id", World), ("envelopes", List(1, 1_024, &Sealed("envelope")))], &[
        ("results", List(1, 1_024, &Open(&[
            ("outcome", Word(&["accepted", "pooled", "refused"])), ("acceptance?", Sealed("acceptance")),
            ("reason?", Text(0, 64)), ("message?", Text(0, 512)), ("retry_after_ms?", COUNT), ("next_nonce?", COUNT),
        ]))),
    ]),
];

/// Shapes of request and last answer.
pub fn method(name: &str) -> Option<(Shape, Shape)> {
    METHODS.iter().find(|m| m.0 == name).map(|m| (Open(m.1), Open(m.2)))
}

fn name_ok(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_.-".contains(&c);
    matches!(text.as_bytes(), [first, rest @ ..] if inner(*first) && first.is_ascii_alphanumeric()
        && rest.len() < 64 && rest.iter().all(|c| inner(*c)))
}

pub fn world_ok(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|c| c.is_ascii_lowercase() || (b'2'..=b'7').contains(&c))
}

pub fn check(shape: &Shape, value: &Value, at: &str) -> Result<()> {
    let sized = |length: usize, least: usize, most: usize| {
        if (least..=most).contains(&length) {
            Ok(())
        } else {
            refuse(format!("{at}: {length} long, not {least}..{most}"))
        }
    };
    match (shape, value) {
        (Either(one, other), _) => check(one, value, at).or_else(|_| check(other, value, at)),
        (Version, Value::Int(1)) | (Bool, Value::Bool(_)) | (AnyMap, Value::Map(_)) => Ok(()),
        (Version, Value::Int(v)) => Err(Bad::Ignored(format!("{at}: {v} is not known here"))),
        (Key, Value::Bytes(data)) => {
            ensure(data.len() == 38 && data.starts_with(&KEY_ID_PREFIX), &format!("{at}: is no Ed25519 key id"))
        }
        (World, Value::Text(text)) => ensure(world_ok(text), &format!("{at}: is no world id")),
        (Name, Value::Text(text)) => ensure(name_ok(text), &format!("{at}: is no name")),
        (Letters, Value::Text(text)) => {
            sized(text.len(), 1, 64)?;
            ensure(text.bytes().all(|c| c.is_ascii_alphabetic()), &format!("{at}: has other characters than letters"))
        }
        (Word(words), Value::Text(text)) => {
            ensure(words.contains(&text.as_str()), &format!("{at}: is not a known word"))
        }
        (Int(least, most), Value::Int(n)) => ensure(least <= n && n <= most, &format!("{at}: {n} is out of range")),
        (Bytes(least, most), Value::Bytes(data)) => sized(data.len(), *least, *most),
        (Text(least, most), Value::Text(text)) => sized(text.len(), *least, *most),
        (List(least, most, each), Value::List(items)) => {
            sized(items.len(), *least, *most)?;
            items.iter().try_for_each(|item| check(each, item, at))
        }
        (Tuple(shapes), Value::List(items)) => {
            sized(items.len(), shapes.len(), shapes.len())?;
            shapes.iter().zip(items).try_for_each(|(shape, item)| check(shape, item, at))
        }
        (Map(fields), Value::Map(pairs)) => {
            let known = |key: &str| fields.iter().any(|(name, _)| name.trim_end_matches('?') == key);
            if let Some((key, _)) = pairs.iter().find(|(key, _)| !known(key)) {
                return refuse(format!("{at}: unknown key {key}"));
            }
            check_fields(fields, value, at)
        }
        (Open(fields), Value::Map(_)) => check_fields(fields, value, at),
        (Record(name), Value::Map(_)) => record(name, value),
        (Sealed(name), Value::List(items)) => {
            sized(items.len(), 2, 2)?;
            check(&SIGNATURE, &items[1], &format!("{name}.signature"))?;
            check(&Record(name), &items[0], name)
        }
        _ => refuse(format!("{at}: is of another type")),
    }
}

fn check_fields(fields: Fields, value: &Value, at: &str) -> Result<()> {
    for (name, shape) in fields {
        let key = name.trim_end_matches('?');
        match value.get(key) {
            Some(field) => check(shape, field, &format!("{at}.{key}"))?,
            None if key.len() < name.len() => {}
            None => return refuse(format!("{at}.{key}: is missing")),
        }
    }
    Ok(())
}

fn record(name: &str, value: &Value) -> Result<()> {
    let Some((_, _, fields)) = RECORDS.iter().find(|r| r.0 == name) else { return refuse(format!("no record {name}")) };
    // A newer version may have other keys and sizes: whether to look at them at all comes first.
    if let Some(v @ Value::Int(_)) = value.get("v").filter(|_| fields[0].0 == "v") {
        check(&Version, v, &format!("{name}.v"))?;
    }
    ensure(value.encode().len() <= size_max(name), &format!("{name}: larger than it may be"))?;
    check(&Map(fields), value, name)?;
    records::check_rules(name, value)
}

/// Greatest size of a record's body.
pub fn size_max(name: &str) -> usize {
    RECORDS.iter().find(|r| r.0 == name).map_or(0, |r| r.1)
}

/// The record of this name, where there is one.
pub fn record_name(name: &str) -> Option<&'static str> {
    RECORDS.iter().map(|r| r.0).find(|known| *known == name)
}
