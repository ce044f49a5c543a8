//! Answers that prove themselves: a cell of the state, the receipts of an envelope, a gateway's acceptance. Guarantees that
//! what is returned hangs on a head of the world that was asked for, whose seals hold: trust "attested". Implements "State
//! and proofs" of docs/protocol.md.

use crate::cbor::{Result, Value, ensure, refuse};
use crate::crypto::Hash;
use crate::merkle;
use crate::records::{self, Head};
use crate::state;
use crate::world::check_block;

/// The head of an answer, and the block that it names.
fn check_head_and_block(world_id: &str, head: &Value, block: &Value) -> Result<Head> {
    let head = records::check_head(&head.encode(), Some(world_id))?;
    check_block(world_id, block)?;
    ensure(head.block_hash()? == records::hash("block", block), "the block is not the head's")?;
    records::same(block, head.commit()?, &["world_id", "height", "batch_hash", "term"])?;
    Ok(head)
}

/// A cell at the height of a head; no value where its absence is proved.
pub struct ProvedCell {
    pub height: i64,
    pub state_root: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// All receipts of an envelope, (code, index) each; the height of the block that has them, and the head that vouches for it.
pub struct ProvedReceipts {
    pub height: i64,
    pub head: Head,
    pub receipts: Vec<(String, Option<i64>)>,
}

/// Checks an answer to get_state_proof.
pub fn check_state_answer(world_id: &str, namespace: &str, key: &[u8], answer: &Value) -> Result<ProvedCell> {
    let block = answer.at("block")?;
    let head = check_head_and_block(world_id, answer.at("head")?, block)?;
    let state_root = block.bytes("state_root")?.to_vec();
    let value = state::verify(&state_root, namespace, key, answer.bytes("proof")?)?;
    Ok(ProvedCell { height: head.height(), state_root, value })
}

fn path_of<'a>(holder: &'a Value, key: &str) -> Result<Vec<&'a [u8]>> {
    holder.list(key)?.iter().map(Value::as_bytes).collect()
}

/// A receipt, its index and the count of its block's list, in which it is proved to lie.
fn check_proved<'a>(block: &Value, proved: &'a Value) -> Result<(&'a Value, i64, i64)> {
    let (receipt, index, count) = (proved.at("receipt")?, proved.int("index")?, proved.int("count")?);
    let path = path_of(proved, "path")?;
    merkle::verify(block.bytes("receipts_root")?, &receipt.encode(), index as u64, count as u64, &path)?;
    Ok((receipt, index, count))
}

/// Checks an answer to get_receipt.
pub fn check_receipt_answer(world_id: &str, envelope_hash: &[u8], answer: &Value) -> Result<ProvedReceipts> {
    let (head_block, block) = (answer.at("head_block")?, answer.at("block")?);
    let head = check_head_and_block(world_id, answer.at("head")?, head_block)?;
    let (height, history) = (block.int("height")?, path_of(answer, "history_path")?);
    check_block(world_id, block)?;
    if height == head.height() {
        ensure(block == head_block && history.is_empty(), "the block is not the head's")?;
    } else {
        let (root, item) = (head_block.bytes("history_root")?, records::hash("block", block));
        merkle::verify(root, &item, (height - 1) as u64, (head.height() - 1) as u64, &history)?;
    }
    let (listed, mut receipts) = (answer.list("receipts")?, Vec::new());
    let Some(one) = listed.first() else { return refuse("receipts: there is none") };
    let (first, count) = (one.int("index")?, one.int("count")?);
    for (number, proved) in (0..).zip(listed) {
        let (receipt, index, of) = check_proved(block, proved)?;
        ensure(receipt.bytes("envelope_hash")? == envelope_hash, "a receipt of another envelope")?;
        ensure((index, of) == (first + number, count), "the receipts do not lie side by side")?;
        let at = receipt.get("index").map(|_| receipt.int("index")).transpose()?;
        let whole = at == Some(number) || at.is_none() && listed.len() == 1;
        ensure(whole, "neither one receipt without index, nor indexes 0..n-1")?;
        receipts.push((receipt.text("code")?.to_owned(), at));
    }
    // What lies behind the last is of another envelope, or the last is the list's: so none is left out.
    let behind = first + listed.len() as i64;
    match answer.get("after") {
        None => ensure(behind == count, "the receipt behind the last is missing")?,
        Some(after) => {
            let (receipt, index, of) = check_proved(block, after)?;
            ensure((index, of) == (behind, count), "after: does not lie behind the last")?;
            ensure(receipt.bytes("envelope_hash")? != envelope_hash, "a receipt is left out")?;
        }
    }
    Ok(ProvedReceipts { height, head, receipts })
}

/// The gateway's promise: there where the outcome is accepted, of this envelope, signed by the peer that was asked.
pub fn check_acceptance(world_id: &str, envelope_hash: &Hash, gateway: &[u8], result: &Value) -> Result<()> {
    if result.text("outcome")? != "accepted" {
        return Ok(());
    }
    let acceptance = records::open("acceptance", result.at("acceptance")?)?;
    let ours = acceptance.text("world_id")? == world_id && acceptance.bytes("envelope_hash")? == envelope_hash;
    ensure(ours, "acceptance: of another envelope")?;
    ensure(acceptance.bytes("gateway_id")? == gateway, "acceptance: by another gateway")
}
