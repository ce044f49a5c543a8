// Running one command line, and the kinds of error. docs/interop.md: Commands.

package main

import (
	"context"
	"errors"

	"aw/interop/aw"
	"aw/interop/awnet"
	"aw/interop/jsonargs"
	"aw/interop/kad"
	"aw/interop/rr"
)

type args = jsonargs.Args

// job is a command whose fields have been read.
type job func(ctx context.Context, n *node) (fields, error)

// execute runs one line and writes its answer. Without an id that can be read, the answer's is null.
func (n *node) execute(ctx context.Context, line []byte) (quit bool) {
	a, err := jsonargs.Read(line)
	if err != nil {
		n.out.line(fields{"id": nil, "error": failure(err)})
		return false
	}
	m, _ := a.Of.(map[string]any)
	answer, err := n.perform(ctx, a)
	switch {
	case err != nil:
		n.out.line(fields{"id": m["id"], "error": failure(err)})
	case answer == nil:
		n.out.line(fields{"id": m["id"], "ok": fields{}})
	default:
		n.out.line(fields{"id": m["id"], "ok": answer})
	}
	return err == nil && m["do"] == "quit"
}

func (n *node) perform(ctx context.Context, a *args) (fields, error) {
	name := a.Text("do")
	command, ok := commands[name]
	if !ok {
		a.Fail("no such command: %.40q", name)
		return nil, a.Err()
	}
	do := command(a)
	if a.Err() != nil {
		return nil, a.Err()
	}
	return do(ctx, n)
}

func failure(err error) fields {
	kind := "fault" // whatever was not expected
	var usage *jsonargs.Malformed
	var refused *aw.Refusal
	var told *rr.Error
	var stream *rr.StreamError
	switch {
	case errors.As(err, &usage), errors.Is(err, rr.ErrTooMany):
		kind = "usage"
	case errors.As(err, &told):
		return fields{"kind": "rr", "message": told.Message, "code": told.Code, "name": told.Name(),
			"retry_after_ms": told.RetryAfterMS, "detail": hexBytes(told.Detail)}
	case errors.As(err, &refused), errors.Is(err, aw.ErrVersion), errors.Is(err, kad.ErrRefused):
		kind = "refused"
	case errors.Is(err, rr.ErrTooLarge):
		kind = "too_large"
	case errors.Is(err, awnet.ErrNotFound), errors.Is(err, kad.ErrNotFound):
		kind = "not_found"
	case errors.As(err, &stream), errors.Is(err, kad.ErrAlone):
		kind = "stream"
	case rr.TimedOut(err):
		kind = "timeout"
	}
	return fields{"kind": kind, "message": err.Error()}
}
