"""Texts from outside that are no files: settings, arguments, headers, metadata, requests."""

import contextlib
import io
import os
from typing import Final
from unittest.mock import patch

import numpy as np
from fuzz.target import PLANTED, Finding, Target, check_text, refusing, same
from PIL import Image
from pydantic import BaseModel, ValidationError
from samples.wire import submit
from structlog.testing import capture_logs

import image_gen_pb2
from broker.settings import BrokerSettings
from deploy.settings import FrontendEnvironment, LauncherSettings
from frontend import errors
from frontend.api_keys import ApiKeys, Client, KeyProblem, clients_of, parse_api_keys
from frontend.media_type import MediaType, wanted_type
from frontend.repeats import read_repeats
from frontend.rpc import _decode
from frontend.settings import FrontendSettings
from frontend.validation import RequestLimits, ValidJob, validate
from gpu_worker.engines.engine import EngineJob
from gpu_worker.own_gpu import own_gpu
from gpu_worker.png import encode_png
from gpu_worker.prefetch_settings import PrefetchSettings
from gpu_worker.preload_request import PreloadRequest
from gpu_worker.receipt import DESCRIPTION, ReceiptWriter
from gpu_worker.settings import WorkerSettings
from proto.codec import decode, encode
from proto.configuration import Settings, environment_name, load_settings
from proto.endpoints import BrokerEndpoints, ListenEndpoint
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.messages import ImageParameters, ModelCard
from proto.service_manager import ServiceManager

# --- Settings ------------------------------------------------------------------------------------

SETTINGS: Final[tuple[type[Settings], ...]] = (
    BrokerSettings,
    FrontendSettings,
    WorkerSettings,
    LauncherSettings,
    FrontendEnvironment,
    PrefetchSettings,
)
ARGUMENT: Final = "-"
"""Lines that begin so are arguments, and what stands behind a `=` alone; others are variables."""


def settings_seeds() -> list[bytes]:
    lines = (
        "FLUX_BROKER_QUEUE_LIMIT=3\nFLUX_BROKER_WORKERS_ENDPOINT=tcp://[::1]:1\n--log-level=debug",
        f"API_KEYS={PLANTED},k2\nFLUX_FRONTEND_GRPC_PORT=1\nFLUX_FRONTEND_BROKER_ENDPOINTS=ipc:///a,ipc:///b",
        "FLUX_WORKER_DEVICE=cuda:1\nCUDA_VISIBLE_DEVICES=0,1\n--fake-faults\n--memory-plan=auto",
        "FLUX_SERVER_WORKERS=2\n--grpc-port=0\n--no-log-prompts\n--stop-limit-s=1e3",
        f"API_KEYS={PLANTED}\nFLUX_FRONTEND_HTTP_TLS=true",
        "HF_ENDPOINT=http://[::1]:80\n--repository=a/b\n--verify",
        f"--api-keyz={PLANTED}\n--api-keyz\n={PLANTED}\n--tracing={PLANTED}",
    )
    return [bytes([number]) + text.encode() for number, text in enumerate(lines)]


def _is_shown(cls: type[Settings], name: str) -> bool:
    """Whether a bad value of it is told: it is a setting without secret, or the beginning of one's option."""
    shown = [each for each, field in cls.model_fields.items() if "SecretStr" not in str(field.annotation)]
    switches = {each for each in shown if cls.model_fields[each].annotation is bool}
    options = [f"--{each.replace('_', '-')}" for each in shown if each not in switches]
    is_option = name.startswith("--") and any(option.startswith(name) for option in options)
    return is_option or name.upper() in {environment_name(cls, each) for each in shown}


def judge_settings(data: bytes) -> None:
    """Settings, or status 78 and a line for each that is bad. Never a traceback, never a secret."""
    if not data:
        return
    cls = SETTINGS[data[0] % len(SETTINGS)]
    variables: dict[str, str] = {}
    arguments: list[str] = []
    for line in os.fsdecode(data[1:].replace(b"\0", b"")).split("\n"):
        name, equals, value = line.partition("=")
        name = name.replace(PLANTED, "a name")
        said_of = name or (arguments[-1] if arguments else "")
        if not said_of or _is_shown(cls, said_of):
            value = value.replace(PLANTED, "no secret")
        if line.startswith(ARGUMENT) or not name:
            arguments.append(f"{name}{equals}{value}" if name else value)
        elif equals:
            variables[name] = value
    told = io.StringIO()
    environment = patch.dict(os.environ, variables, clear=True)
    with environment, contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            load_settings(cls, arguments, "program")
        except SystemExit as ended:
            is_help = ended.code == 0 and any(each.startswith(("-h", "--h")) for each in arguments)
            if ended.code != EXIT_BAD_CONFIGURATION and not is_help:
                raise Finding(f"status {ended.code}: {told.getvalue()}") from None
            if is_help:
                return
    for line in told.getvalue().splitlines():
        check_text(line)


class _Endpoints(BaseModel):
    curve_key_file: str | None = None
    insecure_allow_unencrypted_network: bool = False
    here: ListenEndpoint = "ipc:///here"
    there: BrokerEndpoints = ("ipc:///there",)


def judge_endpoints(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    for name in ("here", "there"):
        with contextlib.suppress(ValidationError):
            _Endpoints.model_validate({"insecure_allow_unencrypted_network": True, name: text})


def judge_gpus(data: bytes) -> None:
    device, _, visible = data.decode(errors="surrogateescape").partition("\n")
    with contextlib.suppress(ValidationError):
        settings = WorkerSettings(device=device)
        own_gpu(settings.device, visible or None)


def judge_service_manager(data: bytes) -> None:
    name, usec, pid, *status = (*data.replace(b"\0", b"").split(b"\n", 3), b"", b"", b"", b"")
    given = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    environment = {key: os.fsdecode(value) for key, value in given.items()}
    manager = ServiceManager.take_from(environment)
    if manager is not None:
        with capture_logs():
            manager.tell(STATUS=status[0].decode(errors="replace"), WATCHDOG="1")
    same(environment, {})


def judge_preload_request(data: bytes) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        PreloadRequest.from_json(data.decode())


# --- Keys, headers, metadata ---------------------------------------------------------------------


def judge_api_keys(data: bytes) -> None:
    """As a setting, and as what a call offers."""
    text = data.decode(errors="surrogateescape")
    keys: tuple[str, ...] = ()
    with refusing(ValueError):
        keys = parse_api_keys(text)
    known = ApiKeys(clients_of(keys))
    for key in keys:
        if not isinstance(known.check([key]), Client):
            raise Finding("a key that is none")
    if isinstance(known.check([text]), Client) and text not in keys:
        raise Finding("a key for somebody who has none")
    same(known.check([text, text]), KeyProblem.SEVERAL)


def judge_accept(data: bytes) -> None:
    if not isinstance(wanted_type(data.decode("latin-1").split("\n")), MediaType):
        raise Finding("no form")


def judge_metadata(data: bytes) -> None:
    """Entries `name=value`, a line each; one whose name ends in `-bin` has bytes."""
    entries: list[tuple[str, str | bytes]] = []
    for line in data.split(b"\n"):
        name, _, value = line.partition(b"=")
        text = name.decode("latin-1")
        entries.append((text, value if text.endswith("-bin") else value.decode("latin-1")))
    match read_repeats(entries, "key"):
        case tuple() as violations:
            refused = errors.invalid_request(violations)
            check_text(refused.message)
        case repeats:
            if repeats.detach and repeats.idempotency_hash is None:
                raise Finding("detached from everybody")


# --- Requests ------------------------------------------------------------------------------------


def requests() -> list[bytes]:
    fields = ({}, {"seed": 2**64 - 1}, {"height": -1, "guidance_scale": float("nan")})
    common = {"prompt": "a cät", "height": 64, "width": 1024, "num_inference_steps": 4, "guidance_scale": 3.5}
    return [image_gen_pb2.GenerateRequest(**{**common, **more}).SerializeToString() for more in fields]


def judge_request(data: bytes) -> None:
    """Whatever is valid can be sent to a broker; whatever is not is explained, without its prompt."""
    try:
        request = _decode(image_gen_pb2.GenerateRequest, data)
    except errors.RpcFailed as failure:
        check_text(failure.status.message)
        return
    match validate(request, RequestLimits(), lambda: 7):
        case ValidJob() as job:
            message = submit(parameters=job.parameters, digest=job.digest, body=job.prompt.encode())
            same(message, decode(encode(message)))
        case violations:
            check_text(errors.invalid_request(violations).message)


WRITER: Final = ReceiptWriter(
    worker_id="worker",
    model=ModelCard(engine="fake", name="n", precision="p", device="d"),
    with_prompt=True,
)
PARAMETERS: Final = ImageParameters(height=2, width=2, steps=1, guidance=1.0, seed=1)


def judge_picture(data: bytes) -> None:
    """A prompt, whatever its letters, can be read in the picture."""
    prompt = data.decode(errors="replace")
    job = EngineJob(
        execution_id=bytes(16), prompt=prompt, parameters=PARAMETERS, attempts=1, job_id=bytes(16)
    )
    png = encode_png(np.zeros((2, 2, 3), np.uint8), WRITER.texts(job))
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        same(picture.info[DESCRIPTION], prompt.replace("\0", "\N{REPLACEMENT CHARACTER}"))


TARGETS: Final = (
    Target(
        name="settings",
        judge=judge_settings,
        modules=("proto.configuration", "frontend.edge_settings", "gpu_worker.settings"),
        seeds=settings_seeds,
        share=0.03,
        max_bytes=1024,
    ),
    Target(
        name="endpoints",
        judge=judge_endpoints,
        modules=("proto.endpoints",),
        seeds=lambda: [b"tcp://[::1]:5560", b"ipc:///run/a", b"tcp://a.b-c:1,tcp://10.0.0.1:65535"],
    ),
    Target(
        name="gpus",
        judge=judge_gpus,
        modules=("gpu_worker.own_gpu",),
        seeds=lambda: [b"cuda:1\n0,1", b"GPU-8a\n", b"2\n-1,x"],
        share=0.05,
    ),
    Target(
        name="service_manager",
        judge=judge_service_manager,
        modules=("proto.service_manager",),
        seeds=lambda: [b"/dev/shm/no-such-socket\n1000000\n\nready", b"@a\n\xc2\xb2\n1\nx\ny"],
    ),
    Target(
        name="preload_request",
        judge=judge_preload_request,
        modules=("gpu_worker.preload_request",),
        seeds=lambda: [b'{"worker_pid": 1, "cuda_visible_devices": null, "modules": ["a"]}'],
    ),
    Target(
        name="api_keys",
        judge=judge_api_keys,
        modules=("frontend.api_keys",),
        seeds=lambda: [f"{PLANTED}, key2 ,key3".encode()],
    ),
    Target(
        name="accept",
        judge=judge_accept,
        modules=("frontend.media_type",),
        seeds=lambda: [b'text/plain;version="0.0.4";q=0.5, application/json\n*/*;q=0.1'],
    ),
    Target(
        name="metadata",
        judge=judge_metadata,
        modules=("frontend.repeats",),
        seeds=lambda: [b"idempotency-key=k\non-disconnect=detach\nx-bin=\xff", b"on-disconnect=y"],
    ),
    Target(
        name="request",
        judge=judge_request,
        modules=("frontend.validation", "frontend.rpc"),
        seeds=requests,
    ),
    Target(
        name="picture",
        judge=judge_picture,
        modules=("gpu_worker.png", "gpu_worker.receipt"),
        seeds=lambda: ["a cät\n".encode(), "\0日本".encode()],
        share=0.3,
    ),
)
