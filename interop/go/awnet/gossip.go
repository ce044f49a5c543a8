// Gossip by the library: topics joined with the check of package aw, and following the heads of a world.
// docs/protocol.md: Gossip, Names, Head (Following).

package awnet

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

	"aw/interop/aw"
)

const (
	headSkew  = time.Minute // a head dated further ahead is not for now
	topicsMax = 256         // that one peer is subscribed to, and that it names in one message
)

var ourTopics = regexp.MustCompile(`\Aaw\.[a-z2-7]{32}\.[a-z]{1,16}\z`)

// Hearing is who is told what gossip brings, if anybody, and how strictly it is judged. Who is told must not wait: the
// library calls as messages come.
type Hearing struct {
	Judged   func(m *pubsub.Message, v aw.Verdict) // every message of another peer, once each
	Head     func(h *aw.Head)                      // every head of a followed world that is above the last one told
	Careless bool                                  // accepts everything: only a peer that plays the liar is
}

// Gossip takes part in the topics of known worlds, and relays what it accepts.
type Gossip struct {
	node    *Node
	hearing Hearing
	ps      *pubsub.PubSub

	mu       sync.Mutex
	topics   map[string]*pubsub.Topic
	followed map[string]*aw.Head // the last head of each world that is followed; nil before the first
}

// NewGossip takes part until the context ends.
//
// It floods what this node publishes to all known subscribers: until the first heartbeat after a join the mesh is empty,
// and what is published then would reach nobody.
func NewGossip(ctx context.Context, n *Node, hearing Hearing) (*Gossip, error) {
	net := n.Host.Network()
	connected := func(p peer.ID) bool { return net.Connectedness(p) == network.Connected }
	subscribed := &subscriptions{SubscriptionFilter: pubsub.NewRegexpSubscriptionFilter(ourTopics), connected: connected,
		of: map[peer.ID]map[string]bool{}}
	ps, err := pubsub.NewGossipSub(ctx, n.Host,
		pubsub.WithGossipSubProtocols([]protocol.ID{pubsub.GossipSubID_v11}, pubsub.GossipSubDefaultFeatures),
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign), pubsub.WithFloodPublish(true),
		pubsub.WithPeerOutboundQueueSize(2048), pubsub.WithValidateQueueSize(4096),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(subscribed, topicsMax)))
	if err != nil {
		return nil, err
	}
	net.Notify(&network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) { subscribed.gone(c.RemotePeer()) }})
	return &Gossip{node: n, hearing: hearing, ps: ps, topics: map[string]*pubsub.Topic{}, followed: map[string]*aw.Head{}}, nil
}

// subscriptions bounds the topics of a peer, over all its messages: the library's own limit is for each message alone.
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
func (g *Gossip) topic(name string) (*pubsub.Topic, error) {
	world, kind, err := aw.SplitTopic(name)
	if err != nil {
		return nil, err
	}
	genesis := g.node.Genesis(world)
	if genesis == nil {
		return nil, ErrNotFound
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.topics[name]; t != nil {
		return t, nil
	}
	most := aw.EnvelopeMax(genesis)
	check := func(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		return g.judged(world, kind, most, from, m)
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

func (g *Gossip) judge(world, kind string, envelopeMax int, data []byte) (aw.Verdict, error) {
	if g.hearing.Careless {
		return aw.Accept, nil
	}
	return aw.Judge(world, kind, envelopeMax, data)
}

func (g *Gossip) judged(world, kind string, envelopeMax int, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	v, _ := g.judge(world, kind, envelopeMax, m.Data)
	if from != g.node.Host.ID() {
		if g.hearing.Judged != nil {
			g.hearing.Judged(m, v)
		}
		if kind == "head" && v == aw.Accept {
			g.seen(world, m.Data)
		}
	}
	return map[aw.Verdict]pubsub.ValidationResult{aw.Accept: pubsub.ValidationAccept, aw.Ignore: pubsub.ValidationIgnore, aw.Reject: pubsub.ValidationReject}[v]
}

// Join subscribes to a topic of a known world. A relay is a subscription whose messages nobody has to drain.
func (g *Gossip) Join(name string) error {
	t, err := g.topic(name)
	if err != nil {
		return err
	}
	_, err = t.Relay()
	return err
}

// Publish tells all who subscribe to the topic, if this node itself accepts the data.
func (g *Gossip) Publish(ctx context.Context, name string, data []byte) error {
	t, err := g.topic(name)
	if err != nil {
		return err
	}
	world, kind, err := aw.SplitTopic(name)
	if err != nil {
		return err
	}
	if v, why := g.judge(world, kind, aw.EnvelopeMax(g.node.Genesis(world)), data); v != aw.Accept {
		return aw.Refuse("%s: %v", v, why)
	}
	return t.Publish(ctx, data)
}

// Follow joins the head topic of a known world: Hearing.Head is told.
func (g *Gossip) Follow(world string) error {
	g.mu.Lock()
	if _, ok := g.followed[world]; !ok {
		g.followed[world] = nil
	}
	g.mu.Unlock()
	return g.Join(aw.Topic(world, "head"))
}

// Peers are those known to be subscribed to a topic.
func (g *Gossip) Peers(topic string) []peer.ID { return g.ps.ListPeers(topic) }

// seen tells of a head that is above the last one told.
func (g *Gossip) seen(world string, data []byte) {
	h, err := aw.CheckHead(data, world)
	if err != nil || h.AsOf() > time.Now().Add(headSkew).UnixMilli() {
		return // a careless peer relays what it does not follow
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if last, ok := g.followed[world]; !ok || last != nil && h.Compare(last) <= 0 {
		return
	}
	g.followed[world] = h
	if g.hearing.Head != nil {
		g.hearing.Head(h)
	}
}
