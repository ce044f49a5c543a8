//! A world's records, and what bytes alone decide about them: no I/O, no clock, no threads.
//!
//! Hides encodings, hashes, seals and Merkle paths. Guarantees that a value that came out of a check is canonical, within
//! its bounds and signed by whom it names; a check fails with [`cbor::Bad`], never with a panic. Believe a [`records::Head`]
//! as far as its executor: it was attested, not replayed.
//!
//! In reading order: [`cbor`] and [`crypto`]; [`schema`], every shape as one table; [`records`], the rules between fields,
//! seals and heads; [`merkle`] and [`state`]; [`world`], [`envelope`] and [`proofs`] for light clients; [`blocks`] for who
//! follows a chain; [`gossip`], the verdict on messages.

pub mod blocks;
pub mod cbor;
pub mod crypto;
pub mod envelope;
pub mod gossip;
pub mod merkle;
pub mod proofs;
pub mod records;
pub mod schema;
pub mod state;
pub mod world;
