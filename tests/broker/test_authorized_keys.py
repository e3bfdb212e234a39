"""The list of those who may connect to a broker."""

import pytest
from zmq.utils import z85

from broker.authorized_keys import read_authorized_keys
from proto.operator_files import FileUnusable

KEYS = [z85.encode(bytes([number] * 32)).decode() for number in range(4)]


def read(tmp_path, text):
    path = tmp_path / "authorized_keys"
    path.write_text(text)
    return read_authorized_keys(path)


def test_names_by_role_and_key(tmp_path):
    keys = read(
        tmp_path,
        f"# ours\nworker gpu-1 {KEYS[0]}\n\nworker gpu-1 {KEYS[1]}\n"
        f"frontend web {KEYS[2]}\nworker web {KEYS[2]}\n",
    )
    assert keys.name_of("worker", KEYS[0]) == keys.name_of("worker", KEYS[1]) == "gpu-1"
    assert keys.name_of("frontend", KEYS[0]) is None
    assert keys.name_of("frontend", KEYS[2]) == keys.name_of("worker", KEYS[2]) == "web"
    assert keys.name_of("worker", KEYS[3]) is None
    assert keys.other_role_of("frontend", KEYS[0]) == ("worker", "gpu-1")
    assert keys.other_role_of("frontend", KEYS[3]) is None
    assert (keys.count("worker"), keys.count("frontend")) == (3, 1)


def test_an_empty_list_lets_nobody_in(tmp_path):
    assert read(tmp_path, "# nobody\n").count("worker") == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"worker {KEYS[1]}", "2 words"),
        (f"worker a b {KEYS[1]}", "4 words"),
        (f"broker b {KEYS[1]}", "'broker' is no role"),
        (f"Worker b {KEYS[1]}", "'Worker' is no role"),
        ("worker b short", "no public key"),
        (f"worker b {KEYS[0]}", "listed already, as worker a"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    with pytest.raises(FileUnusable, match=said) as error:
        read(tmp_path, f"worker a {KEYS[0]}\n{line}\n")
    assert "authorized_keys: line 2: " in str(error.value)
