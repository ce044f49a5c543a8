/**
 * Genesis, authorities, commits and heads: those sections of docs/protocol.md. Hides in which order a stranger's bytes are judged:
 * from a world id alone to the newest block hash.
 */
import { compareBytes, equalBytes } from './bytes.js'
import { must } from './errors.js'
import { worldIdOf } from './identity.js'
import { decodeRecord, hashOf, mustBeSigned } from './records.js'
import { verify } from './signature.js'

/**
 * @param {Uint8Array} fileBytes @param {string} [expectedId] the world that it must be of
 * @returns {{worldId: string, headerHash: Uint8Array, header: object, body: object, authorities: object, bytes: Uint8Array}}
 */
export function checkGenesis (fileBytes, expectedId) {
  const { header, body, authorities } = decodeRecord('genesis_file', fileBytes)
  must(equalBytes(header.body_hash, hashOf('genesis_body', body)), 'genesis.body: is not the header\'s')
  must(equalBytes(header.authorities_hash, hashOf('authorities', authorities)), 'genesis.authorities: are not the header\'s')
  must(authorities.epoch === 0, 'genesis.authorities: are of a later epoch')
  const headerHash = hashOf('genesis', header)
  const worldId = worldIdOf(headerHash)
  must(expectedId === undefined || worldId === expectedId, `genesis: is of the world ${worldId}`)
  return { worldId, headerHash, header, body, authorities, bytes: fileBytes }
}

function checkAuthorities ([set, signatures], header, worldId) {
  const setHash = hashOf('authorities', set)
  if (set.epoch === 0) {
    return must(signatures.length === 0 && equalBytes(setHash, header.authorities_hash), 'authorities: are not the header\'s, or signed')
  }
  must(set.world_id === worldId, 'authorities.world_id: is another')
  must(signatures.length === header.root_threshold, `authorities.signatures: must be exactly ${header.root_threshold}`)
  for (const [index, signature] of signatures) {
    must(index < header.root_keys.length && verify(header.root_keys[index], setHash, signature), 'authorities.signature: does not verify')
  }
}

export function checkCommit (sealedCommit, set, worldId) {
  const [commit] = sealedCommit
  must(commit.world_id === worldId, 'commit.world_id: is another')
  must(commit.epoch === set.epoch, 'commit.epoch: is not the set\'s')
  must(set.certifiers.some((key) => equalBytes(key, commit.certifier_id)), 'commit.certifier_id: is no certifier of this epoch')
  mustBeSigned('commit', sealedCommit)
}

function checkResume (commit, { epoch, resume }) {
  if (epoch === 0) return
  must(commit.height >= Math.max(1, resume.height), 'commit.height: is below the resume of its epoch')
  must(commit.height !== resume.height || equalBytes(commit.batch_hash, resume.batch_hash), 'commit.batch_hash: is not the one resumed')
}

/**
 * Checks every seal of a head, from the header to the executors'.
 * @param {Uint8Array} headBytes @param {string} [expectedId] the world that it must be of
 * @returns {{worldId: string, epoch: number, height: number, asOfMs: number, blockHash: Uint8Array, hash: Uint8Array, bytes: Uint8Array,
 *   value: object, set: object, commit: object}} the head as a record is `value`, `set` its authorities
 */
export function checkHead (headBytes, expectedId) {
  const head = decodeRecord('head', headBytes)
  const worldId = worldIdOf(hashOf('genesis', head.header))
  must(expectedId === undefined || worldId === expectedId, `head: is of the world ${worldId}`)
  const set = head.authorities[0]
  const [commit] = head.commit
  checkAuthorities(head.authorities, head.header, worldId)
  checkCommit(head.commit, set, worldId)
  checkResume(commit, set)
  for (const sealed of head.attestations) {
    const [attestation] = sealed
    must(set.executors.some((key) => equalBytes(key, attestation.executor_id)), 'attestation.executor_id: is no executor of this epoch')
    must(attestation.world_id === worldId && attestation.epoch === set.epoch && attestation.height === commit.height, 'attestation: is of another commit')
    must(equalBytes(attestation.block_hash, head.block_hash), 'attestation.block_hash: is not the head\'s')
    mustBeSigned('attestation', sealed)
  }
  return {
    worldId, set, commit, bytes: headBytes, value: head, blockHash: head.block_hash,
    epoch: set.epoch, height: commit.height, asOfMs: commit.as_of_ms, hash: hashOf('head', head)
  }
}

/** The order of heads, as a sort function over what `checkHead` returns: greater is newer. */
export const compareHeads = (a, b) =>
  a.epoch - b.epoch || a.height - b.height || a.asOfMs - b.asOfMs || compareBytes(a.hash, b.hash)
