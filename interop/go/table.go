// What each command does. docs/interop.md: the tables of commands.

package main

import (
	"context"
	"crypto/ed25519"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"lukechampine.com/blake3"

	"aw/interop/aw"
	"aw/interop/awnet"
	"aw/interop/rr"
	"aw/interop/vectors"
)

const (
	commandTime  = 10 * time.Second
	transferTime = 5 * time.Minute // of a blob, or of a world
	timeoutMax   = 24 * time.Hour
	requestsMax  = 10_000_000 // of one command
	hashSize     = 32
)

var commands map[string]func(*args) job

func init() {
	commands = map[string]func(*args) job{
		"dial": dial, "identify": identifyPeer, "disconnect": disconnect, "peers": peers, "quit": quit,
		"request": request, "request_parts": requestParts, "requests": requests, "send_raw": sendRaw,
		"put_blob": putBlob, "fetch": fetch, "forge_blob": forgeBlob, "served": served,
		"world": knowWorld, "join": join, "mesh": mesh, "publish": publish,
		"dht_put": dhtPut, "dht_get": dhtGet, "dht_held": dhtHeld, "dht_peers": dhtPeers, "provide": provide, "find_providers": findProviders,
		"check_head": checkOneHead, "head": findHead, "state_proof": stateProof, "receipt_proof": receiptProof,
		"submit": submit, "mirror": mirrorWorld, "follow": follow, "vectors": checkVectors,
	}
}

// orEmpty makes JSON of a list say [] and not null.
func orEmpty[T any](list []T) []T { return append([]T{}, list...) }

func dial(a *args) job {
	info, err := peer.AddrInfoFromString(a.Text("addr"))
	if err != nil {
		a.Fail("addr: %v", err)
	}
	return func(ctx context.Context, n *node) (fields, error) {
		ctx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		if err := n.Dial(ctx, *info); err != nil {
			return nil, err
		}
		return fields{"peer": info.ID}, nil
	}
}

func identifyPeer(a *args) job {
	p := a.Peer("peer")
	return func(_ context.Context, n *node) (fields, error) {
		there := n.Identified(p)
		protocols, err := n.Host.Peerstore().GetProtocols(p)
		agent, unknown := n.Host.Peerstore().Get(p, "AgentVersion")
		if !there || err != nil || unknown != nil {
			return nil, awnet.ErrNotFound
		}
		return fields{"protocols": orEmpty(protocols), "agent": agent}, nil
	}
}

func disconnect(a *args) job {
	p := a.Peer("peer")
	return func(_ context.Context, n *node) (fields, error) { return nil, n.Host.Network().ClosePeer(p) }
}

func peers(*args) job {
	return func(_ context.Context, n *node) (fields, error) {
		return fields{"peers": orEmpty(n.Host.Network().Peers())}, nil
	}
}

func quit(*args) job { return func(context.Context, *node) (fields, error) { return nil, nil } }

// call is what the commands that send a request have in common.
type call struct {
	peer    peer.ID
	method  string
	body    []byte
	oneShot bool
	time    time.Duration
}

func readCall(a *args) call {
	c := call{a.Peer("peer"), a.Text("method"), a.Hex("body"), a.Flag("one_shot"), timeoutOf(a)}
	if !rr.IsMethod(c.method) || len(c.method)+len(c.body)+16 > rr.FrameMax {
		a.Fail("no name of a method, or a body that fits no frame")
	}
	return c
}

func timeoutOf(a *args) time.Duration {
	return time.Duration(a.Within("timeout_ms", 0, timeoutMax.Milliseconds(), commandTime.Milliseconds())) * time.Millisecond
}

func (c call) send(ctx context.Context, n *node) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.time)
	defer cancel()
	if c.oneShot {
		return n.RR.OneShot(ctx, c.peer, c.method, c.body)
	}
	return n.RR.Call(ctx, c.peer, c.method, c.body)
}

func request(a *args) job {
	c := readCall(a)
	return func(ctx context.Context, n *node) (fields, error) {
		body, err := c.send(ctx, n)
		return fields{"body": hexBytes(body)}, err
	}
}

func requestParts(a *args) job {
	c := readCall(a)
	return func(ctx context.Context, n *node) (fields, error) {
		ctx, cancel := context.WithTimeout(ctx, c.time)
		defer cancel()
		joined, parts := blake3.New(32, nil), 0
		last, total, err := n.RR.Parts(ctx, c.peer, c.method, c.body, func(part []byte) error {
			parts++
			_, err := joined.Write(part)
			return err
		})
		return fields{"parts": parts, "bytes": total, "hash": hexBytes(joined.Sum(nil)), "last": hexBytes(last)}, err
	}
}

func requests(a *args) job {
	c, count, inFlight := readCall(a), a.Within("count", 1, requestsMax), a.Within("in_flight", 1, rr.WaitingMax)
	return func(ctx context.Context, n *node) (fields, error) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		left, failed, out := count, 0, fields{}
		next := func() bool {
			mu.Lock()
			defer mu.Unlock()
			left--
			return left >= 0
		}
		start := time.Now()
		for range inFlight {
			wg.Go(func() {
				for next() {
					if _, err := c.send(ctx, n); err != nil {
						mu.Lock()
						if failed++; failed == 1 {
							out["first_error"] = failure(err)
						}
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		out["ms"], out["ok"], out["failed"] = time.Since(start).Milliseconds(), count-int64(failed), failed
		return out, nil
	}
}

func sendRaw(a *args) job {
	p, data, time := a.Peer("peer"), a.Hex("data"), timeoutOf(a)
	return func(ctx context.Context, n *node) (fields, error) {
		ctx, cancel := context.WithTimeout(ctx, time)
		defer cancel()
		answer, end, err := n.sendRaw(ctx, p, data)
		return fields{"answer": hexBytes(answer), "end": end}, err
	}
}

func putBlob(a *args) job {
	var data []byte
	seed, size := a.Count("seed", 0), a.Within("size", 0, rr.AnswerPartsMax, 0)
	if a.Has("data") == a.Has("seed") || a.Has("seed") != a.Has("size") {
		a.Fail("data, or a seed and a size")
	} else if a.Has("data") {
		data = a.Hex("data")
	}
	return func(_ context.Context, n *node) (fields, error) {
		if a.Has("seed") {
			data = seededBlob(uint64(seed), int(size))
		}
		hash := aw.H(data)
		return fields{"content_hash": hexBytes(hash)}, n.blobs.put(hash, data)
	}
}

func fetch(a *args) job {
	p, hash, length := a.Peer("peer"), a.Sized("content_hash", hashSize), a.Within("length", 0, rr.AnswerPartsMax, 0)
	return func(ctx context.Context, n *node) (fields, error) {
		ctx, cancel := context.WithTimeout(ctx, transferTime)
		defer cancel()
		start := time.Now()
		var blob []byte
		var err error
		if a.Has("length") {
			blob, err = n.BlobStart(ctx, p, hash, length)
		} else if blob, err = n.FetchBlob(ctx, p, hash, rr.AnswerPartsMax); err == nil {
			err = n.blobs.put(hash, blob)
		}
		return fields{"size": len(blob), "ms": time.Since(start).Milliseconds()}, err
	}
}

func forgeBlob(a *args) job {
	hash, data := a.Sized("content_hash", hashSize), a.Hex("data")
	return func(_ context.Context, n *node) (fields, error) { return nil, n.blobs.put(hash, data) }
}

func served(*args) job {
	return func(_ context.Context, n *node) (fields, error) {
		blobs, bytes := n.blobs.sentSoFar()
		return fields{"blobs": blobs, "bytes": bytes}, nil
	}
}

func knowWorld(a *args) job {
	raw := a.Hex("genesis")
	return func(_ context.Context, n *node) (fields, error) {
		genesis, err := aw.ReadRecord("genesis_file", raw)
		if err != nil {
			return nil, err
		}
		world, err := n.Know(genesis, "")
		return fields{"world_id": world}, err
	}
}

func topicOf(a *args) string {
	topic := a.Text("topic")
	if _, _, err := aw.SplitTopic(topic); err != nil {
		a.Fail("topic: %v", err)
	}
	return topic
}

func join(a *args) job {
	topic := topicOf(a)
	return func(_ context.Context, n *node) (fields, error) { return nil, n.gossip.Join(topic) }
}

func mesh(a *args) job {
	topic := topicOf(a)
	return func(_ context.Context, n *node) (fields, error) {
		return fields{"peers": orEmpty(n.gossip.Peers(topic))}, nil
	}
}

func publish(a *args) job {
	topic, data := topicOf(a), a.Hex("data")
	return func(ctx context.Context, n *node) (fields, error) { return nil, n.gossip.Publish(ctx, topic, data) }
}

func dhtPut(a *args) job {
	key, value := []byte(a.Text("key")), a.Hex("value")
	return func(ctx context.Context, n *node) (fields, error) { return nil, n.dht.Put(ctx, key, value) }
}

func dhtGet(a *args) job {
	key := []byte(a.Text("key"))
	return func(ctx context.Context, n *node) (fields, error) {
		value, err := n.dht.Get(ctx, key)
		return fields{"value": hexBytes(value)}, err
	}
}

func dhtHeld(a *args) job {
	key := []byte(a.Text("key"))
	return func(_ context.Context, n *node) (fields, error) {
		value, age, err := n.dht.Held(key)
		return fields{"value": hexBytes(value), "age_ms": age.Milliseconds()}, err
	}
}

func dhtPeers(*args) job {
	return func(_ context.Context, n *node) (fields, error) {
		return fields{"peers": orEmpty(n.dht.Peers())}, nil
	}
}

func provide(a *args) job {
	key := aw.ProviderKey(a.Sized("content_hash", hashSize))
	return func(ctx context.Context, n *node) (fields, error) { return nil, n.dht.Provide(ctx, key) }
}

func findProviders(a *args) job {
	key := aw.ProviderKey(a.Sized("content_hash", hashSize))
	return func(ctx context.Context, n *node) (fields, error) {
		found, err := n.dht.FindProviders(ctx, key)
		providers := []fields{}
		for _, p := range found {
			providers = append(providers, fields{"peer": p.ID, "addrs": orEmpty(p.Addrs)})
		}
		return fields{"providers": providers}, err
	}
}

func headFields(h *aw.Head) fields {
	return fields{"world_id": h.World, "epoch": h.Commit().Int("epoch"), "height": h.Height(), "as_of_ms": h.AsOf(), "block_hash": hexBytes(h.BlockHash())}
}

func checkOneHead(a *args) job {
	raw := a.Hex("head")
	return func(context.Context, *node) (fields, error) {
		h, err := aw.CheckHead(raw, "")
		if err != nil {
			return nil, err
		}
		return headFields(h), nil
	}
}

func findHead(a *args) job {
	world, p := a.Text("world_id"), peer.ID("")
	if a.Has("peer") {
		p = a.Peer("peer")
	}
	return func(ctx context.Context, n *node) (fields, error) {
		var h *aw.Head
		var err error
		if p != "" {
			h, err = n.AskHead(ctx, p, world)
		} else {
			h, err = awnet.FindHead(ctx, n.dht, world)
		}
		if err != nil {
			return nil, err
		}
		out := headFields(h)
		out["head"] = hexBytes(h.Raw)
		return out, nil
	}
}

func stateProof(a *args) job {
	p, world, namespace, key := a.Peer("peer"), a.Text("world_id"), a.Text("namespace"), a.Hex("key")
	return func(ctx context.Context, n *node) (fields, error) {
		block, value, err := n.StateProof(ctx, p, world, namespace, key)
		if err != nil {
			return nil, err
		}
		out := fields{"height": block.Int("height"), "state_root": hexBytes(block.Bytes("state_root")), "trust": "attested"}
		if value != nil {
			out["value"] = hexBytes(value)
		}
		return out, nil
	}
}

func receiptProof(a *args) job {
	p, world, envelope := a.Peer("peer"), a.Text("world_id"), a.Sized("envelope_hash", hashSize)
	return func(ctx context.Context, n *node) (fields, error) {
		at, head, proved, err := n.ReceiptProof(ctx, p, world, envelope)
		if err != nil {
			return nil, err
		}
		receipts := []fields{}
		for _, r := range proved {
			f := fields{"code": r["code"]}
			if r.Has("index") {
				f["index"] = r["index"]
			}
			receipts = append(receipts, f)
		}
		return fields{"height": at, "head_height": head.Height(), "receipts": receipts, "trust": "attested"}, nil
	}
}

// actionsOf reads a list of [kind, payload].
func actionsOf(a *args) any {
	for _, action := range a.List("actions") {
		pair := action.Items()
		if len(pair) != 2 {
			a.Fail("actions are a list of [kind, payload]")
			break
		}
		if _, ok := pair[0].Of.(string); !ok {
			a.Fail("the kind of an action is no text")
		}
	}
	return a.Field("actions").Value()
}

func submit(a *args) job {
	p, seed := a.Peer("peer"), a.Sized("seed", ed25519.SeedSize)
	envelope := aw.Map{"v": int64(1), "world_id": a.Text("world_id"), "nonce": a.Count("nonce"), "expires_at_height": a.Count("expires_at_height"),
		"timestamp_ms": a.Count("timestamp_ms"), "atomic": a.Bool("atomic"), "actions": actionsOf(a)}
	if a.Err() != nil {
		return nil // and no key
	}
	key := ed25519.NewKeyFromSeed(seed)
	envelope["actor_id"] = aw.KeyIDOf(key)
	return func(ctx context.Context, n *node) (fields, error) {
		sealed, result, err := n.Submit(ctx, p, envelope, key)
		if err != nil {
			return nil, err
		}
		out := fields{"outcome": result["outcome"], "envelope_hash": hexBytes(aw.RecordHash("envelope", envelope)), "envelope": hexBytes(aw.Encode(sealed))}
		for _, f := range []string{"reason", "message"} {
			if result.Has(f) {
				out[f] = result[f]
			}
		}
		return out, nil
	}
}

func mirrorWorld(a *args) job {
	p, world := a.Peer("peer"), a.Text("world_id")
	return func(ctx context.Context, n *node) (fields, error) {
		ctx, cancel := context.WithTimeout(ctx, transferTime)
		defer cancel()
		w, err := n.mirror(ctx, p, world)
		if err != nil {
			return nil, err
		}
		return fields{"height": w.Head.Height()}, nil
	}
}

func follow(a *args) job {
	world := a.Text("world_id")
	return func(_ context.Context, n *node) (fields, error) { return nil, n.gossip.Follow(world) }
}

func checkVectors(a *args) job {
	dir := a.Text("dir")
	return func(context.Context, *node) (fields, error) {
		files, err := vectors.Check(dir)
		return fields{"files": files}, err
	}
}
