"""`aw submit`: sign actions, hand them to a gateway, and follow them to a block whose proof is checked here.

Hides: nonces, expiry, windows and retries. Guarantees: one line of output for each envelope, in order; with
`--wait verified` a result is told only from receipts that are proved against an attested head; one whose fate is still
open when time runs out is told as such (exit 3), never guessed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bootstrap.cli.actions_form import (
    ACTIONS_FILE_BYTES_MAX,
    Action,
    group_actions,
    parse_action,
    parse_action_lines,
)
from bootstrap.cli.arguments import Command, Mistakes
from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import read_bytes
from bootstrap.cli.keys import load_signing_key
from bootstrap.cli.options import data_dir_option, json_option, node_option, timeout_option
from bootstrap.cli.output import note, print_json, progress
from bootstrap.cli.reach import find_world, node_addrs, quiet_logs
from runtime import limits
from runtime.actions import Code
from runtime.errors import Invalid
from runtime.keys import SigningKey
from runtime.records import SEAL_OVERHEAD_BYTES, ActionEnvelope, Envelope, Genesis, encode_envelopes, seal

if TYPE_CHECKING:
    from runtime.messages import SubmitResult
    from runtime.services.client import DistributedClient, ProvedOutcome

EXPIRES_IN_BLOCKS: Final = 1_024
POLL_MS: Final = 200
NONCE_TRIES_MAX: Final = 16
WINDOW_ENVELOPES_MAX: Final = limits.MEMPOOL_NONCES_AHEAD_MAX
WINDOW_BYTES_MAX: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Submission:
    """What the command line asks for. `nonce` None: ask the node. `per_envelope` actions share a signature."""

    world: str
    actions: tuple[Action, ...]
    per_envelope: int
    atomic: bool
    nonce: int | None
    expires_in: int
    wait_verified: bool


@click.command(cls=Command)
@click.argument("kind", required=False)
@click.argument("payload", required=False)
@click.option("--world", required=True, metavar="ID|NAME|FILE", help="World id, name, or genesis file.")
@click.option(
    "--key", "key_file", envvar="AW_KEY", required=True, type=click.Path(path_type=Path), help="Actor's key."
)
@click.option(
    "--file", "file", type=click.Path(path_type=Path), help='JSON Lines: {"kind": ..., "payload": {...}}.'
)
@click.option(
    "--batch", type=click.IntRange(1, limits.ACTIONS_PER_ENVELOPE_MAX), help="Actions per envelope (1)."
)
@click.option(
    "--atomic", is_flag=True, help="All actions of an envelope, or none; without --batch: one envelope."
)
@click.option("--nonce", type=click.IntRange(0), help="Nonce of the first envelope (asked of the node).")
@click.option(
    "--expires-in",
    type=click.IntRange(1, limits.EXPIRY_BLOCKS_CEILING),
    default=EXPIRES_IN_BLOCKS,
    show_default=True,
    metavar="BLOCKS",
    help="The promise ends so many blocks from now.",
)
@click.option(
    "--wait",
    type=click.Choice(["accepted", "verified"]),
    default="accepted",
    show_default=True,
    help="How far to follow.",
)
@node_option
@data_dir_option
@timeout_option(60)
@json_option
def submit(
    kind: str | None,
    payload: str | None,
    world: str,
    key_file: Path,
    file: Path | None,
    batch: int | None,
    atomic: bool,
    nonce: int | None,
    expires_in: int,
    wait: str,
    nodes: Sequence[str],
    data_dir: Path,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Sign and submit one action (KIND and its PAYLOAD as JSON) or a --file of them.

    \b
    aw submit --world flights --key me.key register_agent '{"agent_id": "a1", "x_cm": 0, "y_cm": 0, "z_cm": 0}'
    aw submit --world flights --key me.key --file actions.jsonl --batch 16 --wait verified
    """
    mistakes = Mistakes()
    actions = mistakes.tried(lambda: _actions(kind, payload, file))
    per_envelope = mistakes.tried(lambda: _per_envelope(actions or [], batch, atomic=atomic))
    key = mistakes.tried(lambda: load_signing_key(key_file))
    addrs = mistakes.tried(lambda: node_addrs(nodes, data_dir))
    mistakes.check()
    assert actions is not None
    assert per_envelope is not None
    assert key is not None
    assert addrs is not None
    asked = Submission(world, tuple(actions), per_envelope, atomic, nonce, expires_in, wait == "verified")
    quiet_logs()

    import trio

    from bootstrap.cli import interrupt

    fates = Fates(as_json)

    async def run() -> None:
        with trio.move_on_after(timeout_s):
            await _submit_all(addrs, asked, key, fates)
            return
        why = (
            f"{fates.open_count} envelopes without an answer after {timeout_s:g} s (tried {', '.join(addrs)})"
        )
        raise Failure(Exit.NOT_REACHED, "not followed to the end", why, "a longer --timeout; aw status")

    interrupt.run(run)
    return Exit.NO if fates.refused else Exit.YES


def _per_envelope(actions: list[Action], batch: int | None, *, atomic: bool) -> int:
    per_envelope = batch or (max(1, len(actions)) if atomic else 1)
    if per_envelope > limits.ACTIONS_PER_ENVELOPE_MAX:
        why = f"{len(actions)} actions do not fit one envelope: {limits.ACTIONS_PER_ENVELOPE_MAX} do"
        raise click.BadParameter(f"{why} (actions_per_envelope_max)", param_hint="--atomic")
    return per_envelope


def _actions(kind: str | None, payload: str | None, file: Path | None) -> list[Action]:
    if (kind is None) == (file is None):
        raise click.UsageError("give either KIND PAYLOAD or --file")
    if kind is not None:
        return [parse_action(kind, "{}" if payload is None else payload)]
    assert file is not None  # exactly one of the two is given
    data = read_bytes(file, ACTIONS_FILE_BYTES_MAX, "actions_file_bytes_max")
    return parse_action_lines(data, str(file))


# --- what became of each envelope --------------------------------------------------------------------------


class Fates:
    """Prints each envelope's fate once, and counts."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.open_count = 0
        self.refused = 0

    def tell(self, envelope: Envelope, outcome: str, **more: object) -> None:
        """`outcome` is accepted, pooled, refused or verified; a verified one says its codes."""
        self.open_count -= 1
        digest = envelope.hash().hex()
        document: dict[str, object] = {
            "envelope_hash": digest,
            "world_id": envelope.record.world_id,
            "actor_id": envelope.record.actor_id,
            "nonce": envelope.record.nonce,
            "expires_at_height": envelope.record.expires_at_height,
            "actions": len(envelope.record.actions),
            "outcome": outcome,
        }
        if self._as_json:
            print_json(document | more)
        else:
            details = "".join(
                f" {key} {value}" for key, value in more.items() if isinstance(value, str | int)
            )
            click.echo(f"{digest} nonce {envelope.record.nonce} {outcome}{details}")
        self.refused += outcome == "refused"

    def tell_result(self, envelope: Envelope, result: SubmitResult) -> None:
        """The gateway's own answer."""
        if result.outcome == "refused":
            self.tell(envelope, "refused", by="gateway", reason=result.reason, message=result.message)
        elif result.acceptance is not None:
            promise = result.acceptance.record
            self.tell(envelope, "accepted", gateway_id=promise.gateway_id, stage=promise.stage)
        else:
            self.tell(envelope, result.outcome)

    def tell_proved(self, envelope: Envelope, proved: ProvedOutcome) -> None:
        """Receipts that hold under an attested head."""
        receipts = [
            {"code": receipt.code}
            if receipt.index is None
            else {"index": receipt.index, "code": receipt.code}
            for receipt in proved.receipts
        ]
        codes = ",".join(dict.fromkeys(receipt.code for receipt in proved.receipts))
        applied = all(receipt.code == Code.APPLIED for receipt in proved.receipts)
        commit = proved.head.commit.record
        self.tell(
            envelope,
            "verified" if applied else "refused",
            **({} if applied else {"by": "kernel"}),
            height=proved.block.height,
            codes=codes,
            receipts=receipts,
            block_hash=proved.block.hash(),
            trust="attested",
            epoch=commit.epoch,
            head_height=commit.height,
            head_age_ms=max(0, _now_ms() - commit.as_of_ms),
        )


# --- the way of the envelopes ------------------------------------------------------------------------------


async def _submit_all(addrs: list[str], asked: Submission, key: SigningKey, fates: Fates) -> None:
    from bootstrap.node import open_client

    async with open_client(addrs) as client:
        world_id = await find_world(client, asked.world)
        genesis = await client.genesis(world_id)
        head = await client.head(world_id)
        height = 0 if head is None else head.commit.record.height
        if asked.nonce is None:
            nonce = 0 if head is None else await _proved_nonce(client, world_id, key.identity)
            envelopes = await _with_free_nonces(client, asked, genesis, height, nonce, key)
        else:
            envelopes = sign_envelopes(asked, genesis, height, asked.nonce, key)
        fates.open_count = len(envelopes)
        sent = await _send(client, world_id, envelopes, fates, tell_accepted=not asked.wait_verified)
        if asked.wait_verified:
            await _follow(client, world_id, sent, fates)


async def _proved_nonce(client: DistributedClient, world_id: str, actor_id: bytes) -> int:
    """The actor's nonce in the newest state; 0 from a node that proves no state (its gateway will tell)."""
    from p2p.errors import Code as WireCode
    from p2p.errors import RequestFailed
    from runtime.cells import ACTORS, Actor

    try:
        proved = await client.state_value(world_id, ACTORS, actor_id)
    except RequestFailed as failed:
        if failed.code in (WireCode.ERR_NOT_FOUND, WireCode.ERR_NOT_AVAILABLE, WireCode.ERR_UNSUPPORTED):
            return 0
        raise
    return 0 if proved.value is None else Actor.from_value(proved.value).nonce


async def _with_free_nonces(
    client: DistributedClient, asked: Submission, genesis: Genesis, height: int, nonce: int, key: SigningKey
) -> list[Envelope]:
    """Signed with the nonces that the gateway calls free, which counts what it has promised and no block holds yet.

    Only the first envelope is handed in to find out: were all, the later ones might be taken under wrong nonces.
    """
    for _ in range(NONCE_TRIES_MAX):
        envelopes = sign_envelopes(asked, genesis, height, nonce, key)
        (result,) = await client.submit(genesis.header.world_id, envelopes[:1])
        if result.next_nonce is None or result.next_nonce <= nonce:
            return envelopes
        nonce = result.next_nonce
    why = f"not found free within {NONCE_TRIES_MAX} tries: does another program submit with this key?"
    raise Failure(Exit.NOT_REACHED, "nonce", why, "again, or --nonce N")


def sign_envelopes(
    asked: Submission, genesis: Genesis, height: int, first_nonce: int, key: SigningKey
) -> list[Envelope]:
    """Sealed envelopes with consecutive nonces. Raises Failure when one is too large for its world."""
    bounds = genesis.body.limits
    expires_in = min(asked.expires_in, max(1, bounds.expiry_blocks_max // 2))
    envelopes: list[Envelope] = []
    for offset, actions in enumerate(group_actions(asked.actions, asked.per_envelope)):
        record = ActionEnvelope(
            world_id=genesis.header.world_id,
            actor_id=key.identity,
            nonce=first_nonce + offset,
            expires_at_height=height + expires_in,
            timestamp_ms=_now_ms(),
            atomic=asked.atomic,
            actions=actions,
        )
        try:
            size = len(record.to_bytes()) + SEAL_OVERHEAD_BYTES
        except Invalid as error:
            raise Failure(Exit.WRONG_USE, f"envelope {offset}", error.why, "a smaller --batch") from error
        if size > bounds.envelope_bytes_max:
            why = f"{size} bytes, over {bounds.envelope_bytes_max} (envelope_bytes_max)"
            raise Failure(Exit.WRONG_USE, f"envelope {offset}", why, "a smaller --batch")
        envelopes.append(seal(record, key))
    return envelopes


async def _send(
    client: DistributedClient, world_id: str, envelopes: list[Envelope], fates: Fates, *, tell_accepted: bool
) -> list[Envelope]:
    """Hand in all of them, in windows, again where the gateway is busy; returns the ones it took.

    After a refusal the rest is not sent: its nonces would wait for one that never comes.
    """
    import trio

    sent: list[Envelope] = []
    waiting = list(envelopes)
    show = progress("accepted")
    while waiting:
        window = _window(waiting)
        wait_ms, refused = 0, False
        for envelope, result in zip(window, await client.submit(world_id, window), strict=True):
            if result.outcome == "refused" and result.retry_after_ms is not None:
                wait_ms = max(POLL_MS, result.retry_after_ms)
                break
            waiting.remove(envelope)
            refused = refused or result.outcome == "refused"
            if result.outcome != "refused":
                sent.append(envelope)
            if tell_accepted or result.outcome == "refused":
                fates.tell_result(envelope, result)
        show(len(sent), len(envelopes))
        if refused:
            for envelope in waiting:
                fates.tell(
                    envelope, "refused", by="client", reason="NotSent", message="an earlier one was refused"
                )
            break
        await trio.sleep(wait_ms / 1_000)
    return sent


def _window(waiting: list[Envelope]) -> list[Envelope]:
    window = waiting[:WINDOW_ENVELOPES_MAX]
    while len(window) > 1 and len(encode_envelopes(window)) > WINDOW_BYTES_MAX:
        window = window[: len(window) // 2]
    return window


async def _follow(client: DistributedClient, world_id: str, envelopes: list[Envelope], fates: Fates) -> None:
    """Wait for each envelope's proved receipts, in order."""
    import trio

    from p2p.errors import RequestFailed

    show = progress("verified")
    for done, envelope in enumerate(envelopes):
        digest = envelope.hash()
        while True:
            try:
                fates.tell_proved(envelope, await client.receipt(world_id, digest))
                break
            except RequestFailed as failed:
                if not failed.retryable and failed.code.name != "ERR_NOT_FOUND":
                    raise
            if (await client.action_status(world_id, digest)).stage == "dead":
                fates.tell(
                    envelope, "refused", by="gateway", reason="Dead", message="expired or its nonce is taken"
                )
                break
            await trio.sleep(POLL_MS / 1_000)
        show(done + 1, len(envelopes))
    if not envelopes:
        note("nothing was accepted")


def _now_ms() -> int:
    return int(time.time() * 1_000)
