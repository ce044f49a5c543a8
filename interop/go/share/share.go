// Package share bounds what each peer holds of something, and what all hold together, so that none takes it all. It hides
// the counting and the waiting; it guarantees that no place is given beyond either bound.
package share

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Share counts places that are taken.
type Share struct {
	each, all int

	mu    sync.Mutex
	freed *sync.Cond
	held  map[peer.ID]int
	total int
}

// New makes one of so many places for each peer, and for all together.
func New(each, all int) *Share {
	s := &Share{each: each, all: all, held: map[peer.ID]int{}}
	s.freed = sync.NewCond(&s.mu)
	return s
}

// Take takes a place for the peer, if there is one.
func (s *Share) Take(p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(p)
}

// Await waits so long for a place.
func (s *Share) Await(p peer.ID, most time.Duration) bool {
	if s.Take(p) {
		return true
	}
	ctx, stop := context.WithTimeout(context.Background(), most)
	defer stop()
	return s.AwaitIn(ctx, p)
}

// AwaitIn waits for a place until the context ends.
func (s *Share) AwaitIn(ctx context.Context, p peer.ID) bool {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.freed.Broadcast()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.take(p) {
		if ctx.Err() != nil {
			return false
		}
		s.freed.Wait()
	}
	return true
}

func (s *Share) take(p peer.ID) bool {
	if s.total >= s.all || s.held[p] >= s.each {
		return false
	}
	s.total++
	s.held[p]++
	return true
}

// IsFull: all places are taken.
func (s *Share) IsFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total >= s.all
}

// Give gives a place back.
func (s *Share) Give(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.held[p]--; s.held[p] == 0 {
		delete(s.held, p)
	}
	s.freed.Broadcast()
}
