"""Key files: making them, and what is said of those that cannot be used."""

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth
from zmq.utils import z85

from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START
from proto.key_file import read_key_pair
from proto.keyring import Keyring
from proto.keys import main, make_key_pair, write_key_pair
from proto.known_brokers import read_known_brokers
from proto.operator_files import FileUnusable

KEY, OTHER_KEY = (z85.encode(bytes([number] * 32)).decode() for number in range(2))


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "worker.key_secret"
    write_key_pair(path, "worker", make_key_pair())
    return path


# --- The command -----------------------------------------------------------------------------------


def test_keys_are_made_and_shown(tmp_path, capsys):
    assert main(["make", "worker-1", "--folder", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    path = tmp_path / "worker-1.key_secret"
    keys = read_key_pair(path)
    assert f"worker worker-1 {keys.public}\n" in told
    assert keys.secret not in told
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out == f"{keys.public}  {path}\n"


def test_pyzmq_reads_what_is_made(key_file):
    public, secret = zmq.auth.load_certificate(key_file)
    assert zmq.curve_public(secret) == public


def test_what_pyzmq_makes_is_read(tmp_path):
    _public_file, secret_file = zmq.auth.create_certificates(tmp_path, "worker")
    Path(secret_file).chmod(0o600)
    assert read_key_pair(tmp_path / "worker.key_secret").public


def test_a_new_file_is_never_open_to_others(tmp_path, monkeypatch):
    """Whatever the umask is, from its first moment."""
    modes = []
    real = os.open

    def opening(*arguments, **options):
        descriptor = real(*arguments, **options)
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", opening)
    before = os.umask(0)
    try:
        write_key_pair(tmp_path / "w.key_secret", "w", make_key_pair())
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "w.key_secret").stat().st_mode) == 0o600


def test_a_key_file_that_exists_is_left_alone(key_file, capsys):
    before = key_file.read_bytes()
    assert main(["make", "worker", "--folder", str(key_file.parent)]) == EXIT_CANNOT_START
    assert capsys.readouterr().err == f"flux-keys: {key_file}: File exists\n"
    assert key_file.read_bytes() == before


@pytest.mark.parametrize("name", ["", "../worker", "a/b", ".hidden", "a b", "ä", "n" * 129])
def test_a_name_that_is_none(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["make", name])
    assert ended.value.code == 2
    assert "A-Z a-z 0-9" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["make", "w", "--folder", str(tmp_path / "none")]) == EXIT_CANNOT_START
    assert "No such file or directory" in capsys.readouterr().err


def test_what_is_no_key_file_is_not_shown(tmp_path, capsys):
    path = tmp_path / "list"
    path.write_text("worker w KEY\n")
    path.chmod(0o600)
    assert main(["show", str(path)]) == EXIT_BAD_CONFIGURATION
    assert capsys.readouterr().err == f"flux-keys: {path}: is no key file; flux-keys make NAME makes one\n"


# --- A component's own keys ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660, 0o644, 0o610])
def test_keys_that_others_may_read_or_change_are_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(FileUnusable, match=f"mode {mode:04o}.*chmod 0600"):
        read_key_pair(key_file)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_keys_of_their_owner_are_taken(key_file, mode):
    key_file.chmod(mode)
    assert read_key_pair(key_file)


def test_a_credential_of_systemd_may_be_readable_for_its_group(key_file, monkeypatch):
    key_file.chmod(0o440)
    with pytest.raises(FileUnusable, match="mode 0440"):
        read_key_pair(key_file)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if key_file.stat().st_uid == 0:
        assert read_key_pair(key_file)
    key_file.chmod(0o444)
    with pytest.raises(FileUnusable):
        read_key_pair(key_file)


def test_keys_of_another_user_are_refused(key_file, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: key_file.stat().st_uid + 1)
    real = os.stat_result
    status = list(key_file.stat())
    status[4] = 54321
    monkeypatch.setattr(type(key_file), "stat", lambda _self: real(status))
    with pytest.raises(FileUnusable, match="belongs to user 54321"):
        read_key_pair(key_file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no key file"),
        ("public-key", "is no key file"),
        (f'curve\n    public-key = "{KEY}"\n', "no secret-key"),
        (f'curve\n    public-key = "{KEY}"\n    secret-key = "{OTHER_KEY}"\n', "do not belong together"),
        ('curve\n    public-key = "short"\n    secret-key = "sshhh"\n', "do not belong together"),
        (f'curve\n    public-key = "{KEY}"\n    secret-key = "{"é" * 40}"\n', "do not belong together"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named_and_not_quoted(tmp_path, text, said):
    path = tmp_path / "k"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(FileUnusable, match=said) as error:
        read_key_pair(path)
    assert str(error.value).startswith(f"{path}: ")
    assert OTHER_KEY not in str(error.value)
    assert "sshhh" not in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    for path, said in ((tmp_path, "is no file"), (tmp_path / "none", "No such file")):
        with pytest.raises(FileUnusable, match=said):
            read_key_pair(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(FileUnusable, match="is no file"):
        read_key_pair(tmp_path / "pipe")


def test_a_secret_is_not_in_the_text_of_keys():
    keys = make_key_pair()
    assert keys.secret not in f"{keys} {keys!r}"


# --- The brokers that a peer knows -----------------------------------------------------------------


def known(tmp_path, text):
    path = tmp_path / "known_brokers"
    path.write_text(text)
    return read_known_brokers(path)


def test_the_most_exact_entry_counts(tmp_path):
    keys = [make_key_pair().public for _ in range(5)]
    brokers = known(
        tmp_path,
        f"# brokers\n\n* {keys[0]}\nb1 {keys[1]}\nb1:5560\t{keys[2]}\n"
        f"[::1] {keys[3]}\nipc:///run/b {keys[4]}\n",
    )
    for endpoint, key in {
        "tcp://b1:5560": keys[2],
        "tcp://b1:05560": keys[2],
        "tcp://b1:5561": keys[1],
        "tcp://b2:5560": keys[0],
        "tcp://[::1]:5560": keys[3],
        "ipc:///run/b": keys[4],
        "ipc:///run/c": keys[0],
    }.items():
        assert brokers.key_of(endpoint) == key, endpoint


def test_a_broker_without_a_key_is_named(tmp_path):
    brokers = known(tmp_path, f"b1 {KEY}\n")
    with pytest.raises(FileUnusable, match="no key for tcp://b2:5560: add a line b2:5560 PUBLIC_KEY"):
        brokers.key_of("tcp://b2:5560")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("b1", "1 words"),
        (f"b1 {KEY} # main", "4 words"),
        ("b1 short", "no public key, which has 40 characters"),
        (f"b1 {KEY}x", "no public key"),
        (f"b1 {KEY[:-1]}é", "no public key"),
        (f"tcp://b1:5560 {KEY}", "without tcp://"),
        (f"b0 {KEY}", "b0 has a key already"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    with pytest.raises(FileUnusable, match=said) as error:
        known(tmp_path, f"b0 {OTHER_KEY}\n{line}\n")
    assert "known_brokers: line 2: " in str(error.value)


def test_a_list_that_everybody_may_write_is_refused(tmp_path):
    path = tmp_path / "known_brokers"
    path.write_text(f"* {KEY}\n")
    path.chmod(0o666)
    with pytest.raises(FileUnusable, match="others may change it"):
        read_known_brokers(path)


def test_a_list_that_is_no_text(tmp_path):
    path = tmp_path / "known_brokers"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileUnusable, match="no text in UTF-8"):
        read_known_brokers(path)


def test_every_broker_needs_a_key_from_the_start(tmp_path, key_file):
    (tmp_path / "known").write_text(f"b1 {KEY}\n")
    with pytest.raises(FileUnusable, match="no key for tcp://b2:1"):
        Keyring(key_file, tmp_path / "known", ("tcp://b1:1", "tcp://b2:1"))


def test_brokers_may_have_different_keys(tmp_path, key_file):
    (tmp_path / "known").write_text(f"b1 {KEY}\nb2:1 {OTHER_KEY}\n")
    endpoints = ("tcp://b1:1", "tcp://b2:1")
    keyring = Keyring(key_file, tmp_path / "known", endpoints)
    clients = [keyring.client_for(each) for each in endpoints]
    assert [client and client.broker_key for client in clients] == [KEY, OTHER_KEY]
    assert keyring.client_for("tcp://b3:1") is None
    assert Keyring.empty().client_for("tcp://b1:1") is None
