// The peer: a node of package awnet that takes part in gossip and DHT, serves, and keeps what it is told to keep.

package main

import (
	"context"
	"crypto/ed25519"
	"maps"
	"slices"
	"sync"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"aw/interop/aw"
	"aw/interop/awnet"
	"aw/interop/kad"
	"aw/interop/mirror"
	"aw/interop/rr"
)

type node struct {
	*awnet.Node
	gossip *awnet.Gossip
	dht    *kad.DHT
	blobs  *blobs
	out    *output

	mu       sync.Mutex
	mirrored map[string]*mirror.World
}

// newNode starts it. A careless one checks nothing that is published, put or received by gossip.
func newNode(ctx context.Context, key ed25519.PrivateKey, listen []string, careless bool, out *output) (*node, error) {
	base, err := awnet.New(ctx, key, listen)
	if err != nil {
		return nil, err
	}
	n := &node{Node: base, out: out, blobs: &blobs{held: map[string][]byte{}}, mirrored: map[string]*mirror.World{}}
	changes, err := n.Host.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged), eventbus.BufSize(1024))
	if err != nil {
		return nil, err
	}
	go n.tellConnections(changes)
	if n.gossip, err = awnet.NewGossip(ctx, base, awnet.Hearing{Judged: n.tellMessage, Head: n.tellHead, Careless: careless}); err != nil {
		return nil, err
	}
	if n.dht, err = awnet.NewDHT(ctx, base, careless); err != nil {
		return nil, err
	}
	n.Host.SetStreamHandler(rr.Protocol, rr.NewServer(n.methods()).Serve)
	return n, nil
}

func (n *node) tellConnections(changes event.Subscription) {
	was := map[peer.ID]bool{}
	for e := range changes.Out() {
		c := e.(event.EvtPeerConnectednessChanged)
		switch now := c.Connectedness == network.Connected; {
		case now && !was[c.Peer]:
			was[c.Peer] = true
			n.out.event("connected", fields{"peer": c.Peer})
		case !now && was[c.Peer]:
			delete(was, c.Peer)
			n.out.event("disconnected", fields{"peer": c.Peer})
		}
	}
}

func (n *node) tellMessage(m *pubsub.Message, v aw.Verdict) {
	n.out.event("gossip", fields{"topic": m.GetTopic(), "verdict": v, "data": hexBytes(m.Data), "from": m.GetFrom()})
}

func (n *node) tellHead(h *aw.Head) {
	n.out.event("head", fields{"world_id": h.World, "height": h.Height(), "block_hash": hexBytes(h.BlockHash())})
}

// world gives a world that is mirrored, nil of any other.
func (n *node) world(id string) *mirror.World {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mirrored[id]
}

// worlds are those that are mirrored, ascending.
func (n *node) worlds() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.mirrored))
}

// mirror fetches a world, keeps it, and from now on serves it. It gives what is served: a peer that is behind takes nothing back.
func (n *node) mirror(ctx context.Context, from peer.ID, id string) (*mirror.World, error) {
	w, err := mirror.Fetch(ctx, n.Node, from, id, n.blobs.put)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if held := n.mirrored[id]; held != nil && held.Head.Compare(w.Head) > 0 {
		return held, nil
	}
	n.mirrored[id] = w
	return w, nil
}
