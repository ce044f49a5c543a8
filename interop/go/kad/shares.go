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
}

// shares holds so many at most. Past that one goes of the network with most, of its peer with most, the oldest.
type shares struct {
	most     int
	held     int
	keys     map[string][]*provider // the oldest first
	networks map[string]*origin
}

type origin struct {
	held  int
	peers map[peer.ID]*list.List // of providers, the oldest first
}

func newShares(most int) *shares {
	return &shares{most: most, keys: map[string][]*provider{}, networks: map[string]*origin{}}
}

func (s *shares) add(p *provider) {
	in := s.keys[p.key]
	if i := slices.IndexFunc(in, func(other *provider) bool { return other.id == p.id }); i >= 0 {
		s.remove(in[i])
	} else if len(in) >= providersMax {
		s.remove(oldestOfMost(in))
	}
	o := s.networks[p.network]
	if o == nil {
		o = &origin{peers: map[peer.ID]*list.List{}}
		s.networks[p.network] = o
	}
	if o.peers[p.id] == nil {
		o.peers[p.id] = list.New()
	}
	p.age = o.peers[p.id].PushBack(p)
	s.keys[p.key] = append(s.keys[p.key], p)
	o.held++
	if s.held++; s.held > s.most {
		s.remove(s.surplus())
	}
}

func (s *shares) remove(p *provider) {
	o := s.networks[p.network]
	o.peers[p.id].Remove(p.age)
	o.held--
	s.held--
	if o.peers[p.id].Len() == 0 {
		delete(o.peers, p.id)
	}
	if o.held == 0 {
		delete(s.networks, p.network)
	}
	s.keys[p.key] = slices.DeleteFunc(s.keys[p.key], func(other *provider) bool { return other == p })
	if len(s.keys[p.key]) == 0 {
		delete(s.keys, p.key)
	}
}

func (s *shares) surplus() *provider {
	most := &origin{}
	for _, o := range s.networks {
		if o.held > most.held {
			most = o
		}
	}
	var of *list.List
	for _, ages := range most.peers {
		if of == nil || ages.Len() > of.Len() {
			of = ages
		}
	}
	return of.Front().Value.(*provider)
}

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

// networkOf: an IPv4 address, or the first 64 bits of an IPv6 one.
func networkOf(remote multiaddr.Multiaddr) string {
	ip, err := manet.ToIP(remote)
	if err != nil {
		return remote.String()
	}
	if v4 := ip.To4(); v4 != nil {
		return string(v4)
	}
	return string(ip[:8])
}
