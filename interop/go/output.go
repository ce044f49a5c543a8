// The lines of stdout: answers to commands, and events. docs/interop.md: Commands.

package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"io"
	"sync"
)

type fields map[string]any

// hexBytes are byte strings in JSON: lower-case hex.
type hexBytes []byte

func (h hexBytes) MarshalJSON() ([]byte, error) { return json.Marshal(hex.EncodeToString(h)) }

type output struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func newOutput(w io.Writer) *output { return &output{w: bufio.NewWriterSize(w, 64<<10)} }

func (o *output) line(f fields) {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // values that this program made
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	// Whoever closed the other end has closed stdin too, and with it this peer.
	_, _ = o.w.Write(append(b, '\n'))
	_ = o.w.Flush()
}

func (o *output) event(name string, f fields) {
	f["event"] = name
	o.line(f)
}
