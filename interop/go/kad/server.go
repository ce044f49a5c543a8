// Answering other peers.

package kad

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

const (
	streamsMax   = 1024
	streamsEach  = 64 // of one peer
	handlersMax  = 1024
	handlersEach = 16
	idleMax      = 30 * time.Second
)

// serve answers the messages of one stream in turn. It waits for its place: that of a stream before it may be free only
// when the end of that one has come. What is refused resets the stream.
func (d *DHT) serve(s network.Stream) {
	from := s.Conn().RemotePeer()
	if !d.streams.Take(from) {
		_ = s.Reset() // full
		return
	}
	defer d.streams.Give(from)
	if !d.handlers.Await(from, askTime) {
		_ = s.Reset()
		return
	}
	defer d.handlers.Give(from)
	in := bufio.NewReader(s)
	for {
		if err := s.SetDeadline(time.Now().Add(idleMax)); err != nil {
			break
		}
		q, err := readMessage(in)
		if errors.Is(err, io.EOF) {
			_ = s.Close() // the other side has ended it: nothing is lost
			return
		}
		if err != nil {
			break
		}
		answer, err := d.answer(s.Conn(), q)
		if err != nil {
			break
		}
		if answer != nil && writeMessage(s, answer) != nil {
			break
		}
	}
	_ = s.Reset() // it is given up whatever comes of it
}

// answer is nil for ADD_PROVIDER: a client that does not wait for one must not be one message behind.
func (d *DHT) answer(c network.Conn, q *message) (*message, error) {
	from := c.RemotePeer()
	d.noticed(from)
	a := &message{kind: q.kind, key: q.key}
	switch q.kind {
	case putValue:
		if !q.hasRecord {
			return nil, errWire
		}
		if err := d.store.admit(from); err != nil {
			return nil, err
		}
		a.hasRecord, a.value = true, q.value
		return a, d.store.put(q.key, q.value)
	case getValue:
		if r, ok := d.store.get(q.key); ok {
			a.hasRecord, a.value, a.received = true, r.value, r.at.UTC().Format(time.RFC3339Nano)
		}
	case addProvider:
		if err := errors.Join(d.checkProviderKey(q.key), d.store.admit(from)); err != nil {
			return nil, err
		}
		for _, e := range q.providers {
			if peer.ID(e.id) == from { // nobody speaks for others
				d.store.addProvider(q.key, d.addrInfo(e), networkOf(c.RemoteMultiaddr()))
				return nil, nil
			}
		}
		return nil, errWire
	case getProviders:
		if err := d.checkProviderKey(q.key); err != nil {
			return nil, err
		}
		for _, p := range d.providers(q.key) {
			a.providers = append(a.providers, toEntry(p))
		}
	case findNode:
	case ping:
		return a, nil
	default:
		return nil, errWire
	}
	for _, p := range d.table.closest(q.key) {
		if addrs := d.host.Peerstore().Addrs(p); p != from && len(addrs) > 0 {
			a.closer = append(a.closer, toEntry(peer.AddrInfo{ID: p, Addrs: addrs}))
		}
	}
	return a, nil
}

// checkProviderKey takes multihashes of BLAKE3-256 only.
func (d *DHT) checkProviderKey(key []byte) error {
	if len(key) != 34 || !bytes.HasPrefix(key, []byte{0x1e, 0x20}) {
		return errWire
	}
	return nil
}

func toEntry(p peer.AddrInfo) entry {
	e := entry{id: []byte(p.ID)}
	for _, a := range p.Addrs[:min(len(p.Addrs), addrsMax)] {
		e.addrs = append(e.addrs, a.Bytes())
	}
	return e
}

// addrInfo passes over the addresses that are not to be used.
func (d *DHT) addrInfo(e entry) peer.AddrInfo {
	p := peer.AddrInfo{ID: peer.ID(e.id)}
	for _, b := range e.addrs {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil && d.usable(p.ID, a) {
			p.Addrs = append(p.Addrs, withoutPeer(a))
		}
	}
	return p
}

func withoutPeer(a multiaddr.Multiaddr) multiaddr.Multiaddr {
	rest, last := multiaddr.SplitLast(a)
	if last != nil && last.Protocol().Code == multiaddr.P_P2P {
		return rest
	}
	return a
}
