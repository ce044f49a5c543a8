"""The coordinator's memory on etcd: one etcd transaction per height, so that the coordinator's machine may be lost.

Hides: etcd's v3 API (its JSON gateway, so that plain HTTP does). Guarantees: whatever is written compares lease and
last commit with what was read, in etcd; every call has a deadline; an etcd that does not answer is Unavailable, never a
guess. What was certified is mirrored into the node's own tables, from which executors are served.

Keys, as `etcdctl get --prefix aw/` shows them: `aw/<world id>/lease`, `/last` (batch and commit of the last height),
`/epoch` (whose order it is, in decimal; none before the first that was resumed),
`/commit/<height>` and `/actions/<height>` (the same by height, COMMITS_KEPT_MAX and ACTIONS_KEPT_MAX of them).
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import httpx
import trio

from runtime import codec, limits
from runtime.errors import Corrupt, StoreFull, Unavailable, WorldError
from runtime.records import ActionBatch, Commit, LeaseGrant, Sealed, sealed_from_value
from runtime.services.context import Context
from runtime.services.lease_store import Kept, Overtaken, Resumed, claim, resumed, resumed_rows
from runtime.world_db import Row
from runtime.world_tables import WorldTables

ETCD_TRY_MS: Final = 1_000  # for one endpoint: a commit must not wait a lease long for one that is dead
ETCD_RETRY_MS: Final = 500
# Beyond the last commits that may be without attestation (COMMIT_LEAD_MAX): executors and storage hold those below.
ACTIONS_KEPT_MAX: Final = 2 * limits.COMMIT_LEAD_MAX
_ENTRY_BYTES_MAX: Final = limits.BATCH_RECORD_BYTES_MAX + limits.COMMIT_BYTES_MAX + 128
_RESOURCE_EXHAUSTED: Final = 8  # gRPC: etcd's space quota is used up, or it has too much to do
_log = logging.getLogger(__name__)

Entry = tuple[Sealed[ActionBatch], Commit]


class EtcdClient:
    """Calls to one etcd cluster: the endpoint that answered last first, the others when it does not."""

    def __init__(self, http: httpx.AsyncClient, endpoints: Sequence[str]) -> None:
        self._http = http
        self._endpoints = list(endpoints)

    async def call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call of the v3 API, at most ETCD_TRY_MS per endpoint. Raises Unavailable, StoreFull.

        After Unavailable it may have happened or not; a call that may have happened is tried elsewhere all the same,
        since transactions here compare and the rest only reads.
        """
        told: list[str] = []
        for endpoint in list(self._endpoints):
            try:
                with trio.fail_after(ETCD_TRY_MS / 1_000):
                    answer = await self._http.post(f"{endpoint}/v3/kv/{method}", content=json.dumps(body))
                return self._read(endpoint, answer)
            except trio.TooSlowError:
                told.append(f"{endpoint}: no answer within {ETCD_TRY_MS} ms")
            except httpx.HTTPError as error:
                told.append(f"{endpoint}: {error or type(error).__name__}")
            except Unavailable as error:
                told.append(f"{endpoint}: {error.why}")
            self._endpoints.remove(endpoint)
            self._endpoints.append(endpoint)
        raise Unavailable("etcd", "; ".join(told), ETCD_RETRY_MS)

    @staticmethod
    def _read(endpoint: str, answer: httpx.Response) -> dict[str, Any]:
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Unavailable(
                endpoint, f"answers HTTP {answer.status_code}, and no JSON object", ETCD_RETRY_MS
            )
        if answer.status_code == httpx.codes.OK:
            return document
        why = str(document.get("error", f"HTTP {answer.status_code}"))
        if document.get("code") == _RESOURCE_EXHAUSTED and "space" in why:
            raise StoreFull(endpoint, why)
        raise Unavailable(endpoint, why, ETCD_RETRY_MS)


def open_http() -> httpx.AsyncClient:
    """Connections for EtcdClient: to etcd itself, whatever proxies the environment names."""
    return httpx.AsyncClient(trust_env=False, timeout=None, limits=httpx.Limits(max_connections=8))  # noqa: S113


class EtcdLeaseStore:
    """A LeaseStore on etcd. The node's own tables hold a mirror, written after etcd and never believed over it."""

    NAME = "etcd"

    def __init__(self, context: Context, tables: WorldTables, client: EtcdClient) -> None:
        claim(context, tables, self.NAME)
        self._context = context
        self._tables = tables
        self._client = client
        self._prefix = f"aw/{tables.world_id}/"
        self._epoch = 0  # as last read or written: a mirror of earlier epochs may hold what was voided since

    async def read(self) -> Kept:
        """All rows of one revision, confirmed by a majority (etcd reads linearizably unless asked otherwise)."""
        asked = [{"requestRange": {"key": self._key(name)}} for name in ("lease", "last", "epoch")]
        answer = await self._client.call("txn", {"success": asked})
        lease, last, epoch = (_first(part.get("response_range", {})) for part in answer["responses"])
        entry = None if last is None else self._entry("last", last)
        try:
            grant = None if lease is None else LeaseGrant.from_bytes(lease)
        except WorldError as error:
            raise self._damaged("lease", error) from error
        try:
            self._epoch = 0 if epoch is None else int(epoch)
        except ValueError as error:
            raise self._damaged("epoch", error) from error
        batch, commit = (None, None) if entry is None else entry
        return Kept(grant, batch, commit, self._epoch)

    async def put_lease(self, kept: Kept, lease: LeaseGrant) -> Kept:
        await self._write(kept, [self._put("lease", lease.to_bytes())])
        return replace(kept, lease=lease)

    async def put_commit(
        self, kept: Kept, batch: Sealed[ActionBatch], actions: bytes, commit: Commit
    ) -> Kept:
        height, entry = commit.height, _entry_bytes(batch, commit)
        writes = [
            self._put("last", entry),
            self._put(f"commit/{height:016d}", entry),
            self._put(f"actions/{height:016d}", actions),
        ]
        for name, count in (("commit", limits.COMMITS_KEPT_MAX), ("actions", ACTIONS_KEPT_MAX)):
            if height > count:
                writes.append({"requestDeleteRange": {"key": self._key(f"{name}/{height - count:016d}")}})
        await self._write(kept, writes)
        await self._mirror_certified(batch, commit, actions)
        return replace(kept, batch=batch, commit=commit)

    async def put_refreshed(self, kept: Kept, commit: Commit) -> Kept:
        assert kept.batch is not None
        entry = _entry_bytes(kept.batch, commit)
        writes = [self._put("last", entry), self._put(f"commit/{commit.height:016d}", entry)]
        await self._write(kept, writes)
        return replace(kept, commit=commit)

    async def put_resumed(self, kept: Kept, epoch: int, last: Resumed | None) -> Kept:
        height = 0 if last is None else last.commit.height
        writes = [self._put("epoch", str(epoch).encode())]
        for name in ("commit", "actions"):
            above, end = self._key(f"{name}/{height + 1:016d}"), self._key(f"{name}0")  # 0 comes after /
            writes.append({"requestDeleteRange": {"key": above, "range_end": end}})
        if last is None:
            writes.append({"requestDeleteRange": {"key": self._key("last")}})
        else:
            entry = _entry_bytes(last.batch, last.commit)
            writes += [
                self._put("last", entry),
                self._put(f"commit/{height:016d}", entry),
                self._put(f"actions/{height:016d}", last.actions),
            ]
        await self._write(kept, writes)
        self._epoch = epoch
        await self._mirror(height, *resumed_rows(self._tables, epoch, last))
        return resumed(kept, epoch, last)

    async def certified(self, height: int) -> Entry | None:
        """From the mirror, where a process of this node certified it; else from etcd, and mirrored then."""
        batch, commit = self._tables.batch(height), self._tables.commit(height)
        if batch is not None and commit is not None and commit.epoch == self._epoch:
            return batch, commit
        found = await self._get(f"commit/{height:016d}")
        if found is None:
            return None
        batch, commit = self._entry(f"commit/{height:016d}", found)
        actions = await self._get(f"actions/{height:016d}")
        if actions is not None:
            await self._mirror_certified(batch, commit, actions)
        return batch, commit

    # --- rows ----------------------------------------------------------------------------------------------

    async def _write(self, kept: Kept, writes: list[dict[str, Any]]) -> None:
        """All of `writes`, provided that epoch, lease and last commit are those that were read."""
        last = None if kept.batch is None or kept.commit is None else _entry_bytes(kept.batch, kept.commit)
        compare = [
            self._is("lease", None if kept.lease is None else kept.lease.to_bytes()),
            self._is("last", last),
            self._is("epoch", str(kept.epoch).encode() if kept.epoch else None),
        ]
        answer = await self._client.call("txn", {"compare": compare, "success": writes})
        if not answer.get("succeeded", False):
            raise Overtaken

    async def _get(self, name: str) -> bytes | None:
        return _first(await self._client.call("range", {"key": self._key(name)}))

    def _is(self, name: str, value: bytes | None) -> dict[str, Any]:
        if value is None:
            return {"key": self._key(name), "target": "VERSION", "result": "EQUAL", "version": "0"}
        return {"key": self._key(name), "target": "VALUE", "result": "EQUAL", "value": _base64(value)}

    def _put(self, name: str, value: bytes) -> dict[str, Any]:
        return {"requestPut": {"key": self._key(name), "value": _base64(value)}}

    def _key(self, name: str) -> str:
        return _base64((self._prefix + name).encode())

    def _entry(self, name: str, value: bytes) -> Entry:
        try:
            batch, commit = codec.decode(value, _ENTRY_BYTES_MAX, name)
            return sealed_from_value(ActionBatch, batch), Commit.from_value(commit, "commit")
        except (WorldError, TypeError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> Corrupt:
        repair = "restore etcd from its newest snapshot, or start a new epoch with a new certifier key"
        return Corrupt(f"etcd key {self._prefix}{name}", str(error), repair)

    async def _mirror_certified(self, batch: Sealed[ActionBatch], commit: Commit, actions: bytes) -> None:
        blobs = (actions, batch.record.preimage())
        await self._mirror(commit.height, self._tables.put_certified(batch, commit), blobs)

    async def _mirror(self, height: int, rows: Sequence[Row], blobs: Sequence[bytes]) -> None:
        try:
            await self._context.offload(lambda: self._context.db.commit(rows, blobs, keep=True))
        except StoreFull as error:  # it is certified all the same, and etcd has it
            self._context.counters["coordinator.not_mirrored"] += 1
            _log.warning("height %d: not mirrored from etcd: %s", height, error)


def _entry_bytes(batch: Sealed[ActionBatch], commit: Commit) -> bytes:
    return codec.array_of([batch.to_bytes(), commit.to_bytes()])


def _first(answer: dict[str, Any]) -> bytes | None:
    """The value of a range answer over one key."""
    found = answer.get("kvs", [])
    return base64.b64decode(found[0].get("value", "")) if found else None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
