"""Files that an operator or another program leaves for a component: used, or refused by name in one line."""

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import trustme
from fuzz.target import PLANTED, Target, refusing, same

from broker.authorized_keys import read_authorized_keys
from frontend.key_file import read_clients
from frontend.tls import ServerTls, TlsFiles
from gpu_worker.block_layout import METADATA_KEY, read_layout
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import MANIFEST_NAME, read_manifest, write_manifest
from gpu_worker.model_store import check_flux_folder
from proto.key_file import read_key_pair
from proto.keys import make_key_pair, write_key_pair
from proto.known_brokers import read_known_brokers
from proto.operator_files import FileUnusable

PART: Final = b"\0/file/\0"
"""Between the files of one input."""
_MEMORY: Final = Path("/dev/shm")


@cache
def folder() -> Path:
    """In memory where that can be: a file for each input is much for a disk. Gone with the process."""
    made = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
    _FOLDERS.append(made)
    return Path(made.name)


_FOLDERS: Final[list[tempfile.TemporaryDirectory[str]]] = []


def written(name: str, content: bytes, mode: int = 0o600) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(descriptor, content)
    os.close(descriptor)
    return path


def of_file(name: str, read: Callable[[Path], object], error: type[Exception]) -> Callable[[bytes], None]:
    def judge(data: bytes) -> None:
        path = written(name, data)
        with refusing(error):
            read(path)

    return judge


# --- API keys, CURVE keys ------------------------------------------------------------------------

DIGEST: Final = b"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def api_key_files() -> list[bytes]:
    return [
        b'[clients.alice]\nsha256 = ["%s"]\nactive_jobs = 4\nqueue_share = 0.25\n' % DIGEST,
        b'[clients.bob]\nkeys = ["%s", "k2"]\n[clients."c.d"]\nkeys = ["k3"]\n' % PLANTED.encode(),
        b'clients = {a = {keys = ["k"]}}\n# 1979-05-27T07:32:00Z\nx = [1, 2.5, inf, 0xff]\n',
    ]


def key_pair_files() -> list[bytes]:
    path = folder() / "made.key_secret"
    path.unlink(missing_ok=True)
    write_key_pair(path, "worker", make_key_pair())
    return [path.read_bytes()]


def lists_of_keys() -> list[bytes]:
    key = make_key_pair().public.encode()
    return [
        b"# who\n\nworker w1 %s\nfrontend f1 %s\n" % (key, key),
        b"broker.example:5560 %s\n* %s\nipc:///run/b %s\n" % (key, key, key),
    ]


def judge_lists(data: bytes) -> None:
    path = written("keys", data)
    for read in (read_authorized_keys, read_known_brokers):
        with refusing(FileUnusable):
            read(path)
    with refusing(FileUnusable):
        read_known_brokers(path).key_of("tcp://broker.example:5560")


# --- TLS -----------------------------------------------------------------------------------------


def tls_files() -> list[bytes]:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    made = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    return [PART.join((chain, made.private_key_pem.bytes(), authority.cert_pem.bytes()))]


def judge_tls(data: bytes) -> None:
    certificate, private_key, client_ca = (*data.split(PART), b"", b"")[:3]
    files = TlsFiles(
        certificate=written("certificate", certificate),
        private_key=written("private_key", private_key),
        client_ca=written("client_ca", client_ca) if client_ca else None,
    )
    with refusing(FileUnusable):
        ServerTls(files).load()


# --- Models --------------------------------------------------------------------------------------

MANIFEST: Final = (
    b'{"format": 1, "source": "a/b", "revision": "0", "quantization": {"components": ["transformer"],'
    b' "tool": "t 1"}, "files": {"vae/config.json": {"size_bytes": 2, "sha256": "%s"}}}' % DIGEST
)
INDEX: Final = (
    b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"],'
    b' "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],'
    b' "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],'
    b' "tokenizer_2": ["transformers", "T5TokenizerFast"],'
    b' "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}'
)
LAYOUT: Final = (
    b'{"component": "transformer", "block": "b.0", "layers": {"b.0.l": {"out_features": 64,'
    b' "in_features": 64, "relative_error": 0.1}}, "origin": {"source_sha256": "%s", "optimized": true,'
    b' "hqq": "1", "torch": "2"}}' % DIGEST
)


def judge_manifest(data: bytes) -> None:
    path = written(f"manifest/{MANIFEST_NAME}", data)
    with refusing(ModelUnusable):
        manifest = read_manifest(path.parent)
        if manifest is not None:
            write_manifest(path.parent, manifest)
            same(manifest, read_manifest(path.parent))


@cache
def model_folder() -> Path:
    """Whole, but for the files that an input brings."""
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        written(f"model/{name}/config.json", b"{}")
        written(f"model/{name}/model.safetensors", b"")
    for name in ("tokenizer", "tokenizer_2"):
        written(f"model/{name}/tokenizer.json", b"{}")
    return written("model/scheduler/scheduler_config.json", b"{}").parent.parent


def judge_model_folder(data: bytes) -> None:
    index, config, manifest = (*data.split(PART), b"{}", b"")[:3]
    model = model_folder()
    written("model/model_index.json", index)
    written("model/vae/config.json", config)
    (model / MANIFEST_NAME).unlink(missing_ok=True)
    if manifest:
        written(f"model/{MANIFEST_NAME}", manifest)
    with refusing(ModelUnusable):
        check_flux_folder(model)


def judge_layout(data: bytes) -> None:
    """The text is from the header of a safetensors file, which is UTF-8."""
    with refusing(ModelUnusable):
        read_layout({METADATA_KEY: data.decode(errors="replace")})


TARGETS: Final = (
    Target(
        name="api_key_file",
        judge=of_file("api_keys.toml", read_clients, FileUnusable),
        modules=("frontend.key_file", "proto.operator_files"),
        seeds=api_key_files,
    ),
    Target(
        name="key_pair",
        judge=of_file("own.key_secret", read_key_pair, FileUnusable),
        modules=("proto.key_file",),
        seeds=key_pair_files,
    ),
    Target(
        name="key_lists",
        judge=judge_lists,
        modules=("broker.authorized_keys", "proto.known_brokers"),
        seeds=lists_of_keys,
    ),
    Target(name="tls", judge=judge_tls, modules=("frontend.tls",), seeds=tls_files, share=0.3),
    Target(
        name="manifest",
        judge=judge_manifest,
        modules=("gpu_worker.manifest",),
        seeds=lambda: [MANIFEST],
    ),
    Target(
        name="model_folder",
        judge=judge_model_folder,
        modules=("gpu_worker.model_store",),
        seeds=lambda: [INDEX, PART.join((INDEX, b'{"quantization_config": 1}', MANIFEST))],
        share=0.5,
    ),
    Target(name="layout", judge=judge_layout, modules=("gpu_worker.block_layout",), seeds=lambda: [LAYOUT]),
)
