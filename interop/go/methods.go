// What this peer answers: its own methods, blobs, and the worlds that it mirrors.
// docs/protocol.md: Methods; docs/interop.md: Request / response.

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"time"

	"aw/interop/aw"
	"aw/interop/mirror"
	"aw/interop/rr"
)

const (
	worldsTold     = 64 // in an answer to hello
	blocksTogether = 32 // in a part of an answer to get_blocks
)

func (n *node) methods() map[string]rr.Method {
	return map[string]rr.Method{
		"hello":          {Request: "any", Answer: n.hello},
		"has_blobs":      {Request: "has_blobs", Answer: n.hasBlobs},
		"fetch_blob":     {Request: "fetch_blob", Parts: n.sendBlob, Sent: n.blobs.sent},
		"get_genesis":    {Request: "world", Answer: n.getGenesis},
		"get_world_head": {Request: "world", Answer: n.getWorldHead},
		"get_block":      {Request: "get_block", Answer: n.getBlock},
		"get_blocks":     {Request: "get_blocks", Parts: n.sendBlocks},
		"get_batch":      {Request: "get_batch", Answer: n.getBatch},
		"x_echo":         {Request: "any", Answer: func(_ context.Context, _ aw.Map, raw []byte) ([]byte, error) { return raw, nil }},
		"x_error":        {Request: "x_error", Answer: answerError},
		"x_wait":         {Request: "x_wait", Answer: waitAWhile},
		"x_parts":        {Request: "x_parts", Parts: sendParts},
		"x_reset":        {Request: "x_reset", Parts: sendAndReset},
	}
}

func notHeld(what string) error {
	return &rr.Error{Code: rr.CodeNotFound, Message: what + " is not held here"}
}

func (n *node) hello(_ context.Context, _ aw.Map, _ []byte) ([]byte, error) {
	worlds := []any{}
	for _, id := range n.worlds() {
		if len(worlds) < worldsTold {
			worlds = append(worlds, id)
		}
	}
	return aw.Encode(aw.Map{"versions": []any{int64(1)}, "max_in_flight": int64(rr.InFlight), "worlds": worlds}), nil
}

func (n *node) hasBlobs(_ context.Context, q aw.Map, _ []byte) ([]byte, error) {
	has := []any{}
	for _, h := range q.List("hashes") {
		_, ok := n.blobs.get(h.([]byte))
		has = append(has, ok)
	}
	return aw.Encode(aw.Map{"has": has}), nil
}

func (n *node) sendBlob(q aw.Map, send func([]byte) error) ([]byte, error) {
	blob, ok := n.blobs.get(q.Bytes("content_hash"))
	if !ok {
		return nil, notHeld(hex.EncodeToString(q.Bytes("content_hash")))
	}
	from, to := int64(0), int64(len(blob))
	if q.Has("offset") {
		from = q.Int("offset")
	}
	if from > to {
		return nil, &rr.Error{Code: rr.CodeBadRequest, Message: "the offset is beyond the blob"}
	}
	if q.Has("length") {
		to = min(to, from+q.Int("length"))
	}
	for rest := blob[from:to]; len(rest) > 0; {
		part := rest[:min(len(rest), rr.PartMax)]
		rest = rest[len(part):]
		if err := send(part); err != nil {
			return nil, err
		}
	}
	return aw.Encode(aw.Map{"size": int64(len(blob))}), nil
}

// worldOf gives the world of a request.
func (n *node) worldOf(q aw.Map) (*mirror.World, error) {
	if w := n.world(q.Text("world_id")); w != nil {
		return w, nil
	}
	return nil, &rr.Error{Code: rr.CodeNotAvailable, Message: "the world is not mirrored here"}
}

func (n *node) getGenesis(_ context.Context, q aw.Map, _ []byte) ([]byte, error) {
	w, err := n.worldOf(q)
	if err != nil {
		return nil, err
	}
	return aw.Encode(aw.Map{"genesis": w.Genesis}), nil
}

func (n *node) getWorldHead(_ context.Context, q aw.Map, _ []byte) ([]byte, error) {
	w, err := n.worldOf(q)
	if err != nil {
		return nil, err
	}
	return aw.Encode(aw.Map{"head": w.Head.Record}), nil
}

func (n *node) getBlock(_ context.Context, q aw.Map, _ []byte) ([]byte, error) {
	w, err := n.worldOf(q)
	if err != nil {
		return nil, err
	}
	var h int64
	if q.Has("height") {
		h = q.Int("height")
	} else {
		h = w.ByHash[string(q.Bytes("block_hash"))]
	}
	if h >= 1 && h <= int64(len(w.Heights)) {
		return aw.Encode(aw.Map{"block": w.Heights[h-1].Block}), nil
	}
	return nil, notHeld("the block")
}

func (n *node) sendBlocks(q aw.Map, send func([]byte) error) ([]byte, error) {
	w, err := n.worldOf(q)
	if err != nil {
		return nil, err
	}
	from, to := q.Int("from_height")-1, int64(len(w.Heights))
	for end := min(to, from+q.Int("count")); from < end; {
		part := []any{}
		for ; from < end && len(part) < blocksTogether; from++ {
			part = append(part, w.Heights[from].Block)
		}
		if err := send(aw.Encode(part)); err != nil {
			return nil, err
		}
	}
	return aw.Encode(aw.Map{}), nil
}

func (n *node) getBatch(_ context.Context, q aw.Map, _ []byte) ([]byte, error) {
	w, err := n.worldOf(q)
	if err != nil {
		return nil, err
	}
	if h := q.Int("height"); h <= int64(len(w.Heights)) && w.Heights[h-1].Batch != nil {
		return aw.Encode(aw.Map{"batch": w.Heights[h-1].Batch, "commit": w.Heights[h-1].Commit}), nil
	}
	return nil, notHeld("the batch")
}

func answerError(_ context.Context, q aw.Map, _ []byte) ([]byte, error) {
	return nil, &rr.Error{Code: byte(q.Int("code")), RetryAfterMS: uint32(q.Int("retry_after_ms")), Message: q.Text("message"), Detail: q.Bytes("detail")}
}

func waitAWhile(ctx context.Context, q aw.Map, _ []byte) ([]byte, error) {
	select {
	case <-time.After(time.Duration(q.Int("ms")) * time.Millisecond):
		return aw.Encode(aw.Map{}), nil
	case <-ctx.Done():
		return nil, rr.ErrEnded
	}
}

func sendParts(q aw.Map, send func([]byte) error) ([]byte, error) {
	for i := range q.Int("count") {
		if err := send(bytes.Repeat([]byte{byte(i)}, int(q.Int("size")))); err != nil {
			return nil, err
		}
	}
	return aw.Encode(aw.Map{"count": q.Int("count")}), nil
}

func sendAndReset(q aw.Map, send func([]byte) error) ([]byte, error) {
	for range q.Int("after") {
		if err := send(make([]byte, 1024)); err != nil {
			return nil, err
		}
	}
	return nil, rr.ErrReset
}
