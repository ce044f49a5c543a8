"""Key files: made once, whole, for their owner only, and never overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from p2p import names
from p2p.identity import Identity, IdentityFileBad, create_identity, load_identity

SEED = bytes(range(32))


def test_a_new_key_file_is_read_back_and_is_for_its_owner_only(tmp_path):
    path = tmp_path / "deep" / "identity.key"
    made = create_identity(path)
    assert load_identity(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 32
    assert [file.name for file in path.parent.iterdir()] == ["identity.key"]


def test_two_new_identities_differ(tmp_path):
    assert create_identity(tmp_path / "a").peer_id != create_identity(tmp_path / "b").peer_id


def test_a_given_seed_makes_a_known_peer_id(tmp_path):
    # RFC 8032, section 7.1, test 1: the secret key and its public key.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    identity = create_identity(tmp_path / "key", seed)
    assert identity.peer_id == names.PEER_ID_PREFIX + public
    text = names.peer_text(identity.peer_id)
    assert text.startswith("12D3KooW")
    assert names.peer_from_text(text) == identity.peer_id


def test_a_key_file_is_never_overwritten(tmp_path):
    path = tmp_path / "key"
    first = create_identity(path)
    with pytest.raises(IdentityFileBad, match="never overwritten"):
        create_identity(path, SEED)
    assert load_identity(path) == first
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_may_read_is_refused_and_the_cure_is_named(tmp_path, mode):
    path = tmp_path / "key"
    create_identity(path)
    path.chmod(mode)
    with pytest.raises(IdentityFileBad, match=f"{mode:04o}") as refused:
        load_identity(path)
    assert refused.value.try_this == f"chmod 600 {path}"


@pytest.mark.parametrize("data", [b"", b"short", bytes(31), bytes(33), bytes(64)])
def test_a_file_of_another_size_is_no_key(tmp_path, data):
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(IdentityFileBad, match="32 bytes"):
        load_identity(path)


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(IdentityFileBad) as refused:
            load_identity(path)
        assert refused.value.path == path


def test_a_place_where_no_file_can_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityFileBad):
        create_identity(tmp_path / "file" / "key")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_has_32_bytes(size):
    with pytest.raises(ValueError, match="32"):
        Identity(bytes(size))


def test_the_seed_is_not_shown():
    assert SEED.hex() not in repr(Identity(SEED))
    assert repr(SEED) not in repr(Identity(SEED))


def test_reading_a_key_loads_no_network_library():
    code = "import sys, p2p.identity; sys.exit(bool({'libp2p', 'trio'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)
