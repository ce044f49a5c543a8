"""Starts `python -m bootstrap.cli ...` by forking a process that has loaded the libraries already.

The suite starts some three hundred of them; each would spend 1.3 s of CPU on loading py-libp2p and ourselves, most of
what a short test costs. What the tests get is no different: a process of its own with its own arguments, folder,
environment and standard streams, a child of the one that asked, with signals and exit codes. Only the hash seed is
shared. COLD_STARTS=1 or a PYTHON* variable of its own makes a start ordinary, and so all that this one starts.

The loaded process forks twice and the one between ends at once, so that the kernel hands the new process to its nearest
ancestor that takes orphans: the asker, for just as long as it asks (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio._core._run as trio_run

PROGRAM: Final = [sys.executable, "-m", "bootstrap.cli"]
COLD: Final = "COLD_STARTS"
IN_NAMESPACE: Final = ["ip", "netns", "exec"]  # and a name, before the program
NAMESPACES: Final = "/run/netns"
CLONE_NEWNET: Final = 0x40000000
ORDER_BYTES_MAX: Final = 1 << 20
FDS_CLOSED: Final = 1_024
END_S_MAX: Final = 10
PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


class WarmStarter:
    """The asker's side: one loaded process for this one, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._loaded: subprocess.Popen[bytes] | None = None
        self._cold_start = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def install(self) -> None:
        """From now on Popen, and all that is built on it, starts our command line warm."""
        starter, cold_start = self, self._cold_start

        def execute_child(
            popen: Any,
            args: Any,
            executable: Any,
            preexec_fn: Any,
            close_fds: bool,
            pass_fds: Any,
            cwd: Any,
            env: Any,
            *more: Any,
        ) -> None:
            environment = dict(os.environ if env is None else env)
            namespace, command = split_namespace(args)
            if preexec_fn or pass_fds or not starter.may_start(command, environment):
                cold_start(popen, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
                return
            (_, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_, new_session, _) = more
            assert not shell
            streams = [
                own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))
            ]
            order: dict[str, Any] = {
                "arguments": command[len(PROGRAM) :],
                "namespace": namespace,
                "cwd": os.fspath(cwd or "."),
                "env": environment,
                "new_session": bool(new_session),
            }
            try:
                popen.pid = starter.start(order, streams)
                popen._child_created = True
            finally:
                popen._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

        subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]

    def uninstall(self) -> None:
        """Ordinary starts again; the loaded process ends."""
        subprocess.Popen._execute_child = self._cold_start  # type: ignore[attr-defined]
        if self._socket is not None and self._loaded is not None:
            self._socket.close()
            self._loaded.wait(END_S_MAX)

    @staticmethod
    def may_start(command: list[str], environment: dict[str, str]) -> bool:
        if command[: len(PROGRAM)] != PROGRAM or COLD in environment:
            return False
        own = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
        return own == {name: value for name, value in environment.items() if name.startswith("PYTHON")}

    def start(self, order: dict[str, Any], streams: list[int]) -> int:
        """The pid of a new child."""
        with self._lock:
            if self._socket is None:
                self._socket = self._load()
            _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [json.dumps(order).encode()], streams)
                answer = json.loads(self._socket.recv(ORDER_BYTES_MAX) or b'{"refused": [5, "it has ended"]}')
            except BaseException:
                self._socket.close()  # an answer that nobody waited for must not be taken for the next one's
                self._socket = None
                raise
            finally:
                _libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if "refused" in answer:
            raise OSError(*answer["refused"])
        pid: int = answer["pid"]
        return pid

    def serve_self(self) -> bool:
        """In a command that was started warm, before it begins: what it starts is forked from what it has loaded.

        True in a process that is to run another command, which its own arguments say.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if os.fork() == 0:
                self._socket.close()
                self._socket = None
                nothing = os.open(os.devnull, os.O_RDWR)
                for number in range(3):  # the command's readers wait for its end, not for this one's
                    os.dup2(nothing, number)
                return _serve(theirs) or os._exit(0)
        self.install()
        return False

    def _load(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._loaded = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return ours


@pytest.fixture(scope="session", autouse=True)
def warm_starts() -> Iterator[None]:
    """Every test's `python -m bootstrap.cli` is one of these."""
    starter = WarmStarter()
    starter.install()
    yield
    starter.uninstall()


def split_namespace(args: Any) -> tuple[str, list[str]]:
    """The network namespace that a command line enters, and what it runs there; "" for none."""
    if not isinstance(args, list):
        return "", []
    if args[: len(IN_NAMESPACE)] == IN_NAMESPACE:
        return args[len(IN_NAMESPACE)], args[len(IN_NAMESPACE) + 1 :]
    return "", args


def _load_everything() -> None:
    gc.disable()
    package = importlib.import_module("bootstrap.cli")
    for module in pkgutil.iter_modules(package.__path__, "bootstrap.cli."):
        if module.name != "bootstrap.cli.__main__":
            importlib.import_module(module.name)
    for name in ("bootstrap.node", "bootstrap.world_node", "bootstrap.demo.run"):
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """All that exec would have set: the rest of the life of the fork is the command."""
    os.chdir(order["cwd"])
    if order["new_session"]:
        os.setsid()
    if order["namespace"]:
        file = os.open(f"{NAMESPACES}/{order['namespace']}", os.O_RDONLY)
        if _libc.setns(file, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace", order["namespace"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, FDS_CLOSED)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["aw", *order["arguments"]]
    trio_run._r.seed()  # the order of tasks and the clock's start, which trio draws once for a process


def _serve(orders: socket.socket) -> bool:
    """Fork on each order. True in the new process, False in this one when nobody asks any more."""
    while True:
        message, streams, _, _ = socket.recv_fds(orders, ORDER_BYTES_MAX, 3)
        if not message:
            return False
        order = json.loads(message)
        if not Path(order["cwd"]).is_dir():
            orders.send(json.dumps({"refused": [2, "No such file or directory", order["cwd"]]}).encode())
        else:
            reading, writing = os.pipe()
            between = os.fork()
            if between == 0:
                pid = os.fork()
                if pid == 0:
                    orders.detach()
                    _become(order, streams)
                    return True
                os.write(writing, str(pid).encode())
                os._exit(0)
            os.close(writing)
            os.waitpid(between, 0)
            pid = os.read(reading, 32)
            os.close(reading)
            answer = {"pid": int(pid)} if pid else {"refused": [11, "no fork"]}
            orders.send(json.dumps(answer).encode())
        for stream in streams:
            os.close(stream)


def main() -> None:
    """The loaded process: its argument is the number of the socket on which it is asked."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    _load_everything()
    is_command = False
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is for whoever asks
        is_command = _serve(orders)
    if is_command:
        starter = WarmStarter()
        while sys.argv[1:2] == ["demo"] and starter.serve_self():
            continue
        from bootstrap.cli import main as run_command

        sys.exit(run_command())


if __name__ == "__main__":
    main()
