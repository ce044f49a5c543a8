/** The numbers of the section "Limits" of docs/protocol.md that this peer needs. Names are those of the table, without `_max`. */
export const LIMITS = Object.freeze({
  // encoding and records
  depth: 32, cborItems: 262_144, envelopeItems: 4_096, listBytes: 67_108_864,
  proofBytes: 262_144, proofDepth: 64, valueInlineBytes: 256, bucketEntries: 16,
  // request / response
  frameBytes: 1_048_576, requestBytes: 65_536, errorMessageBytes: 1_024, partBytes: 262_144, answerPartsBytes: 67_108_864, blocksPerAnswer: 256,
  answersWaitingBytes: 134_217_728, streamsPerPeer: 64,
  inFlightPerSession: 32, inFlightPerPeer: 64, inFlightTotal: 1_024, sessionQueueFrames: 64, sessionWriteBatchBytes: 65_536,
  requestFirstByteMs: 10_000, requestTotalMs: 30_000, handlerMs: 30_000, sessionIdleMs: 60_000,
  // connections
  dialMs: 5_000, livenessPeriodMs: 5_000, livenessTimeoutMs: 4_000, connections: 512, streamWindowBytes: 2_097_152
})
