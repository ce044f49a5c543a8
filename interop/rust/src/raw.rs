//! Any bytes on a stream, and what the other side makes of them: for tests of its limits.

use std::time::Duration;

use awnet::Failure;
use awnet::streams::Conduit;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const CHUNK: usize = 65_536;
const ANSWER_MAX: usize = 16 << 20;

/// Writes any bytes and reads what comes, until the stream ends or nothing came for a second.
pub async fn exchange(conduit: Conduit, data: &[u8]) -> Result<(Vec<u8>, &'static str), Failure> {
    let Conduit { mut stream, mut closed, place: _place } = conduit;
    let mut answer = Vec::new();
    let mut chunk = vec![0; CHUNK];
    // The other side may reset the stream before it has read everything: what it answered is read all the same.
    let written = tokio::select! {
        written = async { stream.write_all(data).await.is_ok() && stream.flush().await.is_ok() } => written,
        _ = closed.changed() => false,
    };
    loop {
        let read = tokio::select! {
            biased; // what came before the end is read
            read = timeout(Duration::from_secs(1), stream.read(&mut chunk)) => read,
            _ = closed.changed() => return Ok((answer, "reset")),
        };
        match read {
            Err(_) => return Ok((answer, "open")),
            // yamux reads a reset as the end; only a write tells them apart, and an empty one does.
            Ok(Ok(0)) if written && stream.write(&[]).await.is_ok() => return Ok((answer, "eof")),
            Ok(Ok(0) | Err(_)) => return Ok((answer, "reset")),
            Ok(Ok(count)) => answer.extend_from_slice(&chunk[..count]),
        }
        if answer.len() > ANSWER_MAX {
            return Err(Failure::TooLarge(format!("more than {ANSWER_MAX} bytes")));
        }
    }
}
