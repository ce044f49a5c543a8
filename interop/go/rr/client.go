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

// WaitingMax bounds the calls in one session, with those that wait for one of its InFlight places: a further one is ErrTooMany.
const WaitingMax = 4096

// Client sends requests: in one session with each peer, or on streams of their own.
type Client struct {
	host    host.Host
	opening *share.Share // of a session: one at a time with each peer
	streams *share.Share // beside the session, together no more than a peer serves

	mu       sync.Mutex
	sessions map[peer.ID]*session
}

// NewClient makes the client of a host; there is one.
func NewClient(h host.Host) *Client {
	return &Client{host: h, opening: share.New(1, math.MaxInt), streams: share.New(streamsPeer-1, math.MaxInt),
		sessions: map[peer.ID]*session{}}
}

type session struct {
	w      *frameWriter
	cancel context.CancelCauseFunc
	places chan struct{} // each is a request that the server has not answered

	mu        sync.Mutex
	next      uint32
	calls     int                    // with those that wait for a place
	asked     map[uint32]chan *Frame // has a place, by its id; nil where the caller has given up, and the server has not
	abandoned int                    // how many are nil
	ended     bool
}

func openStream(ctx context.Context, h host.Host, p peer.ID) (network.Stream, error) {
	s, err := h.NewStream(ctx, p, Protocol)
	if err != nil {
		return nil, IOError(err)
	}
	return s, nil
}

// await takes a place within the context's time.
func await(ctx context.Context, places *share.Share, p peer.ID) error {
	if !places.AwaitIn(ctx, p) {
		return IOError(ctx.Err())
	}
	return nil
}

// Call sends a request in the session with the peer, opening one where there is none. The context has a deadline.
func (c *Client) Call(ctx context.Context, p peer.ID, method string, body []byte) ([]byte, error) {
	for {
		s, err := c.enter(ctx, p)
		if err != nil {
			return nil, err
		}
		answer, err := s.ask(ctx, &Frame{Kind: KindRequest, Method: method, Body: body})
		s.leave()
		if errors.Is(err, errStuck) {
			continue // it was never sent: on to the next session
		}
		if err != nil {
			return nil, err
		}
		return finish(answer)
	}
}

func finish(f *Frame) ([]byte, error) {
	if f.Kind == KindError {
		return nil, &Error{f.Code, f.RetryAfterMS, f.Message, f.Body}
	}
	return f.Body, nil
}

// enter counts the caller into the session with the peer, and opens one where there is none.
func (c *Client) enter(ctx context.Context, p peer.ID) (*session, error) {
	if s, err := c.enterOpen(p); s != nil {
		return s, err
	}
	if err := await(ctx, c.opening, p); err != nil {
		return nil, err
	}
	defer c.opening.Give(p)
	if s, err := c.enterOpen(p); s != nil { // another call was faster
		return s, err
	}
	stream, err := openStream(ctx, c.host, p)
	if err != nil {
		return nil, err
	}
	s := newSession(stream)
	c.mu.Lock()
	c.sessions[p] = s
	c.mu.Unlock()
	go func() {
		s.read()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.sessions[p] == s {
			delete(c.sessions, p)
		}
	}()
	return s, s.enter()
}

// enterOpen gives nil where no session is open.
func (c *Client) enterOpen(p peer.ID) (*session, error) {
	c.mu.Lock()
	s := c.sessions[p]
	c.mu.Unlock()
	if s == nil {
		return nil, nil
	}
	err := s.enter()
	if errors.Is(err, ErrEnded) {
		return nil, nil
	}
	return s, err
}

func newSession(stream network.Stream) *session {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &session{w: newFrameWriter(ctx, func() { cancel(ErrEnded) }, stream, &crowd{}), cancel: cancel,
		places: make(chan struct{}, InFlight), asked: map[uint32]chan *Frame{}}
}

func (s *session) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.w.ctx.Err() != nil {
		return ErrEnded
	}
	if s.calls >= WaitingMax {
		return ErrTooMany
	}
	s.calls++
	return nil
}

func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls--
}

// ask sends a request when there is a place for it, and waits for the answer.
func (s *session) ask(ctx context.Context, f *Frame) (*Frame, error) {
	select {
	case s.places <- struct{}{}:
	case <-s.w.ctx.Done():
		return nil, context.Cause(s.w.ctx)
	case <-ctx.Done():
		return nil, IOError(ctx.Err())
	}
	answer := s.begin(f)
	if err := s.w.push(ctx, f.Encode()); err != nil {
		s.free(f.ID) // it was never sent
		return nil, err
	}
	select {
	case got := <-answer:
		return got, nil
	case <-s.w.ctx.Done():
		select { // the answer may have come just before the end
		case got := <-answer:
			return got, nil
		default:
			return nil, ErrEnded
		}
	case <-ctx.Done():
		s.abandon(f.ID)
		return nil, IOError(ctx.Err())
	}
}

// begin gives the request an id that none in flight has.
func (s *session) begin(f *Frame) chan *Frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	for taken := true; taken; _, taken = s.asked[s.next] {
		s.next++
	}
	f.ID = s.next
	answer := make(chan *Frame, 1)
	s.asked[f.ID] = answer
	return answer
}

// abandon leaves a request its place, since the server may be at work on it, so that the server never holds more than
// InFlight. Where all places are held like that the session is given up, lest a silent server lock the client out.
func (s *session) abandon(id uint32) {
	s.mu.Lock()
	if s.asked[id] != nil { // else its answer came just now
		s.asked[id] = nil
		s.abandoned++
	}
	stuck := s.abandoned == InFlight
	s.mu.Unlock()
	if stuck {
		s.end(errStuck)
	}
}

// free gives back the place of a request, and tells who waits for the answer, if anybody does. False: none has this id.
func (s *session) free(id uint32) (chan *Frame, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, held := s.asked[id]
	if !held {
		return nil, false
	}
	if answer == nil {
		s.abandoned--
	}
	delete(s.asked, id)
	<-s.places
	return answer, true
}

// end gives the session up. Those who wait for a place in it learn why.
func (s *session) end(why error) {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel(why)
	_ = s.w.stream.Reset() // given up whatever comes of it
}

func (s *session) read() {
	defer s.end(ErrEnded)
	r := bufio.NewReaderSize(s.w.stream, joinedMax)
	for {
		f, err := nextFrame(s.w.stream, r, sessionIdle, FrameMax)
		if errors.Is(err, errIdle) && !s.retire() {
			continue
		}
		if err != nil || f.Kind == KindRequest || f.Kind == KindPart {
			return
		}
		answer, asked := s.free(f.ID)
		if !asked {
			return
		}
		if answer != nil {
			answer <- f
		}
	}
}

// retire ends a session that rested, before anybody can enter it again.
func (s *session) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = s.ended || s.calls == 0
	return s.ended
}

// OneShot sends one request with id 0 on a stream of its own, which stays open until the answer is here:
// not every muxer answers on a stream that is half closed.
func (c *Client) OneShot(ctx context.Context, p peer.ID, method string, body []byte) ([]byte, error) {
	answer, _, err := c.Parts(ctx, p, method, body, func([]byte) error {
		return &StreamError{errors.New("a part of no parts method")}
	})
	return answer, err
}

// Parts does the same with a parts method: take gets each part, total counts their bytes. The context has a deadline.
func (c *Client) Parts(ctx context.Context, p peer.ID, method string, body []byte, take func([]byte) error) (last []byte, total int, err error) {
	if err := await(ctx, c.streams, p); err != nil {
		return nil, 0, err
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
		return nil, 0, IOError(err)
	}
	r, counted := bufio.NewReaderSize(s, joinedMax), 0
	for {
		f, err := ReadFrame(r, FrameMax)
		if err != nil {
			return nil, total, IOError(err)
		}
		switch {
		case f.ID != 0 || f.Kind == KindRequest || f.Kind == KindPart && len(f.Body) > PartMax:
			return nil, total, &StreamError{errors.New("a frame that answers nothing")}
		case f.Kind == KindPart:
			if counted += max(len(f.Body), smallPart); counted > AnswerPartsMax {
				return nil, total, ErrTooLarge
			}
			total += len(f.Body)
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
