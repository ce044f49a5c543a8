// Frames on a stream: one writer that joins small frames, and reading with deadlines.
// docs/protocol.md: Request / response.

package rr

import (
	"bufio"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Protocol is that of the streams.
const (
	Protocol protocol.ID = "/aw/rr/1"

	queueMax     = 512 << 10        // bytes that wait for the reader of one stream
	joinedMax    = 64 << 10         // bytes of frames joined into one write
	firstByte    = 10 * time.Second // to the first request of a stream
	frameTime    = 30 * time.Second // from a frame's first byte to its last, and for one write
	hurriedTime  = time.Second      // for one write while others wait for what it holds
	sessionIdle  = 60 * time.Second // a client retires what rested so long, a server ends it after twice that: so no request meets an end
	yieldsBefore = 16
	// A reset throws away what the other side has not read yet: an answer before it is given this long.
	linger = 100 * time.Millisecond
)

// crowd is what several writers hold together.
type crowd struct {
	load   atomic.Int64
	isFull func() bool // whether others wait for it; nil where nobody else can
}

func (c *crowd) overfull() bool { return c.load.Load() > waitingMax }

// frameWriter is the only writer of a stream. It ends with its context, or when it is closed and all is written.
type frameWriter struct {
	stream network.Stream
	ctx    context.Context
	done   chan struct{}
	crowd  *crowd

	mu     sync.Mutex
	turn   *sync.Cond // of the writer, for a frame, and of those who push, for room
	queue  [][]byte
	load   int // of the queue, and of what is being written
	closed bool
}

func newFrameWriter(ctx context.Context, cancel func(), s network.Stream, c *crowd) *frameWriter {
	w := &frameWriter{stream: s, ctx: ctx, done: make(chan struct{}), crowd: c}
	w.turn = sync.NewCond(&w.mu)
	context.AfterFunc(ctx, w.wake)
	go func() {
		defer close(w.done)
		if w.run() != nil {
			cancel() // a reader too slow, or gone: whoever pushes or handles learns it
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.count(-w.load) // nothing is pushed any more
	}()
	return w
}

func (w *frameWriter) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn.Broadcast()
}

func (w *frameWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.turn.Broadcast()
}

// push waits while too many bytes are queued, so that a slow reader slows down its own requests only. Those of queued are
// called when there is room, before the frame is written.
func (w *frameWriter) push(ctx context.Context, b []byte, queued ...func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if full := func() bool { return w.load > 0 && w.load+loadOf(b) > queueMax }; full() {
		defer context.AfterFunc(ctx, w.wake)()
		for full() && ctx.Err() == nil && w.ctx.Err() == nil {
			w.turn.Wait()
		}
	}
	if w.ctx.Err() != nil {
		return ErrEnded
	}
	if ctx.Err() != nil {
		return IOError(ctx.Err())
	}
	for _, do := range queued {
		do()
	}
	w.queue = append(w.queue, b)
	w.count(loadOf(b))
	w.turn.Broadcast()
	return nil
}

// flush waits until all that was pushed is written.
func (w *frameWriter) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.load > 0 && w.ctx.Err() == nil {
		w.turn.Wait()
	}
	if w.ctx.Err() != nil {
		return ErrEnded
	}
	return nil
}

// loadOf counts what a frame costs beside its bytes, so that empty ones fill the queue too.
func loadOf(b []byte) int { return len(b) + 64 }

func (w *frameWriter) count(by int) {
	w.load += by
	w.crowd.load.Add(int64(by))
}

func (w *frameWriter) run() error {
	buf := make([]byte, 0, joinedMax)
	for {
		out, load, err := w.take(buf)
		if err != nil || load == 0 {
			return err
		}
		if err := w.write(out); err != nil {
			return err
		}
		w.mu.Lock()
		w.count(-load)
		w.turn.Broadcast()
		w.mu.Unlock()
	}
}

// write gives up a reader that is too slow.
func (w *frameWriter) write(out []byte) error {
	end := time.Now().Add(frameTime)
	for {
		deadline := end
		if w.crowd.isFull != nil {
			deadline = time.Now().Add(hurriedTime)
		}
		if err := w.stream.SetWriteDeadline(deadline); err != nil {
			return err
		}
		n, err := w.stream.Write(out)
		if out = out[n:]; err == nil || !TimedOut(err) || !time.Now().Before(end) || w.ctx.Err() != nil {
			return err
		}
		if w.crowd.isFull == nil || w.crowd.isFull() { // a stream that is still negotiated cannot be written to again
			return err
		}
	}
}

// join gives a few turns to those about to push: each write costs the other side a frame of noise and one of yamux.
func (w *frameWriter) join() {
	for yields, seen := 0, 0; yields < yieldsBefore && w.load < joinedMax && !w.closed; yields++ {
		if len(w.queue) > seen {
			yields, seen = 0, len(w.queue)
		}
		w.mu.Unlock()
		runtime.Gosched()
		w.mu.Lock()
	}
}

// take waits for a frame, then gives those that fit one write, and their load: none when the writer is closed.
func (w *frameWriter) take(buf []byte) (out []byte, load int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) == 0 && !w.closed && w.ctx.Err() == nil {
		w.turn.Wait()
	}
	if w.ctx.Err() != nil {
		return nil, 0, ErrEnded
	}
	if len(w.queue) == 0 {
		return nil, 0, nil
	}
	w.join()
	out, n := w.queue[0], 1
	if len(out) < joinedMax {
		out = append(buf[:0], out...)
	}
	for ; n < len(w.queue) && len(out)+len(w.queue[n]) <= joinedMax; n++ {
		out = append(out, w.queue[n]...)
	}
	for _, b := range w.queue[:n] {
		load += loadOf(b)
	}
	w.queue = slices.Delete(w.queue, 0, n)
	return out, load, nil
}

// nextFrame waits for a frame's first byte, then reads it within frameTime.
func nextFrame(s network.Stream, r *bufio.Reader, wait time.Duration, most int64) (*Frame, error) {
	if r.Buffered() == 0 {
		if err := s.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return nil, err
		}
		if _, err := r.Peek(1); TimedOut(err) {
			return nil, errIdle
		} else if err != nil {
			return nil, err
		}
	}
	if err := s.SetReadDeadline(time.Now().Add(frameTime)); err != nil {
		return nil, err
	}
	return ReadFrame(r, most)
}
