//! The bytes of a frame on a stream of `/aw/rr/1`; no I/O. Implements the frame table of "Request / response" of
//! docs/protocol.md.

use aw::cbor::Bad;

const FRAME_MAX: usize = 1 << 20;
const REQUEST_MAX: usize = 65_536;
const LENGTH_BYTES_MAX: usize = 3;
const MESSAGE_MAX: usize = 1_024;
/// Type, id, length of the method and the method: what of a frame is judged before the rest is here.
const START_MAX: usize = 1 + 5 + 1 + 64;

#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Request { id: u32, method: String, body: Vec<u8> },
    Answer { id: u32, body: Vec<u8> },
    Part { id: u32, body: Vec<u8> },
    Error { id: u32, error: RrError },
}

#[derive(Clone, Debug, PartialEq)]
pub struct RrError {
    pub code: u8,
    pub retry_after_ms: u32,
    pub message: String,
    pub detail: Vec<u8>,
}

const NAMES: [&str; 10] = [
    "NOT_FOUND",
    "BAD_REQUEST",
    "INVALID_HASH",
    "STATE_MISMATCH",
    "UNSUPPORTED",
    "UNAUTHORIZED",
    "BUSY",
    "RATE_LIMITED",
    "TIMEOUT",
    "NOT_AVAILABLE",
];
pub const NOT_FOUND: u8 = 1;
pub const BAD_REQUEST: u8 = 2;
pub const UNSUPPORTED: u8 = 5;
pub const BUSY: u8 = 7;
pub const NOT_AVAILABLE: u8 = 10;

impl RrError {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        let retry_after_ms = if code == BUSY { 100 } else { 0 };
        let mut message = message.into(); // it may name what the other side sent
        let end = (0..=MESSAGE_MAX).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        RrError { code, retry_after_ms, message, detail: Vec::new() }
    }

    pub fn name(&self) -> String {
        format!("ERR_{}", NAMES[usize::from(self.code) - 1])
    }
}

/// What a request must hold before it is looked at, it holds: whatever is wrong with it is the caller's.
impl From<Bad> for RrError {
    fn from(bad: Bad) -> Self {
        RrError::new(BAD_REQUEST, bad.to_string())
    }
}

/// Bytes that are no frame; the id where it could still be told.
#[derive(Debug, PartialEq)]
pub struct Malformed {
    pub id: Option<u32>,
    pub why: &'static str,
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

struct Cursor<'a> {
    rest: &'a [u8],
    id: Option<u32>,
}

impl<'a> Cursor<'a> {
    fn fail<T>(&self, why: &'static str) -> Result<T, Malformed> {
        Err(Malformed { id: self.id, why })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else { return self.fail("ends inside a field") };
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u32, Malformed> {
        let mut n = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                let minimal = byte != 0 || shift == 0;
                return u32::try_from(n).ok().filter(|_| minimal).map_or_else(|| self.fail("no minimal varint"), Ok);
            }
        }
        self.fail("varint too long")
    }

    fn text(&mut self, count: usize) -> Result<String, Malformed> {
        let taken = self.take(count)?;
        std::str::from_utf8(taken).map(str::to_owned).or_else(|_| self.fail("no UTF-8"))
    }

    fn method(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.take(1)?[0]);
        let method = self.text(length)?;
        if method_ok(&method) { Ok(method) } else { self.fail("no method") }
    }
}

/// What the first bytes of a buffer are; sizes are with the length prefix.
#[derive(Debug, PartialEq)]
pub enum Parsed {
    Partial,
    Whole(Frame, usize),
    /// A request above the limit of its method, known before its body is here.
    TooLarge {
        id: u32,
        size: usize,
    },
}

pub fn method_ok(method: &str) -> bool {
    (1..=64).contains(&method.len()) && method.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
}

/// The largest request frame of a method, by what its length counts.
fn request_max(method: &str) -> usize {
    if ["submit_actions", "commit_batch", "execute_batch"].contains(&method) { FRAME_MAX } else { REQUEST_MAX }
}

pub fn parse(buffer: &[u8]) -> Result<Parsed, Malformed> {
    let (mut length, mut prefix) = (0, 0);
    loop {
        if prefix == LENGTH_BYTES_MAX {
            return Err(Malformed { id: None, why: "length of four bytes" });
        }
        let Some(byte) = buffer.get(prefix) else { return Ok(Parsed::Partial) };
        length |= usize::from(byte & 0x7f) << (7 * prefix);
        prefix += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let minimal = prefix == 1 || buffer[prefix - 1] != 0;
    if !minimal || length == 0 || length > FRAME_MAX {
        return Err(Malformed { id: None, why: "length out of range or not minimal" });
    }
    let size = prefix + length;
    let here = &buffer[prefix..size.min(buffer.len())];
    if here.len() < length.min(START_MAX) {
        return Ok(Parsed::Partial);
    }
    let mut at = Cursor { rest: here, id: None };
    let kind = at.take(1)?[0];
    let id = at.varint()?;
    at.id = Some(id);
    let method = if kind == 0 { at.method()? } else { String::new() };
    if kind == 0 && length > request_max(&method) {
        return Ok(Parsed::TooLarge { id, size });
    }
    if here.len() < length {
        return Ok(Parsed::Partial);
    }
    parse_rest(at, kind, id, method).map(|frame| Parsed::Whole(frame, size))
}

fn parse_rest(mut at: Cursor, kind: u8, id: u32, method: String) -> Result<Frame, Malformed> {
    match kind {
        0 => Ok(Frame::Request { id, method, body: at.rest.to_vec() }),
        1 => Ok(Frame::Answer { id, body: at.rest.to_vec() }),
        2 => Ok(Frame::Part { id, body: at.rest.to_vec() }),
        3 => {
            let code = at.take(1)?[0];
            let retry_after_ms = at.varint()?;
            let length = u16::from_be_bytes(at.take(2)?.try_into().unwrap_or_default());
            if !(1..=10).contains(&code) || length > 1_024 {
                return at.fail("error code or message out of range");
            }
            let message = at.text(usize::from(length))?;
            Ok(Frame::Error { id, error: RrError { code, retry_after_ms, message, detail: at.rest.to_vec() } })
        }
        _ => at.fail("unknown type"),
    }
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, id, body) = match self {
            Frame::Request { id, body, .. } => (0, id, body),
            Frame::Answer { id, body } => (1, id, body),
            Frame::Part { id, body } => (2, id, body),
            Frame::Error { id, error } => (3, id, &error.detail),
        };
        let mut rest = vec![kind];
        varint(u64::from(*id), &mut rest);
        if let Frame::Request { method, .. } = self {
            rest.push(method.len() as u8);
            rest.extend_from_slice(method.as_bytes());
        } else if let Frame::Error { error, .. } = self {
            rest.push(error.code);
            varint(u64::from(error.retry_after_ms), &mut rest);
            rest.extend_from_slice(&(error.message.len() as u16).to_be_bytes());
            rest.extend_from_slice(error.message.as_bytes());
        }
        rest.extend_from_slice(body);
        let mut out = Vec::with_capacity(rest.len() + LENGTH_BYTES_MAX);
        varint(rest.len() as u64, &mut out);
        out.extend_from_slice(&rest);
        out
    }
}

/// The frame of a request; none where it would be longer than a frame may be.
pub fn request(id: u32, method: &str, body: Vec<u8>) -> Option<Vec<u8>> {
    let frame = Frame::Request { id, method: method.into(), body }.encode();
    (frame.len() <= FRAME_MAX + LENGTH_BYTES_MAX).then_some(frame)
}
