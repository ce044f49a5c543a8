//! A peer of a world in Rust: starts the node, and carries out commands from stdin until `quit`, the end of stdin or
//! SIGTERM. Implements "Starting a peer" of docs/interop.md.

mod chain;
mod commands;
mod json;
mod library;
mod mirror;
mod raw;
mod server;
mod vectors;

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use aw::crypto::{self, hex};
use awnet::{Client, Event, Host, Net, Settings, streams::Conduit, wire::Crowd};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use library::Library;

const IN_FLIGHT_TOTAL: usize = 1_024;
const COMMANDS_MAX: usize = 1_024;
const LINE_MAX: u64 = 64 << 20;
/// For what is still under way when stdin has ended.
const LAST: Duration = Duration::from_secs(1);

/// What the commands work on.
struct Peer {
    client: Client,
    library: Arc<Library>,
}

/// What the node is given: requests go to the library, events to stdout.
struct Serving {
    library: Arc<Library>,
    places: Crowd,
}

impl Host for Serving {
    fn serve(&self, stream: Conduit, of_peer: Option<Arc<Semaphore>>) {
        let places = server::Places { of_peer, of_all: self.places.clone() };
        tokio::spawn(server::serve(self.library.clone(), stream, places));
    }

    fn envelope_bytes_max(&self, world_id: &str) -> Option<usize> {
        self.library.world(world_id)?.limit("envelope_bytes_max").ok()
    }

    fn tell(&self, event: Event) {
        say(&match event {
            Event::Connected(peer) => json!({"event": "connected", "peer": peer.to_string()}),
            Event::Disconnected(peer) => json!({"event": "disconnected", "peer": peer.to_string()}),
            Event::Gossip { topic, verdict, data, author } => json!({"event": "gossip", "topic": topic,
                "verdict": verdict.name(), "data": hex(&data), "from": author.to_string()}),
            Event::Head(head) => json!({"event": "head", "world_id": head.world_id, "height": head.height(),
                "block_hash": hex(head.block_hash().unwrap_or_default())}),
        });
    }
}

/// One line on stdout. Whoever started this peer reads it; where nobody does any more, stdin ends too.
fn say(line: &Json) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        eprintln!("stdout: {error}");
    }
}

const USAGE: &str = "usage: peer --seed HEX [--listen MULTIADDR]... [--careless]";

fn settings() -> Result<Settings, Box<dyn Error>> {
    let (mut key, mut listen, mut careless) = (None, Vec::new(), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => key = Some(Keypair::ed25519_from_bytes(crypto::unhex(&value()?)?)?),
            "--listen" => listen.push(value()?.parse()?),
            "--careless" => careless = true,
            _ => return Err(USAGE.into()),
        }
    }
    if listen.is_empty() {
        listen.push("/ip4/127.0.0.1/tcp/0".parse()?);
    }
    Ok(Settings { key: key.ok_or(USAGE)?, listen, careless })
}

async fn run() -> Result<(), Box<dyn Error>> {
    let settings = settings()?;
    let peer = settings.key.public().to_peer_id();
    let library = Arc::new(Library::default());
    let host = Serving { library: library.clone(), places: Crowd::new(IN_FLIGHT_TOTAL) };
    let (net, addresses) = Net::start(settings, Arc::new(host)).await?;
    let addresses: Vec<String> = addresses.into_iter().map(|a| a.with(Protocol::P2p(peer)).to_string()).collect();
    say(&json!({"event": "ready", "peer_id": peer.to_string(), "addrs": addresses}));
    let own = Arc::new(Peer { client: Client::new(net), library });
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = obey(own) => ended,
        _ = terminated.recv() => Ok(()),
    }
}

/// Carries out the commands on stdin, at the same time, until `quit` or the end.
async fn obey(own: Arc<Peer>) -> Result<(), Box<dyn Error>> {
    let (mut stdin, places) = (BufReader::new(stdin()), Arc::new(Semaphore::new(COMMANDS_MAX)));
    let mut running = JoinSet::new();
    loop {
        let mut line = Vec::new();
        (&mut stdin).take(LINE_MAX + 1).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            let _ = timeout(LAST, running.join_all()).await; // whatever takes longer is given up
            return Ok(());
        }
        if line.len() as u64 > LINE_MAX && !line.ends_with(b"\n") {
            return Err("stdin: a line above 64 MiB".into());
        }
        match serde_json::from_slice::<Json>(&line) {
            Ok(command) if command["do"] == "quit" => {
                say(&json!({"id": command["id"], "ok": {}}));
                return Ok(());
            }
            Ok(command) => {
                // Not here: `quit` must be read, however many commands are under way.
                let (own, places) = (own.clone(), places.clone());
                while running.try_join_next().is_some() {}
                running.spawn(async move {
                    let Ok(_place) = places.acquire_owned().await else { return };
                    say(&commands::run(own, command).await);
                });
            }
            Err(error) => say(&json!({"id": null, "error": {"kind": "usage", "message": error.to_string()}})),
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let ended = run().await;
    if let Err(why) = &ended {
        eprintln!("error: {why}");
    }
    // Not by returning: a reader of stdin that is still blocked would keep the process.
    std::process::exit(i32::from(ended.is_err()))
}
