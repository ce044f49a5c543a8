//! Merkle trees that grow leaf by leaf, and their proofs. Implements "Merkle trees" of docs/protocol.md.

use crate::cbor::{Result, ensure, refuse};
use crate::crypto::{Hash, hash_all};

const DOMAIN: &[u8] = b"aw/merkle/1\0";

fn leaf(item: &[u8]) -> Hash {
    hash_all(&[DOMAIN, &[0], item])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash_all(&[DOMAIN, &[1], left, right])
}

/// The roots of the full subtrees, largest first: all that is needed to add a leaf or to know the root.
#[derive(Clone, Default)]
pub struct Peaks {
    pub count: u64,
    pub peaks: Vec<Hash>,
}

impl Peaks {
    pub fn push(&mut self, item: &[u8]) {
        let mut top = leaf(item);
        for _ in 0..self.count.trailing_ones() {
            let left = self.peaks.pop().expect("one peak for each bit of the count");
            top = node(&left, &top);
        }
        self.peaks.push(top);
        self.count += 1;
    }

    pub fn root(&self) -> Hash {
        let joined = self.peaks.iter().rev().copied().reduce(|right, left| node(&left, &right));
        joined.unwrap_or_else(|| hash_all(&[DOMAIN, &[2]]))
    }
}

/// The siblings of one item, from the leaf upwards.
pub fn path(items: &[&[u8]], index: usize) -> Vec<Hash> {
    let mut level: Vec<Hash> = items.iter().map(|item| leaf(item)).collect();
    let (mut at, mut siblings) = (index, Vec::new());
    while level.len() > 1 {
        siblings.extend(level.get(at ^ 1));
        level = level.chunks(2).map(|pair| pair.get(1).map_or(pair[0], |right| node(&pair[0], right))).collect();
        at /= 2;
    }
    siblings
}

pub fn verify(root: &[u8], item: &[u8], index: u64, count: u64, path: &[&[u8]]) -> Result<()> {
    ensure(index < count, "the index is not below the count")?;
    let (mut at, mut last, mut top) = (index, count - 1, leaf(item));
    let mut siblings = path.iter();
    while last > 0 {
        // The odd one at the end of a level moves up without a sibling.
        if at % 2 == 1 || at < last {
            let sibling = siblings.next().and_then(|s| <&Hash>::try_from(*s).ok());
            let Some(sibling) = sibling else { return refuse("the path is too short") };
            top = if at % 2 == 1 { node(sibling, &top) } else { node(&top, sibling) };
        }
        (at, last) = (at / 2, last / 2);
    }
    ensure(siblings.next().is_none(), "the path is too long")?;
    ensure(top == root, "the path leads to another root")
}
