// What this peer answers: its own methods, blobs, and the worlds that it knows or mirrors.
// docs/protocol.md: Methods; docs/interop.md: Request / response.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"time"
)

// method answers with one body, or with parts and a last body.
type method struct {
	request string // the shape of its request
	answer  func(ctx context.Context, n *node, q dict, raw []byte) ([]byte, error)
	parts   func(n *node, q dict, send func([]byte) error) ([]byte, error)
}

var methods map[string]method

func init() {
	methods = map[string]method{
		"hello":          {request: "any", answer: hello},
		"has_blobs":      {request: "has_blobs", answer: hasBlobs},
		"fetch_blob":     {request: "fetch_blob", parts: sendBlob},
		"get_genesis":    {request: "world", answer: getGenesis},
		"get_world_head": {request: "world", answer: getWorldHead},
		"get_block":      {request: "get_block", answer: getBlock},
		"get_blocks":     {request: "get_blocks", parts: sendBlocks},
		"get_batch":      {request: "get_batch", answer: getBatch},
		"x_echo":         {request: "any", answer: func(_ context.Context, _ *node, _ dict, raw []byte) ([]byte, error) { return raw, nil }},
		"x_error":        {request: "x_error", answer: answerError},
		"x_wait":         {request: "x_wait", answer: waitAWhile},
		"x_parts":        {request: "x_parts", parts: sendParts},
		"x_reset":        {request: "x_reset", parts: sendAndReset},
	}
}

func notHeld(what string) error {
	return &rrError{code: codeNotFound, message: what + " is not held here"}
}

func hello(_ context.Context, n *node, _ dict, _ []byte) ([]byte, error) {
	worlds := []any{}
	for _, id := range n.worldIDs() {
		if len(worlds) < 64 {
			worlds = append(worlds, id)
		}
	}
	return encode(dict{"versions": []any{int64(1)}, "max_in_flight": int64(inFlightSession), "worlds": worlds}), nil
}

func hasBlobs(_ context.Context, n *node, q dict, _ []byte) ([]byte, error) {
	has := []any{}
	for _, h := range q.list("hashes") {
		_, ok := n.blobs.get(h.([]byte))
		has = append(has, ok)
	}
	return encode(dict{"has": has}), nil
}

func sendBlob(n *node, q dict, send func([]byte) error) ([]byte, error) {
	blob, ok := n.blobs.get(q.bytes("content_hash"))
	if !ok {
		return nil, notHeld(hex.EncodeToString(q.bytes("content_hash")))
	}
	from, to := int64(0), int64(len(blob))
	if q.has("offset") {
		from = q.int("offset")
	}
	if from > to {
		return nil, &rrError{code: codeBadRequest, message: "the offset is beyond the blob"}
	}
	if q.has("length") {
		to = min(to, from+q.int("length"))
	}
	for rest := blob[from:to]; len(rest) > 0; {
		part := rest[:min(len(rest), partMax)]
		rest = rest[len(part):]
		if err := send(part); err != nil {
			return nil, err
		}
	}
	return encode(dict{"size": int64(len(blob))}), nil
}

// worldOf gives what this peer knows of the world of a request.
func worldOf(n *node, q dict) (*world, error) {
	if w := n.world(q.text("world_id")); w != nil {
		return w, nil
	}
	return nil, &rrError{code: codeNotAvailable, message: "the world is not known here"}
}

func getGenesis(_ context.Context, n *node, q dict, _ []byte) ([]byte, error) {
	w, err := worldOf(n, q)
	if err != nil {
		return nil, err
	}
	return encode(dict{"genesis": w.genesis}), nil
}

func getWorldHead(_ context.Context, n *node, q dict, _ []byte) ([]byte, error) {
	w, err := worldOf(n, q)
	if err != nil {
		return nil, err
	}
	if w.head == nil {
		return encode(dict{}), nil
	}
	return encode(dict{"head": w.head.record}), nil
}

func getBlock(_ context.Context, n *node, q dict, _ []byte) ([]byte, error) {
	w, err := worldOf(n, q)
	if err != nil {
		return nil, err
	}
	var h int64
	if q.has("height") {
		h = q.int("height")
	} else {
		h = w.byHash[string(q.bytes("block_hash"))]
	}
	if h >= 1 && h <= int64(len(w.heights)) {
		return encode(dict{"block": w.heights[h-1].block}), nil
	}
	return nil, notHeld("the block")
}

func sendBlocks(n *node, q dict, send func([]byte) error) ([]byte, error) {
	w, err := worldOf(n, q)
	if err != nil {
		return nil, err
	}
	const together = 32 // blocks of a part
	from, to := q.int("from_height")-1, int64(len(w.heights))
	for end := min(to, from+q.int("count")); from < end; {
		part := []any{}
		for ; from < end && len(part) < together; from++ {
			part = append(part, w.heights[from].block)
		}
		if err := send(encode(part)); err != nil {
			return nil, err
		}
	}
	return encode(dict{}), nil
}

func getBatch(_ context.Context, n *node, q dict, _ []byte) ([]byte, error) {
	w, err := worldOf(n, q)
	if err != nil {
		return nil, err
	}
	if h := q.int("height"); h <= int64(len(w.heights)) && w.heights[h-1].batch != nil {
		return encode(dict{"batch": w.heights[h-1].batch, "commit": w.heights[h-1].commit}), nil
	}
	return nil, notHeld("the batch")
}

func answerError(_ context.Context, _ *node, q dict, _ []byte) ([]byte, error) {
	return nil, &rrError{byte(q.int("code")), uint32(q.int("retry_after_ms")), q.text("message"), q.bytes("detail")}
}

func waitAWhile(ctx context.Context, _ *node, q dict, _ []byte) ([]byte, error) {
	select {
	case <-time.After(time.Duration(q.int("ms")) * time.Millisecond):
		return encode(dict{}), nil
	case <-ctx.Done():
		return nil, errEnded
	}
}

func sendParts(_ *node, q dict, send func([]byte) error) ([]byte, error) {
	for i := range q.int("count") {
		if err := send(bytes.Repeat([]byte{byte(i)}, int(q.int("size")))); err != nil {
			return nil, err
		}
	}
	return encode(dict{"count": q.int("count")}), nil
}

func sendAndReset(_ *node, q dict, send func([]byte) error) ([]byte, error) {
	for range q.int("after") {
		if err := send(make([]byte, 1024)); err != nil {
			return nil, err
		}
	}
	return nil, errReset
}
