//! The state trie: its root from all cells, and the proof of one cell or of its absence. Implements "State" and
//! "Proofs" of docs/protocol.md.

use std::collections::BTreeMap;

use crate::cbor::{self, ITEMS_MAX, Result, Value, ensure, refuse};
use crate::crypto::{Hash, hash, hash_all};
use crate::schema::{self, STATE_PROOF};

const DOMAIN: &[u8] = b"aw/trie/1\0";
const BUCKET_ENTRIES_MAX: usize = 16;
const INLINE_MAX: usize = 256;
const EMPTY: Hash = [0; 32];

fn nibble(path: &Hash, depth: usize) -> usize {
    usize::from(path[depth / 2] >> (4 * (1 - depth % 2)) & 15)
}

/// Entries ascend by the hash of their key.
fn bucket_root(entries: Vec<Value>) -> Hash {
    if entries.is_empty() { EMPTY } else { hash_all(&[DOMAIN, &[0], &Value::List(entries).encode()]) }
}

fn subtree_root(entries: &[(Hash, Value)], depth: usize) -> Hash {
    if entries.len() <= BUCKET_ENTRIES_MAX {
        return bucket_root(entries.iter().map(|(_, entry)| entry.clone()).collect());
    }
    let children = entries.chunk_by(|a, b| nibble(&a.0, depth) == nibble(&b.0, depth));
    let mut slots = [EMPTY; 16];
    for child in children {
        slots[nibble(&child[0].0, depth)] = subtree_root(child, depth + 1);
    }
    hash_all(&[DOMAIN, &[1], slots.as_flattened()])
}

fn trie_root(cells: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Hash {
    let entry = |(key, value): (Vec<u8>, Vec<u8>)| {
        let path = hash(&key);
        let kept = if value.len() <= INLINE_MAX {
            vec![cbor::bytes(key), Value::Int(0), cbor::bytes(value)]
        } else {
            vec![cbor::bytes(key), Value::Int(1), cbor::bytes(hash(&value)), Value::Int(value.len() as i64)]
        };
        (path, Value::List(kept))
    };
    let mut entries: Vec<(Hash, Value)> = cells.into_iter().map(entry).collect();
    entries.sort_by_key(|(path, _)| *path);
    subtree_root(&entries, 0)
}

/// The state root of (namespace, key, value) cells.
pub fn root(cells: impl IntoIterator<Item = (String, Vec<u8>, Vec<u8>)>) -> Hash {
    let mut namespaces: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (namespace, key, value) in cells {
        namespaces.entry(namespace).or_default().push((key, value));
    }
    trie_root(namespaces.into_iter().map(|(name, cells)| (name.into_bytes(), trie_root(cells).to_vec())))
}

/// The entry of `key` on a path that leads to `root`, without its key.
fn follow<'a>(path: &'a Value, root: &[u8], key: &[u8]) -> Result<Option<&'a [Value]>> {
    let (target, siblings, bucket) = (hash(key), path.list("siblings")?, path.list("bucket")?);
    let mut last = None;
    let mut found = None;
    for entry in bucket {
        let [entry_key, kept @ ..] = entry.items()? else { return refuse("an empty entry") };
        let at = hash(entry_key.as_bytes()?);
        ensure(last.is_none_or(|last| last < at), "entries do not ascend")?;
        let on_path = (0..siblings.len()).all(|depth| nibble(&at, depth) == nibble(&target, depth));
        ensure(on_path, "an entry does not lie on the path")?;
        last = Some(at);
        if entry_key.as_bytes()? == key {
            found = Some(kept);
        }
    }
    let mut top = bucket_root(bucket.to_vec());
    for (depth, level) in siblings.iter().enumerate().rev() {
        let (before, after) = level.as_bytes()?.split_at(32 * nibble(&target, depth));
        top = hash_all(&[DOMAIN, &[1], before, &top, after]);
    }
    ensure(top == root, "the path leads to another root")?;
    Ok(found)
}

/// The value of the cell, or none where its absence is proved.
pub fn verify(root: &[u8], namespace: &str, key: &[u8], proof: &[u8]) -> Result<Option<Vec<u8>>> {
    ensure(proof.len() <= 262_144, "the proof is too large")?;
    let proof = cbor::decode(proof, ITEMS_MAX)?;
    schema::check(&STATE_PROOF, &proof, "proof")?;
    let subtree = match (follow(proof.at("top")?, root, namespace.as_bytes())?, proof.get("cells")) {
        (Some([Value::Int(0), Value::Bytes(root)]), Some(path)) => follow(path, root, key)?,
        (None, None) => None,
        _ => return refuse("a path in an absent namespace, or none in a present one"),
    };
    match (subtree, proof.get("value")) {
        (None, None) => Ok(None),
        (Some([Value::Int(0), Value::Bytes(value)]), None) => Ok(Some(value.clone())),
        (Some([Value::Int(1), Value::Bytes(digest), Value::Int(size)]), Some(Value::Bytes(value))) => {
            ensure(hash(value) == digest.as_slice() && value.len() as i64 == *size, "another value beside")?;
            Ok(Some(value.clone()))
        }
        _ => refuse("a value beside that no entry names, or none where one does"),
    }
}
