// store.go: the records and provider records that are held for the network, all of them bounded.
package kad

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

const (
	recordsMax   = 4096
	valueMax     = 8192
	keysMax      = 65536
	providersMax = 20 // of one key
	heldFor      = 48 * time.Hour
	addsMax      = 500 // provider records of one peer in addsPeriod
	addsPeriod   = 10 * time.Second
)

// ErrOlder: a better value of the key is held.
var ErrOlder = errors.New("kad: a better value is held")

var (
	errFull = errors.New("kad: no room for more records")
	errRate = errors.New("kad: too many provider records")
)

type record struct {
	value []byte
	at    time.Time
}

type provider struct {
	id    peer.ID
	addrs []multiaddr.Multiaddr
	at    time.Time
}

type store struct {
	check   func(key, value []byte) error
	compare func(key, a, b []byte) int

	mu        sync.Mutex
	records   map[string]record
	providers map[string][]provider
	adds      map[peer.ID]int
	period    time.Time
}

// put holds a value that is valid and not older than the one held; an equal one is held anew.
func (s *store) put(key, value []byte) error {
	if len(value) > valueMax {
		return errFull
	}
	if err := s.check(key, value); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	held, ok := s.records[string(key)]
	if ok && time.Since(held.at) < heldFor && s.compare(key, value, held.value) < 0 {
		return ErrOlder
	}
	if !ok && len(s.records) >= recordsMax {
		return errFull
	}
	s.records[string(key)] = record{value, time.Now()}
	return nil
}

func (s *store) get(key []byte) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[string(key)]
	if ok && time.Since(r.at) >= heldFor {
		delete(s.records, string(key))
		ok = false
	}
	return r, ok
}

func (s *store) addProvider(key []byte, from peer.AddrInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.period) > addsPeriod {
		s.period, s.adds = now, map[peer.ID]int{}
	}
	if s.adds[from.ID]++; s.adds[from.ID] > addsMax {
		return errRate
	}
	list, ok := s.providers[string(key)]
	if !ok && len(s.providers) >= keysMax {
		return errFull
	}
	list = slices.DeleteFunc(list, func(p provider) bool { return p.id == from.ID })
	if len(list) >= providersMax {
		list = list[1:] // the oldest
	}
	s.providers[string(key)] = append(list, provider{from.ID, from.Addrs, now})
	return nil
}

func (s *store) getProviders(key []byte) []peer.AddrInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.DeleteFunc(s.providers[string(key)], func(p provider) bool { return time.Since(p.at) >= heldFor })
	if len(list) == 0 {
		delete(s.providers, string(key))
		return nil
	}
	s.providers[string(key)] = list
	out := make([]peer.AddrInfo, len(list))
	for i, p := range list {
		out[i] = peer.AddrInfo{ID: p.id, Addrs: p.addrs}
	}
	return out
}
