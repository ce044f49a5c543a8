//! A world by its genesis file: hides how the id, the limits and the first state follow from it. Implements "Genesis and
//! world id" of docs/protocol.md.

use crate::cbor::{self, Result, Value, ensure};
use crate::crypto::{self, Hash};
use crate::records;
use crate::state;

/// A genesis that holds in itself.
pub struct World {
    pub id: String,
    pub header_hash: Hash,
    /// The genesis file.
    pub genesis: Value,
}

impl World {
    pub fn new(genesis: &[u8]) -> Result<World> {
        let genesis = records::decode("genesis_file", genesis)?;
        let header_hash = records::hash("genesis", genesis.at("header")?);
        Ok(World { id: crypto::world_id(&header_hash), header_hash, genesis })
    }

    pub fn limit(&self, name: &str) -> Result<usize> {
        Ok(self.genesis.at("body")?.at("limits")?.int(name)? as usize)
    }

    /// The state at height 0: the kernel's parameters and the initial balances.
    pub fn state_root(&self) -> Result<Hash> {
        let body = self.genesis.at("body")?;
        let limits = body.at("limits")?;
        let kernel = [
            (
                body,
                &["bounds", "max_move_cm", "resource_kinds", "checkpoint_interval", "max_block_gap_ms", "admission"][..],
            ),
            (limits, &["block_fuel_max", "agents_per_actor_max", "expiry_blocks_max", "action_skew_ms"][..]),
        ];
        let mut cells = Vec::new();
        for (values, names) in kernel {
            for name in names {
                cells.push(("kernel".to_owned(), name.as_bytes().to_vec(), values.at(name)?.encode()));
            }
        }
        for balance in body.list("balances")? {
            if let [owner, kind, amount @ Value::Int(1..)] = balance.items()? {
                let key = Value::List(vec![cbor::text("actor"), owner.clone(), kind.clone()]);
                cells.push(("ledger".to_owned(), key.encode(), amount.encode()));
            }
        }
        Ok(state::root(cells))
    }
}

/// What every block of a valid chain has in common.
pub fn check_block(world_id: &str, block: &Value) -> Result<()> {
    ensure(block.text("world_id")? == world_id, "block: of another world")?;
    ensure(block.get("manifest_hash").is_none(), "block: no valid chain has a manifest_hash")
}
