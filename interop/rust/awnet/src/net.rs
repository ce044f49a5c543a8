//! The way to a node for everybody else. Hides the swarm and its task; guarantees that whoever asks is answered, also when the
//! node has ended.

use std::sync::Arc;
use std::time::Duration;

use libp2p::gossipsub::{IdentTopic, PublishError, SubscriptionError};
use libp2p::{Multiaddr, PeerId, identify};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::node::{self, Host, Node, Settings, Task};
use crate::session::Failure;
use crate::streams::Conduit;
use aw::gossip::{self, Verdict};

const LOOK_AGAIN: Duration = Duration::from_millis(10);

#[derive(Clone)]
pub struct Net {
    tasks: mpsc::Sender<Task>,
    pub careless: bool,
}

impl Net {
    /// Starts a node: the way to it, and the addresses where it listens.
    pub async fn start(
        settings: Settings,
        host: Arc<dyn Host>,
    ) -> Result<(Net, Vec<Multiaddr>), Box<dyn std::error::Error>> {
        let (tasks, queue) = mpsc::channel(1_024);
        let careless = settings.careless;
        let addresses = node::start(settings, host, queue).await?;
        Ok((Net { tasks, careless }, addresses))
    }

    /// Runs a piece of work on the node.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let gone = || Failure::Fault("the node has ended".into());
        let (tell, told) = oneshot::channel();
        let task: Task = Box::new(move |node| {
            // Whoever asked may have stopped waiting.
            let _ = tell.send(work(node));
        });
        self.tasks.send(task).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())
    }

    /// Connects to a peer, and waits until it has said what it is.
    pub async fn dial(&self, address: Multiaddr, peer: PeerId) -> Result<(), Failure> {
        let (done, dialled) = oneshot::channel();
        self.with(move |node| node.dial(address, peer, done)).await?;
        dialled.await.map_err(|_| Failure::Stream("the dial was given up".into()))?
    }

    pub async fn open(&self, peer: PeerId) -> Result<Conduit, Failure> {
        let (opened, conduit) = oneshot::channel();
        self.with(move |node| node.swarm.behaviour_mut().streams.open(peer, opened)).await?;
        conduit.await.map_err(|_| Failure::Stream(format!("{peer} is not connected")))?.map_err(Failure::Stream)
    }

    /// What a peer said of itself, as soon as it has: libp2p has no event to wait for, so this looks again.
    pub async fn identify(&self, peer: PeerId) -> Result<identify::Info, Failure> {
        loop {
            if let Some(info) = self.with(move |node| node.identified.get(&peer).cloned()).await? {
                return Ok(info);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    pub async fn disconnect(&self, peer: PeerId) -> Result<(), Failure> {
        self.with(move |node| node.disconnect(peer)).await
    }

    /// Who is connected.
    pub async fn peers(&self) -> Result<Vec<PeerId>, Failure> {
        self.with(|node| node.swarm.connected_peers().copied().collect()).await
    }

    /// Joins a topic: its messages are judged, forwarded where they are accepted, and told.
    pub async fn subscribe(&self, topic: String) -> Result<(), Failure> {
        let subscribed = self.with(move |node| node.swarm.behaviour_mut().gossip.subscribe(&IdentTopic::new(topic)));
        match subscribed.await? {
            Ok(_) => Ok(()),
            Err(error @ SubscriptionError::NotAllowed) => Err(Failure::Refused(error.to_string())),
            Err(error) => Err(Failure::Fault(error.to_string())),
        }
    }

    /// Tells of each new head of a world.
    pub async fn follow(&self, world_id: String) -> Result<(), Failure> {
        self.subscribe(gossip::topic(&world_id, "head")).await?;
        self.with(move |node| {
            node.followed.entry(world_id).or_default();
        })
        .await
    }

    /// Who else is known to be subscribed.
    pub async fn subscribers(&self, topic: String) -> Result<Vec<PeerId>, Failure> {
        let topic = IdentTopic::new(topic).hash();
        self.with(move |node| {
            let known = node.swarm.behaviour().gossip.all_peers();
            known.filter(|(_, topics)| topics.contains(&&topic)).map(|(peer, _)| *peer).collect()
        })
        .await
    }

    /// Sends a message that passes this peer's own check.
    pub async fn publish(&self, topic: String, data: Vec<u8>) -> Result<(), Failure> {
        let published = self.with(move |node| {
            if let (Verdict::Ignore | Verdict::Reject, why) = node.judge(&topic, &data) {
                return Err(Failure::Refused(why.unwrap_or_default()));
            }
            match node.swarm.behaviour_mut().gossip.publish(IdentTopic::new(topic), data) {
                // Nobody who listens is no failure: gossip is a hint.
                Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => Ok(()),
                Err(error @ PublishError::MessageTooLarge) => Err(Failure::Refused(error.to_string())),
                Err(error) => Err(Failure::Fault(error.to_string())),
            }
        });
        published.await?
    }
}
