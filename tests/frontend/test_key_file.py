"""The file with the API keys: what it may say, and what is said of one that cannot be used."""

import hashlib

import pytest

from frontend.api_keys import ApiKeys, Client, KeyProblem
from frontend.key_file import read_clients
from proto.operator_files import MAX_BYTES, FileUnusable

SECRET = "hush-hush"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.toml"

    def write(text, mode=0o600):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return write


def test_the_keys_of_a_client_share_its_name_and_limits(key_file):
    keys = ApiKeys(
        read_clients(
            key_file(f"""
[clients.alice]
keys = ["old"]
sha256 = ["{SHA256.upper()}"]
active_jobs = 4
queue_share = 0.25

[clients."bob.of-sales_2"]
keys = ["b"]
""")
        )
    )
    alice = Client(name="alice", active_jobs=4, queue_share=0.25)
    assert keys.check(["old"]) == keys.check([SECRET]) == alice
    assert keys.check(["b"]) == Client(name="bob.of-sales_2", active_jobs=1, queue_share=0.5)
    assert keys.check([SHA256]) is KeyProblem.WRONG, "a digest is no key"
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no client; expected are tables [clients.NAME]"),
        ("[clients]", "names no client; expected are tables [clients.NAME]"),
        (f'[clients.a]\nkeys = ["{SECRET}"', "end of document: not valid TOML"),
        ("a = " + "[" * 100_000, "nested far too deeply"),
        (f'[clients.a]\nkeys = "{SECRET}\n', "line 2, column"),
        (f'[clients.a]\nkeys = ["a"]\n[clients.a]\nkeys = ["{SECRET}"]', "line 3, column 11: not valid TOML"),
        (b"[clients.a]\nkeys = ['hush-hush\xff']", "is no text in UTF-8"),
        (f'[clients]\n{SECRET} = "a"', "has something beside tables [clients.NAME]"),
        (f'{SECRET} = "a"\n[clients.a]\nkeys = ["a"]', "has something beside tables [clients.NAME]"),
        ("[clients.a]\nactive_jobs = 2", "[clients.a] has no key: neither keys nor sha256"),
        (f'[clients.a]\nkeys = "{SECRET}"', "clients.a.keys: Input should be a valid list"),
        (f'[clients.a]\nkeys = ["ok", "{SECRET} "]', "clients.a.keys.2: a key consists of printable ASCII"),
        ('[clients.a]\nkeys = [""]', "clients.a.keys.1: is empty"),
        (f'[clients.a]\nkeys = ["{SECRET * 30}"]', "clients.a.keys.1: a key has at most 256 characters"),
        ("[clients.a]\nkeys = [7]", "clients.a.keys.1: Input should be a valid string"),
        (f'[clients.a]\nsha256 = ["{SECRET}"]', "clients.a.sha256.1: 64 hexadecimal digits are expected"),
        (f'[clients.a]\nkeys = ["a"]\nactive_jobs = "{SECRET}"', "clients.a.active_jobs: Input should be"),
        ('[clients.a]\nkeys = ["a"]\nactive_jobs = 0', "greater than or equal to 1"),
        ('[clients.a]\nkeys = ["a"]\nactive_jobs = 1001', "less than or equal to 1000"),
        ('[clients.a]\nkeys = ["a"]\nactive_jobs = true', "clients.a.active_jobs"),
        (
            '[clients.a]\nkeys = ["a"]\nqueue_share = 0',
            "clients.a.queue_share: Input should be greater than 0",
        ),
        ('[clients.a]\nkeys = ["a"]\nqueue_share = 1.1', "less than or equal to 1"),
        ('[clients.a]\nkeys = ["a"]\nqueue_share = nan', "clients.a.queue_share"),
        (f'[clients.a]\nkeys = ["a"]\n{SECRET} = 1', "[clients.a] has an unknown entry; expected are tables"),
        (f'[clients.a]\nkeys = ["{SECRET}", "{SECRET}"]', "has a key that [clients.a] has already"),
        (
            f'[clients.a]\nkeys = ["{SECRET}"]\n[clients.b]\nsha256 = ["{SHA256}"]',
            "[clients.b] has a key that [clients.a] has already",
        ),
        (f'[clients."{SECRET} !"]\nkeys = ["a"]', "a client's name consists of 1 to 64 letters"),
        (f'[clients."{SECRET} !"]\nkeys = 7', "a client's name consists of 1 to 64 letters"),
        ("#" * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained_and_no_key_quoted(key_file, text, complaint):
    with pytest.raises(FileUnusable) as unusable:
        read_clients(key_file(text))
    said = str(unusable.value)
    assert "keys.toml: " in said
    assert complaint in said
    assert "\n" not in said
    assert SECRET not in said


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_keys_in_clear_are_for_the_owner_and_its_group(key_file, mode):
    assert len(read_clients(key_file(f'[clients.a]\nkeys = ["{SECRET}"]', mode))) == 1


@pytest.mark.parametrize(
    ("mode", "complaint"),
    [
        (0o644, "holds keys in clear, and everybody may read it (mode 0644): chmod 0640"),
        (0o620, "others may change it (mode 0620): chmod go-w"),
        (0o602, "others may change it (mode 0602): chmod go-w"),
    ],
)
def test_what_others_may_read_or_change_is_not_used(key_file, mode, complaint):
    with pytest.raises(FileUnusable) as unusable:
        read_clients(key_file(f'[clients.a]\nkeys = ["{SECRET}"]', mode))
    assert complaint in str(unusable.value)


def test_digests_may_be_read_by_everybody(key_file):
    assert len(read_clients(key_file(f'[clients.a]\nsha256 = ["{SHA256}"]', 0o644))) == 1


def test_what_is_no_file_is_not_read(tmp_path):
    with pytest.raises(FileUnusable, match=r"missing\.toml: cannot be read: No such file"):
        read_clients(tmp_path / "missing.toml")
    with pytest.raises(FileUnusable, match="is no file"):
        read_clients(tmp_path)
