//! Canonical CBOR: hides the wire encoding behind `Value`; whatever decodes here is canonical, bounded and free of
//! floats, tags and undefined. Implements "Encoding" of docs/protocol.md.

use std::fmt;

use minicbor::Decoder;
use minicbor::data::Type;

pub const ITEMS_MAX: usize = 262_144;
pub const COUNT_MAX: i64 = (1 << 53) - 1;
const DEPTH_MAX: usize = 32;

/// Why bytes are not taken: refused for what they are, or ignored because a newer peer wrote them.
#[derive(Clone, Debug, PartialEq)]
pub enum Bad {
    Refused(String),
    Ignored(String),
}

pub type Result<T> = std::result::Result<T, Bad>;

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bad::Refused(why) => f.write_str(why),
            Bad::Ignored(why) => write!(f, "{why} (of another version)"),
        }
    }
}

impl std::error::Error for Bad {}

pub fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Bad::Refused(why.into()))
}

pub fn ensure(holds: bool, why: &str) -> Result<()> {
    if holds { Ok(()) } else { refuse(why) }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Value>),
    /// In canonical order: by length of the key, then by its bytes.
    Map(Vec<(String, Value)>),
}

fn rank(key: &str) -> (usize, &[u8]) {
    (key.len(), key.as_bytes())
}

pub fn map<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let mut pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    pairs.sort_by(|a, b| rank(&a.0).cmp(&rank(&b.0)));
    Value::Map(pairs)
}

pub fn bytes(data: impl AsRef<[u8]>) -> Value {
    Value::Bytes(data.as_ref().to_vec())
}

pub fn text(data: impl Into<String>) -> Value {
    Value::Text(data.into())
}

impl Value {
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Map(pairs) = self else { return None };
        pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    pub fn at(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| Bad::Refused(format!("{key} is missing")))
    }

    pub fn items(&self) -> Result<&[Value]> {
        if let Value::List(items) = self { Ok(items) } else { refuse("is no list") }
    }

    pub fn as_bytes(&self) -> Result<&[u8]> {
        if let Value::Bytes(data) = self { Ok(data) } else { refuse("is no byte string") }
    }

    pub fn int(&self, key: &str) -> Result<i64> {
        if let Value::Int(n) = self.at(key)? { Ok(*n) } else { refuse(format!("{key} is no integer")) }
    }

    pub fn text(&self, key: &str) -> Result<&str> {
        if let Value::Text(s) = self.at(key)? { Ok(s) } else { refuse(format!("{key} is no text")) }
    }

    pub fn bytes(&self, key: &str) -> Result<&[u8]> {
        self.at(key)?.as_bytes()
    }

    pub fn list(&self, key: &str) -> Result<&[Value]> {
        self.at(key)?.items()
    }

    /// How many keys, values and elements lie below this one.
    pub fn count_items(&self) -> usize {
        match self {
            Value::List(items) => items.iter().map(|v| 1 + v.count_items()).sum(),
            Value::Map(pairs) => pairs.iter().map(|(_, v)| 2 + v.count_items()).sum(),
            _ => 0,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.push(0xf6),
            Value::Bool(b) => out.push(0xf4 + u8::from(*b)),
            Value::Int(n) if *n >= 0 => head(out, 0, *n as u64),
            Value::Int(n) => head(out, 1, !*n as u64),
            Value::Bytes(data) => {
                head(out, 2, data.len() as u64);
                out.extend_from_slice(data);
            }
            Value::Text(s) => {
                head(out, 3, s.len() as u64);
                out.extend_from_slice(s.as_bytes());
            }
            Value::List(items) => {
                head(out, 4, items.len() as u64);
                items.iter().for_each(|v| v.write(out));
            }
            Value::Map(pairs) => {
                head(out, 5, pairs.len() as u64);
                for (key, value) in pairs {
                    head(out, 3, key.len() as u64);
                    out.extend_from_slice(key.as_bytes());
                    value.write(out);
                }
            }
        }
    }
}

fn head(out: &mut Vec<u8>, major: u8, n: u64) {
    let major = major << 5;
    match n {
        0..24 => out.push(major | n as u8),
        24..0x100 => out.extend_from_slice(&[major | 24, n as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

struct Reader<'a> {
    decoder: Decoder<'a>,
    items_left: usize,
}

fn malformed(e: minicbor::decode::Error) -> Bad {
    Bad::Refused(format!("no canonical CBOR: {e}"))
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value> {
        let d = &mut self.decoder;
        Ok(match d.datatype().map_err(malformed)? {
            Type::Null => d.null().map(|()| Value::Null).map_err(malformed)?,
            Type::Bool => d.bool().map(Value::Bool).map_err(malformed)?,
            Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::I8 | Type::I16 | Type::I32 | Type::I64 => {
                d.i64().map(Value::Int).map_err(malformed)?
            }
            Type::Bytes => d.bytes().map(bytes).map_err(malformed)?,
            Type::String => d.str().map(text).map_err(malformed)?,
            Type::Array => {
                let length = d.array().map_err(malformed)?;
                let length = self.enter(length, 1, depth)?;
                Value::List((0..length).map(|_| self.value(depth + 1)).collect::<Result<_>>()?)
            }
            Type::Map => {
                let length = d.map().map_err(malformed)?;
                let length = self.enter(length, 2, depth)?;
                let mut pairs: Vec<(String, Value)> = Vec::new();
                for _ in 0..length {
                    let key = self.decoder.str().map_err(malformed)?.to_owned();
                    let ascends = pairs.last().is_none_or(|(last, _)| rank(last) < rank(&key));
                    ensure(ascends, "no canonical CBOR: keys in another order, or twice")?;
                    pairs.push((key, self.value(depth + 1)?));
                }
                Value::Map(pairs)
            }
            other => return refuse(format!("no canonical CBOR: {other} is not in the profile")),
        })
    }

    /// Takes the items of a container from the allowance before any of them is read, so that a length costs nothing.
    fn enter(&mut self, length: Option<u64>, each: usize, depth: usize) -> Result<usize> {
        ensure(depth < DEPTH_MAX, "nested deeper than 32")?;
        let length = length.ok_or_else(|| Bad::Refused("no canonical CBOR: indefinite length".into()))?;
        let items = usize::try_from(length).ok().and_then(|n| n.checked_mul(each));
        let left = items.and_then(|n| self.items_left.checked_sub(n));
        self.items_left = left.ok_or_else(|| Bad::Refused("more items than allowed".into()))?;
        Ok(length as usize)
    }
}

pub fn decode(data: &[u8], items_max: usize) -> Result<Value> {
    let mut reader = Reader { decoder: Decoder::new(data), items_left: items_max };
    let value = reader.value(0)?;
    ensure(reader.decoder.position() == data.len(), "no canonical CBOR: bytes after the end")?;
    ensure(value.encode() == data, "no canonical CBOR: not the shortest form")?;
    Ok(value)
}

/// Walks a list that may be too large to hold as values: one element in memory at a time.
pub fn each_element(data: &[u8], mut judge: impl FnMut(&[u8], Value) -> Result<()>) -> Result<()> {
    let mut reader = Reader { decoder: Decoder::new(data), items_left: ITEMS_MAX };
    let length = reader.decoder.array().map_err(malformed)?;
    let length = length.ok_or_else(|| Bad::Refused("no canonical CBOR: indefinite length".into()))?;
    let mut expected = Vec::new();
    head(&mut expected, 4, length);
    ensure(data.starts_with(&expected), "no canonical CBOR: not the shortest form")?;
    for _ in 0..length {
        reader.items_left = ITEMS_MAX;
        let start = reader.decoder.position();
        let value = reader.value(1)?;
        let element = &data[start..reader.decoder.position()];
        ensure(value.encode() == element, "no canonical CBOR: not the shortest form")?;
        judge(element, value)?;
    }
    ensure(reader.decoder.position() == data.len(), "no canonical CBOR: bytes after the end")
}
