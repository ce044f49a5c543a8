// When something was heard last over each connection: docs/protocol.md, Connections.

package awnet

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	manet "github.com/multiformats/go-multiaddr/net"
)

// heard tells for how long a connection has been silent: on a slow link the answer to a ping waits behind all else.
type heard struct {
	mu sync.Mutex
	at map[string]time.Time // by the other side's address
}

func newHeard() *heard { return &heard{at: map[string]time.Time{}} }

// silence of the connection that has been silent for longest.
func (h *heard) silence(conns []network.Conn) (longest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range conns {
		longest = max(longest, time.Since(h.at[addrOf(c)]))
	}
	return longest
}

// keep forgets all but these.
func (h *heard) keep(conns []network.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := make(map[string]time.Time, len(conns))
	for _, c := range conns {
		if at, ok := h.at[addrOf(c)]; ok {
			kept[addrOf(c)] = at
		}
	}
	h.at = kept
}

func addrOf(c network.Conn) string {
	addr, err := manet.ToNetAddr(c.RemoteMultiaddr())
	if err != nil {
		return "" // heard never: it is pinged
	}
	return addr.String()
}

// security is noise over connections that tell when bytes come.
func (h *heard) security(id protocol.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (sec.SecureTransport, error) {
	t, err := noise.New(id, key, muxers)
	return &hearing{t, h}, err
}

type hearing struct {
	sec.SecureTransport
	heard *heard
}

func (t *hearing) SecureInbound(ctx context.Context, raw net.Conn, p peer.ID) (sec.SecureConn, error) {
	return t.SecureTransport.SecureInbound(ctx, &conn{raw, t.heard}, p)
}

func (t *hearing) SecureOutbound(ctx context.Context, raw net.Conn, p peer.ID) (sec.SecureConn, error) {
	return t.SecureTransport.SecureOutbound(ctx, &conn{raw, t.heard}, p)
}

type conn struct {
	net.Conn
	heard *heard
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.mu.Lock()
		defer c.heard.mu.Unlock()
		c.heard.at[c.RemoteAddr().String()] = time.Now()
	}
	return n, err
}
