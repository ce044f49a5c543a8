// Command submit is an example for authors of clients (docs/clients.md): it puts an agent somewhere in a world, and believes
// that this happened only when a proof of it holds.
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"aw/interop/aw"
	"aw/interop/awnet"
	"aw/interop/rr"
)

const (
	patience   = 60 * time.Second // for everything
	headAgeMax = 60 * time.Second
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "submit:", err)
		os.Exit(1)
	}
}

func run() error {
	bootstrap, world := flag.String("bootstrap", "", "a gateway's multiaddr, with /p2p/"), flag.String("world", "", "the world's id")
	seedHex := flag.String("seed", "", "32 bytes in hex: the actor's Ed25519 seed")
	agent, to := flag.String("agent", "", "the agent's id"), flag.String("to", "", "X,Y,Z in centimetres")
	flag.Parse()
	gateway, err := peer.AddrInfoFromString(*bootstrap)
	if err != nil {
		return fmt.Errorf("--bootstrap: %w", err)
	}
	seed, err := hex.DecodeString(*seedHex)
	if err != nil || len(seed) != ed25519.SeedSize {
		return errors.New("--seed must be 32 bytes in hex")
	}
	var x, y, z int64
	if _, err := fmt.Sscanf(*to+"\n", "%d,%d,%d\n", &x, &y, &z); err != nil {
		return fmt.Errorf("--to must be X,Y,Z: %w", err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	node, err := awnet.New(ctx, nil, nil) // with a key of its own: who connects need not be who acts
	if err != nil {
		return err
	}
	defer node.Host.Close()
	if err := node.Dial(ctx, *gateway); err != nil {
		return err
	}
	c := &client{node, gateway.ID, *world, ed25519.NewKeyFromSeed(seed)}
	proved, err := c.put(ctx, *agent, aw.Map{"agent_id": *agent, "x_cm": x, "y_cm": y, "z_cm": z})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(proved)
}

type client struct {
	node    *awnet.Node
	gateway peer.ID
	world   string
	actor   ed25519.PrivateKey
}

// put signs one action, hands it in and waits for the proof.
func (c *client) put(ctx context.Context, agent string, where aw.Map) (map[string]any, error) {
	envelope, err := c.envelope(ctx, agent, where)
	if err != nil {
		return nil, err
	}
	hash := aw.RecordHash("envelope", envelope)
	_, result, err := c.node.Submit(ctx, c.gateway, envelope, c.actor) // its acceptance is checked
	if err != nil {
		return nil, err
	}
	if !result.Has("acceptance") {
		return nil, fmt.Errorf("the gateway did not accept: %v %v %v", result["outcome"], result["reason"], result["message"])
	}
	height, receipts, err := c.receipts(ctx, hash)
	if err != nil { // the signed promise is what a client can hold against the gateway
		return nil, fmt.Errorf("%w; acceptance of %x: %x", err, hash, aw.Encode(result["acceptance"]))
	}
	code := receipts[0].Text("code")
	if code != "Applied" {
		return nil, fmt.Errorf("the world refused it at height %d: %s", height, code)
	}
	return map[string]any{"agent": agent, "envelope": hex.EncodeToString(hash), "height": height, "code": code, "trust": "attested"}, nil
}

// envelope makes the next envelope of the actor: it registers the agent, or moves it where there is one.
func (c *client) envelope(ctx context.Context, agent string, where aw.Map) (aw.Map, error) {
	genesis, err := c.node.AskGenesis(ctx, c.gateway, c.world)
	if err != nil {
		return nil, err
	}
	height := int64(0)
	switch head, err := c.node.AskHead(ctx, c.gateway, c.world); {
	case err == nil:
		height = head.Height()
	case !errors.Is(err, awnet.ErrNotFound): // there is none before the first block
		return nil, err
	}
	nonce, kind := int64(0), "register_agent"
	if height > 0 {
		actor, err1 := c.cell(ctx, "actors", aw.KeyIDOf(c.actor))
		there, err2 := c.cell(ctx, "agents", []byte(agent))
		switch err := errors.Join(err1, err2); {
		case err != nil:
			return nil, err
		case there != nil:
			kind = "move_agent"
		}
		if actor != nil {
			nonce = actor.Int("nonce") // as many as were taken so far
		}
	}
	expires := min(100, genesis.Map("body").Map("limits").Int("expiry_blocks_max"))
	return aw.Map{"v": int64(1), "world_id": c.world, "actor_id": aw.KeyIDOf(c.actor), "nonce": nonce,
		"expires_at_height": height + expires, "timestamp_ms": time.Now().UnixMilli(), "atomic": true,
		"actions": []any{[]any{kind, where}}}, nil
}

// cell gives a cell of the state, nil when it is proved that there is none.
func (c *client) cell(ctx context.Context, namespace string, key []byte) (aw.Map, error) {
	_, value, err := c.node.StateProof(ctx, c.gateway, c.world, namespace, key)
	if err != nil || value == nil {
		return nil, err
	}
	return aw.ReadRecord("cell."+namespace, value)
}

// receipts waits until a block has the envelope, and gives its height and the receipts, proved under a head whose seals hold.
func (c *client) receipts(ctx context.Context, envelope []byte) (int64, []aw.Map, error) {
	for {
		height, head, receipts, err := c.node.ReceiptProof(ctx, c.gateway, c.world, envelope)
		var told *rr.Error
		if err == nil && time.Since(time.UnixMilli(head.AsOf())) < headAgeMax {
			return height, receipts, nil
		} else if err != nil && !(errors.As(err, &told) && told.Code == rr.CodeNotFound) {
			return 0, nil, err
		}
		select {
		case <-ctx.Done():
			return 0, nil, fmt.Errorf("not in a block that a fresh head vouches for within %s", patience)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
