// How a request fails: the error frame of the other side, and what else may happen.
// docs/protocol.md: Error codes.

package rr

import (
	"context"
	"errors"
	"net"
	"strings"
)

var (
	// ErrEnded: the stream ended, whoever did it.
	ErrEnded error = &StreamError{errors.New("the stream has ended")}
	errIdle        = errors.New("no frame has begun in time")
	errStuck       = errors.New("the server owes answers only to those who have given up")
	// ErrTooMany: WaitingMax calls wait for this peer.
	ErrTooMany  = errors.New("too many requests without an answer")
	ErrTooLarge = errors.New("the answer is above the limit")
	// ErrReset is what a method returns that wants its stream reset.
	ErrReset = errors.New("reset")
)

// StreamError: the peer could not be reached, or the stream ended or was reset, or held no frames, before the answer.
type StreamError struct{ Err error }

func (s *StreamError) Error() string { return s.Err.Error() }
func (s *StreamError) Unwrap() error { return s.Err }

// TimedOut: there was no (whole) answer in time. The muxer's error of a deadline is its own, and only net.Error tells it.
func TimedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// IOError makes one error of all timeouts of a stream, and a StreamError of whatever else it met.
func IOError(err error) error {
	if TimedOut(err) {
		return context.DeadlineExceeded
	}
	return &StreamError{err}
}

// Codes of Error that are made or asked for by name.
const (
	CodeNotFound     = 1
	CodeBadRequest   = 2
	codeUnsupported  = 5
	codeBusy         = 7
	CodeNotAvailable = 10
)

var codeNames = [11]string{"", "ERR_NOT_FOUND", "ERR_BAD_REQUEST", "ERR_INVALID_HASH", "ERR_STATE_MISMATCH", "ERR_UNSUPPORTED",
	"ERR_UNAUTHORIZED", "ERR_BUSY", "ERR_RATE_LIMITED", "ERR_TIMEOUT", "ERR_NOT_AVAILABLE"}

// Error is the error frame of a request, as sent or as received.
type Error struct {
	Code         byte
	RetryAfterMS uint32
	Message      string
	Detail       []byte
}

func (e *Error) Error() string { return e.Name() + ": " + e.Message }

// Name is the code as docs/protocol.md names it.
func (e *Error) Name() string { return codeNames[e.Code] }

func badRequest(err error) *Error { return &Error{Code: CodeBadRequest, Message: err.Error()} }

func busy(why string) *Error { return &Error{Code: codeBusy, RetryAfterMS: retryAfterMS, Message: why} }

func (e *Error) frame(id uint32) []byte {
	m := strings.ToValidUTF8(e.Message[:min(len(e.Message), 1024)], "")
	return (&Frame{Kind: KindError, ID: id, Code: e.Code, RetryAfterMS: e.RetryAfterMS, Message: m, Body: e.Detail}).Encode()
}
