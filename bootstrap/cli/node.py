"""`aw node`: read the configuration, run the roles, stop as the operator asks.

Hides: signals. Guarantees: nothing is opened before the whole configuration is found good; the first SIGTERM or SIGINT
lets everything be flushed, the second ends the process at once; the ready event is the first line on stdout.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from bootstrap.cli.arguments import Command
from bootstrap.cli.failures import Exit, Failure
from bootstrap.cli.files import read_text
from bootstrap.cli.options import json_option
from bootstrap.cli.output import note, plain, print_json
from bootstrap.config import (
    LEASE_STORES,
    LOG_FORMATS,
    LOG_LEVELS,
    ROLES,
    ConfigMistakes,
    Effective,
    NodeConfig,
    read_config,
)
from bootstrap.data_dir import DataDir, choose_worlds, genesis_mistakes

if TYPE_CHECKING:
    import trio


@click.command(cls=Command)
@click.option(
    "--config", "config_file", envvar="AW_CONFIG", type=click.Path(path_type=Path), help="node.toml."
)
@click.option("--data-dir", help="Folder of this node.")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help=f"Repeatable: {', '.join(ROLES)}.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where to listen. Repeatable.")
@click.option("--announce", multiple=True, metavar="MULTIADDR", help="What others should dial. Repeatable.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A peer to begin with. Repeatable.")
@click.option("--world", multiple=True, metavar="FILE|ID", help="A world: genesis file or id. Repeatable.")
@click.option(
    "--coordinator-store", metavar="|".join(LEASE_STORES), help="Where the coordinator keeps the order."
)
@click.option("--coordinator-etcd", multiple=True, metavar="URL", help="An endpoint of etcd. Repeatable.")
@click.option("--limit", "limit_texts", multiple=True, metavar="NAME=VALUE", help="A limit. Repeatable.")
@click.option("--log-level", metavar="|".join(LOG_LEVELS), help="What to log (info).")
@click.option("--log-format", metavar="|".join(LOG_FORMATS), help="How to log (text).")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Serve Prometheus metrics there (off).")
@click.option(
    "--print-config", is_flag=True, help="Print the effective configuration and its sources; run nothing."
)
@json_option
def node(
    config_file: Path | None, limit_texts: Sequence[str], print_config: bool, as_json: bool, **flags: object
) -> None:
    """Run a node until SIGTERM. Flags win over AW_* variables, those over the file, that over defaults."""
    effective = _read(config_file, flags, limit_texts)
    config = effective.config
    _check_worlds(config)
    if print_config:
        print_effective(effective, as_json)
        return
    run(config, as_json)


def _read(config_file: Path | None, flags: Mapping[str, object], limit_texts: Sequence[str]) -> Effective:
    tables = {"coordinator_store": "coordinator.store", "coordinator_etcd": "coordinator.etcd"}
    given = {tables.get(name, name): value for name, value in flags.items()}
    for text in limit_texts:
        name, _equals, value = text.partition("=")
        given[f"limits.{name}"] = value
    document = None if config_file is None else read_text(config_file)
    try:
        return read_config(document, str(config_file or "node.toml"), flags=given, env=os.environ)
    except ConfigMistakes as bad:
        raise ConfigMistakes([*bad.mistakes, *genesis_mistakes(bad.worlds)]) from bad


def _check_worlds(config: NodeConfig) -> None:
    """Tell bad genesis files and foreign data dirs before a socket or the store is opened."""
    choose_worlds(DataDir(config.data_dir), config.worlds)


def print_effective(effective: Effective, as_json: bool) -> None:
    """The configuration as a node.toml whose comments say where each value came from."""
    config, origins = effective.config, effective.origins
    values: dict[str, object] = {
        key: getattr(config, key)
        for key in ("data_dir", "roles", "listen", "announce", "bootstrap", "log_level", "log_format")
    }
    worlds = [
        {key: value for key, value in plain(world).items() if value is not None} for world in config.worlds
    ]
    coordinator: dict[str, object] = plain(config.coordinator)
    in_force = config.limits.in_force()
    if as_json:
        shown: dict[str, object] = {
            key: {"value": value, "from": origins[key]} for key, value in values.items()
        }
        shown["world"] = {"value": worlds, "from": origins["world"]}
        shown["metrics"] = {"listen": {"value": config.metrics_listen, "from": origins["metrics_listen"]}}
        for table, inside in (("coordinator", coordinator), ("limits", in_force)):
            shown[table] = {
                name: {"value": value, "from": origins[f"{table}.{name}"]} for name, value in inside.items()
            }
        print_json(shown)
        return
    for key, value in values.items():
        click.echo(f"{key} = {_toml(value)}  # {origins[key]}")
    for world in worlds:
        click.echo(f"\n[[world]]  # {origins['world']}")
        for key, value in world.items():
            click.echo(f"{key} = {_toml(value)}")
    if config.metrics_listen is not None:
        click.echo(f"\n[metrics]\nlisten = {_toml(config.metrics_listen)}  # {origins['metrics_listen']}")
    for table, inside in (("coordinator", coordinator), ("limits", in_force)):
        click.echo(f"\n[{table}]")
        for name, value in inside.items():
            click.echo(f"{name} = {_toml(value)}  # {origins[f'{table}.{name}']}")


def _toml(value: object) -> str:
    import json

    return json.dumps(plain(value), ensure_ascii=False)


def run(config: NodeConfig, as_json: bool) -> None:
    """Run the node; returns after the first SIGTERM or SIGINT, when all is flushed."""
    from bootstrap.telemetry import configure_logging

    configure_logging(config.log_level, config.log_format)

    import trio

    from bootstrap.garbage import collect_seldom
    from bootstrap.node import run_node

    def ready(event: Mapping[str, object]) -> None:
        if as_json:
            print_json(event)
        else:
            click.echo(_ready_line(event))
            note("stop with Ctrl-C or SIGTERM")

    async def serve() -> None:
        with trio.CancelScope() as scope:
            _stop_on_signals(scope, trio.lowlevel.current_trio_token())
            await run_node(config, ready)
        if not scope.cancelled_caught:
            raise Failure(Exit.BUG, "a bug of ours", "the node ended without being asked to", "--debug")

    collect_seldom()
    trio.run(serve)


def _stop_on_signals(scope: trio.CancelScope, token: trio.lowlevel.TrioToken) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        # A second signal finds the default action: it ends the process even when something here hangs.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        token.run_sync_soon(scope.cancel)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


def _ready_line(event: Mapping[str, object]) -> str:
    def joined(key: str) -> str:
        listed = event.get(key)
        return (
            ", ".join(str(item) for item in listed) if isinstance(listed, list | tuple) and listed else "none"
        )

    return (
        f"ready {event.get('peer_id')}\n"
        f"  roles   {joined('roles')}\n  worlds  {joined('worlds')}\n  addrs   {joined('addrs')}\n"
        f"  data    {event.get('data_dir')}"
        + (f"\n  metrics {event['metrics']}" if "metrics" in event else "")
    )
