// The messages, their protobuf form and their framing.

package kad

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

type kind uint64

const (
	putValue kind = iota
	getValue
	addProvider
	getProviders
	findNode
	ping
)

const (
	messageMax = 256 << 10
	addrsMax   = 16 // of one peer
	peersMax   = 20 // of one list
)

type entry struct {
	id    []byte
	addrs [][]byte
}

type message struct {
	kind      kind
	key       []byte
	value     []byte // of the record
	received  string // when the record was received, RFC 3339
	hasRecord bool
	closer    []entry
	providers []entry
}

var errWire = errors.New("kad: a message that breaks the format")

func bytesField(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func (m *message) encode() []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(m.kind))
	b = bytesField(b, 2, m.key)
	if m.hasRecord {
		r := bytesField(bytesField(nil, 1, m.key), 2, m.value)
		if m.received != "" {
			r = bytesField(r, 5, []byte(m.received))
		}
		b = bytesField(b, 3, r)
	}
	for field, list := range map[protowire.Number][]entry{8: m.closer, 9: m.providers} {
		for _, e := range list {
			p := bytesField(nil, 1, e.id)
			for _, a := range e.addrs {
				p = bytesField(p, 2, a)
			}
			b = bytesField(b, field, p)
		}
	}
	return b
}

// fields calls each with every field of a message, in order. Unknown fields are the caller's to pass over.
func fields(b []byte, each func(field protowire.Number, number uint64, bytes []byte) error) error {
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		var number uint64
		var bytes []byte
		switch typ {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, typ, b)
		}
		if n < 0 {
			return errWire
		}
		b = b[n:]
		if err := each(field, number, bytes); err != nil {
			return err
		}
	}
	return nil
}

func decode(b []byte) (*message, error) {
	m := &message{}
	err := fields(b, func(field protowire.Number, number uint64, bytes []byte) (err error) {
		switch field {
		case 1:
			m.kind = kind(number)
		case 2:
			m.key = bytes
		case 3:
			m.hasRecord = true
			return fields(bytes, func(field protowire.Number, _ uint64, bytes []byte) error {
				if field == 2 {
					m.value = bytes
				}
				return nil
			})
		case 8:
			m.closer, err = appendEntry(m.closer, bytes)
		case 9:
			m.providers, err = appendEntry(m.providers, bytes)
		}
		return err
	})
	return m, err
}

func appendEntry(to []entry, b []byte) ([]entry, error) {
	var e entry
	err := fields(b, func(field protowire.Number, _ uint64, bytes []byte) error {
		switch {
		case field == 1:
			e.id = bytes
		case field == 2 && len(e.addrs) < addrsMax:
			e.addrs = append(e.addrs, bytes)
		}
		return nil
	})
	if len(to) < peersMax {
		to = append(to, e)
	}
	return to, err
}

func writeMessage(w io.Writer, m *message) error {
	b := m.encode()
	_, err := w.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
	return err
}

// readMessage reads one message. io.EOF means that the stream ended between messages.
func readMessage(r *bufio.Reader) (*message, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if size > messageMax {
		return nil, errWire
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return decode(b)
}
