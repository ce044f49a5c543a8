// What a gossip message must be, decided by its bytes alone. docs/protocol.md: Gossip.

package aw

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

const gossipMax = 64 << 10

// Verdict is what a relay does with a message.
type Verdict string

const (
	Accept Verdict = "accept"
	Ignore Verdict = "ignore"
	Reject Verdict = "reject"
)

var gossipKinds = map[string]func(world string, envelopeMax int, data []byte) error{
	"action":   checkActionMessage,
	"batch":    checkBatchMessage,
	"block":    checkBlockMessage,
	"head":     func(world string, _ int, data []byte) error { _, err := CheckHead(data, world); return err },
	"evidence": checkEvidenceMessage,
}

// Topic gives the name `aw.<world_id>.<kind>`.
func Topic(world, kind string) string { return "aw." + world + "." + kind }

// SplitTopic gives the world and the kind of `aw.<world_id>.<kind>`.
func SplitTopic(topic string) (world, kind string, err error) {
	parts := strings.Split(topic, ".")
	if len(parts) != 3 || parts[0] != "aw" || rules["world_id"](parts[1]) != nil || gossipKinds[parts[2]] == nil {
		return "", "", Refuse("no topic of this version: %q", topic)
	}
	return parts[1], parts[2], nil
}

// EnvelopeMax is what a sealed envelope of a world may have at most.
func EnvelopeMax(genesis Map) int {
	return int(genesis.Map("body").Map("limits").Int("envelope_bytes_max"))
}

// Judge gives the verdict of a relay, and why it does not accept. A version or kind that is not known is no fault of the
// sender.
func Judge(world, kind string, envelopeMax int, data []byte) (Verdict, error) {
	err := RefuseIf(len(data) > gossipMax, "%d bytes, at most %d", len(data), gossipMax)
	if err == nil {
		err = gossipKinds[kind](world, envelopeMax, data)
	}
	switch {
	case err == nil:
		return Accept, nil
	case errors.Is(err, ErrVersion):
		return Ignore, err
	}
	return Reject, err
}

func checkActionMessage(world string, envelopeMax int, data []byte) error {
	if len(data) > 61440 {
		return Refuse("%d bytes of actions, at most 61440", len(data))
	}
	v, err := decode(data, 8192)
	if err != nil {
		return err
	}
	// All are decoded before any is judged further: so every relay meets the same fault first.
	if err := list(1, 16, sealed("envelope"))(v); err != nil {
		return err
	}
	for _, e := range v.([]any) {
		size := len(Encode(e))
		err = cmp.Or(err, ofWorld(world, Body(e)), RefuseIf(size > envelopeMax, "envelope: %d bytes, at most %d", size, envelopeMax))
	}
	for _, e := range v.([]any) {
		if err != nil {
			return err
		}
		err = VerifySeal("envelope", e)
	}
	return err
}

func checkBatchMessage(world string, _ int, data []byte) error {
	m, err := readAs[[]any](data, gossipMax, tuple(sealed("batch"), sealed("commit")))
	if err != nil {
		return err
	}
	batch, commit := Body(m[0]), Body(m[1])
	return cmp.Or(ofWorld(world, batch, commit), CheckNames(commit, "batch", batch), VerifySeal("batch", m[0]), VerifySeal("commit", m[1]))
}

func checkBlockMessage(world string, _ int, data []byte) error {
	m, err := readAs[[]any](data, gossipMax, tuple(record("block"), sealed("attestation")))
	if err != nil {
		return err
	}
	block, attestation := m[0].(Map), Body(m[1])
	return cmp.Or(ofWorld(world, block, attestation), CheckNames(attestation, "block", block), VerifySeal("attestation", m[1]))
}

var evidenceKinds = []string{"commit_fork", "lease_fork", "attestation_fork", "malformed_batch", "wrong_root_proof", "authorities_fork"}

func checkEvidenceMessage(_ string, _ int, data []byte) error {
	item, err := ReadRecord("evidence_item", data)
	if err == nil && !slices.Contains(evidenceKinds, item.Text("kind")) {
		return ErrVersion
	}
	return err
}
