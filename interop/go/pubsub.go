// Gossip by the library: topics joined with the check of gossip.go, events of what was judged, and
// following the heads of a world. docs/protocol.md: Gossip, Names, Head (Following).
package main

import (
	"context"
	"regexp"
	"slices"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	headSkew  = time.Minute // a head dated further ahead is not for now
	topicsMax = 256         // of one peer
)

var ourTopics = regexp.MustCompile(`\Aaw\.[a-z2-7]{32}\.[a-z]{1,16}\z`)

type gossip struct {
	node *node
	ps   *pubsub.PubSub

	mu       sync.Mutex
	topics   map[string]*pubsub.Topic
	followed map[string]*head // the last head of each world that is followed; nil before the first
}

// newGossip floods what this node publishes to all known subscribers: until the first heartbeat after a
// join the mesh is empty, and what is published then would reach nobody.
func newGossip(ctx context.Context, n *node) (*gossip, error) {
	net := n.host.Network()
	connected := func(p peer.ID) bool { return net.Connectedness(p) == network.Connected }
	subscribed := &subscriptions{SubscriptionFilter: pubsub.NewRegexpSubscriptionFilter(ourTopics), connected: connected,
		of: map[peer.ID]map[string]bool{}}
	ps, err := pubsub.NewGossipSub(ctx, n.host,
		pubsub.WithGossipSubProtocols([]protocol.ID{pubsub.GossipSubID_v11}, pubsub.GossipSubDefaultFeatures),
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign), pubsub.WithFloodPublish(true),
		pubsub.WithPeerOutboundQueueSize(2048), pubsub.WithValidateQueueSize(4096),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(subscribed, topicsMax)))
	if err != nil {
		return nil, err
	}
	net.Notify(&network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) { subscribed.gone(c.RemotePeer()) }})
	return &gossip{node: n, ps: ps, topics: map[string]*pubsub.Topic{}, followed: map[string]*head{}}, nil
}

// subscriptions bounds the topics of a peer in all: the library has a limit for each message alone.
type subscriptions struct {
	pubsub.SubscriptionFilter
	connected func(peer.ID) bool

	mu sync.Mutex
	of map[peer.ID]map[string]bool
}

func (s *subscriptions) FilterIncomingSubscriptions(p peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	subs, err := s.SubscriptionFilter.FilterIncomingSubscriptions(p, subs)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	topics := s.of[p]
	if topics == nil {
		topics = map[string]bool{}
	}
	if s.connected(p) { // else nobody would take it out again
		s.of[p] = topics
	}
	return slices.DeleteFunc(subs, func(sub *pb.RPC_SubOpts) bool {
		name := sub.GetTopicid()
		switch {
		case !sub.GetSubscribe():
			delete(topics, name)
		case !topics[name] && len(topics) >= topicsMax:
			return true
		default:
			topics[name] = true
		}
		return false
	}), nil
}

func (s *subscriptions) gone(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.connected(p) {
		delete(s.of, p)
	}
}

// topic joins a topic of a known world without subscribing to it.
func (g *gossip) topic(name string) (*pubsub.Topic, error) {
	world, kind, err := splitTopic(name)
	if err != nil {
		return nil, err
	}
	w := g.node.world(world)
	if w == nil {
		return nil, errNotFound
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.topics[name]; t != nil {
		return t, nil
	}
	envelopeMax := w.envelopeMax()
	check := func(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		return g.judged(world, kind, envelopeMax, from, m)
	}
	if err := g.ps.RegisterTopicValidator(name, check, pubsub.WithValidatorInline(true)); err != nil {
		return nil, err
	}
	t, err := g.ps.Join(name)
	if err != nil {
		return nil, err
	}
	g.topics[name] = t
	return t, nil
}

func (g *gossip) judge(world, kind string, envelopeMax int, data []byte) (verdict, error) {
	if g.node.careless {
		return accept, nil
	}
	return judge(world, kind, envelopeMax, data)
}

func (g *gossip) judged(world, kind string, envelopeMax int, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	v, _ := g.judge(world, kind, envelopeMax, m.Data)
	if from != g.node.host.ID() {
		g.node.out.event("gossip", fields{"topic": m.GetTopic(), "verdict": v, "data": hexBytes(m.Data), "from": m.GetFrom()})
		if kind == "head" && v == accept {
			g.seen(world, m.Data)
		}
	}
	return map[verdict]pubsub.ValidationResult{accept: pubsub.ValidationAccept, ignore: pubsub.ValidationIgnore, reject: pubsub.ValidationReject}[v]
}

// join subscribes. A relay is a subscription whose messages nobody has to drain.
func (g *gossip) join(name string) error {
	t, err := g.topic(name)
	if err != nil {
		return err
	}
	_, err = t.Relay()
	return err
}

func (g *gossip) publish(ctx context.Context, name string, data []byte) error {
	t, err := g.topic(name)
	if err != nil {
		return err
	}
	world, kind, err := splitTopic(name)
	if err != nil {
		return err
	}
	if v, why := g.judge(world, kind, g.node.world(world).envelopeMax(), data); v != accept {
		return refuse("%s: %v", v, why)
	}
	return t.Publish(ctx, data)
}

func (g *gossip) follow(world string) error {
	g.mu.Lock()
	if _, ok := g.followed[world]; !ok {
		g.followed[world] = nil
	}
	g.mu.Unlock()
	return g.join("aw." + world + ".head")
}

// seen tells of a head that is above the last one told.
func (g *gossip) seen(world string, data []byte) {
	h, err := checkHead(data, world)
	if err != nil || h.asOf() > time.Now().Add(headSkew).UnixMilli() {
		return // a careless peer relays what it does not follow
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if last, ok := g.followed[world]; !ok || last != nil && h.newer(last) <= 0 {
		return
	}
	g.followed[world] = h
	g.node.out.event("head", fields{"world_id": world, "height": h.height(), "block_hash": hexBytes(h.blockHash())})
}
