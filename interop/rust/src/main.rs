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

use aw::crypto::{self, hex};
use awnet::streams::Conduit;
use awnet::{Client, Event, Host, Net, Settings};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, multiaddr::Protocol};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use library::Library;

const IN_FLIGHT_TOTAL: usize = 1_024;

/// What the commands work on.
struct Peer {
    client: Client,
    library: Arc<Library>,
    careless: bool,
}

/// What the node is given: requests go to the library, events to stdout.
struct Serving {
    library: Arc<Library>,
    places: Arc<Semaphore>,
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

struct Options {
    seed: Vec<u8>,
    listen: Vec<Multiaddr>,
    careless: bool,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options { seed: Vec::new(), listen: Vec::new(), careless: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => options.seed = crypto::unhex(&value()?).map_err(|why| why.to_string())?,
            "--listen" => options.listen.push(value()?.parse()?),
            "--careless" => options.careless = true,
            _ => return Err("usage: peer --seed HEX [--listen MULTIADDR]... [--careless]".into()),
        }
    }
    if options.listen.is_empty() {
        options.listen.push("/ip4/127.0.0.1/tcp/0".parse()?);
    }
    Ok(options)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let Options { mut seed, listen, careless } = options()?;
    let key = Keypair::ed25519_from_bytes(&mut seed)?;
    let peer = key.public().to_peer_id();
    let library = Arc::new(Library::default());
    let host = Serving { library: library.clone(), places: Arc::new(Semaphore::new(IN_FLIGHT_TOTAL)) };
    let (net, addresses) = Net::start(Settings { key, listen, careless }, Arc::new(host)).await?;
    let addresses: Vec<String> = addresses.into_iter().map(|a| a.with(Protocol::P2p(peer)).to_string()).collect();
    say(&json!({"event": "ready", "peer_id": peer.to_string(), "addrs": addresses}));
    let own = Arc::new(Peer { client: Client::new(net), library, careless });
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = terminated.recv() => None,
        };
        let Some(line) = line else { break };
        match serde_json::from_str::<Json>(&line) {
            Ok(command) if command["do"] == "quit" => {
                say(&json!({"id": command["id"], "ok": {}}));
                break;
            }
            Ok(command) => {
                let own = own.clone();
                tokio::spawn(async move { say(&commands::run(own, command).await) });
            }
            Err(error) => say(&json!({"id": null, "error": {"kind": "usage", "message": error.to_string()}})),
        }
    }
    // Not by returning: a reader of stdin that is still blocked would keep the process.
    std::process::exit(0)
}
