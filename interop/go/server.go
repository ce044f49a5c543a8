// The server of /aw/rr/1: sessions, streams of parts, limits, and what a bad frame brings. What the
// methods answer stands in methods.go. docs/protocol.md: Request / response, Error codes.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/share"
)

const (
	inFlightSession = 32
	inFlightPeer    = 64
	inFlightTotal   = 1024
	streamsPeer     = 64
	streamWait      = time.Second
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

func busy(why string) *rrError { return &rrError{code: codeBusy, retry: retryAfterMs, message: why} }

// largeMethods may have requests of up to a whole frame.
var largeMethods = []string{"submit_actions", "commit_batch", "execute_batch"}

func (e *rrError) frame(id uint32) []byte {
	m := strings.ToValidUTF8(e.message[:min(len(e.message), 1024)], "")
	return (&frame{kind: frameError, id: id, code: e.code, retry: e.retry, message: m, body: e.detail}).encode()
}

// errReset is what a method returns that wants its stream reset.
var errReset = errors.New("reset")

type server struct {
	node                    *node
	open, streams, inFlight *share.Share
}

// newServer takes more streams of a peer than it serves: they wait a moment, then hear that they are too many.
func newServer(n *node) *server {
	return &server{n, share.New(2*streamsPeer, math.MaxInt), share.New(streamsPeer, math.MaxInt), share.New(inFlightPeer, inFlightTotal)}
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
	excess bool // the peer has too many streams: this one's request is refused

	mu       sync.Mutex
	inFlight map[uint32]bool
	parts    bool // the stream's one request was of a parts method
}

func (s *server) serve(stream network.Stream) {
	from := stream.Conn().RemotePeer()
	if !s.open.Take(from) {
		_ = stream.Reset() // given up whatever comes of it
		return
	}
	defer s.open.Give(from)
	// The peer may have ended others whose end is still under way.
	served := s.streams.Await(from, streamWait)
	if served {
		defer s.streams.Give(from)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t := &serving{server: s, stream: stream, from: from, w: newFrameWriter(ctx, cancel, stream), ctx: ctx, cancel: cancel,
		excess: !served, inFlight: map[uint32]bool{}}
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
	t.w.close()
	<-t.w.done
	if ctx.Err() != nil || stream.Close() != nil {
		_ = stream.Reset()
	}
}

// read takes requests until the other side ends the stream (nil), or something makes it worthless.
func (t *serving) read() error {
	r := bufio.NewReader(t.stream)
	wait := firstByte
	for {
		f, err := nextFrame(t.stream, r, wait, requestMax)
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
		if t.excess {
			return t.tell(f.id, busy("too many streams"))
		}
		if err := t.request(f); err != nil {
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
	if err := t.tell(id, e); err != nil {
		return err
	}
	return e
}

func (t *serving) tell(id uint32, e *rrError, queued ...func()) error {
	return t.w.push(t.ctx, e.frame(id), queued...)
}

func (t *serving) request(f *frame) error {
	t.mu.Lock()
	twice, parts, others := t.inFlight[f.id], t.parts, len(t.inFlight)
	t.mu.Unlock()
	m, known := methods[f.method]
	switch {
	case f.kind != frameRequest:
		return t.fail(f.id, "no request")
	case parts:
		return t.fail(f.id, "a parts stream carries one request")
	case twice:
		return t.fail(f.id, "an id in flight")
	case f.cut && !slices.Contains(largeMethods, f.method):
		return t.tell(f.id, badRequest(fmt.Errorf("more than %d bytes", requestMax)))
	case !known:
		return t.tell(f.id, &rrError{code: codeUnsupported, message: "no such method here"})
	case m.parts != nil && others > 0:
		return t.tell(f.id, badRequest(errors.New("a parts method needs a stream of its own")))
	case others >= inFlightSession || !t.server.inFlight.Take(t.from):
		return t.tell(f.id, busy("too many requests in flight"))
	}
	t.mu.Lock()
	t.inFlight[f.id], t.parts = true, m.parts != nil
	t.mu.Unlock()
	t.wg.Go(func() { t.handle(m, f) })
	return nil
}

func (t *serving) handle(m method, f *frame) {
	// The place is held until the answer is queued, so that who reads none gets no more; and given up before it is
	// out: then the id may come again.
	leave := sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.inFlight, f.id)
		t.server.inFlight.Give(t.from)
	})
	defer leave()
	answer, err := t.run(m, f)
	var told *rrError
	var bad *refusal
	switch {
	case err == nil:
		err = t.w.push(t.ctx, (&frame{kind: frameAnswer, id: f.id, body: answer}).encode(), leave)
	case errors.As(err, &told):
		err = t.tell(f.id, told, leave)
	case errors.As(err, &bad) || errors.Is(err, errVersion):
		err = t.tell(f.id, badRequest(err), leave)
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
		return t.w.push(t.ctx, (&frame{kind: framePart, id: f.id, body: part}).encode())
	})
}
