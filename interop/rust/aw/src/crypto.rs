//! BLAKE3, Ed25519 and the printed forms of identifiers. Implements "Hashes", "Signatures" and "Identity" of
//! docs/protocol.md.

use curve25519_dalek::edwards::CompressedEdwardsY;
pub use ed25519_dalek::SigningKey;
use ed25519_dalek::{Signature, Signer, VerifyingKey};

use crate::cbor::{Bad, Result, ensure};

pub type Hash = [u8; 32];
/// What stands before the 32 bytes of an Ed25519 key in a peer id.
pub const KEY_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
/// Multihash code and length of BLAKE3-256.
pub const MULTIHASH_PREFIX: [u8; 2] = [0x1e, 0x20];

pub fn hash(data: &[u8]) -> Hash {
    *blake3::hash(data).as_bytes()
}

/// H of the parts joined.
pub fn hash_all(parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

pub fn preimage(record: &str, body: &[u8]) -> Vec<u8> {
    [b"aw/", record.as_bytes(), b"/1\0", body].concat()
}

pub fn signed_message(record_hash: &Hash) -> Vec<u8> {
    [b"aw/sig/1\0".as_slice(), record_hash].concat()
}

pub fn sign(key: &SigningKey, record_hash: &Hash) -> [u8; 64] {
    key.sign(&signed_message(record_hash)).to_bytes()
}

pub fn key_id(key: &SigningKey) -> Vec<u8> {
    [&KEY_ID_PREFIX[..], key.verifying_key().as_bytes()].concat()
}

/// The exact rule of consensus. `verify_strict` refuses S >= L, small orders and an R that is not canonical, and does
/// not multiply by the cofactor; a key that is not canonical it takes, so that is asked here.
pub fn verify(key_id: &[u8], record_hash: &Hash, signature: &[u8]) -> Result<()> {
    let public = key_id.strip_prefix(&KEY_ID_PREFIX).and_then(|k| <[u8; 32]>::try_from(k).ok());
    let holds = public.is_some_and(|public| {
        let Some(point) = CompressedEdwardsY(public).decompress() else { return false };
        let canonical = point.compress().to_bytes() == public;
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        canonical && VerifyingKey::from(point).verify_strict(&signed_message(record_hash), &signature).is_ok()
    });
    ensure(holds, "signature does not verify")
}

pub fn hex(data: impl AsRef<[u8]>) -> String {
    data.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?));
    pairs.collect::<Option<_>>().ok_or_else(|| Bad::Refused("is no lower-case hex".into()))
}

/// RFC 4648, lower case, no padding.
fn base32(data: &[u8]) -> String {
    let bit = |i: usize| data.get(i / 8).is_some_and(|b| b >> (7 - i % 8) & 1 == 1);
    let digit = |at: usize| (at..at + 5).fold(0, |n, i| n << 1 | usize::from(bit(i)));
    (0..data.len() * 8).step_by(5).map(|at| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[digit(at)])).collect()
}

pub fn world_id(header_hash: &Hash) -> String {
    base32(&header_hash[..20])
}

/// The content id under which the providers of a world are found.
pub fn world_content_id(world_id: &str) -> Hash {
    hash_all(&[b"aw/world/1\0", world_id.as_bytes()])
}

pub fn provider_key(content_id: &[u8]) -> Vec<u8> {
    [&MULTIHASH_PREFIX, content_id].concat()
}

/// CIDv1, raw codec.
pub fn cid(content_id: &Hash) -> String {
    format!("b{}", base32(&[&[0x01, 0x55], &provider_key(content_id)[..]].concat()))
}
