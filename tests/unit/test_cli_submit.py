"""`aw submit`: what is read, what is signed, and how envelopes are sent and followed, against a scripted node."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from bootstrap.cli import main
from bootstrap.cli.actions_form import ACTIONS_FILE_BYTES_MAX, parse_action, parse_action_lines
from bootstrap.config import ConfigMistakes
from p2p import names
from p2p.errors import Code, RequestFailed
from p2p.identity import create_identity
from runtime.keys import SigningKey
from runtime.messages import ActionStatusAnswer, SubmitResult
from runtime.records import Acceptance, Envelope, WorldHeadAnnounce, seal
from runtime.services.client import ProvedOutcome, ProvedValue

GATEWAY = SigningKey(b"g" * 32)
ACTOR_SEED = bytes([1]) * 32  # the first actor of the small world
NODE = f"/ip4/127.0.0.1/tcp/1/p2p/{names.peer_text(GATEWAY.identity)}"
PLACE = {"agent_id": "a", "x_cm": 1, "y_cm": 2, "z_cm": 3}


def accepted(envelope: Envelope) -> SubmitResult:
    promise = Acceptance(
        world_id=envelope.record.world_id,
        envelope_hash=envelope.hash(),
        gateway_id=GATEWAY.identity,
        accepted_at_ms=1,
        stage="local",
    )
    return SubmitResult(outcome="accepted", acceptance=seal(promise, GATEWAY))


@dataclass
class ScriptedNode:
    """A node whose answers a test writes; it remembers what was handed in."""

    world: Any
    judge: Callable[[Envelope], SubmitResult] = accepted
    nonce: int = 0
    submitted: list[list[Envelope]] = field(default_factory=list)
    asked_receipts: int = 0
    not_yet: int = 0
    stage: str = "pending"
    never: bool = False

    async def genesis(self, world_id: str) -> Any:
        return self.world.genesis

    async def head(self, world_id: str) -> Any:
        return self.newest_head() if self.world.blocks else None

    async def state_value(self, world_id: str, namespace: str, key: bytes) -> ProvedValue:
        value = {"nonce": self.nonce, "agents": 0}
        return ProvedValue(value, self.world.blocks[-1].block, self.newest_head())

    def newest_head(self) -> WorldHeadAnnounce:
        head: WorldHeadAnnounce = self.world.head_of(self.world.blocks[-1])
        return head

    async def submit(self, world_id: str, envelopes: Sequence[Envelope]) -> list[SubmitResult]:
        if self.never:
            await trio.sleep_forever()
        self.submitted.append(list(envelopes))
        return [self.judge(envelope) for envelope in envelopes]

    async def receipt(self, world_id: str, digest: bytes) -> ProvedOutcome:
        self.asked_receipts += 1
        if self.asked_receipts <= self.not_yet or self.stage == "dead":
            raise RequestFailed(Code.ERR_NOT_FOUND, "receipt is not held")
        envelope = next(one for window in self.submitted for one in window if one.hash() == digest)
        built = self.world.run(envelope)
        return ProvedOutcome(built.block, self.newest_head(), built.outcome.receipts)

    async def action_status(self, world_id: str, digest: bytes) -> ActionStatusAnswer:
        return ActionStatusAnswer(stage=self.stage)


@pytest.fixture
def node(small_world: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedNode:
    scripted = ScriptedNode(small_world())
    module = types.ModuleType("bootstrap.node")

    @asynccontextmanager
    async def open_client(addrs: Sequence[str]) -> AsyncIterator[ScriptedNode]:
        assert list(addrs) == [NODE]
        yield scripted

    module.open_client = open_client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bootstrap.node", module)
    monkeypatch.setenv("AW_NODE", NODE)
    monkeypatch.chdir(tmp_path)
    create_identity(tmp_path / "a.key", ACTOR_SEED)
    monkeypatch.setattr("bootstrap.cli.submit._now_ms", lambda: 1_000_000)
    run = trio.run  # with a clock that jumps, so that waiting costs no time
    monkeypatch.setattr(
        trio, "run", lambda work: run(work, clock=trio.testing.MockClock(autojump_threshold=0))
    )
    return scripted


def submit(node: ScriptedNode, *arguments: str) -> int:
    return main(["submit", "--world", node.world.world_id, "--key", "a.key", *arguments])


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


REGISTER = ("register_agent", json.dumps(PLACE))


def test_an_action_before_the_first_block_has_nonce_0_and_is_signed_by_the_key(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(node, *REGISTER, "--json") == 0
    envelope = node.submitted[-1][0]
    envelope.verify()
    assert envelope.record.actions == (("register_agent", PLACE),)
    assert envelope.record.expires_at_height == 1_024
    (line,) = lines_of(capsys)
    assert line["envelope_hash"] == envelope.hash().hex()
    assert line["outcome"] == "accepted"
    assert line["actor_id"] == names.peer_text(SigningKey(ACTOR_SEED).identity)
    assert line["gateway_id"] == names.peer_text(GATEWAY.identity)


def test_the_nonce_comes_from_the_proved_state_and_the_expiry_from_the_head(node: ScriptedNode) -> None:
    node.world.run()
    node.nonce = 17
    assert submit(node, *REGISTER, "--expires-in", "5") == 0
    record = node.submitted[-1][0].record
    assert (record.nonce, record.expires_at_height) == (17, 6)


def test_a_nonce_that_the_gateway_has_promised_already_is_passed_over(node: ScriptedNode) -> None:
    def judge(envelope: Envelope) -> SubmitResult:
        if envelope.record.nonce < 3:
            return SubmitResult(outcome="refused", reason="NonceDenied", message="taken", next_nonce=3)
        return accepted(envelope)

    node.judge = judge
    node_file = Path("actions.jsonl")
    node_file.write_text(
        "".join(json.dumps({"kind": "move_agent", "payload": PLACE}) + "\n" for _ in range(2))
    )
    assert submit(node, "--file", "actions.jsonl") == 0
    assert [len(window) for window in node.submitted] == [1, 1, 2]
    assert [envelope.record.nonce for envelope in node.submitted[-1]] == [3, 4]


def test_a_given_nonce_is_used_as_it_is(node: ScriptedNode) -> None:
    assert submit(node, *REGISTER, "--nonce", "9") == 0
    assert [[envelope.record.nonce for envelope in window] for window in node.submitted] == [[9]]


def test_a_refusal_is_exit_1_with_its_reason(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.judge = lambda envelope: SubmitResult(outcome="refused", reason="Denied", message="too late")
    assert submit(node, *REGISTER, "--json", "--nonce", "0") == 1
    (line,) = lines_of(capsys)
    assert (line["outcome"], line["by"], line["reason"], line["message"]) == (
        "refused",
        "gateway",
        "Denied",
        "too late",
    )


def test_after_a_refusal_the_rest_is_not_sent(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.jsonl").write_text((json.dumps({"kind": "move_agent", "payload": PLACE}) + "\n") * 600)

    def judge(envelope: Envelope) -> SubmitResult:
        if envelope.record.nonce == 255:
            return SubmitResult(outcome="refused", reason="Denied", message="no")
        return accepted(envelope)

    node.judge = judge
    assert submit(node, "--file", "many.jsonl", "--json", "--nonce", "0") == 1
    outcomes = [(line["outcome"], line.get("by")) for line in lines_of(capsys)]
    assert outcomes == [("accepted", None)] * 255 + [("refused", "gateway")] + [("refused", "client")] * 344
    assert len(node.submitted) == 1


def test_a_busy_gateway_is_asked_again_and_nothing_is_lost(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("many.jsonl").write_text((json.dumps({"kind": "move_agent", "payload": PLACE}) + "\n") * 300)
    seen: dict[int, int] = {}

    def judge(envelope: Envelope) -> SubmitResult:
        nonce = envelope.record.nonce
        seen[nonce] = seen.get(nonce, 0) + 1
        if nonce >= 100 and seen[nonce] < 3:
            return SubmitResult(outcome="refused", reason="Busy", message="full", retry_after_ms=1_000)
        return accepted(envelope)

    node.judge = judge
    assert submit(node, "--file", "many.jsonl", "--json", "--nonce", "0") == 0
    lines = lines_of(capsys)
    assert [line["nonce"] for line in lines] == list(range(300))
    assert {line["outcome"] for line in lines} == {"accepted"}


def test_wait_verified_tells_the_proved_receipts(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.not_yet = 3
    assert submit(node, *REGISTER, "--wait", "verified", "--json") == 0
    (line,) = lines_of(capsys)
    assert line["outcome"] == "verified"
    assert line["receipts"] == [{"index": 0, "code": "Applied"}]
    assert (line["height"], line["trust"], line["epoch"]) == (1, "attested", 0)
    assert node.asked_receipts == 4


def test_an_action_that_the_kernel_refuses_is_exit_1_with_its_code(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    move = json.dumps(PLACE | {"agent_id": "nobody"})
    assert submit(node, "move_agent", move, "--wait", "verified", "--json") == 1
    (line,) = lines_of(capsys)
    assert (line["outcome"], line["by"], line["codes"]) == ("refused", "kernel", "AgentNotFound")


def test_an_envelope_that_is_dead_is_told_and_not_waited_for(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.stage = "dead"
    assert submit(node, *REGISTER, "--wait", "verified", "--json") == 1
    (line,) = lines_of(capsys)
    assert (line["outcome"], line["reason"]) == ("refused", "Dead")


def test_a_node_that_never_answers_is_exit_3_and_says_how_many_are_open(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.never = True
    assert submit(node, *REGISTER, "--timeout", "5", "--nonce", "0") == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: not followed to the end: 1 envelopes without an answer after 5 s" in shown.err
    assert NODE in shown.err


def test_atomic_puts_all_actions_into_one_envelope_and_batch_cuts_them(node: ScriptedNode) -> None:
    Path("five.jsonl").write_text((json.dumps({"kind": "move_agent", "payload": PLACE}) + "\n") * 5)
    assert submit(node, "--file", "five.jsonl", "--nonce", "0", "--atomic") == 0
    assert submit(node, "--file", "five.jsonl", "--nonce", "0", "--batch", "2") == 0
    (whole,), parts = node.submitted
    assert (len(whole.record.actions), whole.record.atomic) == (5, True)
    assert [(len(part.record.actions), part.record.atomic) for part in parts] == [
        (2, False),
        (2, False),
        (1, False),
    ]


def test_an_envelope_over_the_worlds_limit_is_told_before_anything_is_sent(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    big = json.dumps({"text": "x" * 16_000})
    Path("big.jsonl").write_text(f'{{"kind": "say", "payload": {big}}}\n' * 3)
    assert submit(node, "--file", "big.jsonl", "--atomic", "--nonce", "0") == 2
    shown = capsys.readouterr().err
    assert "error: envelope 0: 48201 bytes, at most 32701" in shown
    assert "try: a smaller --batch" in shown
    assert node.submitted == []


def test_a_world_may_bound_envelopes_lower(
    node: ScriptedNode, small_world: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    node.world = small_world(envelope_bytes_max=1_024)
    assert submit(node, "say", json.dumps({"text": "x" * 1_000}), "--nonce", "0") == 2
    assert "over 1024 (envelope_bytes_max)" in capsys.readouterr().err
    assert node.submitted == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give either KIND PAYLOAD or --file"),
        (["move_agent", "{}", "--file", "x"], "give either KIND PAYLOAD or --file"),
        (["move_agent", "{"], "PAYLOAD: is not JSON"),
        (["move_agent", json.dumps(PLACE | {"speed": 1})], "speed"),
        (["--file", "none.jsonl"], "none.jsonl: No such file"),
        (["say", "{}", "--key", "none.key"], "key file none.key: No such file"),
        (["say", "{}", "--batch", "65"], "'--batch'"),
        (["say", "{}", "--node", "/ip4/1.2.3.4/tcp/1"], "must end in /p2p/PEER ID"),
    ],
)
def test_wrong_use_is_told_before_anything_is_sent(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert submit(node, *arguments) == 2
    assert why in capsys.readouterr().err
    assert node.submitted == []


# --- what is read ------------------------------------------------------------------------------------------


def mistakes_of(read: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigMistakes) as caught:
        read()
    return [f"{mistake.what}: {mistake.why}" for mistake in caught.value.mistakes]


def test_a_peer_id_in_a_payload_becomes_its_bytes_and_unknown_kinds_pass() -> None:
    peer = names.peer_text(GATEWAY.identity)
    payload = json.dumps({"kind": "fuel", "amount": 1, "to_actor": peer})
    assert parse_action("transfer_resource", payload)[1]["to_actor"] == GATEWAY.identity
    assert parse_action("dance", '{"to_actor": "x", "deep": [1, {"a": null}]}')[1] == {
        "to_actor": "x",
        "deep": [1, {"a": None}],
    }


@pytest.mark.parametrize(
    ("kind", "payload", "why"),
    [
        ("move_agent", "[]", "payload: must be a JSON object"),
        ("move_agent", '{"a": 1.5}', "1.5 is no integer"),
        ("move_agent", '{"a": NaN}', "NaN is no integer"),
        ("move_agent", '{"a": 1, "a": 2}', "a: is there twice"),
        ("say", '{"a": 9223372036854775808}', "payload"),
        ("say", '{"a": ' + "9" * 5_000 + "}", "is not JSON that can be read"),
        ("say", '{"a": ' + "[" * 40 + "]" * 40 + "}", "deep"),
        ("say", "[" * 200_000, "deep"),
        ("say", json.dumps({"a": "x" * 16_400}), "action_payload_bytes_max"),
        ("", "{}", "kind: must be 1..64 bytes"),
        ("move_agent", "{}", "move_agent"),
        ("transfer_resource", '{"kind": "fuel", "amount": 1, "to_actor": "12D3"}', "to_actor: has '12D3'"),
    ],
)
def test_a_payload_that_no_kernel_takes_is_told_with_its_field(kind: str, payload: str, why: str) -> None:
    (told,) = mistakes_of(lambda: parse_action(kind, payload))
    assert why in told


def test_every_bad_line_is_told_with_its_number_up_to_a_bound() -> None:
    good = json.dumps({"kind": "move_agent", "payload": PLACE})
    data = "\n".join([good, "{", "", '{"kind": 1, "payload": {}}', '{"kind": "x"}', good]).encode()
    told = mistakes_of(lambda: parse_action_lines(data, "f"))
    assert [line.split(": ")[0] for line in told] == ["f:2", "f:4", "f:5"]
    told = mistakes_of(lambda: parse_action_lines(b"{\n" * 50, "f"))
    assert len(told) == 21
    assert told[-1] == "f: and 30 more mistakes"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "holds no action"),
        (b"\xff", "is not UTF-8 at byte 0"),
        (bytes(ACTIONS_FILE_BYTES_MAX + 1), "file_bytes_max"),
    ],
)
def test_a_file_without_actions_is_told(data: bytes, why: str) -> None:
    (told,) = mistakes_of(lambda: parse_action_lines(data, "f"))
    assert why in told


def test_all_mistakes_of_the_line_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AW_NODE", "nowhere")
    assert main(["submit", "--world", "w", "--key", "none.key", "move", "{"]) == 2
    told = capsys.readouterr().err
    for words in ("PAYLOAD", "none.key", "'nowhere'"):
        assert words in told
