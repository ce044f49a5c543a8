"""Write interop/vectors/*.json: golden bytes of every record, frame, proof and verdict. `make vectors`.

Everything is made from fixed seeds and times, so that two runs give the same files; review the diff. Byte strings
are {"hex": "..."}. `refuse` lists bytes that must be refused, with the reason; `ignore` those of another version.
Usage: python .ci/vectors [OUTPUT FOLDER]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from vector_records import all_records, record_vector
from vector_signatures import signatures
from vector_state import ids, merkle, states, step
from vector_wire import all_frames, gossip
from vector_world import World

ROOT = Path(__file__).resolve().parent.parent.parent


def files() -> Iterator[tuple[str, object]]:
    """Name and content of every vector file."""
    small = World()
    yield "records", [record_vector(*item) for item in all_records(small)]
    yield "signatures", signatures(small)
    yield "merkle", merkle()
    yield "ids", ids(small)
    yield "state", states()
    yield "step", step(small)
    yield "frames", all_frames()
    yield "gossip", gossip(small)


def main(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "interop" / "vectors")
