"""`python -m gpu_worker prefetch` against a Hub on loopback."""

import errno
import fcntl
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from huggingface_hub.utils import close_session
from model.fake_hub import COMMIT, REPOSITORY, TOKEN, FakeHub, serving

from gpu_worker import hub_download, prefetch
from gpu_worker.commands import main as gpu_worker
from gpu_worker.manifest import MANIFEST_NAME, Quantization, read_manifest, write_manifest
from gpu_worker.model_store import UNFINISHED_FOLDER, check_flux_folder
from gpu_worker.prefetch_settings import FLUX_DEV_COMMIT, PrefetchSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
UNWANTED = (
    *("flux1-dev.safetensors", "ae.safetensors", "README.md", ".gitattributes"),
    *("transformer/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"),
    *("text_encoder/modeling.py", "text_encoder/flax_model.msgpack", "tokenizer/../../planted.json"),
)


class Run(NamedTuple):
    status: int
    out: str
    err: str


Prefetch = Callable[..., Run]


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    # Its pause before it goes on with a file, and its unit of writing: 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda _s: None))
    monkeypatch.setitem(sys.modules, "hf_xet", None)  # It must not be needed, nor used.
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()
    yield
    close_session()


@pytest.fixture
def hub(embedded_folder: Path) -> Iterator[FakeHub]:
    paths = (file for file in embedded_folder.rglob("*") if file.is_file() and file.name != MANIFEST_NAME)
    files = {file.relative_to(embedded_folder).as_posix(): file.read_bytes() for file in paths}
    with serving(files | dict.fromkeys(UNWANTED, b"unwanted")) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "FLUX"


@pytest.fixture
def run(hub: FakeHub, folder: Path, capfd: pytest.CaptureFixture[str]) -> Prefetch:
    def run(*arguments: str, endpoint: str = hub.endpoint, revision: str = COMMIT) -> Run:
        capfd.readouterr()
        given = ("--repository", REPOSITORY, "--target", str(folder), "--endpoint", endpoint)
        status = gpu_worker(["prefetch", *given, "--revision", revision, *arguments])
        told = capfd.readouterr()
        assert TOKEN not in told.out + told.err
        assert "Traceback" not in told.err
        return Run(status, told.out, told.err)

    return run


def wanted(hub: FakeHub) -> set[str]:
    return set(hub.files) - set(UNWANTED)


def there(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def assert_whole(hub: FakeHub, folder: Path) -> None:
    assert there(folder) == wanted(hub) | {MANIFEST_NAME}
    for path in wanted(hub):
        assert (folder / path).read_bytes() == hub.files[path]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.source, manifest.revision) == (REPOSITORY, hub.commit)
    assert set(manifest.files) == wanted(hub)
    check_flux_folder(folder)


def test_just_what_is_needed_is_downloaded_and_described(hub: FakeHub, run: Prefetch, folder: Path) -> None:
    told = run()
    assert told.status == 0, told.err
    assert_whole(hub, folder)
    assert f"{len(wanted(hub))} files" in told.out
    assert f"{REPOSITORY} at {COMMIT}" in told.out
    assert f"next: FLUX_WORKER_MODEL_DIR={folder} make serve" in told.out
    assert f"quantize --source {folder}" in told.out
    by_path = {path: authorization for path, _, authorization in hub.asked}
    assert by_path[f"/{REPOSITORY}/resolve/{COMMIT}/{WEIGHTS}"] == f"Bearer {TOKEN}"
    assert by_path[f"/content/{WEIGHTS}"] is None, "the token stays with the Hub"


def test_a_whole_folder_needs_no_network(hub: FakeHub, run: Prefetch, folder: Path) -> None:
    assert run().status == 0
    hub.asked.clear()
    for arguments in ((), ("--verify",)):
        told = run(*arguments, endpoint="http://127.0.0.1:9")
        assert told.status == 0, told.err
        assert "is whole already" in told.out
    assert hub.asked == []
    assert run(revision="main").status == 0
    assert not hub.ranges(), "only the commit of the branch was asked for"


def test_verifying_finds_and_repairs_what_the_size_does_not_tell(
    hub: FakeHub, run: Prefetch, folder: Path
) -> None:
    assert run().status == 0
    content = bytearray(hub.files[WEIGHTS])
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert "is whole already" in run().out
    hub.asked.clear()
    told = run("--verify")
    assert told.status == 0, told.err
    assert f"{WEIGHTS} has another SHA-256" in told.err
    assert set(hub.ranges()) == {WEIGHTS}
    assert_whole(hub, folder)


def test_a_branch_that_moved(hub: FakeHub, run: Prefetch, folder: Path) -> None:
    hub.files["tokenizer/old.txt"] = b"old"
    assert run(revision="main").status == 0
    hub.commit = "deadbeef" * 5
    del hub.files["tokenizer/old.txt"]
    hub.files["vae/config.json"] += b"\n"
    hub.asked.clear()
    assert run(revision="main").status == 0
    assert set(hub.ranges()) == {"vae/config.json"}
    assert_whole(hub, folder)


def test_a_cut_connection_is_resumed_where_it_was(hub: FakeHub, run: Prefetch, folder: Path) -> None:
    hub.cut_after[WEIGHTS] = 100_000
    told = run()
    assert told.status == EXIT_CANNOT_START
    assert "run it again, it goes on where it was" in told.err
    assert read_manifest(folder) is None
    assert WEIGHTS not in there(folder)
    assert "half-finished" in refusal_of_worker(folder)
    hub.gone.clear()
    hub.asked.clear()
    arrived = wanted(hub) & there(folder)
    told = run()
    assert told.status == 0, told.err
    assert hub.ranges()[WEIGHTS] == "bytes=100000-"
    assert not set(hub.ranges()) & arrived
    assert_whole(hub, folder)


def refusal_of_worker(folder: Path) -> str:
    with pytest.raises(Exception, match="FLUX") as refused:
        check_flux_folder(folder)
    return str(refused.value)


def test_a_reset_in_the_middle_needs_no_second_run(
    hub: FakeHub, run: Prefetch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http_get, cut = hub_download.http_get, list[int]()

    def reset_once(url: str, stream: Any, **how: Any) -> None:
        if url.endswith(WEIGHTS) and not cut:
            cut.append(stream.write(hub.files[WEIGHTS][:1000]))
            raise hub_download.httpx2.ReadError("reset")
        http_get(url, stream, **how)

    monkeypatch.setattr(hub_download, "http_get", reset_once)
    told = run()
    assert told.status == 0, told.err
    assert hub.ranges()[WEIGHTS] == "bytes=1000-"
    assert_whole(hub, folder)


def soon(is_so: Callable[[], bool]) -> bool:
    never = threading.Event()
    return is_so() or any(not never.wait(0.01) and is_so() for _ in range(3000))


def test_ctrl_c_stops_it_and_the_next_run_goes_on(hub: FakeHub, run: Prefetch, folder: Path) -> None:
    would_end_at_once: list[bool] = []

    def interrupt(name: str) -> None:
        if name == WEIGHTS:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            would_end_at_once.append(soon(lambda: signal.getsignal(signal.SIGINT) is signal.SIG_DFL))

    before = signal.getsignal(signal.SIGINT)
    hub.on_content = interrupt
    told = run()
    assert told.status == 130
    assert would_end_at_once == [True], "the next Ctrl-C, while the transfer stalls"
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped; run it again, it goes on where it was" in told.err
    assert read_manifest(folder) is None
    hub.on_content = lambda _name: None
    assert run().status == 0
    assert_whole(hub, folder)


@pytest.mark.parametrize("name", [WEIGHTS, "vae/config.json"])
def test_a_wrong_digest(hub: FakeHub, run: Prefetch, folder: Path, name: str) -> None:
    hub.spoilt = {name}
    told = run()
    assert told.status == EXIT_CANNOT_START
    assert f"{name} has another digest than the Hub announced: it is removed" in told.err
    assert name not in there(folder)
    assert read_manifest(folder) is None
    hub.spoilt = set()
    assert run().status == 0
    assert_whole(hub, folder)


@pytest.mark.parametrize(
    ("refusal", "token", "expected"),
    [
        ((HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header"), TOKEN, "the token"),
        ((HTTPStatus.FORBIDDEN, "", "no"), TOKEN, "the token is not allowed to read it"),
        ((HTTPStatus.UNAUTHORIZED, "GatedRepo", "log in"), "", "is gated, and there is no token: accept its"),
        ((HTTPStatus.FORBIDDEN, "GatedRepo", "ask"), TOKEN, "is gated, and this token has no access: accept"),
        (
            (HTTPStatus.UNAUTHORIZED, "RepoNotFound", ""),
            "",
            "there is no such repository, or it needs a token",
        ),
        ((HTTPStatus.UNAUTHORIZED, "RepoNotFound", ""), TOKEN, "there is no such repository, or this token"),
        ((HTTPStatus.UNAUTHORIZED, "", ""), "", "there is no such repository, or it needs a token"),
    ],
)
def test_what_the_hub_refuses(
    hub: FakeHub,
    run: Prefetch,
    monkeypatch: pytest.MonkeyPatch,
    refusal: tuple[HTTPStatus, str, str],
    token: str,
    expected: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.refusal = refusal
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert expected in told.err
    assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize("token", ["hf_caf\u00e9", "hf_a b", "hf_\x01"])
def test_what_cannot_be_a_token_is_not_shown(
    run: Prefetch, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "cannot be one (hidden)" in told.err
    assert token not in told.err


def test_a_gated_repository_that_lists_its_files(hub: FakeHub, run: Prefetch, folder: Path) -> None:
    hub.gated = True
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert f"accept its licence at {hub.endpoint}/{REPOSITORY}" in told.err
    assert "You are not in the authorized list" in told.err


def test_a_revision_and_a_repository_that_are_not_there(run: Prefetch) -> None:
    told = run(revision="0" * 40)
    assert told.status == EXIT_BAD_CONFIGURATION
    assert f"{REPOSITORY} has no revision '{'0' * 40}'" in told.err
    told = run("--repository", "someone/else")
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "/someone/else: there is no such repository" in told.err


def test_what_may_pass_has_another_status(hub: FakeHub, run: Prefetch) -> None:
    told = run(endpoint="http://127.0.0.1:9")
    assert told.status == EXIT_CANNOT_START
    assert "no connection to http://127.0.0.1:9" in told.err
    for status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY):
        hub.refusal = (status, "", "")
        told = run()
        assert told.status == EXIT_CANNOT_START
        assert f"answered with status {status.value}" in told.err


def test_a_repository_that_is_no_flux_model(hub: FakeHub, run: Prefetch) -> None:
    del hub.files["vae/config.json"]
    del hub.files[WEIGHTS]
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "it has no transformer/*.safetensors, vae/config.json" in told.err
    hub.bare = True
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert f"does not list {REPOSITORY} with sizes and digests" in told.err
    hub.refusal = (HTTPStatus.OK, "", "")
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert f"does not list {REPOSITORY} with sizes and digests" in told.err


def test_a_disk_that_is_too_small(
    hub: FakeHub, run: Prefetch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1_000_000))
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "0.0 GB are free" in told.err
    assert not hub.ranges()


def test_a_disk_that_fills_up(
    hub: FakeHub, run: Prefetch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_url: str, stream: Any, **_how: Any) -> None:
        stream.write(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(hub_download, "http_get", full)
        told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert f"{folder}: the disk is full; make room" in told.err
    # What was written is wrong here, found out, and fetched again.
    shutil.rmtree(folder / UNFINISHED_FOLDER)
    assert run().status == 0


def test_a_target_that_is_no_folder_or_holds_something_else(
    hub: FakeHub, run: Prefetch, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        told = run("--target", str(target))
        assert told.status == EXIT_BAD_CONFIGURATION
        assert str(target) in told.err
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "other.safetensors").touch()
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "vae/other.safetensors: not of this model" in told.err
    shutil.rmtree(folder)
    assert run().status == 0
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, manifest.model_copy(update={"source": "a/b"}))
    assert "holds a/b: choose another --target" in run().err
    quantized = Quantization(components=["transformer"], tool="x")
    write_manifest(folder, manifest.model_copy(update={"quantization": quantized}))
    assert "holds a 4-bit copy" in run().err
    (folder / MANIFEST_NAME).write_text("{}")
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "remove it, and the folder is checked and completed" in told.err


def test_files_that_came_by_other_means_are_checked_and_kept(
    hub: FakeHub, run: Prefetch, folder: Path
) -> None:
    for path in wanted(hub):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(hub.files[path])
    (folder / "vae/config.json").write_bytes(b" " * len(hub.files["vae/config.json"]))
    assert run().status == 0
    assert set(hub.ranges()) == {"vae/config.json"}
    assert_whole(hub, folder)


def test_two_at_once(run: Prefetch, folder: Path) -> None:
    (folder / UNFINISHED_FOLDER).mkdir(parents=True)
    with (folder / UNFINISHED_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = run()
    assert told.status == EXIT_CANNOT_START
    assert "another prefetch is at work here" in told.err


def test_offline_mode(run: Prefetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told = run()
    assert told.status == EXIT_BAD_CONFIGURATION
    assert "HF_HUB_OFFLINE" in told.err


def test_our_own_mistakes_are_not_explained_away(run: Prefetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(_files: object) -> None:
        raise LookupError("ours")

    monkeypatch.setattr(prefetch, "needed_files", mistaken)
    with pytest.raises(LookupError, match="ours"):
        run()


def test_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(PrefetchSettings, [], "prefetch")
    assert (settings.repository, settings.revision) == ("black-forest-labs/FLUX.1-dev", FLUX_DEV_COMMIT)
    assert (settings.target, settings.endpoint) == (Path("hub/FLUX.1-dev"), "https://huggingface.co")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("FLUX_PREFETCH_TARGET", "/models/flux")
    settings = load_settings(PrefetchSettings, [], "prefetch")
    assert (settings.target, settings.endpoint) == (Path("/models/flux"), "https://mirror.example")
    for arguments in (
        ("--repository", "FLUX.1-dev"),
        ("--revision", "../main"),
        ("--endpoint", "mirror.example"),
    ):
        with pytest.raises(SystemExit) as ended:
            gpu_worker(["prefetch", *arguments])
        assert ended.value.code == EXIT_BAD_CONFIGURATION
        assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "size_bytes", "digest"),
    [
        ("vae/config.json", 3, "/../../../x"),
        ("vae/config.json", 3, "0" * 39),
        ("vae/config.json", 3, "\0" * 40),
        ("vae/config.json", -1, "0" * 40),
        (5, 3, "0" * 40),
    ],
)
def test_a_description_that_could_lead_anywhere_is_none(path: Any, size_bytes: int, digest: str) -> None:
    sibling = SimpleNamespace(rfilename=path, size=size_bytes, blob_id=digest, lfs=None)
    with pytest.raises(TypeError, match="no digest or no size"):
        hub_download._hub_file(sibling)
