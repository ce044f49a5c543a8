//! An example for authors of clients (docs/clients.md): puts an agent somewhere in a world, and believes that this happened
//! only when a proof of it holds.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aw::cbor::{self, ITEMS_MAX, Value, map};
use aw::crypto::{self, Hash, SigningKey, hex, unhex};
use aw::envelope::Envelope;
use aw::proofs::ProvedReceipts;
use awnet::frames::NOT_FOUND;
use awnet::{Client, Failure, Net, Quiet, Settings, TIMEOUT};
use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p::multiaddr::{Multiaddr, Protocol};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};

const USAGE: &str = "usage: submit --bootstrap MULTIADDR --world ID --seed HEX --agent NAME --to X,Y,Z";
const PATIENCE: Duration = Duration::from_secs(60);
const HEAD_AGE_MAX_MS: i64 = 60_000;

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Options {
    bootstrap: Multiaddr,
    world_id: String,
    /// Of the actor, who owns the agent.
    seed: Hash,
    agent: String,
    to: [i64; 3],
}

fn options() -> Outcome<Options> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name).ok_or(USAGE)?;
        args.get(at + 1).ok_or(USAGE)
    };
    let to: Result<Vec<i64>, _> = value("--to")?.split(',').map(str::parse).collect();
    Ok(Options {
        bootstrap: value("--bootstrap")?.parse()?,
        world_id: value("--world")?.clone(),
        seed: unhex(value("--seed")?)?.try_into().map_err(|_| "--seed: not 32 bytes")?,
        agent: value("--agent")?.clone(),
        to: to?.try_into().map_err(|_| "--to: not three integers")?,
    })
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A world as one gateway shows it. Whatever the gateway says is checked before it is believed.
struct World {
    client: Client,
    gateway: PeerId,
    id: String,
}

impl World {
    async fn connect(gateway: Multiaddr, id: String) -> Outcome<World> {
        let Some(Protocol::P2p(peer)) = gateway.iter().last() else {
            return Err("--bootstrap: ends without /p2p/PEER_ID".into());
        };
        // The connection has a key of its own: who acts is said by the envelope's signature, not by who hands it in.
        let settings = Settings { key: Keypair::generate_ed25519(), listen: Vec::new(), careless: false };
        let (net, _) = Net::start(settings, Arc::new(Quiet)).await?;
        timeout(TIMEOUT, net.dial(gateway, peer)).await.map_err(|_| Failure::Timeout)??;
        Ok(World { client: Client::new(net), gateway: peer, id })
    }

    /// The newest height, the actor's next nonce and whether the agent is there.
    async fn look(&self, actor_id: &[u8], agent: &str) -> Outcome<(i64, i64, bool)> {
        let height = match self.client.world_head(self.gateway, &self.id).await {
            Ok(head) => head.height(),
            // Before the first block nothing can be proved, and nobody has acted.
            Err(Failure::NotFound(_)) => return Ok((0, 0, false)),
            Err(failure) => return Err(failure.into()),
        };
        let actor = self.client.state_proof(self.gateway, &self.id, "actors", actor_id).await?;
        let nonce = actor.value.map_or(Ok(0), |cell| cbor::decode(&cell, ITEMS_MAX)?.int("nonce"))?;
        let there = self.client.state_proof(self.gateway, &self.id, "agents", agent.as_bytes()).await?;
        Ok((height, nonce, there.value.is_some()))
    }

    /// Signs one action, hands it in and waits for the proof.
    async fn put(&self, actor: &SigningKey, agent: &str, to: [i64; 3]) -> Outcome<Json> {
        let deadline = Instant::now() + PATIENCE;
        let genesis = self.client.genesis(self.gateway, &self.id).await?;
        let (height, nonce, there) = self.look(&crypto::key_id(actor), agent).await?;
        let [x, y, z] = to.map(Value::Int);
        let payload = map([("agent_id", cbor::text(agent)), ("x_cm", x), ("y_cm", y), ("z_cm", z)]);
        let kind = cbor::text(if there { "move_agent" } else { "register_agent" });
        let envelope = Envelope {
            world_id: &self.id,
            nonce,
            expires_at_height: height + genesis.limit("expiry_blocks_max")?.min(100) as i64,
            timestamp_ms: now_ms(),
            atomic: true,
            actions: Value::List(vec![Value::List(vec![kind, payload])]),
        };
        let (hash, sealed) = envelope.seal(actor)?;
        let result = self.client.submit(self.gateway, sealed).await?;
        let (outcome, why) = (result.text("outcome")?, result.text("reason").unwrap_or_default());
        if outcome != "accepted" {
            return Err(format!("the gateway did not accept: {outcome} {why}").into());
        }
        // The signed promise is what a client can hold against the gateway.
        let acceptance = result.at("acceptance")?;
        let broken = |why: Failure| format!("{why}; acceptance of {}: {}", hex(hash), hex(acceptance.encode()));
        let proved = timeout_at(deadline, self.receipts(&hash)).await.unwrap_or(Err(Failure::Timeout));
        let ProvedReceipts { height, receipts, .. } = proved.map_err(broken)?;
        match &receipts[0].0 {
            code if code == "Applied" => Ok(json!({"agent": agent, "envelope": hex(hash), "height": height,
                "code": code, "trust": "attested"})),
            code => Err(format!("the world refused it at height {height}: {code}").into()),
        }
    }

    /// The receipts, once a block has the envelope: proved under a fresh head whose seals hold.
    async fn receipts(&self, envelope: &Hash) -> Result<ProvedReceipts, Failure> {
        loop {
            match self.client.receipts(self.gateway, &self.id, envelope).await {
                Ok(proved) if now_ms() - proved.head.as_of_ms() < HEAD_AGE_MAX_MS => return Ok(proved),
                Err(Failure::Rr(error)) if error.code != NOT_FOUND => return Err(Failure::Rr(error)),
                Ok(_) | Err(Failure::Rr(_)) => sleep(Duration::from_millis(200)).await,
                failed => return failed,
            }
        }
    }
}

async fn run() -> Outcome<Json> {
    let Options { bootstrap, world_id, seed, agent, to } = options()?;
    World::connect(bootstrap, world_id).await?.put(&SigningKey::from_bytes(&seed), &agent, to).await
}

#[tokio::main]
async fn main() {
    match run().await {
        Ok(line) => println!("{line}"),
        Err(why) => {
            eprintln!("submit: {why}");
            std::process::exit(1)
        }
    }
}
