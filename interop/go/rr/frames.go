// The bytes of a frame. docs/protocol.md: Request / response.

package rr

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
	"unicode/utf8"
)

// Limits of the protocol, in bytes: of a frame, of a part, and of the parts of one answer together.
const (
	FrameMax       = 1 << 20
	requestMax     = 64 << 10 // of all methods but largeMethods
	PartMax        = 256 << 10
	AnswerPartsMax = 64 << 20
	idMax          = 1<<32 - 1
)

// Kinds of frames.
const (
	KindRequest = iota
	KindAnswer
	KindPart
	KindError
)

// Frame is a request (Method, Body), an answer or part (Body), or an error (Code, RetryAfterMS, Message; Body is its detail).
type Frame struct {
	Kind         byte
	ID           uint32
	Method       string
	Code         byte
	RetryAfterMS uint32
	Message      string
	Body         []byte
	cut          bool // it was larger than its reader keeps
}

// BadFrame breaks the format. Its id was read before the fault, where told.
type BadFrame struct {
	id   uint32
	told bool
	why  string
}

func (b *BadFrame) Error() string { return "bad frame: " + b.why }

var methodName = regexp.MustCompile(`\A[a-z_]{1,64}\z`)

// IsMethod: a request may have this name of a method.
func IsMethod(name string) bool { return methodName.MatchString(name) }

// Encode gives the bytes of the frame, its length first.
func (f *Frame) Encode() []byte {
	head := binary.AppendUvarint([]byte{f.Kind}, uint64(f.ID))
	switch f.Kind {
	case KindRequest:
		head = append(append(head, byte(len(f.Method))), f.Method...)
	case KindError:
		head = binary.AppendUvarint(append(head, f.Code), uint64(f.RetryAfterMS))
		head = append(binary.BigEndian.AppendUint16(head, uint16(len(f.Message))), f.Message...)
	}
	size := len(head) + len(f.Body)
	out := binary.AppendUvarint(make([]byte, 0, 3+size), uint64(size))
	return append(append(out, head...), f.Body...)
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

// ReadFrame reads one frame and keeps at most so many bytes of it, so that many streams together cannot fill the memory.
// io.EOF means that the stream ended between frames.
func ReadFrame(r *bufio.Reader, most int64) (*Frame, error) {
	var length []byte
	for len(length) == 0 || length[len(length)-1] >= 0x80 {
		if len(length) == 3 {
			return nil, &BadFrame{why: "the length has more than three bytes"}
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
	size, _, err := takeVarint(length, FrameMax)
	if err != nil || size == 0 {
		return nil, &BadFrame{why: "the length is out of range"}
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

func parseFrame(b []byte) (*Frame, error) {
	f := &Frame{Kind: b[0]}
	id, b, err := takeVarint(b[1:], idMax)
	if err != nil {
		return nil, &BadFrame{why: err.Error()}
	}
	f.ID = uint32(id)
	bad := func(why string) (*Frame, error) { return nil, &BadFrame{f.ID, true, why} }
	switch f.Kind {
	case KindRequest:
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return bad("the frame ends inside the method")
		}
		n := 1 + int(b[0])
		f.Method, f.Body = string(b[1:n]), b[n:]
		if !IsMethod(f.Method) {
			return bad("no name of a method")
		}
	case KindAnswer, KindPart:
		f.Body = b
	case KindError:
		if len(b) < 1 || b[0] < 1 || b[0] > 10 {
			return bad("no error code")
		}
		f.Code = b[0]
		retry, b, err := takeVarint(b[1:], idMax)
		if err != nil {
			return bad(err.Error())
		}
		f.RetryAfterMS = uint32(retry)
		if len(b) < 2 {
			return bad("the frame ends before the message")
		}
		n := int(binary.BigEndian.Uint16(b))
		if n > 1024 || len(b) < 2+n || !utf8.Valid(b[2:2+n]) {
			return bad("the message is too long, cut or no UTF-8")
		}
		f.Message, f.Body = string(b[2:2+n]), b[2+n:]
	default:
		return bad("unknown type")
	}
	return f, nil
}
