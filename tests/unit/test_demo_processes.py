"""The demo's processes are started, watched, started again and ended, whatever they do: shown on tiny programs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from bootstrap.config import read_config
from bootstrap.demo import processes
from bootstrap.demo.processes import LAYOUT, Network, NodeFailed, environment_of_nodes, free_ports

READY = 'print(\'{"event":"ready"}\', flush=True)'
WAIT = "signal.pause()"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RESTART_S", 0.0)
    monkeypatch.setattr(processes, "STOP_S_MAX", 1.0)


def network(directory: Path, *lines: str) -> Network:
    """A network whose nodes run these lines of Python instead of a node."""
    program = "\n".join(["import os, signal, sys", *lines])
    made = Network(directory, [sys.executable, "-c", program])
    made.configure(directory / "a.genesis")
    return made


def pids(running: Network) -> list[int]:
    return [node.pid for node in running.nodes.values()]


def living(numbers: Sequence[int]) -> list[int]:
    found = []
    for number in numbers:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            continue
        found.append(number)
    return found


def the_failure(group: ExceptionGroup[Exception], why: str) -> NodeFailed:
    """The first of the nodes that failed; more than one may, before the others are ended."""
    first = group.exceptions[0]
    for failed in group.exceptions:
        assert isinstance(failed, NodeFailed)
        assert why in failed.why
    assert isinstance(first, NodeFailed)
    return first


async def test_all_run_inside_the_block_and_none_after_it(tmp_path: Path) -> None:
    async with network(tmp_path, READY, WAIT).running() as running:
        started = pids(running)
        assert len(set(started)) == len(LAYOUT) == 5
        assert living(started) == started
    assert living(started) == []
    assert running.restarts == 0


async def test_one_that_ignores_sigterm_is_killed_after_the_bounded_time(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    async with network(tmp_path, deaf, READY, WAIT, WAIT).running() as running:
        started = pids(running)
    assert living(started) == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_one_that_dies_is_started_again_and_counted(
    tmp_path: Path, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, heard = trio.open_memory_channel[str](100)
    monkeypatch.setattr(processes, "note", said.send_nowait)
    async with network(tmp_path, READY, WAIT).running() as running:
        before = running.holding("sequencer").pid
        if sign == signal.SIGKILL:
            assert running.kill("executor") == before
        else:
            os.kill(before, sign)
        assert await heard.receive() == f"executor (pid {before}) ended by {sign.name}; starting it again"
        assert await heard.receive() == f"executor is back as pid {running.holding('executor').pid}"
        assert running.holding("executor").pid != before
        assert running.restarts == 1
        started = pids(running)
    assert living([before, *started]) == []


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    real = trio.lowlevel.open_process

    with trio.CancelScope() as scope:

        async def open_and_cancel(*args: object, **options: object) -> trio.Process:
            process = await real(*args, **options)  # type: ignore[arg-type]
            started.append(process.pid)
            scope.cancel()
            return process

        monkeypatch.setattr(trio.lowlevel, "open_process", open_and_cancel)
        async with network(tmp_path, READY, WAIT).running():
            await trio.sleep_forever()
    assert len(started) == 5
    assert living(started) == []


@pytest.mark.parametrize(
    ("line", "how"),
    [("sys.exit(2)", "with exit code 2"), ("os.abort()", "by SIGABRT"), ("print(1)", "code 0")],
)
async def test_one_that_never_was_ready_ends_the_network(tmp_path: Path, line: str, how: str) -> None:
    running = network(tmp_path, "print('my last words', file=sys.stderr, flush=True)", line)
    with pytest.raises(ExceptionGroup) as caught:
        async with running.running():
            pytest.fail("it never was ready")
    failed = the_failure(caught.value, f"{how} before it was ready")
    assert "my last words" in failed.log.read_text()
    assert living(pids(running)) == []


async def test_one_that_cannot_start_again_is_given_up(tmp_path: Path) -> None:
    once = "; ".join(["f = sys.argv[2] + '.started'", "os.path.exists(f) and sys.exit(9)", "open(f, 'w')"])
    running = network(tmp_path, once, READY, WAIT)

    async def kill_and_wait() -> None:
        async with running.running():
            running.kill("storage")
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await kill_and_wait()
    assert the_failure(caught.value, "with exit code 9 before it was ready").name == "storage"
    assert running.restarts == processes.FAILED_STARTS_MAX
    assert living(pids(running)) == []


async def test_one_that_is_silent_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "READY_S_MAX", 0.2)
    running = network(tmp_path, WAIT)
    with pytest.raises(ExceptionGroup) as caught:
        async with running.running():
            pytest.fail("it never was ready")
    the_failure(caught.value, "was not ready within")
    assert living(pids(running)) == []


def test_each_node_is_configured_with_its_roles_and_everybody_else(tmp_path: Path) -> None:
    made = network(tmp_path)
    addrs = {node.addr for node in made.nodes.values()}
    assert len(addrs) == 5
    for node in made.nodes.values():
        file = node.directory / "node.toml"
        config = read_config(file.read_text(), str(file), flags={}, env={}).config
        assert set(config.roles) == set(node.roles)
        assert set(config.bootstrap) == addrs - {node.addr}
        assert [f"{addr}/p2p/{node.addr.rpartition('/')[2]}" for addr in config.listen] == [node.addr]


def test_what_the_user_set_for_a_node_of_his_own_does_not_reach_the_demos() -> None:
    mine = {
        "AW_DATA_DIR": "/mine",
        "AW_ROLES": "index",
        "AW_LIMIT_PEERS_MAX": "1",
        "PATH": "/bin",
        "HAWK": "1",
    }
    assert environment_of_nodes(mine) == {"PATH": "/bin", "HAWK": "1"}


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20
