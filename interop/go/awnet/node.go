// The node: a libp2p host with its limits, the liveness of its connections, and the worlds that it knows.
// docs/protocol.md: Identity, Connections.

package awnet

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"

	"aw/interop/aw"
	"aw/interop/rr"
)

const (
	dialTime       = 5 * time.Second
	livenessPeriod = 5 * time.Second
	livenessTime   = 4 * time.Second
	connsPerIP     = 32
	addrBytesMax   = 128
)

// ErrNotFound: this node, or the one asked, has nothing of that name.
var ErrNotFound = errors.New("nothing of that name")

// Node is a libp2p host, kept to the rules of the protocol, and the worlds whose genesis it knows.
type Node struct {
	Host host.Host
	RR   *rr.Client

	heard   *heard
	mu      sync.Mutex
	geneses map[string]aw.Map
}

// onlyEd25519 closes connections of peers with other kinds of key.
type onlyEd25519 struct{}

func (onlyEd25519) InterceptPeerDial(peer.ID) bool                          { return true }
func (onlyEd25519) InterceptAddrDial(p peer.ID, a multiaddr.Multiaddr) bool { return usable(p, a) }
func (onlyEd25519) InterceptAccept(network.ConnMultiaddrs) bool             { return true }
func (onlyEd25519) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return aw.IsKeyID([]byte(p))
}
func (onlyEd25519) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// usable: /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT, with the peer's own id or none, in addr_bytes_max: a name may be of any length.
func usable(p peer.ID, a multiaddr.Multiaddr) bool {
	if len(a) < 2 || len(a) > 3 || len(a.Bytes()) > addrBytesMax || a[1].Protocol().Code != multiaddr.P_TCP {
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
	each := func(bits int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: bits, ConnCount: connsPerIP}}
	}
	// The library takes 8 connections of an address, and 16 new ones, then one in 5 s; loopback it does not count.
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(raised), rcmgr.WithLimitPerSubnet(each(32), each(56)),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}))
}

// New starts a host that listens at these multiaddrs; without any it only dials. A nil key is a fresh one. Until the context ends, connections that
// give no sign of life are closed. Whoever starts it closes Host.
func New(ctx context.Context, key ed25519.PrivateKey, listen []string) (*Node, error) {
	if key == nil {
		var err error
		if _, key, err = ed25519.GenerateKey(nil); err != nil {
			return nil, err
		}
	}
	private, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		return nil, err
	}
	resources, err := limits()
	if err != nil {
		return nil, err
	}
	heard := newHeard()
	h, err := libp2p.New(libp2p.Identity(private), libp2p.ListenAddrStrings(listen...), libp2p.ResourceManager(resources),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, heard.security), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ConnectionGater(onlyEd25519{}), libp2p.WithDialTimeout(dialTime), libp2p.UserAgent("aw-interop-go/1"),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		return nil, err
	}
	n := &Node{Host: h, RR: rr.NewClient(h), heard: heard, geneses: map[string]aw.Map{}}
	go n.watch(ctx)
	return n, nil
}

// Dial connects, and waits until the peer has said what it is.
func (n *Node) Dial(ctx context.Context, to peer.AddrInfo) error {
	if s, ok := n.Host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(to.ID) // whoever is told to dial does not wait out an earlier failure
	}
	if err := n.Host.Connect(ctx, to); err != nil {
		return &rr.StreamError{Err: err}
	}
	n.Identified(to.ID)
	return nil
}

// Identified waits until a connected peer has said what it is; the library bounds that. False: it is not connected.
func (n *Node) Identified(p peer.ID) bool {
	conns := n.Host.Network().ConnsToPeer(p)
	if ids, ok := n.Host.(interface{ IDService() identify.IDService }); ok {
		for _, c := range conns {
			<-ids.IDService().IdentifyWait(c)
		}
	}
	return len(conns) > 0
}

// Know takes a genesis that was checked, bound to the world's id where one is given, and gives that id.
func (n *Node) Know(genesis aw.Map, id string) (string, error) {
	world := aw.WorldID(aw.RecordHash("genesis", genesis.Map("header")))
	if id != "" && id != world {
		return world, aw.Refuse("genesis: of world %s, not %s", world, id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.geneses[world] = genesis
	return world, nil
}

// Genesis gives the genesis file of a world that is known, nil of another.
func (n *Node) Genesis(world string) aw.Map {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.geneses[world]
}

// watch closes what says nothing and gives no sign of life twice in a row: the muxer alone takes 40 s to notice a frozen peer.
func (n *Node) watch(ctx context.Context) {
	tick := time.NewTicker(livenessPeriod)
	defer tick.Stop()
	missed := map[peer.ID]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		peers := n.Host.Network().Peers()
		silent := make([]bool, len(peers))
		var wg sync.WaitGroup
		for i, p := range peers {
			wg.Go(func() {
				quiet := func() bool { return n.heard.silence(n.Host.Network().ConnsToPeer(p)) >= livenessPeriod }
				silent[i] = quiet() && n.silent(ctx, p) && quiet()
			})
		}
		wg.Wait()
		still := map[peer.ID]int{}
		for i, p := range peers {
			if !silent[i] {
				continue
			}
			if still[p] = missed[p] + 1; still[p] >= 2 {
				delete(still, p)
				_ = n.Host.Network().ClosePeer(p) // it is dead either way
			}
		}
		missed = still
		n.heard.keep(n.Host.Network().Conns())
	}
}

// silent pings once. Any answer but silence, even a refusal, is a sign of life.
func (n *Node) silent(ctx context.Context, p peer.ID) bool {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "liveness"), livenessTime)
	defer cancel()
	r, came := <-ping.Ping(ctx, n.Host, p) // closed without a result when the time is over
	return (!came || r.Error != nil) && ctx.Err() != nil
}
