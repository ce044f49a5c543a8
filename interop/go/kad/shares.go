// The provider records of others: who floods displaces himself. docs/protocol.md: DHT.

package kad

import (
	"container/list"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	providersHeldMax = 16384
	providersMax     = 20 // of one key
)

type provider struct {
	key     string
	id      peer.ID
	network string
	addrs   []multiaddr.Multiaddr
	at      time.Time
	age     *list.Element // among those of its peer
	order   *list.Element // among all
}

// shares holds providersHeldMax. Past that one goes of the network with most, of its peer with most, the oldest: all in
// constant time.
type shares struct {
	held     int
	keys     map[string][]*provider // the oldest first
	networks *tally
	peers    map[string]*tally    // of each network
	ages     map[whose]*list.List // of providers, the oldest first
	all      *list.List           // of providers, the oldest first
}

type whose struct {
	network string
	id      peer.ID
}

func newShares() *shares {
	return &shares{
		keys:     map[string][]*provider{},
		networks: newTally(), peers: map[string]*tally{}, ages: map[whose]*list.List{}, all: list.New(),
	}
}

func (s *shares) add(p *provider) {
	for s.held > 0 && p.at.Sub(s.oldest().at) > heldFor {
		s.remove(s.oldest())
	}
	in := s.keys[p.key]
	if i := slices.IndexFunc(in, func(other *provider) bool { return other.id == p.id }); i >= 0 {
		s.remove(in[i])
	} else if len(in) >= providersMax {
		s.remove(oldestOfMost(in))
	}
	of := whose{p.network, p.id}
	if s.ages[of] == nil {
		s.ages[of] = list.New()
	}
	p.age, p.order = s.ages[of].PushBack(p), s.all.PushBack(p)
	s.keys[p.key] = append(s.keys[p.key], p)
	s.count(p, 1)
	if s.held > providersHeldMax {
		network := s.networks.most()
		s.remove(s.ages[whose{network, peer.ID(s.peers[network].most())}].Front().Value.(*provider))
	}
}

func (s *shares) oldest() *provider { return s.all.Front().Value.(*provider) }

func (s *shares) remove(p *provider) {
	of := whose{p.network, p.id}
	s.ages[of].Remove(p.age)
	s.all.Remove(p.order)
	if s.ages[of].Len() == 0 {
		delete(s.ages, of)
	}
	s.keys[p.key] = slices.DeleteFunc(s.keys[p.key], func(other *provider) bool { return other == p })
	if len(s.keys[p.key]) == 0 {
		delete(s.keys, p.key)
	}
	s.count(p, -1)
}

func (s *shares) count(p *provider, by int) {
	s.held += by
	s.networks.change(p.network, by)
	if s.peers[p.network] == nil {
		s.peers[p.network] = newTally()
	}
	s.peers[p.network].change(string(p.id), by)
	if len(s.peers[p.network].counts) == 0 {
		delete(s.peers, p.network)
	}
}

// tally counts by name. Counts change by one, so that each has the next one below it while it is the highest.
type tally struct {
	at      map[string]*list.Element
	counts  map[string]int
	names   map[int]*list.List // by count, the one changed longest ago first
	highest int
}

func newTally() *tally {
	return &tally{at: map[string]*list.Element{}, counts: map[string]int{}, names: map[int]*list.List{}}
}

func (t *tally) change(name string, by int) {
	before, after := t.counts[name], t.counts[name]+by
	if before > 0 {
		t.names[before].Remove(t.at[name])
		if t.names[before].Len() == 0 {
			delete(t.names, before)
		}
	}
	if after == 0 {
		delete(t.counts, name)
		delete(t.at, name)
	} else {
		if t.names[after] == nil {
			t.names[after] = list.New()
		}
		t.counts[name], t.at[name] = after, t.names[after].PushBack(name)
	}
	if after > t.highest || t.names[t.highest] == nil {
		t.highest = after
	}
}

// most is a name of the highest count: of something that is counted.
func (t *tally) most() string { return t.names[t.highest].Front().Value.(string) }

// oldestOfMost: of the network that has most of these.
func oldestOfMost(in []*provider) *provider {
	count, most := map[string]int{}, in[0]
	for _, p := range in {
		count[p.network]++
	}
	for _, p := range in {
		if count[p.network] > count[most.network] {
			most = p
		}
	}
	return most
}

// networkOf: an IPv4 address, or the first 56 bits of an IPv6 one. All that is neither counts as one.
func networkOf(remote multiaddr.Multiaddr) string {
	ip, err := manet.ToIP(remote)
	if err != nil {
		return ""
	}
	if v4 := ip.To4(); v4 != nil {
		return string(v4)
	}
	return string(ip[:7])
}
