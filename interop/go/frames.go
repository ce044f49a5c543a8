// The bytes of a frame. docs/protocol.md: Request / response.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
	"unicode/utf8"
)

const (
	frameMax       = 1 << 20
	requestMax     = 64 << 10 // of all methods but a few, none of which is served here
	partMax        = 256 << 10
	answerPartsMax = 64 << 20
	idMax          = 1<<32 - 1
)

const (
	frameRequest = iota
	frameAnswer
	framePart
	frameError
)

// frame is a request (method, body), an answer or part (body), or an error (body is its detail).
type frame struct {
	kind    byte
	id      uint32
	method  string
	code    byte
	retry   uint32
	message string
	body    []byte
	cut     bool // it was larger than its reader keeps
}

// badFrame breaks the format. Its id was read before the fault, where told.
type badFrame struct {
	id   uint32
	told bool
	why  string
}

func (b *badFrame) Error() string { return "bad frame: " + b.why }

var methodName = regexp.MustCompile(`\A[a-z_]{1,64}\z`)

func (f *frame) encode() []byte {
	head := binary.AppendUvarint([]byte{f.kind}, uint64(f.id))
	switch f.kind {
	case frameRequest:
		head = append(append(head, byte(len(f.method))), f.method...)
	case frameError:
		head = binary.AppendUvarint(append(head, f.code), uint64(f.retry))
		head = append(binary.BigEndian.AppendUint16(head, uint16(len(f.message))), f.message...)
	}
	size := len(head) + len(f.body)
	out := binary.AppendUvarint(make([]byte, 0, 3+size), uint64(size))
	return append(append(out, head...), f.body...)
}

var errVarint = errors.New("a varint that is cut, too large or not shortest")

// takeVarint reads a minimal varint of at most hi.
func takeVarint(b []byte, hi uint64) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v > hi || n > 1 && b[n-1] == 0 {
		return 0, nil, errVarint
	}
	return v, b[n:], nil
}

// readFrame reads one frame and keeps at most so many bytes of it, so that many streams together cannot
// fill the memory. io.EOF means that the stream ended between frames.
func readFrame(r *bufio.Reader, most int64) (*frame, error) {
	var length []byte
	for len(length) == 0 || length[len(length)-1] >= 0x80 {
		if len(length) == 3 {
			return nil, &badFrame{why: "the length has more than three bytes"}
		}
		c, err := r.ReadByte()
		if err != nil {
			if err == io.EOF && len(length) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		length = append(length, c)
	}
	size, _, err := takeVarint(length, frameMax)
	if err != nil || size == 0 {
		return nil, &badFrame{why: "the length is out of range"}
	}
	kept := min(int64(size), most)
	b := make([]byte, kept)
	_, err = io.ReadFull(r, b)
	if err == nil {
		_, err = io.CopyN(io.Discard, r, int64(size)-kept)
	}
	if err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	f, err := parseFrame(b)
	if err == nil {
		f.cut = kept < int64(size)
	}
	return f, err
}

func parseFrame(b []byte) (*frame, error) {
	f := &frame{kind: b[0]}
	id, b, err := takeVarint(b[1:], idMax)
	if err != nil {
		return nil, &badFrame{why: err.Error()}
	}
	f.id = uint32(id)
	bad := func(why string) (*frame, error) { return nil, &badFrame{f.id, true, why} }
	switch f.kind {
	case frameRequest:
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return bad("the frame ends inside the method")
		}
		n := 1 + int(b[0])
		f.method, f.body = string(b[1:n]), b[n:]
		if !methodName.MatchString(f.method) {
			return bad("no name of a method")
		}
	case frameAnswer, framePart:
		f.body = b
	case frameError:
		if len(b) < 1 || b[0] < 1 || b[0] > 10 {
			return bad("no error code")
		}
		f.code = b[0]
		retry, b, err := takeVarint(b[1:], idMax)
		if err != nil {
			return bad(err.Error())
		}
		f.retry = uint32(retry)
		if len(b) < 2 {
			return bad("the frame ends before the message")
		}
		n := int(binary.BigEndian.Uint16(b))
		if n > 1024 || len(b) < 2+n || !utf8.Valid(b[2:2+n]) {
			return bad("the message is too long, cut or no UTF-8")
		}
		f.message, f.body = string(b[2:2+n]), b[2+n:]
	default:
		return bad("unknown type")
	}
	return f, nil
}
