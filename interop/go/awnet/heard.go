// When each peer was heard last, whatever it said: docs/protocol.md, Connections.

package awnet

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
)

// heard tells for how long a peer has been silent: on a slow link the answer to a ping waits behind all else.
type heard struct {
	mu sync.Mutex
	at map[peer.ID]time.Time
}

func newHeard() *heard { return &heard{at: map[peer.ID]time.Time{}} }

func (h *heard) from(p peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at[p] = time.Now()
}

func (h *heard) silence(p peer.ID) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.at[p])
}

// keep forgets all but these.
func (h *heard) keep(peers []peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.at {
		if !slices.Contains(peers, p) {
			delete(h.at, p)
		}
	}
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
	c := &conn{Conn: raw, heard: t.heard}
	return c.named(t.SecureTransport.SecureInbound(ctx, c, p))
}

func (t *hearing) SecureOutbound(ctx context.Context, raw net.Conn, p peer.ID) (sec.SecureConn, error) {
	c := &conn{Conn: raw, heard: t.heard}
	return c.named(t.SecureTransport.SecureOutbound(ctx, c, p))
}

type conn struct {
	net.Conn
	heard *heard
	peer  peer.ID // empty during the handshake; after it only the muxer reads
}

func (c *conn) named(s sec.SecureConn, err error) (sec.SecureConn, error) {
	if err == nil {
		c.peer = s.RemotePeer()
	}
	return s, err
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.peer != "" {
		c.heard.from(c.peer)
	}
	return n, err
}
