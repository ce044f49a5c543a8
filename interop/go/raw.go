// Any bytes on a stream: what no client does, and every server must bear. docs/interop.md: Request / response (send_raw).

package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/rr"
)

const silence = time.Second // after which nothing more is expected

// sendRaw writes any bytes on a stream and reads until it ends or is silent. The context has a deadline.
func (n *node) sendRaw(ctx context.Context, p peer.ID, data []byte) (answer []byte, end string, err error) {
	s, err := n.Host.NewStream(ctx, p, rr.Protocol)
	if err != nil {
		return nil, "", rr.IOError(err)
	}
	defer s.Reset()
	until, _ := ctx.Deadline()
	if err := s.SetWriteDeadline(until); err != nil {
		return nil, "", rr.IOError(err)
	}
	if _, err := s.Write(data); err != nil && !errors.Is(err, network.ErrReset) {
		return nil, "", rr.IOError(err)
	}
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		if err := s.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return nil, "", rr.IOError(err)
		}
		n, err := s.Read(buf)
		if answer = append(answer, buf[:n]...); len(answer) > rr.AnswerPartsMax {
			return nil, "", rr.ErrTooLarge
		}
		switch {
		case rr.TimedOut(err):
			return answer, "open", nil
		case errors.Is(err, io.EOF):
			return answer, "eof", nil
		case errors.Is(err, network.ErrReset):
			return answer, "reset", nil
		case err != nil:
			return nil, "", rr.IOError(err)
		}
	}
	return nil, "", rr.IOError(ctx.Err())
}
