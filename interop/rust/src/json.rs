//! CBOR values as JSON has them in interop/vectors and in commands.

use serde_json::Value as Json;

use aw::cbor::{Bad, Result, Value, bytes, map, text};
use aw::crypto::unhex;

/// Byte strings are `{"hex": "..."}`.
pub fn from_json(json: &Json) -> Result<Value> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => Value::Int(n.as_i64().ok_or_else(|| Bad::Refused(format!("{n} is no 64-bit integer")))?),
        Json::String(s) => text(s),
        Json::Array(items) => Value::List(items.iter().map(from_json).collect::<Result<_>>()?),
        Json::Object(pairs) => match (pairs.len(), pairs.get("hex")) {
            (1, Some(Json::String(hex))) => bytes(unhex(hex)?),
            _ => map(pairs.iter().map(|(k, v)| Ok((k.as_str(), from_json(v)?))).collect::<Result<Vec<_>>>()?),
        },
    })
}
