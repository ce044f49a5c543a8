/** The command `vectors`: checks each file of interop/vectors. Hides their layout (interop/README.md). */
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { equalBytes, fromHex, toHex } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import * as native from '../lib/crypto_node.js'
import * as portable from '../lib/crypto_plain.js'
import { Failure, Ignored, Refused, must } from '../lib/errors.js'
import { ANSWER, ERROR, FrameSplitter, PART, REQUEST, encodeFrame } from '../lib/frames.js'
import { checkCommit, checkGenesis, checkHead } from '../lib/head.js'
import { H, peerIdText, seedToKeyId, signedMessage, worldIdOf } from '../lib/identity.js'
import { provesItem } from '../lib/merkle.js'
import { checkHeadBlock } from '../lib/proofs.js'
import { decodeRecord, decodeSealed, hashOf, mustBeSigned, preimageOf, signerOf } from '../lib/records.js'
import { verify } from '../lib/signature.js'
import { provedValue } from '../lib/state.js'
import { MerkleTree, checkHeight, rootOf } from '../node/chain.js'
import { cidOf, headKey, providerKey, worldContentId } from '../node/dht.js'
import { judge, parseTopic, topicOf } from '../node/gossip.js'
import { fromJson, parseJson } from './json.js'
import { genesisCells, stateRoot } from '../node/trie.js'

/** Counts each entry once: what is to be refused, and all else. */
class Tally {
  checked = 0
  refused = 0

  holds (condition, name) {
    must(condition, name)
    this.checked++
  }

  is (bytes, hex, name) {
    this.holds(toHex(bytes) === hex, `${name}: is ${toHex(bytes).slice(0, 80)}`)
  }

  refuses (judgement, name, error = Refused) {
    let thrown
    try {
      judgement()
    } catch (refusal) {
      thrown = refusal
    }
    must(thrown instanceof error, `${name}: ${thrown?.message ?? 'was not refused'}`)
    this.refused++
  }
}

const oneFrame = (bytes) => {
  const splitter = new FrameSplitter()
  splitter.push(bytes)
  const frame = splitter.next()
  must(frame !== undefined && splitter.isEmpty, 'not one frame')
  return frame
}

const signed = (name, hex) => {
  const sealed = decodeSealed(name, fromHex(hex))
  mustBeSigned(name, sealed)
  return sealed
}

/** A key that is missing throws wherever it is read: no check takes `undefined`. */
const FILES = {
  records (tally, records) {
    for (const vector of records) {
      const { name, record, body, hash, preimage, value, refuse, ignore } = vector
      const read = (hex) => record === 'head' ? checkHead(fromHex(hex)).value : decodeRecord(record, fromHex(hex))
      const decoded = read(body)
      const isMade = [encode(fromJson(value)), encode(decoded)].every((bytes) => toHex(bytes) === body)
      tally.holds(isMade && toHex(preimageOf(record, decoded)) === preimage && toHex(hashOf(record, decoded)) === hash, name)
      for (const { hex, reason } of refuse) tally.refuses(() => read(hex), `${name}: ${reason}`)
      for (const { hex, reason } of ignore) tally.refuses(() => read(hex), `${name}: ${reason}`, Ignored)
      if (!('sealed' in vector)) continue
      const sealed = signed(record, vector.sealed)
      tally.holds(toHex(sealed[1]) === vector.signature && toHex(signerOf(record, sealed[0])) === vector.signer, `${name}, sealed`)
      for (const { hex, reason } of vector.refuse_sealed) tally.refuses(() => decodeSealed(record, fromHex(hex)), `${name}, sealed: ${reason}`)
    }
  },

  frames (tally, { frames, refuse }) {
    const kinds = { request: REQUEST, answer: ANSWER, part: PART, error: ERROR }
    for (const { hex, kind, id, method, code, retry_after_ms: retryAfterMs, message, body, detail } of frames) {
      must(kind !== 'error' || Number.isInteger(retryAfterMs), `${kind} ${id}: no retry_after_ms`)
      const made = encodeFrame({ type: kinds[kind], id, method, code, retryAfterMs, message, body: fromHex(body ?? detail) })
      tally.holds([made, encodeFrame(oneFrame(made))].every((bytes) => toHex(bytes) === hex), `${kind} ${id}`)
    }
    for (const { hex, reason } of refuse) tally.refuses(() => oneFrame(fromHex(hex)), reason)
  },

  signatures (tally, signatures) {
    for (const { name, accept, key_id: keyId, message, record_hash: recordHash, signature } of signatures) {
      must(toHex(signedMessage(fromHex(recordHash))) === message, name)
      const verdicts = [native, portable].map((equation) => verify(fromHex(keyId), fromHex(recordHash), fromHex(signature), equation))
      must(verdicts.every((verdict) => verdict === accept), name)
      if (accept) tally.checked++
      else tally.refused++
    }
  },

  merkle (tally, { trees }) {
    for (const { count, root, peaks, paths } of trees) {
      const tree = new MerkleTree()
      for (let i = 0; i < count; i++) tree.push(Uint8Array.of(i))
      tally.is(tree.root(), root, `tree of ${count}`)
      must(tree.peaks.map(toHex).join() === peaks.join() && paths.length === count, `peaks and paths of ${count}`)
      paths.forEach((hexes, index) => {
        const path = hexes.map(fromHex)
        const proves = (at, siblings) => provesItem(fromHex(root), Uint8Array.of(index), at, count, siblings)
        tally.holds(proves(index, path) && !proves(index, [...path, new Uint8Array(32)]) && !proves(count, path), `path ${index} of ${count}`)
      })
    }
  },

  state (tally, tries) {
    for (const { cells, root, proofs } of tries) {
      tally.is(stateRoot(cells.map(([namespace, key, value]) => [namespace, fromHex(key), fromHex(value)])), root, `root of ${cells.length} cells`)
      for (const { namespace, key, value, proof, refuse } of proofs) {
        const prove = (hex) => provedValue(fromHex(root), namespace, fromHex(key), fromHex(hex))
        const proved = prove(proof)
        tally.holds((proved === undefined ? null : toHex(proved)) === value, `${namespace}: proof of ${key}`)
        for (const { proof: hex, reason } of refuse) tally.refuses(() => prove(hex), `${namespace}: ${reason}`)
      }
    }
  },

  ids (tally, { content_id: content, head_key: key, peer, provider_key: provider, topics, world_content_id: worldContent, world_id: world }) {
    const [contentId, portableId] = [native, portable].map((crypto) => crypto.H(fromHex(content.blob)))
    tally.holds([contentId, portableId].every((id) => toHex(id) === content.hex) && cidOf(contentId).toString() === content.cid, 'content id')
    tally.is(providerKey(contentId), provider, 'provider key')
    const keyId = seedToKeyId(fromHex(peer.seed))
    tally.holds(toHex(keyId) === peer.key_id && peerIdText(keyId) === peer.text, 'peer id')
    const worldId = worldIdOf(fromHex(world.header_hash))
    tally.holds(worldId === world.world_id, 'world id')
    tally.holds(headKey(worldId) === key, 'head key')
    tally.is(worldContentId(worldId), worldContent, 'content id of the world')
    for (const topic of topics) {
      const parsed = parseTopic(topic)
      tally.holds(parsed?.worldId === worldId && topicOf(worldId, parsed.kind) === topic, topic)
    }
  },

  step (tally, step) {
    const genesis = checkGenesis(fromHex(step.genesis))
    tally.holds(genesis.worldId === step.world_id, 'world id')
    tally.is(stateRoot(genesisCells(genesis.body)), step.state_root_before, 'state root at height 0')
    tally.is(encode(step.envelopes.map((hex) => decode(fromHex(hex)))), step.actions, 'actions blob')
    for (const hex of step.envelopes) tally.holds(signed('envelope', hex)[0].world_id === step.world_id, 'envelope')
    const [batch] = signed('batch', step.batch)
    const head = checkHead(fromHex(step.head))
    const commit = decodeSealed('commit', fromHex(step.commit))
    checkCommit(commit, genesis.authorities, genesis.worldId)
    tally.is(hashOf('batch', batch), toHex(commit[0].batch_hash), 'batch and commit')
    const block = decodeRecord('block', fromHex(step.block))
    tally.is(hashOf('block', block), step.block_hash, 'block hash')
    tally.is(block.state_root, step.state_root, 'state root')
    for (const [hash, hex] of Object.entries(step.blobs)) tally.is(H(fromHex(hex)), hash, 'blob')
    const blobOf = (hash) => fromHex(step.blobs[toHex(hash)])
    tally.is(blobOf(block.receipts_ref), toHex(encode(fromJson(step.receipts))), 'receipts')
    tally.is(blobOf(block.journal_ref), toHex(encode(fromJson(step.events))), 'events')
    const lists = { actions: fromHex(step.actions), receipts: blobOf(block.receipts_ref), events: blobOf(block.journal_ref) }
    const next = checkHeight({ block, batch, ...lists }, rootOf(genesis))
    checkHeadBlock(block, head)
    tally.holds(head.worldId === genesis.worldId && equalBytes(next.blockHash, head.blockHash), 'head')
  },

  gossip (tally, messages, { genesis }) {
    for (const { topic, data, verdict, name } of messages) {
      const judged = judge(topic, fromHex(data), genesis)
      must(judged.verdict === verdict, `${name}: ${judged.verdict}: ${judged.reason}`)
      if (verdict === 'accept') tally.checked++
      else tally.refused++
    }
  }
}

/** @returns {Promise<Record<string, {checked: number, refused: number}>>} */
export async function checkVectors (dir) {
  const files = {}
  const unreadable = (error) => { throw new Failure('usage', error.message) }
  const load = async (name) => parseJson(await readFile(join(dir, `${name}.json`), 'utf8').catch(unreadable))
  const there = (await readdir(dir).catch(unreadable)).filter((file) => file.endsWith('.json')).map((file) => file.slice(0, -5))
  const genesis = checkGenesis(fromHex((await load('step')).genesis))
  for (const name of new Set([...Object.keys(FILES), ...there])) {
    const tally = files[name] = new Tally()
    try {
      must(FILES[name] !== undefined && there.includes(name), 'is not known here, or missing')
      FILES[name](tally, await load(name), { genesis })
    } catch (error) {
      throw new Refused(`vectors: ${name}: ${error.message}`)
    }
  }
  return files
}
