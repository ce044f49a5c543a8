"""Who may import whom, what pure files may not touch, and how large things may grow: style as a test.

Every rule is a function of a file's syntax tree; `TestTheRulesThemselves` feeds each of them a bad snippet.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("p2p", "runtime", "bootstrap")
TOP_LEVEL = {
    "pyproject.toml", "p2p", "runtime", "bootstrap", "tests", "interop", "README.md",
    "docs", "examples", "benchmarks", "deploy", "Makefile", ".ci", ".gitignore", "LICENSE", "CHANGELOG.md",
}  # fmt: skip
LIBP2P_FILES = {
    f"p2p/{name}.py"
    for name in (
        "host",
        "cures",
        "curing",
        "stream_cures",
        "gossip_cures",
        "message_cures",
        "dht_cures",
        "connections",
        "dialling",
        "gossip",
        "dht",
        "identity",
        "websocket_listener",
    )
}
TRIO_FILES = LIBP2P_FILES | {
    f"p2p/{name}.py"
    for name in (
        "admission",
        "request_response",
        "router",
        "sessions",
        "streamed",
        "streams",
        "memory",
        "memory_streams",
    )
}
IO_FILES = {f"runtime/{name}.py" for name in ("durable", "local_cas", "lmdb_blobs", "world_db", "db_check")}
PORTS = {"p2p/network.py"}  # names what is awaited, and awaits nothing
PURE_P2P = {
    f"p2p/{name}.py"
    for name in (
        "names",
        "errors",
        "network",
        "frames",
        "addresses",
        "standing",
        "loads",
        "provider_shares",
        "websocket",
    )
}
IMPURE_MODULES = {
    "time",
    "random",
    "os",
    "socket",
    "secrets",
    "datetime",
    "uuid",
    "threading",
    "asyncio",
    "trio",
}
CONSENSUS_FILES = {
    f"runtime/{name}.py"
    for name in (
        "codec", "schema", "seals", "records", "keys", "genesis", "state", "cells", "actions", "world", "chain",
        "batches", "heads", "evidence", "following", "proofs",
    )
}  # fmt: skip
# Top-level names that the libp2p wheel installs too, and folders of ours that are no packages.
STRAY = {"tests", "interop", "docs", "benchmarks", "examples"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
BANNED_NAMES = {"manager", "base", "utils", "util", "common", "misc", "helpers"}
MODULE_LINES_MAX, FUNCTION_LINES_MAX = 600, 80
PEER_LINES_MAX = 1_500
PEER_PARTS = {  # each file of a foreign peer belongs to the longest of these that it begins with
    "go/": "Go: the program",
    "go/vectors/": "Go: the program",
    "go/aw/": "Go: records",
    "go/rr/": "Go: requests",
    "go/share/": "Go: requests",
    "go/awnet/": "Go: a node",
    "go/mirror/": "Go: a node",
    "go/jsonargs/": "Go: a node",
    "go/kad/": "Go: Kademlia",
    "go/examples/": "Go: examples",
    "rust/src/": "Rust: the program",
    "rust/aw/src/": "Rust: records",
    "rust/awnet/src/": "Rust: a node",
    "rust/awnet/src/frames.rs": "Rust: requests",
    "rust/awnet/src/session.rs": "Rust: requests",
    "rust/awnet/src/wire.rs": "Rust: requests",
    "rust/awnet/src/dht/": "Rust: Kademlia",
    "rust/examples/": "Rust: examples",
    "js/peer.js": "JavaScript: the program",
    "js/commands/": "JavaScript: the program",
    "js/node/": "JavaScript: a node",
    "js/node/dht.js": "JavaScript: Kademlia",
    "js/lib/": "JavaScript: the library",
    "js/browser/": "JavaScript: the page",
    "js/examples/": "JavaScript: examples",
}
PEER_SUFFIXES = {".go", ".rs", ".js", ".mjs", ".cjs", ".ts"}
NOT_OURS = {"node_modules", "target", "dist"}

Rule = Callable[[str, ast.Module], Iterator[str]]


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"import_module", "__import__"}:
                yield _leading_text(node.args[0])


def _leading_text(node: ast.expr) -> str:
    """What is known of a computed module name: its text, or the text that an f-string starts with."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def is_pure(path: str) -> bool:
    if path.startswith("runtime/") and "/services/" not in path:
        return path not in IO_FILES
    return path in PURE_P2P


def check_layers(path: str, tree: ast.Module) -> Iterator[str]:
    """bootstrap -> runtime.services -> {runtime core, p2p}; the last two know nothing of each other."""
    package = path.split("/", maxsplit=1)[0]
    is_service = path.startswith("runtime/services/")
    for name in imported(tree):
        top = name.split(".")[0]
        if package == "p2p" and top in {"runtime", "bootstrap"}:
            yield f"p2p imports {name}"
        if package == "runtime" and top == "bootstrap":
            yield f"runtime imports {name}"
        if package == "runtime" and not is_service and (top == "p2p" or name.startswith("runtime.services")):
            yield f"the core imports {name}"
        if top in STRAY:
            yield f"imports {name}"


def check_libraries(path: str, tree: ast.Module) -> Iterator[str]:
    """Each foreign library in the files that hide it."""
    tops = {name.split(".")[0] for name in imported(tree)}
    allowed = {
        "libp2p": path in LIBP2P_FILES,
        "trio": path in TRIO_FILES or path.startswith(("runtime/services/", "bootstrap/")),
        "lmdb": path in IO_FILES,
        "httpx": path == "runtime/services/etcd.py",
        "wsproto": path == "p2p/websocket.py",
        "cbor2": path == "runtime/codec.py",
        "blake3": path == "runtime/codec.py",
        "nacl": path in {"runtime/keys.py", "p2p/identity.py"},
        "wasmtime": path == "runtime/wasm.py",
        "click": path.startswith("bootstrap/cli/"),
    }
    yield from (f"imports {library}" for library, may in allowed.items() if library in tops and not may)


def check_pure(path: str, tree: ast.Module) -> Iterator[str]:
    """Time, chance and the outside world are arguments of pure files."""
    if is_pure(path):
        tops = {name.split(".")[0] for name in imported(tree)}
        yield from (f"a pure file imports {module}" for module in sorted(tops & IMPURE_MODULES))
        for node in ast.walk(tree) if path not in PORTS else ():
            if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                yield f"line {node.lineno}: a pure file is not async"


def check_consensus(path: str, tree: ast.Module) -> Iterator[str]:
    """No float, no true division, no builtin hash() in anything that reaches a state root."""
    if path not in CONSENSUS_FILES:
        return
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=float()):
                yield f"line {node.lineno}: float literal"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield f"line {node.lineno}: true division"
            case ast.Call(func=ast.Name(id="float" | "hash" | "id" as name)):
                yield f"line {node.lineno}: {name}()"


def check_size(path: str, tree: ast.Module) -> Iterator[str]:
    """A file or a function that cannot be read in one go is redesigned."""
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    if last > MODULE_LINES_MAX:
        yield f"{last} lines, at most {MODULE_LINES_MAX}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{node.name}: {lines} lines, at most {FUNCTION_LINES_MAX}"


def check_names(path: str, tree: ast.Module) -> Iterator[str]:
    """A name that says nothing hides a missing idea; every module says what it hides."""
    if Path(path).stem in BANNED_NAMES:
        yield "file name says nothing"
    if not ast.get_docstring(tree):
        yield "has no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.lower() in BANNED_NAMES:
            yield f"class {node.name} says nothing"


def check_swallowing(path: str, tree: ast.Module) -> Iterator[str]:
    """An error that is caught is handled, counted or told."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and all(isinstance(item, ast.Pass) for item in node.body):
            yield f"line {node.lineno}: except: pass"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


RULES: tuple[Rule, ...] = (
    check_layers,
    check_libraries,
    check_pure,
    check_consensus,
    check_size,
    check_names,
    check_swallowing,
)


def sources() -> list[str]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def sources_of_tests() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    broken = [
        f"{path}: {what}"
        for path in sources()
        for what in rule(path, ast.parse((ROOT / path).read_text("utf-8")))
    ]
    assert not broken, "\n".join(broken)


def part_of(path: str) -> str:
    """The part of a foreign peer that a source file belongs to; "" where nobody has thought of it."""
    prefixes = [prefix for prefix in PEER_PARTS if path.startswith(prefix)]
    # What lies in a new folder is no part of the program that stands beside it.
    prefixes = [prefix for prefix in prefixes if prefix != "go/" or path.count("/") == 1]
    return PEER_PARTS[max(prefixes, key=len)] if prefixes else ""


def test_each_part_of_a_foreign_peer_can_be_read_in_one_sitting() -> None:
    """Program, library and Kademlia apart, as docs/interop.md has it."""
    lines = dict.fromkeys(PEER_PARTS.values(), 0)
    for path in sorted((ROOT / "interop").rglob("*")):
        name = path.relative_to(ROOT / "interop")
        if path.suffix in PEER_SUFFIXES and NOT_OURS.isdisjoint(name.parts):
            part = part_of(name.as_posix())
            assert part, f"interop/{name}: of which part is it?"
            lines[part] += len(path.read_text("utf-8").splitlines())
    large = {part: count for part, count in lines.items() if not 0 < count < PEER_LINES_MAX}
    assert not large, f"fewer than {PEER_LINES_MAX} lines are wanted: {large}"


@pytest.mark.parametrize("stray", ["go/new/x.go", "rust/new/src/lib.rs", "js/new.js", "js/other/dht.js"])
def test_a_file_of_no_part_is_noticed(stray: str) -> None:
    assert not part_of(stray)
    assert part_of("js/lib/dht.js") == "JavaScript: the library"
    assert part_of("rust/awnet/src/dht/x/y.rs") == "Rust: Kademlia"


def unfinished(text: str) -> list[str]:
    """Marks of work that was put off."""
    return [
        f"line {n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if UNFINISHED.search(line)
    ]


def test_nothing_is_marked_as_unfinished() -> None:
    paths = [*sources(), *(path for path in sources_of_tests() if path != "tests/test_architecture.py")]
    found = [f"{path}: {what}" for path in paths for what in unfinished((ROOT / path).read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_tests_import_nothing_from_tests() -> None:
    """Nor from benchmarks and interop, but for the attacks and the check of the vectors, which both run."""
    found = [
        f"{path}: imports {name}"
        for path in sources_of_tests()
        for name in imported(ast.parse((ROOT / path).read_text("utf-8")))
        if name.split(".")[0] in STRAY | {"conftest"}
        and not name.startswith(("benchmarks.hostile.", "interop.py."))
    ]
    assert not found, "\n".join(found)


def test_there_are_files_to_check() -> None:
    assert len(sources()) > 50
    assert set(sources()) >= LIBP2P_FILES | TRIO_FILES | IO_FILES | PURE_P2P | CONSENSUS_FILES


def test_the_top_level_is_as_it_was_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    found = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert found <= TOP_LEVEL, f"not allowed at the top level: {sorted(found - TOP_LEVEL)}"


def test_importing_the_packages_loads_neither_libp2p_nor_trio() -> None:
    script = "import sys, p2p, runtime, bootstrap; sys.exit(bool({'libp2p', 'trio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


class TestTheRulesThemselves:
    """A check that was never seen failing is not yet a check."""

    @pytest.mark.parametrize(
        ("rule", "path", "code"),
        [
            (check_layers, "p2p/frames.py", "import runtime.codec"),
            (check_layers, "runtime/world.py", "from p2p import names"),
            (check_layers, "runtime/world.py", "from runtime.services import context"),
            (check_layers, "runtime/services/gateway.py", "import bootstrap.node"),
            (check_layers, "bootstrap/node.py", "import interop"),
            (check_layers, "bootstrap/node.py", "from docs import conf"),
            (check_libraries, "p2p/router.py", "import libp2p"),
            (check_libraries, "bootstrap/node.py", "importlib.import_module(f'libp2p.{name}')"),
            (check_libraries, "runtime/world.py", "__import__('trio')"),
            (check_libraries, "runtime/services/gateway.py", "from libp2p import new_host"),
            (check_libraries, "runtime/world.py", "import trio"),
            (check_libraries, "runtime/records.py", "import cbor2"),
            (check_libraries, "bootstrap/node.py", "import lmdb"),
            (check_libraries, "runtime/services/coordinator.py", "import httpx"),
            (check_pure, "runtime/sequencing.py", "import time"),
            (check_pure, "p2p/names.py", "from random import Random"),
            (check_pure, "runtime/chain.py", "async def step(): ..."),
            (check_consensus, "runtime/world.py", "x = 1.5"),
            (check_consensus, "runtime/state.py", "x = 4 / 2"),
            (check_consensus, "runtime/seals.py", "x /= 2"),
            (check_consensus, "runtime/codec.py", "x = hash('a')"),
            (check_size, "runtime/world.py", "x = 1\n" * 700),
            (check_size, "runtime/world.py", "def f():\n" + "    x = 1\n" * 90),
            (check_names, "p2p/utils.py", '"""Doc."""'),
            (check_names, "p2p/frames.py", "x = 1"),
            (check_names, "p2p/frames.py", '"""Doc."""\nclass Manager: ...'),
            (check_swallowing, "p2p/frames.py", "try:\n    f()\nexcept ValueError:\n    pass"),
            (check_swallowing, "p2p/frames.py", "try:\n    f()\nexcept:\n    raise"),
        ],
    )
    def test_a_broken_rule_is_told(self, rule: Rule, path: str, code: str) -> None:
        assert list(rule(path, ast.parse(code)))

    @pytest.mark.parametrize(
        "line", ["x = 1  # TODO: more", "# FIXME", '"""XXX."""', "raise NotImplementedError"]
    )
    def test_unfinished_work_is_told(self, line: str) -> None:
        assert unfinished(f"a = 1\n{line}\n") == [f"line 2: {line}"]

    def test_what_is_allowed_is_not_told(self) -> None:
        code = '"""Doc."""\nimport trio\nfrom runtime import codec\nfrom p2p import names\n'
        for rule in RULES:
            assert not list(rule("runtime/services/gateway.py", ast.parse(code)))
