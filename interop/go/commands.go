// Running one command line, and the kinds of error. docs/interop.md: Commands.

package main

import (
	"context"
	"errors"

	"aw/interop/aw"
	"aw/interop/awnet"
	"aw/interop/kad"
	"aw/interop/rr"
)

// job is a command whose fields have been read.
type job func(ctx context.Context, n *node) (fields, error)

// execute runs one line and writes its answer. Without an id that can be read, the answer's is null.
func (n *node) execute(ctx context.Context, line []byte) (quit bool) {
	a, err := readArgs(line)
	if err != nil {
		n.out.line(fields{"id": nil, "error": failure(err)})
		return false
	}
	m, _ := a.of.(map[string]any)
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
	name := a.text("do")
	command, ok := commands[name]
	if !ok {
		a.fail("no such command: %q", name)
		return nil, *a.err
	}
	do := command(a)
	if *a.err != nil {
		return nil, *a.err
	}
	return do(ctx, n)
}

func failure(err error) fields {
	kind := "stream" // what is left comes from the network
	var usage *usageError
	var refused *aw.Refusal
	var told *rr.Error
	switch {
	case errors.As(err, &usage):
		kind = "usage"
	case errors.As(err, &told):
		return fields{"kind": "rr", "message": told.Message, "code": told.Code, "name": told.Name(),
			"retry_after_ms": told.RetryAfterMS, "detail": hexBytes(told.Detail)}
	case errors.As(err, &refused), errors.Is(err, aw.ErrVersion), errors.Is(err, kad.ErrOlder):
		kind = "refused"
	case errors.Is(err, rr.ErrTooLarge):
		kind = "too_large"
	case errors.Is(err, awnet.ErrNotFound), errors.Is(err, kad.ErrNotFound):
		kind = "not_found"
	case rr.TimedOut(err):
		kind = "timeout"
	}
	return fields{"kind": kind, "message": err.Error()}
}
