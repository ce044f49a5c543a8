/**
 * The kinds of failure that a command can report (docs/interop.md). Hides nothing: every layer throws these, so that the
 * command line can name the kind without guessing from library errors.
 */

export class Failure extends Error {
  /** @param {string} kind @param {string} message @param {object} [fields] more fields of the reported error */
  constructor (kind, message, fields = {}) {
    super(message)
    this.kind = kind
    this.fields = fields
  }
}

/** Bytes that this peer's own rules refuse. */
export class Refused extends Failure {
  constructor (message) { super('refused', message) }
}

/** A record of a version that is not known here: dropped, but no fault of the sender. */
export class Ignored extends Failure {
  constructor (message) { super('refused', message) }
}

/** @returns {asserts condition} */
export function must (condition, message) {
  if (!condition) throw new Refused(message)
}
