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

const rawTime = 30 * time.Second // to write them

// sendRaw writes any bytes on a stream and reads until it ends or nothing came for a second.
func (n *node) sendRaw(ctx context.Context, p peer.ID, data []byte) (answer []byte, end string, err error) {
	s, err := n.Host.NewStream(ctx, p, rr.Protocol)
	if err != nil {
		return nil, "", err
	}
	defer s.Reset()
	if err := s.SetWriteDeadline(time.Now().Add(rawTime)); err != nil {
		return nil, "", err
	}
	if _, err := s.Write(data); err != nil && !errors.Is(err, network.ErrReset) {
		return nil, "", err
	}
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		if err := s.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return nil, "", err
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
			return nil, "", err
		}
	}
	return nil, "", ctx.Err()
}
