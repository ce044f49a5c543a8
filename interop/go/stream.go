// Frames on a stream: one writer that joins small frames, and reading with deadlines.
// docs/protocol.md: Request / response.
package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	rrProtocol protocol.ID = "/aw/rr/1"

	queueMax     = 8        // frames of one stream; they may be parts of 256 KiB
	joinedMax    = 64 << 10 // bytes of frames joined into one write
	writeTime    = 10 * time.Second
	firstByte    = 10 * time.Second // to the first request of a stream
	frameTime    = 30 * time.Second // from a frame's first byte to its last
	sessionIdle  = 60 * time.Second
	yieldsBefore = 16
	// A reset throws away what the other side has not read yet: an answer before it is given this long.
	linger = 100 * time.Millisecond
)

var (
	errEnded = errors.New("the stream has ended")
	errIdle  = errors.New("no frame has begun in time")
)

// timedOut: the muxer's error of a deadline is its own, and only net.Error tells it.
func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// frameWriter is the only writer of a stream. It ends with its context, or when out is closed and empty.
type frameWriter struct {
	stream network.Stream
	out    chan []byte
	ctx    context.Context
	done   chan struct{}
}

func newFrameWriter(ctx context.Context, cancel func(), s network.Stream) *frameWriter {
	w := &frameWriter{s, make(chan []byte, queueMax), ctx, make(chan struct{})}
	go func() {
		defer close(w.done)
		if w.run() != nil {
			cancel() // a reader too slow, or gone: whoever pushes or handles learns it
		}
	}()
	return w
}

// push waits while the queue is full, so that a slow reader slows down its own requests only.
func (w *frameWriter) push(b []byte) error {
	select {
	case w.out <- b:
		return nil
	case <-w.ctx.Done():
		return errEnded
	}
}

func (w *frameWriter) run() error {
	buf := make([]byte, 0, joinedMax)
	for {
		select {
		case b, ok := <-w.out:
			if !ok {
				return nil
			}
			buf = append(buf[:0], b...)
		case <-w.ctx.Done():
			return errEnded
		}
		buf = w.join(buf)
		if err := w.stream.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return err
		}
		if _, err := w.stream.Write(buf); err != nil {
			return err
		}
		if cap(buf) > 2*frameMax {
			buf = make([]byte, 0, joinedMax)
		}
	}
}

// join takes what is queued, and yields a few times to those about to queue more: each write costs the
// other side a frame of noise and one of yamux.
func (w *frameWriter) join(buf []byte) []byte {
	for yields := 0; len(buf) < joinedMax; {
		select {
		case b, ok := <-w.out:
			if !ok {
				return buf
			}
			buf, yields = append(buf, b...), 0
		default:
			if yields++; yields > yieldsBefore {
				return buf
			}
			runtime.Gosched()
		}
	}
	return buf
}

// nextFrame waits for a frame's first byte, then reads it within frameTime.
func nextFrame(s network.Stream, r *bufio.Reader, wait time.Duration, most int64) (*frame, error) {
	if r.Buffered() == 0 {
		if err := s.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return nil, err
		}
		if _, err := r.Peek(1); timedOut(err) {
			return nil, errIdle
		} else if err != nil {
			return nil, err
		}
		if err := s.SetReadDeadline(time.Now().Add(frameTime)); err != nil {
			return nil, err
		}
	}
	return readFrame(r, most)
}
