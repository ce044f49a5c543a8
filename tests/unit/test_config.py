"""The configuration: sources and their order, every mistake at once, names told with their nearest neighbour."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from bootstrap import config
from bootstrap.config import (
    ConfigMistakes,
    CoordinatorConfig,
    NodeConfig,
    NodeLimits,
    WorldSource,
    read_config,
)

PEER = "12D3KooWPDzoJUKJ6nCvkS7D277fw1STZUU2VjWYBVfzGKLdhSBV"
WORLD = "a" * 32


def mistakes_of(text: str | None = None, **sources: object) -> dict[str, str]:
    with pytest.raises(ConfigMistakes) as caught:
        read_config(text, **sources)  # type: ignore[arg-type]
    return {mistake.what: mistake.why for mistake in caught.value.mistakes}


def test_without_any_source_every_value_is_the_default_and_says_so() -> None:
    effective = read_config()
    assert effective.config == NodeConfig()
    assert set(effective.origins.values()) == {"default"}


def test_the_example_of_the_documentation_is_read() -> None:
    text = f"""
    data_dir = "./aw-data"
    roles    = ["gateway", "storage", "observer"]
    listen   = ["/ip4/127.0.0.1/tcp/4101"]
    announce = []
    bootstrap = ["/ip4/203.0.113.7/tcp/4101/p2p/{PEER}"]
    [[world]]
    genesis = "flights.genesis"
    [[world]]
    id = "{WORLD}"
    [limits]
    disk_bytes_max = 20_000_000_000
    """
    effective = read_config(text, "conf/node.toml")
    assert effective.config.data_dir == Path("conf/aw-data")
    assert effective.config.worlds == (
        WorldSource(genesis=Path("conf/flights.genesis")),
        WorldSource(id=WORLD),
    )
    assert effective.config.limits.disk_bytes_max == 20_000_000_000
    assert effective.origins["roles"] == "conf/node.toml"
    assert effective.origins["limits.disk_bytes_max"] == "conf/node.toml"
    assert effective.origins["log_level"] == "default"


def test_flags_win_over_variables_and_those_over_the_file() -> None:
    text = 'data_dir = "from-file"\nlog_level = "error"\nlog_format = "json"'
    env = {"AW_DATA_DIR": "from-env", "AW_LOG_LEVEL": "warning", "HOME": "/root"}
    effective = read_config(text, flags={"data_dir": "from-flag", "listen": ()}, env=env)
    assert effective.config.data_dir == Path("from-flag")
    assert effective.config.log_level == "warning"
    assert effective.config.log_format == "json"
    assert effective.origins["data_dir"] == "--data-dir"
    assert effective.origins["log_level"] == "AW_LOG_LEVEL"
    assert effective.origins["listen"] == "default"


def test_lists_in_variables_are_separated_by_commas_and_numbers_are_numbers() -> None:
    env = {
        "AW_ROLES": "index, coordinator",
        "AW_WORLD": f"{WORLD},w.genesis",
        "AW_LIMIT_DISK_BYTES_MAX": "1_000_000_000",
    }
    effective = read_config(env=env)
    assert effective.config.roles == ("index", "coordinator")
    assert effective.config.worlds == (WorldSource(id=WORLD), WorldSource(genesis=Path("w.genesis")))
    assert effective.config.limits.disk_bytes_max == 1_000_000_000
    assert effective.origins["limits.disk_bytes_max"] == "AW_LIMIT_DISK_BYTES_MAX"


def test_roles_of_a_flag_may_be_repeated_or_separated_by_commas() -> None:
    effective = read_config(flags={"roles": ("gateway,index", "storage")})
    assert effective.config.roles == ("gateway", "index", "storage")


def test_all_mistakes_of_all_sources_are_told_at_once() -> None:
    text = """
    rolls = ["gateway"]
    listen = ["/ip4/127.0.0.1/udp/1"]
    data_dir = 3
    [[world]]
    genesis = "a"
    id = "b"
    [limits]
    disk_byte_max = 1
    known_peers_max = true
    """
    told = mistakes_of(
        text, flags={"roles": ("gatway",)}, env={"AW_BOOTSTRAP": "/ip4/1.2.3.4/tcp/1", "AW_ROLE": "x"}
    )
    assert set(told) == {
        "node.toml: rolls",
        "node.toml: listen[0]",
        "node.toml: data_dir",
        "node.toml: world[0]",
        "node.toml: limits.disk_byte_max",
        "node.toml: limits.known_peers_max",
        "--role[0]",
        "AW_BOOTSTRAP[0]",
        "AW_ROLE",
    }


@pytest.mark.parametrize(
    ("text", "what", "near"),
    [
        ("rolls = []", "node.toml: rolls", "nearest: roles"),
        ('roles = ["obsever"]', "node.toml: roles[0]", "nearest: observer"),
        ("[limits]\ndisk_byte_max = 1", "node.toml: limits.disk_byte_max", "nearest: disk_bytes_max"),
        ('[[world]]\ngenisis = "x"', "node.toml: world[0].genisis", "nearest: genesis"),
        ('log_level = "wran"', "node.toml: log_level", "known: debug, info, warning, error"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_known_one(text: str, what: str, near: str) -> None:
    assert near in mistakes_of(text)[what]


def test_an_unknown_variable_of_ours_is_a_mistake_and_one_of_the_command_line_is_not() -> None:
    assert "nearest: AW_ROLES" in mistakes_of(env={"AW_ROLE": "index"})["AW_ROLE"]
    read_config(env={"AW_NODE": "anything", "AW_KEY": "k", "AWS_REGION": "x"})


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        ("roles = []", "node.toml: roles", "must have 1..7 items, not 0"),
        ('roles = ["index", "index"]', "node.toml: roles[1]", "'index' is there twice"),
        ('roles = "index"', "node.toml: roles", "must be a list"),
        ('bootstrap = ["/ip4/1.2.3.4/tcp/7"]', "node.toml: bootstrap[0]", "must end in /p2p/PEER ID"),
        (
            "[limits]\ndisk_bytes_max = 5",
            "node.toml: limits.disk_bytes_max",
            "5 is not an integer 67108864..",
        ),
        ("[limits]\nframe_bytes_max = 5", "node.toml: limits.frame_bytes_max", "cannot set"),
        ('listen = ["/ip4/127.0.0.1/tcp/1/ws"]', "node.toml: listen", "needs one without /ws too"),
        ('announce = ["/dns4/a.example/tcp/1/ws"]', "node.toml: announce", "needs one without /ws too"),
        ("limits = 3", "node.toml: limits", "must be a table"),
        ("metrics = 3", "node.toml: metrics", "must be a table"),
        ('[metrics]\nlisen = "x"', "node.toml: metrics.lisen", "nearest: listen"),
        ('[metrics]\nlisten = "localhost:9464"', "node.toml: metrics.listen", "as 127.0.0.1:9464"),
        ('[metrics]\nlisten = "127.0.0.1:70000"', "node.toml: metrics.listen", "as 127.0.0.1:9464"),
        ('[metrics]\nlisten = "300.0.0.1:9464"', "node.toml: metrics.listen", "IP address"),
        ('[metrics]\nlisten = "[127.0.0.1]:9464"', "node.toml: metrics.listen", "as 127.0.0.1:9464"),
        ('metrics_listen = "127.0.0.1:9464"', "node.toml: metrics_listen", "nearest: metrics"),
        ('world = ["x", 3]', "node.toml: world[1]", "must be a table"),
        (f'[[world]]\nid = "{WORLD[1:]}"', "node.toml: world[0].id", "must be 32 characters"),
        ("a = = 1", "node.toml", "is not TOML"),
        ('data_dir = ""', "node.toml: data_dir", "must be text of 1..1024 printable characters"),
        ("x = 1 #" + "x" * config.CONFIG_BYTES_MAX, "node.toml", "config_bytes_max"),
    ],
)
def test_a_bad_value_is_told_with_its_place_and_its_limit(text: str, what: str, why: str) -> None:
    assert why in mistakes_of(text)[what]


def test_a_number_on_the_command_line_that_is_none_is_a_mistake() -> None:
    for text in ("x", "", "1e9", "0x10", "-1", "1" * 50):
        assert (
            "is not an integer"
            in mistakes_of(flags={"limits.known_peers_max": text})["--limit known_peers_max"]
        )
    assert (
        "nearest: known_peers_max"
        in mistakes_of(flags={"limits.known_peer_max": "1"})["--limit known_peer_max"]
    )


def test_every_default_limit_is_within_its_own_range_and_named_by_its_unit() -> None:
    for item in fields(NodeLimits):
        assert item.metadata["low"] <= item.default <= item.metadata["high"]
        assert item.name.endswith(("_max", "_ms", "_per_s"))
        assert item.metadata["about"]


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5_000, 'data_dir = "a\\u0000b"'])
def test_what_python_cannot_read_is_a_mistake_too(text: str) -> None:
    assert len(mistakes_of(text)) == 1


def test_the_coordinators_store_comes_from_file_flags_and_variables() -> None:
    assert read_config().config.coordinator == CoordinatorConfig("embedded", ("http://127.0.0.1:2379",))
    text = '[coordinator]\nstore = "etcd"\netcd = ["https://etcd.example:2379/", "http://[::1]:2379"]'
    effective = read_config(text, "node.toml", env={"AW_COORDINATOR_STORE": "embedded"})
    assert effective.config.coordinator.store == "embedded"
    assert effective.config.coordinator.etcd == ("https://etcd.example:2379", "http://[::1]:2379")
    assert effective.origins["coordinator.store"] == "AW_COORDINATOR_STORE"
    assert effective.origins["coordinator.etcd"] == "node.toml"
    flags = {"coordinator.store": "etcd", "coordinator.etcd": ("http://10.0.0.1:2379",)}
    effective = read_config(text, flags=flags, env={"AW_COORDINATOR_ETCD": "http://a:1,http://b:2"})
    assert effective.config.coordinator == CoordinatorConfig("etcd", ("http://10.0.0.1:2379",))
    assert effective.origins["coordinator.etcd"] == "--coordinator-etcd"


def test_mistakes_about_the_coordinators_store_are_told_with_the_others() -> None:
    text = """
    [coordinator]
    store = "etdc"
    etcd = ["http://etcd:2379", "ftp://etcd:2379"]
    stor = 1
    [limits]
    disk_bytes_max = 1
    """
    found = mistakes_of(text)
    assert "nearest: etcd" in found["node.toml: coordinator.store"]
    assert "is not http://HOST:PORT" in found["node.toml: coordinator.etcd[1]"]
    assert "nearest: store" in found["node.toml: coordinator.stor"]
    assert "node.toml: limits.disk_bytes_max" in found
    for endpoint in (
        "http://etcd",
        "http://u:p@etcd:1",
        "http://etcd:1/v3",
        "http://etcd:99999",
        "http://etcd:0",
    ):
        assert "node.toml: coordinator.etcd[0]" in mistakes_of(f'coordinator = {{etcd = ["{endpoint}"]}}')
    assert "node.toml: coordinator" in mistakes_of("coordinator = 1")
    assert "node.toml: coordinator.etcd" in mistakes_of("[coordinator]\netcd = []")


def test_the_metrics_page_is_off_unless_a_file_a_variable_or_a_flag_says_where() -> None:
    text = '[metrics]\nlisten = "127.0.0.1:9464"'
    assert read_config().config.metrics_listen is None
    from_file = read_config(text)
    assert from_file.config.metrics_listen == "127.0.0.1:9464"
    assert from_file.origins["metrics_listen"] == "node.toml"
    from_env = read_config(text, env={"AW_METRICS_LISTEN": "[::1]:1"})
    assert (from_env.config.metrics_listen, from_env.origins["metrics_listen"]) == (
        "[::1]:1",
        "AW_METRICS_LISTEN",
    )
    assert config.parse_metrics_addr("[::1]:1") == ("::1", 1)
    assert (
        read_config(text, flags={"metrics_listen": "0.0.0.0:9"}).origins["metrics_listen"]
        == "--metrics-listen"
    )
