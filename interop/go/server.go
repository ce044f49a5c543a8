// The server of /aw/rr/1: sessions, streams of parts, limits, and what a bad frame brings. What the
// methods answer stands in methods.go. docs/protocol.md: Request / response, Error codes.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	inFlightSession = 32
	inFlightPeer    = 64
	inFlightTotal   = 1024
	retryAfterMs    = 100
	smallPart       = 64 // what a part counts at least, so that empty ones have an end
)

const (
	codeNotFound     = 1
	codeBadRequest   = 2
	codeUnsupported  = 5
	codeBusy         = 7
	codeNotAvailable = 10
)

var codeNames = [11]string{"", "ERR_NOT_FOUND", "ERR_BAD_REQUEST", "ERR_INVALID_HASH", "ERR_STATE_MISMATCH", "ERR_UNSUPPORTED",
	"ERR_UNAUTHORIZED", "ERR_BUSY", "ERR_RATE_LIMITED", "ERR_TIMEOUT", "ERR_NOT_AVAILABLE"}

// rrError is the error frame of a request, as sent or as received.
type rrError struct {
	code    byte
	retry   uint32
	message string
	detail  []byte
}

func (e *rrError) Error() string { return codeNames[e.code] + ": " + e.message }

func badRequest(err error) *rrError { return &rrError{code: codeBadRequest, message: err.Error()} }

func (e *rrError) frame(id uint32) []byte {
	m := strings.ToValidUTF8(e.message[:min(len(e.message), 1024)], "")
	return (&frame{kind: frameError, id: id, code: e.code, retry: e.retry, message: m, body: e.detail}).encode()
}

// errReset is what a method returns that wants its stream reset.
var errReset = errors.New("reset")

type server struct {
	node *node

	mu    sync.Mutex
	total int
	peers map[peer.ID]int
}

// enter takes a place in flight, or says that there is none.
func (s *server) enter(p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= inFlightTotal || s.peers[p] >= inFlightPeer {
		return false
	}
	s.total++
	s.peers[p]++
	return true
}

func (s *server) leave(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.peers[p]--; s.peers[p] == 0 {
		delete(s.peers, p)
	}
}

// serving is one stream that another peer opened.
type serving struct {
	server *server
	stream network.Stream
	from   peer.ID
	w      *frameWriter
	ctx    context.Context
	cancel func()
	wg     sync.WaitGroup

	mu       sync.Mutex
	inFlight map[uint32]bool
	parts    bool // the stream's one request was of a parts method
}

func (s *server) serve(stream network.Stream) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t := &serving{server: s, stream: stream, from: stream.Conn().RemotePeer(), ctx: ctx, cancel: cancel,
		w: newFrameWriter(ctx, cancel, stream), inFlight: map[uint32]bool{}}
	if err := t.read(); err != nil {
		var told *rrError
		if errors.As(err, &told) {
			time.Sleep(linger)
		}
		_ = stream.Reset() // given up whatever comes of it
		cancel()
		t.wg.Wait()
		return
	}
	t.wg.Wait()
	close(t.w.out)
	<-t.w.done
	if ctx.Err() != nil || stream.Close() != nil {
		_ = stream.Reset()
	}
}

// read takes requests until the other side ends the stream (nil), or something makes it worthless.
func (t *serving) read() error {
	r := bufio.NewReader(t.stream)
	wait := firstByte
	for first := true; ; first = false {
		f, err := nextFrame(t.stream, r, wait, requestMax+requestHeadMax)
		wait = sessionIdle
		if errors.Is(err, errIdle) && t.busy() {
			continue // silent, but it waits for answers
		}
		if errors.Is(err, io.EOF) || errors.Is(err, errIdle) {
			return nil
		}
		var bad *badFrame
		if errors.As(err, &bad) && bad.told {
			return t.fail(bad.id, bad.why)
		}
		if err != nil {
			return err
		}
		if err := t.request(f, first); err != nil {
			return err
		}
	}
}

func (t *serving) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.inFlight) > 0
}

// fail tells why the stream is about to be reset.
func (t *serving) fail(id uint32, why string) error {
	e := badRequest(errors.New(why))
	if err := t.w.push(e.frame(id)); err != nil {
		return err
	}
	return e
}

func (t *serving) request(f *frame, first bool) error {
	t.mu.Lock()
	twice, parts, many := t.inFlight[f.id], t.parts, len(t.inFlight) >= inFlightSession
	t.mu.Unlock()
	m, known := methods[f.method]
	switch {
	case f.kind != frameRequest:
		return t.fail(f.id, "no request")
	case parts:
		return t.fail(f.id, "a parts stream carries one request")
	case twice:
		return t.fail(f.id, "an id in flight")
	case known && m.parts != nil && !first:
		return t.fail(f.id, "a parts method needs a stream of its own")
	case !known:
		return t.w.push((&rrError{code: codeUnsupported, message: "no such method here"}).frame(f.id))
	case f.cut || len(f.body) > requestMax:
		return t.w.push(badRequest(fmt.Errorf("more than %d bytes", requestMax)).frame(f.id))
	case many || !t.server.enter(t.from):
		return t.w.push((&rrError{code: codeBusy, retry: retryAfterMs, message: "too many requests in flight"}).frame(f.id))
	}
	t.mu.Lock()
	t.inFlight[f.id], t.parts = true, m.parts != nil
	t.mu.Unlock()
	t.wg.Go(func() { t.handle(m, f) })
	return nil
}

func (t *serving) handle(m method, f *frame) {
	answer, err := t.run(m, f)
	t.mu.Lock()
	delete(t.inFlight, f.id) // before the answer is out: then the id may come again
	t.mu.Unlock()
	t.server.leave(t.from)
	var told *rrError
	var bad *refusal
	switch {
	case err == nil:
		err = t.w.push((&frame{kind: frameAnswer, id: f.id, body: answer}).encode())
	case errors.As(err, &told):
		err = t.w.push(told.frame(f.id))
	case errors.As(err, &bad) || errors.Is(err, errVersion):
		err = t.w.push(badRequest(err).frame(f.id))
	}
	if err != nil { // wants a reset, or the stream has ended
		if errors.Is(err, errReset) {
			time.Sleep(linger)
		}
		_ = t.stream.Reset()
		t.cancel()
	}
}

func (t *serving) run(m method, f *frame) ([]byte, error) {
	q, err := readRecord(m.request+".request", f.body)
	if err != nil {
		return nil, err
	}
	if m.parts == nil {
		return m.answer(t.ctx, t.server.node, q, f.body)
	}
	total := 0
	return m.parts(t.server.node, q, func(part []byte) error {
		if total += max(len(part), smallPart); total > answerPartsMax {
			return badRequest(errTooLarge)
		}
		return t.w.push((&frame{kind: framePart, id: f.id, body: part}).encode())
	})
}
