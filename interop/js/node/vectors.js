/** The command `vectors`: checks each file of interop/vectors. Hides their layout (interop/README.md). */
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { equalBytes, fromHex, toHex } from '../lib/bytes.js'
import { decode, encode } from '../lib/codec.js'
import * as native from '../lib/ed25519_node.js'
import * as portable from '../lib/ed25519_noble.js'
import { Ignored, Refused, must } from '../lib/errors.js'
import { ANSWER, ERROR, FrameSplitter, PART, REQUEST, encodeFrame } from '../lib/frames.js'
import { checkCommit, checkGenesis, checkHead } from '../lib/head.js'
import { H, peerIdText, seedToKeyId, signedMessage, worldIdOf } from '../lib/identity.js'
import { provesItem } from '../lib/merkle.js'
import { checkHeadBlock } from '../lib/proofs.js'
import { decodeRecord, decodeSealed, hashOf, mustBeSigned, preimageOf, signerOf } from '../lib/records.js'
import { verify } from '../lib/signature.js'
import { provedValue } from '../lib/state.js'
import { MerkleTree, checkHeight, rootOf } from './chain.js'
import { cidOf, headKey, providerKey, worldContentId } from './dht.js'
import { judge, parseTopic, topicOf } from './gossip.js'
import { fromJson, parseJson } from './json.js'
import { genesisCells, stateRoot } from './trie.js'

class Tally {
  checked = 0
  refused = 0

  holds (condition, name) {
    must(condition, `vectors: ${name}`)
    this.checked++
  }

  is (bytes, hex, name) {
    this.holds(toHex(bytes) === hex, `${name}: is ${toHex(bytes).slice(0, 80)}`)
  }

  refuses (judgement, name, error = Refused) {
    try {
      judgement()
    } catch (thrown) {
      must(thrown instanceof error, `vectors: ${name}: ${thrown.message}`)
      this.refused++
      return
    }
    throw new Refused(`vectors: ${name}: was not refused`)
  }
}

const oneFrame = (bytes) => {
  const splitter = new FrameSplitter()
  splitter.push(bytes)
  const frame = splitter.next()
  must(frame !== undefined && splitter.isEmpty, 'not one frame')
  return frame
}

const FILES = {
  records (tally, records) {
    for (const { name, record, body, hash, preimage: whole, value, sealed, signature, signer, refuse, refuse_sealed: refuseSealed = [], ignore } of records) {
      const decoded = decodeRecord(record, fromHex(body))
      tally.is(encode(fromJson(value)), body, name)
      tally.is(encode(decoded), body, name)
      tally.is(preimageOf(record, decoded), whole, name)
      tally.is(hashOf(record, decoded), hash, name)
      if (sealed !== undefined) {
        const seal = decodeSealed(record, fromHex(sealed))
        tally.is(seal[1], signature, name)
        tally.is(signerOf(record, seal[0]), signer, name)
        mustBeSigned(record, seal)
        tally.checked++
      }
      for (const { hex, reason } of refuse) tally.refuses(() => decodeRecord(record, fromHex(hex)), `${name}: ${reason}`)
      for (const { hex, reason } of refuseSealed) tally.refuses(() => decodeSealed(record, fromHex(hex)), `${name}: ${reason}`)
      for (const { hex, reason } of ignore) tally.refuses(() => decodeRecord(record, fromHex(hex)), `${name}: ${reason}`, Ignored)
    }
  },

  frames (tally, { frames, refuse }) {
    const kinds = { request: REQUEST, answer: ANSWER, part: PART, error: ERROR }
    for (const { hex, kind, id, method, code, retry_after_ms: retryAfterMs, message, body, detail } of frames) {
      const frame = { type: kinds[kind], id, method, code, retryAfterMs, message, body: fromHex(body ?? detail) }
      tally.is(encodeFrame(frame), hex, kind)
      tally.is(encodeFrame(oneFrame(fromHex(hex))), hex, kind)
    }
    for (const { hex, reason } of refuse) tally.refuses(() => oneFrame(fromHex(hex)), reason)
  },

  signatures (tally, signatures) {
    for (const { name, accept, key_id: keyId, message, record_hash: recordHash, signature } of signatures) {
      tally.is(signedMessage(fromHex(recordHash)), message, name)
      for (const equation of [native, portable]) {
        const verdict = verify(fromHex(keyId), fromHex(recordHash), fromHex(signature), equation)
        if (accept) tally.holds(verdict, name)
        else tally.refuses(() => must(verdict, name), name)
      }
    }
  },

  merkle (tally, { trees }) {
    for (const { count, root, peaks, paths } of trees) {
      const tree = new MerkleTree()
      for (let i = 0; i < count; i++) tree.push(Uint8Array.of(i))
      tally.is(tree.root(), root, `tree of ${count}`)
      tally.holds(tree.peaks.map(toHex).join() === peaks.join(), `peaks of ${count}`)
      paths.forEach((hexes, index) => {
        const path = hexes.map(fromHex)
        const proves = (at, siblings) => provesItem(fromHex(root), Uint8Array.of(index), at, count, siblings)
        tally.holds(proves(index, path), `path ${index} of ${count}`)
        tally.refuses(() => must(proves(index, [...path, new Uint8Array(32)]), 'longer'), `path ${index} of ${count}, longer`)
        tally.refuses(() => must(proves(count, path), 'outside'), `path ${index} of ${count}, index outside`)
      })
    }
  },

  state (tally, tries) {
    for (const { cells, root, proofs } of tries) {
      tally.is(stateRoot(cells.map(([namespace, key, value]) => [namespace, fromHex(key), fromHex(value)])), root, 'state root')
      for (const { namespace, key, value, proof, refuse } of proofs) {
        const prove = (hex) => provedValue(fromHex(root), namespace, fromHex(key), fromHex(hex))
        const proved = prove(proof)
        tally.holds((proved === undefined ? null : toHex(proved)) === value, `${namespace}: proof`)
        for (const { proof: hex, reason } of refuse) tally.refuses(() => prove(hex), reason)
      }
    }
  },

  ids (tally, { content_id: content, head_key: key, peer, provider_key: provider, topics, world_content_id: worldContent, world_id: world }) {
    const contentId = H(fromHex(content.blob))
    tally.is(contentId, content.hex, 'content id')
    tally.holds(cidOf(contentId).toString() === content.cid, 'CID')
    tally.is(providerKey(contentId), provider, 'provider key')
    const keyId = seedToKeyId(fromHex(peer.seed))
    tally.is(keyId, peer.key_id, 'key id')
    tally.holds(peerIdText(keyId) === peer.text, 'peer id')
    const worldId = worldIdOf(fromHex(world.header_hash))
    tally.holds(worldId === world.world_id, 'world id')
    tally.holds(headKey(worldId) === key, 'head key')
    tally.is(worldContentId(worldId), worldContent, 'content id of the world')
    for (const topic of topics) {
      const parsed = parseTopic(topic)
      tally.holds(parsed.worldId === worldId && topicOf(worldId, parsed.kind) === topic, 'topics')
    }
  },

  step (tally, step) {
    const genesis = checkGenesis(fromHex(step.genesis))
    tally.holds(genesis.worldId === step.world_id, 'world id')
    tally.is(stateRoot(genesisCells(genesis.body)), step.state_root_before, 'state root at height 0')
    tally.is(encode(step.envelopes.map((hex) => decode(fromHex(hex)))), step.actions, 'actions blob')
    for (const hex of step.envelopes) {
      mustBeSigned('envelope', decodeSealed('envelope', fromHex(hex)))
      tally.checked++
    }
    const batch = decodeSealed('batch', fromHex(step.batch))
    mustBeSigned('batch', batch)
    const head = checkHead(fromHex(step.head))
    const commit = decodeSealed('commit', fromHex(step.commit))
    checkCommit(commit, genesis.authorities, genesis.worldId)
    tally.is(hashOf('batch', batch[0]), toHex(commit[0].batch_hash), 'batch hash')
    const block = decodeRecord('block', fromHex(step.block))
    tally.is(hashOf('block', block), step.block_hash, 'block hash')
    tally.is(block.state_root, step.state_root, 'state root')
    for (const [hash, hex] of Object.entries(step.blobs)) tally.is(H(fromHex(hex)), hash, 'blob')
    const blobOf = (hash) => fromHex(step.blobs[toHex(hash)])
    tally.is(blobOf(block.receipts_ref), toHex(encode(fromJson(step.receipts))), 'receipts')
    tally.is(blobOf(block.journal_ref), toHex(encode(fromJson(step.events))), 'events')
    const lists = { actions: fromHex(step.actions), receipts: blobOf(block.receipts_ref), events: blobOf(block.journal_ref) }
    const next = checkHeight({ block, batch: batch[0], ...lists }, rootOf(genesis))
    checkHeadBlock(block, head)
    tally.holds(head.worldId === genesis.worldId && equalBytes(next.blockHash, head.blockHash), 'head')
  },

  gossip (tally, messages, { genesis }) {
    for (const { topic, data, verdict, name } of messages) {
      const judged = judge(topic, fromHex(data), genesis)
      must(judged.verdict === verdict, `vectors: ${name}: ${judged.verdict}: ${judged.reason}`)
      if (verdict === 'accept') tally.checked++
      else tally.refused++
    }
  }
}

/** @returns {Promise<Record<string, {checked: number, refused: number}>>} */
export async function checkVectors (dir) {
  const files = {}
  const load = async (name) => parseJson(await readFile(join(dir, `${name}.json`), 'utf8'))
  const genesis = checkGenesis(fromHex((await load('step')).genesis))
  const names = new Set([...Object.keys(FILES), ...(await readdir(dir)).filter((file) => file.endsWith('.json')).map((file) => file.slice(0, -5))])
  for (const name of names) {
    must(FILES[name] !== undefined, `vectors: ${name}.json is not known here`)
    const tally = new Tally()
    FILES[name](tally, await load(name), { genesis })
    files[name] = { checked: tally.checked, refused: tally.refused }
  }
  return files
}
