// The records and provider records that are held for the network, all of them bounded.

package kad

import (
	"bytes"
	"container/list"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	recordsMax = 4096
	valueMax   = 8192
	heldFor    = 48 * time.Hour
	putsMax    = 500 // records and provider records of one peer in putsPeriod
	putsPeriod = 10 * time.Second
)

// ErrRefused: what was put is refused, for another reason than Config.Check's.
var ErrRefused = errors.New("kad: refused")

var (
	errOlder = fmt.Errorf("%w: a better value is held", ErrRefused)
	errLarge = fmt.Errorf("%w: a record above the limit", ErrRefused)
	errRate  = fmt.Errorf("%w: too many records", ErrRefused)
	errKeys  = fmt.Errorf("%w: too many keys are provided here", ErrRefused)
)

type record struct {
	value []byte
	at    time.Time
}

type store struct {
	check   func(key, value []byte) error
	compare func(key, a, b []byte) int

	mu        sync.Mutex
	records   *aged
	providers *shares
	puts      map[peer.ID]int
	period    time.Time
}

func newStore(c Config) *store {
	return &store{check: c.Check, compare: c.Compare, records: newAged(), providers: newShares()}
}

// admit counts what others put: it comes before all that costs more.
func (s *store) admit(from peer.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.period) > putsPeriod {
		s.period, s.puts = now, map[peer.ID]int{}
	}
	if s.puts[from]++; s.puts[from] > putsMax {
		return errRate
	}
	return nil
}

// put holds a copy of a value that is valid and not older than the one held; an equal one is held anew.
func (s *store) put(key, value []byte) error {
	if len(value) > valueMax {
		return errLarge
	}
	if err := s.check(key, value); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	held, ok := s.records.get(string(key))
	if ok && time.Since(held.at) < heldFor && s.compare(key, value, held.value) < 0 {
		return errOlder
	}
	s.records.set(string(key), record{bytes.Clone(value), time.Now()})
	return nil
}

func (s *store) get(key []byte) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records.get(string(key))
	return r, ok && time.Since(r.at) < heldFor
}

func (s *store) addProvider(key []byte, from peer.AddrInfo, network string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.providers.add(&provider{key: string(key), id: from.ID, network: network, addrs: from.Addrs, at: time.Now()})
}

func (s *store) getProviders(key []byte) (out []peer.AddrInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.providers.keys[string(key)] {
		if time.Since(p.at) < heldFor {
			out = append(out, peer.AddrInfo{ID: p.id, Addrs: p.addrs})
		}
	}
	return out
}

// aged holds recordsMax: what was set longest ago goes first, so that newcomers are never locked out.
type aged struct {
	order *list.List // of items, the oldest first
	at    map[string]*list.Element
}

type item struct {
	key   string
	value record
}

func newAged() *aged { return &aged{list.New(), map[string]*list.Element{}} }

func (a *aged) get(key string) (none record, ok bool) {
	if e := a.at[key]; e != nil {
		return e.Value.(item).value, true
	}
	return none, false
}

func (a *aged) set(key string, value record) {
	if e := a.at[key]; e != nil {
		a.order.Remove(e)
	} else if len(a.at) >= recordsMax {
		oldest := a.order.Remove(a.order.Front()).(item)
		delete(a.at, oldest.key)
	}
	a.at[key] = a.order.PushBack(item{key, value})
}
