// The node: a libp2p host with its limits, the liveness of its connections, and everything built on it.
// docs/protocol.md: Identity, Connections.
package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"

	"aw/interop/kad"
)

const (
	dialTime       = 5 * time.Second
	livenessPeriod = 5 * time.Second
	livenessTime   = 4 * time.Second
)

// errNotFound: the DHT, or this peer, or the one asked, has nothing of that name.
var errNotFound = errors.New("nothing of that name")

type node struct {
	host     host.Host
	careless bool // checks nothing that is published, put or received by gossip
	out      *output
	rr       *client
	blobs    *blobs
	dht      *kad.DHT
	gossip   *gossip

	mu     sync.Mutex
	worlds map[string]*world
}

// onlyEd25519 closes connections of peers with other kinds of key.
type onlyEd25519 struct{}

func (onlyEd25519) InterceptPeerDial(peer.ID) bool                          { return true }
func (onlyEd25519) InterceptAddrDial(p peer.ID, a multiaddr.Multiaddr) bool { return usable(p, a) }
func (onlyEd25519) InterceptAccept(network.ConnMultiaddrs) bool             { return true }
func (onlyEd25519) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return keyID([]byte(p)) == nil
}
func (onlyEd25519) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// usable: /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT, with the peer's own id or none.
func usable(p peer.ID, a multiaddr.Multiaddr) bool {
	if len(a) < 2 || len(a) > 3 || a[1].Protocol().Code != multiaddr.P_TCP {
		return false
	}
	switch a[0].Protocol().Code {
	case multiaddr.P_IP4, multiaddr.P_IP6, multiaddr.P_DNS, multiaddr.P_DNS4, multiaddr.P_DNS6:
		return len(a) == 2 || a[2].Protocol().Code == multiaddr.P_P2P && a[2].Value() == p.String()
	}
	return false
}

// limits raises the library's defaults, which scale with memory, to what the protocol grants a peer.
func limits() (network.ResourceManager, error) {
	streams := func(n rcmgr.LimitVal) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{Streams: 2 * n, StreamsInbound: n, StreamsOutbound: n}
	}
	system := streams(16384)
	system.Conns, system.ConnsInbound, system.ConnsOutbound, system.FD = 1024, 512, 512, 1024
	raised := rcmgr.PartialLimitConfig{
		System: system, Transient: streams(2048), ProtocolDefault: streams(8192),
		ProtocolPeerDefault: streams(1024), PeerDefault: streams(2048),
	}.Build(rcmgr.DefaultLimits.AutoScale())
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(raised))
}

func newNode(ctx context.Context, key ed25519.PrivateKey, listen []string, careless bool, out *output) (*node, error) {
	private, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		return nil, err
	}
	resources, err := limits()
	if err != nil {
		return nil, err
	}
	h, err := libp2p.New(libp2p.Identity(private), libp2p.ListenAddrStrings(listen...), libp2p.ResourceManager(resources),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ConnectionGater(onlyEd25519{}), libp2p.WithDialTimeout(dialTime), libp2p.UserAgent("aw-interop-go/1"),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		return nil, err
	}
	n := &node{host: h, careless: careless, out: out, blobs: &blobs{held: map[string][]byte{}}, worlds: map[string]*world{},
		rr: newClient(h)}
	changes, err := h.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged), eventbus.BufSize(1024))
	if err != nil {
		return nil, err
	}
	go n.tellConnections(changes)
	if n.gossip, err = newGossip(ctx, n); err != nil {
		return nil, err
	}
	if n.dht, err = newDHT(ctx, n); err != nil {
		return nil, err
	}
	h.SetStreamHandler(rrProtocol, newServer(n).serve)
	go n.watch(ctx)
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

// watch closes what gives no sign of life twice in a row: the muxer alone takes 40 s to notice a frozen peer.
func (n *node) watch(ctx context.Context) {
	tick := time.NewTicker(livenessPeriod)
	defer tick.Stop()
	missed := map[peer.ID]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		peers := n.host.Network().Peers()
		silent := make([]bool, len(peers))
		var wg sync.WaitGroup
		for i, p := range peers {
			wg.Go(func() { silent[i] = n.silent(ctx, p) })
		}
		wg.Wait()
		still := map[peer.ID]int{}
		for i, p := range peers {
			if !silent[i] {
				continue
			}
			if still[p] = missed[p] + 1; still[p] >= 2 {
				delete(still, p)
				_ = n.host.Network().ClosePeer(p) // it is dead either way
			}
		}
		missed = still
	}
}

// silent pings once. Any answer but silence, even a refusal, is a sign of life.
func (n *node) silent(ctx context.Context, p peer.ID) bool {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "liveness"), livenessTime)
	defer cancel()
	r, came := <-ping.Ping(ctx, n.host, p) // closed without a result when the time is over
	return (!came || r.Error != nil) && ctx.Err() != nil
}
