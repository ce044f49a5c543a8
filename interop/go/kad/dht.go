// The node's side: putting, getting, providing and finding, by iterative lookups.

package kad

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"

	"aw/interop/share"
)

const (
	alpha      = 3
	askingEach = 8 // of one peer
	foundMax   = providersMax * bucketSize
	knownMax   = 1024 // peers that one lookup hears of
	lookupTime = 15 * time.Second
	askTime    = 4 * time.Second
	addrsKept  = 10 * time.Minute
	again      = 5 * time.Minute
	ownKeysMax = 65536
)

// ErrNotFound: nobody has a value of this key; ErrAlone: there is nobody to ask.
var (
	ErrNotFound = errors.New("kad: not found")
	ErrAlone    = errors.New("kad: the routing table is empty")
)

// Config is what the DHT does not know itself.
type Config struct {
	Protocol protocol.ID
	Check    func(key, value []byte) error               // is the value a record of this key?
	Compare  func(key, a, b []byte) int                  // above zero: a is the better one
	Usable   func(p peer.ID, a multiaddr.Multiaddr) bool // may this address of p be dialled?
}

// DHT is this node's part in it.
type DHT struct {
	host     host.Host
	protocol protocol.ID
	usable   func(peer.ID, multiaddr.Multiaddr) bool
	table    table
	store    *store
	streams  *share.Share
	handlers *share.Share
	asking   *share.Share // of each peer: one that is silent holds up no question to others

	mu   sync.Mutex
	keys map[string]bool // what this node provides
}

// New serves the DHT on the host until ctx ends.
func New(ctx context.Context, h host.Host, c Config) (*DHT, error) {
	d := &DHT{
		host: h, protocol: c.Protocol, usable: c.Usable,
		table:    table{self: place([]byte(h.ID()))},
		store:    newStore(c),
		streams:  share.New(streamsEach, streamsMax),
		handlers: share.New(handlersEach, handlersMax),
		asking:   share.New(askingEach, math.MaxInt),
		keys:     map[string]bool{},
	}
	identified, err := h.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return nil, err
	}
	h.SetStreamHandler(c.Protocol, d.serve)
	for _, p := range h.Network().Peers() { // who was there before
		d.noticed(p)
	}
	go d.run(ctx, identified)
	return d, nil
}

func (d *DHT) run(ctx context.Context, identified event.Subscription) {
	defer identified.Close()
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-identified.Out():
			if done, ok := e.(event.EvtPeerIdentificationCompleted); ok {
				d.noticed(done.Peer)
			}
		case <-tick.C:
			go d.republish(ctx)
		}
	}
}

// noticed takes a peer that speaks the protocol into the routing table.
func (d *DHT) noticed(p peer.ID) {
	if known, err := d.host.Peerstore().SupportsProtocols(p, d.protocol); err == nil && len(known) > 0 {
		d.table.add(p)
	}
}

// republish tells again what is provided, and looks for this node's own neighbours.
func (d *DHT) republish(ctx context.Context) {
	d.lookup(ctx, []byte(d.host.ID()), d.findNode([]byte(d.host.ID())))
	d.mu.Lock()
	keys := make([]string, 0, len(d.keys))
	for k := range d.keys {
		keys = append(keys, k)
	}
	d.mu.Unlock()
	for _, k := range keys {
		if ctx.Err() != nil {
			return
		}
		d.tellProvided(ctx, []byte(k))
	}
}

// Peers is the routing table.
func (d *DHT) Peers() []peer.ID { return d.table.all() }

// Put holds the value here and at the peers closest to its key. That there are none yet, or that some refuse it, holding
// a better one, is no failure.
func (d *DHT) Put(ctx context.Context, key, value []byte) error {
	if err := d.store.put(key, value); err != nil {
		return err
	}
	d.putTo(ctx, d.lookup(ctx, key, d.findNode(key)), key, value)
	return nil
}

// Held gives the value that is held here, and how long ago it was put last, and asks nobody.
func (d *DHT) Held(key []byte) ([]byte, time.Duration, error) {
	r, ok := d.store.get(key)
	if !ok {
		return nil, 0, ErrNotFound
	}
	return r.value, time.Since(r.at), nil
}

func (d *DHT) putTo(ctx context.Context, peers []peer.ID, key, value []byte) {
	d.each(peers, func(p peer.ID) {
		// An answer or none: the peer decides, and the next put or a reader's repair comes again.
		_, _ = d.ask(ctx, p, &message{kind: putValue, key: key, value: value, hasRecord: true})
	})
}

// Get asks the peers closest to the key, takes the best of their values and its own, and gives it to
// those that had none or a worse one.
func (d *DHT) Get(ctx context.Context, key []byte) ([]byte, error) {
	var mu sync.Mutex
	values := map[peer.ID][]byte{}
	var best []byte
	if own, ok := d.store.get(key); ok {
		best = own.value
	}
	closest := d.lookup(ctx, key, func(ctx context.Context, p peer.ID) (*message, error) {
		a, err := d.ask(ctx, p, &message{kind: getValue, key: key})
		if err == nil && a.hasRecord && d.store.check(key, a.value) == nil {
			mu.Lock()
			defer mu.Unlock()
			values[p] = a.value
			if best == nil || d.store.compare(key, a.value, best) > 0 {
				best = a.value
			}
		}
		return a, err
	})
	if best == nil {
		return nil, ErrNotFound
	}
	var behind []peer.ID
	for _, p := range closest {
		if v, ok := values[p]; !ok || d.store.compare(key, v, best) < 0 {
			behind = append(behind, p)
		}
	}
	d.putTo(ctx, behind, key, best)
	return best, nil
}

// Provide tells the peers closest to the key that this node has the content, now and every five minutes: after ErrAlone too.
func (d *DHT) Provide(ctx context.Context, key []byte) error {
	if err := d.checkProviderKey(key); err != nil {
		return err
	}
	d.mu.Lock()
	full := len(d.keys) >= ownKeysMax
	if !full {
		d.keys[string(key)] = true
	}
	d.mu.Unlock()
	if full {
		return errKeys
	}
	if d.tellProvided(ctx, key) == 0 {
		return ErrAlone
	}
	return nil
}

func (d *DHT) tellProvided(ctx context.Context, key []byte) int {
	self := entry{id: []byte(d.host.ID())}
	for _, a := range d.host.Addrs() {
		self.addrs = append(self.addrs, a.Bytes())
	}
	closest := d.lookup(ctx, key, d.findNode(key))
	d.each(closest, func(p peer.ID) {
		// A peer that is gone by now is none of the closest at the next telling.
		_, _ = d.ask(ctx, p, &message{kind: addProvider, key: key, providers: []entry{self}})
	})
	return len(closest)
}

// providers are those that this node knows of, itself among them: as many as a reader takes, so that the newest are not cut off.
func (d *DHT) providers(key []byte) (out []peer.AddrInfo) {
	d.mu.Lock()
	if d.keys[string(key)] {
		out = append(out, peer.AddrInfo{ID: d.host.ID(), Addrs: d.host.Addrs()})
	}
	d.mu.Unlock()
	held := d.store.getProviders(key)
	return append(out, held[max(0, len(out)+len(held)-providersMax):]...)
}

// FindProviders gives each provider once, with addresses where anybody has told any.
func (d *DHT) FindProviders(ctx context.Context, key []byte) ([]peer.AddrInfo, error) {
	if err := d.checkProviderKey(key); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	at := map[peer.ID]int{}
	var out []peer.AddrInfo
	take := func(p peer.AddrInfo) {
		mu.Lock()
		defer mu.Unlock()
		if i, ok := at[p.ID]; !ok && len(out) < foundMax {
			at[p.ID] = len(out)
			out = append(out, p)
		} else if ok && len(out[i].Addrs) == 0 {
			out[i].Addrs = p.Addrs
		}
	}
	for _, p := range d.providers(key) {
		take(p)
	}
	d.lookup(ctx, key, func(ctx context.Context, p peer.ID) (*message, error) {
		a, err := d.ask(ctx, p, &message{kind: getProviders, key: key})
		if err != nil {
			return nil, err
		}
		valid := slices.DeleteFunc(a.providers, func(e entry) bool { return !d.validPeer(e) })
		for _, e := range valid[:min(len(valid), providersMax)] { // who names more hides nobody else's
			take(d.addrInfo(e))
		}
		return a, nil
	})
	return out, nil
}

func (d *DHT) validPeer(e entry) bool { return peer.ID(e.id).Validate() == nil && len(e.id) == 38 }

func (d *DHT) findNode(key []byte) func(context.Context, peer.ID) (*message, error) {
	return func(ctx context.Context, p peer.ID) (*message, error) {
		return d.ask(ctx, p, &message{kind: findNode, key: key})
	}
}

// lookup asks ever closer peers until the closest that are known have all answered, and gives those.
func (d *DHT) lookup(ctx context.Context, key []byte, ask func(context.Context, peer.ID) (*message, error)) []peer.ID {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	type result struct {
		p peer.ID
		a *message
	}
	results := make(chan result, alpha)
	asked, failed := map[peer.ID]bool{}, map[peer.ID]bool{}
	known := d.table.closest(key)
	heard := map[peer.ID]bool{d.host.ID(): true}
	for _, p := range known {
		heard[p] = true
	}
	answered := map[peer.ID]bool{}
	for flying := 0; ; {
		var candidates, good []peer.ID
		for _, p := range byDistance(known, place(key)) {
			if len(good) == bucketSize {
				break
			}
			if !failed[p] {
				good = append(good, p)
				if !asked[p] {
					candidates = append(candidates, p)
				}
			}
		}
		for ; flying < alpha && len(candidates) > 0 && ctx.Err() == nil; flying++ {
			p := candidates[0]
			candidates, asked[p] = candidates[1:], true
			go func() {
				a, err := ask(ctx, p)
				if err != nil {
					a = nil
				}
				results <- result{p, a}
			}()
		}
		if flying == 0 {
			out := good[:0]
			for _, p := range good {
				if answered[p] {
					out = append(out, p)
				}
			}
			return out
		}
		r := <-results // in time: every ask has a deadline
		flying--
		if r.a == nil {
			failed[r.p] = true
			continue
		}
		answered[r.p] = true
		for _, e := range r.a.closer {
			p := d.addrInfo(e)
			if d.validPeer(e) && !heard[p.ID] && len(heard) < knownMax && len(p.Addrs) > 0 {
				heard[p.ID] = true
				known = append(known, p.ID)
				d.host.Peerstore().AddAddrs(p.ID, p.Addrs, addrsKept)
			}
		}
	}
}

func (d *DHT) each(peers []peer.ID, do func(peer.ID)) {
	var wg sync.WaitGroup
	for _, p := range peers {
		wg.Go(func() { do(p) })
	}
	wg.Wait()
}

// ask sends one message on a stream of its own, so that no answer can be taken for another's.
func (d *DHT) ask(ctx context.Context, p peer.ID, q *message) (*message, error) {
	if !d.asking.AwaitIn(ctx, p) {
		return nil, ctx.Err()
	}
	defer d.asking.Give(p)
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	a, err := d.exchange(ctx, p, q)
	if err != nil && d.host.Network().Connectedness(p) != network.Connected {
		d.table.remove(p) // comes back with its next connection
	}
	return a, err
}

func (d *DHT) exchange(ctx context.Context, p peer.ID, q *message) (*message, error) {
	s, err := d.host.NewStream(ctx, p, d.protocol)
	if err != nil {
		return nil, err
	}
	defer s.Reset() // harmless after Close
	deadline, _ := ctx.Deadline()
	if err := s.SetDeadline(deadline); err != nil {
		return nil, err
	}
	// The stream stays open until the answer is here: py-libp2p resets one that is half closed before.
	if err := writeMessage(s, q); err != nil {
		return nil, err
	}
	want := q.kind
	if want == addProvider { // has no answer: that of a second message shows that it was read
		want = findNode
		if err := writeMessage(s, &message{kind: findNode, key: q.key}); err != nil {
			return nil, err
		}
	}
	in := bufio.NewReader(s)
	a, err := readMessage(in)
	if err == nil && q.kind == addProvider && a.kind == addProvider { // py-libp2p answers it all the same
		a, err = readMessage(in)
	}
	if err != nil {
		return nil, err
	}
	if a.kind != want {
		return nil, fmt.Errorf("kad: %d in answer to %d", a.kind, want)
	}
	return a, s.Close()
}
