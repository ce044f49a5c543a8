// What a gossip message must be, decided by its bytes alone. docs/protocol.md: Gossip.
package main

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

const gossipMax = 64 << 10

type verdict string

const (
	accept verdict = "accept"
	ignore verdict = "ignore"
	reject verdict = "reject"
)

var gossipKinds = map[string]func(world string, envelopeMax int, data []byte) error{
	"action":   checkActionMessage,
	"batch":    checkBatchMessage,
	"block":    checkBlockMessage,
	"head":     func(world string, _ int, data []byte) error { _, err := checkHead(data, world); return err },
	"evidence": checkEvidenceMessage,
}

// splitTopic gives the world and the kind of `aw.<world_id>.<kind>`.
func splitTopic(topic string) (world, kind string, err error) {
	parts := strings.Split(topic, ".")
	if len(parts) != 3 || parts[0] != "aw" || rules["world_id"](parts[1]) != nil || gossipKinds[parts[2]] == nil {
		return "", "", refuse("no topic of this version: %q", topic)
	}
	return parts[1], parts[2], nil
}

// judge gives the verdict of a relay. A version or kind that is not known is no fault of the sender.
func judge(world, kind string, envelopeMax int, data []byte) (verdict, error) {
	err := refuseIf(len(data) > gossipMax, "%d bytes, at most %d", len(data), gossipMax)
	if err == nil {
		err = gossipKinds[kind](world, envelopeMax, data)
	}
	switch {
	case err == nil:
		return accept, nil
	case errors.Is(err, errVersion):
		return ignore, err
	}
	return reject, err
}

func checkActionMessage(world string, envelopeMax int, data []byte) error {
	if len(data) > 61440 {
		return refuse("%d bytes of actions, at most 61440", len(data))
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
		size := len(encode(e))
		err = cmp.Or(err, ofWorld(world, body(e)), refuseIf(size > envelopeMax, "envelope: %d bytes, at most %d", size, envelopeMax))
	}
	for _, e := range v.([]any) {
		if err != nil {
			return err
		}
		err = verifySeal("envelope", e)
	}
	return err
}

func checkBatchMessage(world string, _ int, data []byte) error {
	m, err := readAs[[]any](data, gossipMax, tuple(sealed("batch"), sealed("commit")))
	if err != nil {
		return err
	}
	batch, commit := body(m[0]), body(m[1])
	return cmp.Or(ofWorld(world, batch, commit), names(commit, "batch", batch), verifySeal("batch", m[0]), verifySeal("commit", m[1]))
}

func checkBlockMessage(world string, _ int, data []byte) error {
	m, err := readAs[[]any](data, gossipMax, tuple(record("block"), sealed("attestation")))
	if err != nil {
		return err
	}
	block, attestation := m[0].(dict), body(m[1])
	return cmp.Or(ofWorld(world, block, attestation), names(attestation, "block", block), verifySeal("attestation", m[1]))
}

var evidenceKinds = []string{"commit_fork", "lease_fork", "attestation_fork", "malformed_batch", "wrong_root_proof", "authorities_fork"}

func checkEvidenceMessage(_ string, _ int, data []byte) error {
	item, err := readRecord("evidence_item", data)
	if err == nil && !slices.Contains(evidenceKinds, item.text("kind")) {
		return errVersion
	}
	return err
}
