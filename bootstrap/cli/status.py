"""`aw status`: a node's own account of itself, as tables or as one object.

Hides: which counters are drops, and how lag is reckoned. Guarantees: --json holds all that the node said; every depth
stands beside the limit that bounds it. Documented in docs/operations.md, section "What a node says of itself".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from bootstrap.cli.arguments import Command
from bootstrap.cli.options import data_dir_option, json_option, node_option, timeout_option
from bootstrap.cli.output import plain, print_json
from bootstrap.cli.reach import ask_node

CURSORS: Final = ("committed", "stored", "executed", "verified")
# A counter is a drop when a part of its name begins with one of these: something was not taken, and that is why.
DROP_WORDS: Final = (
    "dropped",
    "refused",
    "rejected",
    "ignored",
    "evicted",
    "expired",
    "busy",
    "rate_limited",
    "oversize",
    "unsupported",
    "bad_frame",
    "streams_reset",
    "false",
    "foreign",
    "lost",
    "store_full",
    "not_kept",
    "too_slow",
)


@click.command(cls=Command)
@click.option("--counters", "all_counters", is_flag=True, help="Show every counter, not only drops.")
@node_option
@data_dir_option
@timeout_option(20)
@json_option
def status(nodes: Sequence[str], data_dir: Path, timeout_s: float, as_json: bool, all_counters: bool) -> None:
    """A node's own account of itself: worlds and their lag, depths beside their limits, drops by reason."""
    from runtime.messages import StatusAnswer
    from runtime.services.client import DistributedClient

    async def ask(client: DistributedClient) -> StatusAnswer:
        return await client.status()

    account = account_of(ask_node(nodes, data_dir, timeout_s, ask))
    if as_json:
        print_json(account)
        return
    _print_tables(account, all_counters)


def account_of(answer: object) -> dict[str, Any]:
    """The node's answer, and with it `lag` of each world (heights behind its head) and `drops` by reason."""
    account: dict[str, Any] = plain(answer)
    for entry in [account, *account["worlds"], *(account.get("gauges") or [])]:
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]
    for world in account["worlds"]:
        world["lag"] = {
            cursor: max(0, world["head_height"] - world[cursor]) for cursor in CURSORS if cursor in world
        }
    return account | {"drops": drops_of(account["counters"])}


def drops_of(counters: Mapping[str, int]) -> dict[str, int]:
    """The counters that tell of something that was not taken, those that are zero left out."""
    return {
        name: count
        for name, count in counters.items()
        if count and any(part.startswith(DROP_WORDS) for part in name.split("."))
    }


def _print_tables(account: dict[str, Any], all_counters: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    # To a pipe the tables are as wide as they are: nothing is folded or cut.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    console.print(_head(account), markup=False)
    for title, head, rows in _tables(account, all_counters):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
        for index, column in enumerate(head):
            table.add_column(column, justify="right" if index and column not in WORDY else "left")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table, markup=False)


WORDY: Final = ("limit", "of", "world")


def _head(account: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {word}" for name, word in (account.get("versions") or {}).items())
    lines = [f"peer_id   {account['peer_id']}", f"roles     {', '.join(account['roles'])}"]
    if "uptime_ms" in account:
        lines.append(f"uptime    {_seconds(account['uptime_ms'])}")
    lines += [f"versions  {versions}"] if versions else []
    lines.append(f"peers     {len(account['peers'])} connected")
    return "\n".join([*lines, *(f"          {peer}" for peer in account["peers"])])


def _tables(
    account: dict[str, Any], all_counters: bool
) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    tables = [
        ("worlds", ("world", "name", "epoch", "head", "head age", *CURSORS, "state"), _worlds(account)),
        ("depths and their limits", ("gauge", "of", "now", "limit", "at most", "used"), _gauges(account)),
        ("drops by reason", ("reason", "count"), _counts(account["drops"])),
    ]
    if all_counters:
        tables.append(("counters", ("counter", "count"), _counts(account["counters"])))
    return tables


def _worlds(account: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for world in account["worlds"]:
        cursors = [_cursor(world, cursor) for cursor in CURSORS]
        age = _seconds(world["head_age_ms"]) if "head_age_ms" in world else "-"
        state = "HALTED" if world["halted"] else "goes on"
        rows.append(
            (
                world["world_id"],
                world["name"],
                str(world["epoch"]),
                str(world["head_height"]),
                age,
                *cursors,
                state,
            )
        )
    return rows


def _cursor(world: dict[str, Any], cursor: str) -> str:
    if cursor not in world:
        return "-"
    lag = world["lag"][cursor]
    return f"{world[cursor]} (-{lag})" if lag else str(world[cursor])


def _gauges(account: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for gauge in account.get("gauges") or []:
        most = gauge.get("limit_value")
        used = f"{100 * gauge['value'] / most:.1f} %" if most else ""
        labels = ", ".join(gauge["labels"].values())
        shown = "" if most is None else f"{most:,}"
        rows.append((gauge["name"], labels, f"{gauge['value']:,}", gauge.get("limit", ""), shown, used))
    return rows


def _counts(counters: Mapping[str, int]) -> list[tuple[str, ...]]:
    return [(name, f"{count:,}") for name, count in sorted(counters.items())]


def _seconds(period_ms: int) -> str:
    seconds = period_ms // 1_000
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{period_ms / 1_000:.1f} s"
