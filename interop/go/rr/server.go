// The server of /aw/rr/1: sessions, streams of parts, limits, and what a bad frame brings.
// docs/protocol.md: Request / response, Error codes.

package rr

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
	"aw/interop/share"
)

// InFlight, and the other bounds of what a peer may ask for at once.
const (
	InFlight      = 32 // requests of one session without an answer, on either side
	inFlightPeer  = 64
	inFlightTotal = 1024
	streamsPeer   = 64
	streamsOpen   = 256         // with those that wait to be served, or hear that they are too many: what is above is reset
	placeWait     = time.Second // for one among these: those of before may have ended, and their end be under way
	retryAfterMS  = 100
	waitingMax    = 128 << 20 // bytes of answers that nobody has read yet, of all peers together
	smallPart     = 64        // what a part counts at least, so that empty ones have an end
)

// Method answers with one body, or with parts and a last body. An error is sent as what it is: an Error as it stands, a
// Refusal or a later version as BAD_REQUEST; with any other, ErrReset among them, the stream is reset.
type Method struct {
	Request string // the record "<Request>.request" is what its body must be
	Answer  func(ctx context.Context, q aw.Map, raw []byte) ([]byte, error)
	Parts   func(q aw.Map, send func([]byte) error) ([]byte, error)
	Sent    func(size int) // is told when all parts of an answer went out, if anybody wants to know
}

// largeMethods may have requests of up to a whole frame.
var largeMethods = []string{"submit_actions", "commit_batch", "execute_batch"}

// Server answers the streams that other peers open.
type Server struct {
	methods                 map[string]Method
	open, streams, inFlight *share.Share
	crowd                   *crowd
}

// NewServer serves these methods, by name, to a host that has Serve as the handler of Protocol's streams.
func NewServer(methods map[string]Method) *Server {
	s := &Server{methods, share.New(streamsOpen, math.MaxInt), share.New(streamsPeer, math.MaxInt), share.New(inFlightPeer, inFlightTotal), &crowd{}}
	s.crowd.isFull = func() bool { return s.crowd.overfull() || s.inFlight.IsFull() }
	return s
}

// serving is one stream that another peer opened.
type serving struct {
	server *Server
	stream network.Stream
	from   peer.ID
	w      *frameWriter
	ctx    context.Context
	cancel func()
	wg     sync.WaitGroup
	served bool // it has its place among the peer's streams

	mu       sync.Mutex
	inFlight map[uint32]bool
	parts    bool // the stream's one request was of a parts method
}

// Serve answers one stream until it ends.
func (s *Server) Serve(stream network.Stream) {
	from := stream.Conn().RemotePeer()
	if !s.open.Take(from) {
		_ = stream.Reset() // given up whatever comes of it
		return
	}
	defer s.open.Give(from)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t := &serving{server: s, stream: stream, from: from, w: newFrameWriter(ctx, cancel, stream, s.crowd), ctx: ctx, cancel: cancel,
		served: s.streams.Take(from), inFlight: map[uint32]bool{}}
	err := t.read()
	if t.served {
		defer s.streams.Give(from)
	}
	if err != nil {
		var told *Error
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
	wait, patience := firstByte, placeWait
	for {
		f, err := nextFrame(t.stream, r, wait, requestMax)
		wait = 2 * sessionIdle
		if errors.Is(err, errIdle) && t.busy() {
			continue // silent, but it waits for answers
		}
		if errors.Is(err, io.EOF) || errors.Is(err, errIdle) {
			return nil
		}
		var bad *BadFrame
		if errors.As(err, &bad) && bad.told {
			return t.fail(bad.id, bad.why)
		}
		if err != nil {
			return err
		}
		if t.served = t.served || t.server.streams.Await(t.from, patience); t.served {
			err = t.request(f)
		} else {
			patience = 0
			err = t.tell(f.ID, busy("too many streams"))
		}
		if err != nil {
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

func (t *serving) tell(id uint32, e *Error, queued ...func()) error {
	return t.w.push(t.ctx, e.frame(id), queued...)
}

func (t *serving) request(f *Frame) error {
	t.mu.Lock()
	twice, parts, others := t.inFlight[f.ID], t.parts, len(t.inFlight)
	t.mu.Unlock()
	m, known := t.server.methods[f.Method]
	switch {
	case f.Kind != KindRequest:
		return t.fail(f.ID, "no request")
	case parts:
		return t.fail(f.ID, "a parts stream carries one request")
	case twice:
		return t.fail(f.ID, "an id in flight")
	case f.cut && !slices.Contains(largeMethods, f.Method):
		return t.tell(f.ID, badRequest(fmt.Errorf("more than %d bytes", requestMax)))
	case !known:
		return t.tell(f.ID, &Error{Code: codeUnsupported, Message: "no such method here"})
	case m.Parts != nil && others > 0:
		return t.tell(f.ID, badRequest(errors.New("a parts method needs a stream of its own")))
	case t.server.crowd.overfull():
		return t.tell(f.ID, busy("too much that is not read yet"))
	case others >= InFlight:
		return t.tell(f.ID, busy("too many requests in flight"))
	}
	t.mu.Lock()
	t.inFlight[f.ID], t.parts = true, m.Parts != nil
	t.mu.Unlock()
	t.wg.Go(func() { t.handle(m, f) })
	return nil
}

func (t *serving) handle(m Method, f *Frame) {
	placed := t.server.inFlight.Await(t.from, placeWait)
	// The place is held until the answer is queued, so that who reads none gets no more; and given up before it is
	// out: then the id may come again.
	leave := sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.inFlight, f.ID)
		if placed {
			t.server.inFlight.Give(t.from)
		}
	})
	defer leave()
	answer, err := []byte(nil), error(busy("too many requests in flight"))
	if placed {
		answer, err = t.run(m, f)
	}
	var told *Error
	var bad *aw.Refusal
	switch {
	case err == nil:
		err = t.w.push(t.ctx, (&Frame{Kind: KindAnswer, ID: f.ID, Body: answer}).Encode(), leave)
	case errors.As(err, &told):
		err = t.tell(f.ID, told, leave)
	case errors.As(err, &bad) || errors.Is(err, aw.ErrVersion):
		err = t.tell(f.ID, badRequest(err), leave)
	}
	if err != nil { // wants a reset, or the stream has ended
		if errors.Is(err, ErrReset) {
			time.Sleep(linger)
		}
		_ = t.stream.Reset()
		t.cancel()
	}
}

func (t *serving) run(m Method, f *Frame) ([]byte, error) {
	q, err := aw.ReadRecord(m.Request+".request", f.Body)
	if err != nil {
		return nil, err
	}
	if m.Parts == nil {
		return m.Answer(t.ctx, q, f.Body)
	}
	size, total := 0, 0
	last, err := m.Parts(q, func(part []byte) error {
		size += len(part)
		if total += max(len(part), smallPart); total > AnswerPartsMax {
			return badRequest(ErrTooLarge)
		}
		return t.w.push(t.ctx, (&Frame{Kind: KindPart, ID: f.ID, Body: part}).Encode())
	})
	// Before the last frame, so that whoever has the whole answer finds it counted.
	if err == nil && m.Sent != nil {
		if err = t.w.flush(); err == nil {
			m.Sent(size)
		}
	}
	return last, err
}
