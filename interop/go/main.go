// Command peer is a foreign peer of Agent World Runtime, driven by commands on stdin (docs/interop.md).
//
// It hides how its parts are put together: it takes part in gossip and DHT, serves blobs and the worlds that it mirrors, and
// runs commands at the same time. It guarantees one line of stdout for each command, and that a malformed one is an error
// of kind usage, never the end of the peer.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	lineMax     = 64 << 20        // bytes of a command
	commandsMax = 4096            // at the same time: the lines after them wait
	lastTime    = 5 * time.Second // for what still runs at the end of the input
)

type listenFlags []string

func (l *listenFlags) String() string     { return fmt.Sprint(*l) }
func (l *listenFlags) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func start() error {
	var listen listenFlags
	seedHex := flag.String("seed", "", "32 bytes in hex: the Ed25519 seed of the identity")
	careless := flag.Bool("careless", false, "check nothing that is published, put or received by gossip")
	flag.Var(&listen, "listen", "a multiaddr to listen at; may be given more than once")
	flag.Parse()
	seed, err := hex.DecodeString(*seedHex)
	if err != nil || len(seed) != ed25519.SeedSize {
		return errors.New("--seed must be 32 bytes in hex")
	}
	if len(listen) == 0 {
		listen = listenFlags{"/ip4/127.0.0.1/tcp/0"}
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	out := newOutput(os.Stdout)
	n, err := newNode(ctx, ed25519.NewKeyFromSeed(seed), listen, *careless, out)
	if err != nil {
		return err
	}
	addrs, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: n.Host.ID(), Addrs: n.Host.Addrs()})
	if err != nil {
		return err
	}
	out.event("ready", fields{"peer_id": n.Host.ID(), "addrs": addrs})
	ended := make(chan error, 1)
	go func() { ended <- n.obey(ctx, os.Stdin) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	return errors.Join(err, n.Host.Close())
}

// obey runs the commands, at the same time, until quit or the end of the input.
func (n *node) obey(ctx context.Context, in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, lineMax+1) // with its newline
	quit := make(chan struct{})
	ended := make(chan error)
	go func() {
		var running sync.WaitGroup
		places := make(chan struct{}, commandsMax)
		for lines.Scan() {
			line := bytes.Clone(lines.Bytes())
			places <- struct{}{}
			running.Go(func() {
				defer func() { <-places }()
				if n.execute(ctx, line) {
					quit <- struct{}{}
				}
			})
		}
		if err := lines.Err(); err != nil {
			ended <- fmt.Errorf("stdin, whose lines have at most %d bytes: %w", lineMax, err)
			return
		}
		time.AfterFunc(lastTime, func() { ended <- nil })
		running.Wait()
		ended <- nil
	}()
	select {
	case <-quit:
		return nil
	case err := <-ended:
		return err
	}
}
