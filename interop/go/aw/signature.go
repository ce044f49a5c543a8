// The exact rule by which a signature counts, and how seals are made. docs/protocol.md: Signatures.

package aw

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
)

// The y coordinates of the points of small order: 0, 1, -1 and the two of order 8, little-endian.
var smallOrder = func() (ys [][]byte) {
	for _, h := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	} {
		y, err := hex.DecodeString(h)
		if err != nil {
			panic(err)
		}
		ys = append(ys, y)
	}
	return ys
}()

// strictPoint refuses encodings with y >= p and points of small order. The sign bit may be masked: a
// sign that is not canonical needs x = 0, hence y = 1 or -1, and those are of small order.
func strictPoint(p []byte) bool {
	y := bytes.Clone(p)
	y[31] &= 0x7f
	if y[31] == 0x7f && y[0] >= 0xed && bytes.Count(y[1:31], []byte{0xff}) == 30 {
		return false
	}
	for _, s := range smallOrder {
		if bytes.Equal(y, s) {
			return false
		}
	}
	return true
}

// SignedMessage is what is signed for the hash of a record.
func SignedMessage(hash []byte) []byte { return append([]byte("aw/sig/1\x00"), hash...) }

// Verify is the exact rule by which a signature counts. It judges A and R itself; the library checks S < L and the equation
// without cofactor, comparing the bytes of R, so that R is canonical.
func Verify(keyID, hash, sig []byte) bool {
	if len(keyID) != 38 || !bytes.HasPrefix(keyID, keyIDPrefix) || len(sig) != 64 {
		return false
	}
	a := keyID[6:]
	return strictPoint(a) && strictPoint(sig[:32]) && ed25519.Verify(a, SignedMessage(hash), sig)
}

// KeyIDOf is the key id of whoever has the key.
func KeyIDOf(key ed25519.PrivateKey) []byte {
	return append(bytes.Clone(keyIDPrefix), key.Public().(ed25519.PublicKey)...)
}

// Seal makes the sealed record of a record and the key of who it names as its signer.
func Seal(record string, body Map, key ed25519.PrivateKey) []any {
	return []any{body, ed25519.Sign(key, SignedMessage(RecordHash(record, body)))}
}
