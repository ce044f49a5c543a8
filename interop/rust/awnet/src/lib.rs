//! The network side of a client of a world: a node on rust-libp2p, and what it asks of other peers.
//!
//! Hides the swarm, streams, frames and queries behind [`Net`] and [`Client`]. Guarantees that every wait has an end or is the
//! caller's to end, that what others may make this peer hold is bounded, and that nothing that can be checked is returned
//! unchecked. A client gives [`Net::start`] the host [`Quiet`]; a peer that serves has a [`Host`] of its own.
//!
//! In reading order: [`frames`], the bytes, and [`wire`], their I/O; [`streams`], raw streams over the swarm; `session`, requests
//! and their answers; `node`, the swarm's task, `liveness`, whether a connection lives, and `net`, the way to the node; `client`;
//! and apart from all that Kademlia, [`dht`].

pub mod dht;
pub mod frames;
pub mod streams;
pub mod wire;

mod client;
mod liveness;
mod net;
mod node;
mod session;

pub use client::{Client, TIMEOUT};
pub use net::Net;
pub use node::{Event, Host, Quiet, Settings};
pub use session::{ANSWER_PARTS_MAX, Failure};
