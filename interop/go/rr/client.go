// The client of /aw/rr/1: one session with each peer, one-shot streams, and streams of parts.
// docs/protocol.md: Request / response.

package rr

import (
	"bufio"
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/share"
)

// WaitingMax bounds the calls to one peer: those above fail at once.
const (
	WaitingMax = 4096             // requests of one session without an answer
	clientIdle = 30 * time.Second // well before the server gives an idle session up, so that no request meets that
)

// Client sends requests: in one session with each peer, or on streams of their own.
type Client struct {
	host    host.Host
	streams *share.Share // beside the session, together no more than a peer serves

	mu       sync.Mutex
	sessions map[peer.ID]*session
}

// NewClient makes the client of a host; there is one.
func NewClient(h host.Host) *Client {
	return &Client{host: h, streams: share.New(streamsPeer-1, math.MaxInt), sessions: map[peer.ID]*session{}}
}

type session struct {
	w      *frameWriter
	cancel func()
	places chan struct{} // in flight; the others wait

	mu      sync.Mutex
	next    uint32
	waiting map[uint32]chan *Frame
	ended   bool
}

func openStream(ctx context.Context, h host.Host, p peer.ID) (network.Stream, error) {
	s, err := h.NewStream(ctx, p, Protocol)
	if err != nil {
		return nil, ioError(err)
	}
	return s, nil
}

// Call sends a request in the session with the peer, opening one where there is none.
func (c *Client) Call(ctx context.Context, p peer.ID, method string, body []byte) ([]byte, error) {
	s, id, answer, err := c.enter(ctx, p)
	if err != nil {
		return nil, err
	}
	defer s.forget(id)
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	case <-s.w.ctx.Done():
		return nil, ErrEnded
	case <-ctx.Done():
		return nil, ioError(ctx.Err())
	}
	if err := s.w.push(ctx, (&Frame{Kind: KindRequest, ID: id, Method: method, Body: body}).Encode()); err != nil {
		return nil, err
	}
	select {
	case f := <-answer:
		return finish(f)
	case <-s.w.ctx.Done():
		select { // the answer may have come just before the end
		case f := <-answer:
			return finish(f)
		default:
			return nil, ErrEnded
		}
	case <-ctx.Done():
		return nil, ioError(ctx.Err())
	}
}

func finish(f *Frame) ([]byte, error) {
	if f.Kind == KindError {
		return nil, &Error{f.Code, f.RetryAfterMS, f.Message, f.Body}
	}
	return f.Body, nil
}

func (c *Client) enter(ctx context.Context, p peer.ID) (*session, uint32, chan *Frame, error) {
	c.mu.Lock()
	s := c.sessions[p]
	c.mu.Unlock()
	if s != nil {
		if id, answer, err := s.enter(); !errors.Is(err, ErrEnded) {
			return s, id, answer, err
		}
	}
	stream, err := openStream(ctx, c.host, p)
	if err != nil {
		return nil, 0, nil, err
	}
	fresh := newSession(stream)
	c.mu.Lock()
	if now := c.sessions[p]; now != s && now != nil { // another call was faster
		c.mu.Unlock()
		fresh.end()
		return c.enter(ctx, p)
	}
	c.sessions[p] = fresh
	c.mu.Unlock()
	go func() {
		fresh.read()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.sessions[p] == fresh {
			delete(c.sessions, p)
		}
	}()
	id, answer, err := fresh.enter()
	return fresh, id, answer, err
}

func newSession(stream network.Stream) *session {
	ctx, cancel := context.WithCancel(context.Background())
	return &session{w: newFrameWriter(ctx, cancel, stream), cancel: cancel, places: make(chan struct{}, InFlight),
		next: 1, waiting: map[uint32]chan *Frame{}}
}

func (s *session) enter() (uint32, chan *Frame, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.w.ctx.Err() != nil {
		return 0, nil, ErrEnded
	}
	if len(s.waiting) >= WaitingMax {
		return 0, nil, errors.New("too many requests without an answer")
	}
	for s.waiting[s.next] != nil {
		s.next++
	}
	id, answer := s.next, make(chan *Frame, 1)
	s.waiting[id] = answer
	s.next++
	return id, answer, nil
}

func (s *session) forget(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, id)
}

// end gives the session up; an idle one is closed by both sides at leisure.
func (s *session) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	_ = s.w.stream.Reset() // given up whatever comes of it
}

func (s *session) read() {
	defer s.end()
	r := bufio.NewReaderSize(s.w.stream, joinedMax)
	for {
		f, err := nextFrame(s.w.stream, r, clientIdle, FrameMax)
		if errors.Is(err, errIdle) && !s.retire() {
			continue
		}
		if err != nil || f.Kind == KindRequest || f.Kind == KindPart {
			return
		}
		s.mu.Lock()
		answer := s.waiting[f.ID]
		delete(s.waiting, f.ID)
		s.mu.Unlock()
		if answer != nil { // else nobody waits for it any more
			answer <- f
		}
	}
}

// retire ends an idle session before anybody can enter it again.
func (s *session) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = len(s.waiting) == 0
	return s.ended
}

// OneShot sends one request with id 0 on a stream of its own, which stays open until the answer is here:
// not every muxer answers on a stream that is half closed.
func (c *Client) OneShot(ctx context.Context, p peer.ID, method string, body []byte) ([]byte, error) {
	answer, _, err := c.Parts(ctx, p, method, body, func([]byte) error {
		return errors.New("a part of no parts method")
	})
	return answer, err
}

// Parts does the same with a parts method: take gets each part, total counts their bytes. The context has a deadline.
func (c *Client) Parts(ctx context.Context, p peer.ID, method string, body []byte, take func([]byte) error) (last []byte, total int, err error) {
	if until, _ := ctx.Deadline(); !c.streams.Await(p, time.Until(until)) {
		return nil, 0, ioError(context.DeadlineExceeded)
	}
	defer c.streams.Give(p)
	s, err := openStream(ctx, c.host, p)
	if err != nil {
		return nil, 0, err
	}
	defer s.Reset() // cancels, and is harmless after Close
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := s.Write((&Frame{Kind: KindRequest, Method: method, Body: body}).Encode()); err != nil {
		return nil, 0, ioError(err)
	}
	r := bufio.NewReaderSize(s, joinedMax)
	for {
		f, err := ReadFrame(r, FrameMax)
		if err != nil {
			return nil, total, ioError(err)
		}
		switch {
		case f.ID != 0 || f.Kind == KindRequest:
			return nil, total, errors.New("a frame that answers nothing")
		case f.Kind == KindPart:
			if total += len(f.Body); total > AnswerPartsMax {
				return nil, total, ErrTooLarge
			}
			if err := take(f.Body); err != nil {
				return nil, total, err
			}
		default:
			last, err = finish(f)
			_ = s.Close() // the answer is whole
			return last, total, err
		}
	}
}
