// Package rr is request and response over the streams of /aw/rr/1 (docs/protocol.md: Request / response): frames, a client,
// and a server that is given its methods.
//
// It hides streams, sessions, deadlines and how frames are joined into writes. The client guarantees that the server never
// holds more than InFlight requests of a session, those whose caller has given up included, that no more streams are open
// beside it than a peer serves, and an end in the time of the caller's context. The server guarantees the limits of the
// protocol for each peer and for all together, and that a slow reader slows down its own requests only.
//
// A call fails with an *Error (the other side said so), a *StreamError (there was no whole answer), ErrTooLarge, an error
// that is TimedOut, or a fault of the caller's own.
package rr
