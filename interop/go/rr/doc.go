// Package rr is request and response over the streams of /aw/rr/1 (docs/protocol.md: Request / response): frames, a client,
// and a server that is given its methods.
//
// It hides streams, sessions, deadlines and how frames are joined into writes. The client guarantees that no more is in
// flight with a peer than that serves, and an end in the time of the caller's context. The server guarantees the limits of
// the protocol for each peer and for all together, and that a slow reader slows down its own requests only.
//
// A call fails with an *Error (the other side said so), ErrTooLarge, an error that is TimedOut, or any other: the peer could
// not be reached, or the stream ended before the answer.
package rr
