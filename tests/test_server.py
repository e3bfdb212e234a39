"""The contract, kept by the real stack: processes, sockets, gRPC, and a FLUX pipeline that draws.

The model is the embedded one.
"""

import io
import json
import math
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from processes.stack import LIMIT_S, Client, Stack, until

pytestmark = pytest.mark.timeout(180)

START_LIMIT_S = 120.0
"""For importing torch."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLE_CLIENT = Path(__file__).parents[1] / "examples" / "generate.py"


@pytest.fixture(scope="module", autouse=True)
def grpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Broker, worker and frontend as subprocesses; the keys are client1 and client2."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        stack.broker.start()
        stack.start_worker("worker-1", engine="embedded", device="cpu")
        stack.start_frontend()
        until("the service is ready", lambda: stack.get("/readyz")[0] == 200, START_LIMIT_S)
        yield stack


@pytest.fixture
def client1(grpc_server: Stack) -> Client:
    return grpc_server.client("client1")


@pytest.fixture
def client2(grpc_server: Stack) -> Client:
    return grpc_server.client("client2")


def size_of(png: bytes) -> tuple[int, int]:
    """Height and width of a PNG that can be read to its end."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return image.height, image.width


def pixels_of(png: bytes) -> bytes:
    """Without what a PNG says about itself."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return image.tobytes()


# --- Who may call -----------------------------------------------------------------------------------


def test_ping_success(client1: Client, client2: Client) -> None:
    assert client1.ping() == "Pong"
    assert client2.ping() == "Pong"


@pytest.mark.parametrize("key", ["", "client3", "client1,client2", "CLIENT1"])
def test_ping_invalid_api_key(grpc_server: Stack, key: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        grpc_server.client(key).ping()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_generate_invalid_api_key(grpc_server: Stack) -> None:
    # A height that is out of range, too: nobody without a key learns what is valid.
    refusal = grpc_server.client("client3").begin(height=0).refusal()
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert not refusal.bad_fields


# --- What may be asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "argument", "value", "allowed"),
    [
        *(
            (side, side, value, "1 to 1024 pixels")
            for side in ("height", "width")
            for value in (0, -1, 1025, 2**31 - 1)
        ),
        *(("num_inference_steps", "steps", value, "1 to 20") for value in (0, -5, 21)),
        *(
            ("guidance_scale", "guidance", value, "1.0 to 10.0")
            for value in (0.99, 10.01, 0.0, -1.0, math.nan, math.inf, -math.inf)
        ),
    ],
)
def test_generate_param_validation(
    client1: Client, field: str, argument: str, value: Any, allowed: str
) -> None:
    refusal = client1.begin(**{argument: value}).refusal()
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refusal.bad_fields) == [field]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    for text in (refusal.text, refusal.bad_fields[field]):
        assert text == f"{field}: {shown} is out of range, allowed is {allowed}"


def test_all_bad_fields_are_named_at_once(client1: Client) -> None:
    refusal = client1.begin(height=0, width=2000, steps=21, guidance=math.nan).refusal()
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.bad_fields) == {"height", "width", "num_inference_steps", "guidance_scale"}
    assert all(field in refusal.text for field in refusal.bad_fields)


# --- How a call ends early --------------------------------------------------------------------------


def test_a_deadline_stops_the_drawing(grpc_server: Stack, client1: Client, client2: Client) -> None:
    # A broker that has seen large images refuses one that cannot be done in time.
    grpc_server.broker.send(signal.SIGTERM)
    assert grpc_server.broker.ends() == 0
    grpc_server.broker.start()
    grpc_server.until_state("worker-1", "ready")
    call = client1.begin(height=1024, width=1024, steps=20, deadline_s=3.0)
    assert call.refusal().code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_stopped_and_free(grpc_server, client2, job_id_of_the_call_that_left(grpc_server))


def job_id_of_the_call_that_left(grpc_server: Stack) -> str:
    """The client's clock says that the time is over, and the frontend's may say so a little later."""
    codes = {"CANCELLED", "DEADLINE_EXCEEDED"}

    def look() -> str | None:
        ended = grpc_server.frontend.events("call ended")
        return next((line["job_id"] for line in ended if line["code"] in codes), None)

    return until("the frontend has seen it leave", look)


def test_a_disconnect_stops_the_drawing(grpc_server: Stack, client1: Client, client2: Client) -> None:
    call = client1.begin(height=1024, width=1024, steps=20)
    running = grpc_server.until_running()
    client1.disconnect()
    assert call.refusal().code is grpc.StatusCode.CANCELLED
    assert_stopped_and_free(grpc_server, client2, running.job_id)


def assert_stopped_and_free(grpc_server: Stack, client: Client, job_id: str) -> None:
    row = grpc_server.until_state("worker-1", "ready")
    assert row.engine_restarts == 0
    assert size_of(client.draw(height=16, width=16).image_png) == (16, 16)
    ended = grpc_server.workers["worker-1"].until_event("job ended", job_id=job_id)
    assert ended["outcome"] in {"CANCELLED", "DEADLINE_EXCEEDED"}


def test_a_killed_broker_costs_a_real_drawing_nothing(grpc_server: Stack, client1: Client) -> None:
    wish: dict[str, Any] = {"prompt": "a pier", "height": 1024, "width": 1024, "steps": 20, "seed": 5}
    undisturbed = client1.draw(**wish)
    call = client1.begin(**wish)
    running = grpc_server.until_running()
    grpc_server.broker.kill()
    grpc_server.broker.start()
    image = call.image()
    assert image.image_png == undisturbed.image_png
    started = grpc_server.workers["worker-1"].events("job started")
    assert [line["job_id"] for line in started].count(running.job_id) == 1, "drawn once"
    assert grpc_server.until_state("worker-1", "ready").engine_restarts == 0


# --- What comes back --------------------------------------------------------------------------------


def test_generate_success_png_header(client1: Client) -> None:
    image = client1.draw("a futuristic cityscape", height=64, width=96, steps=4, guidance=7.5, seed=2**64 - 1)
    assert image.image_png.startswith(PNG_SIGNATURE)
    assert size_of(image.image_png) == (64, 96)
    assert image.seed == 2**64 - 1
    assert 0 < image.inference_time < LIMIT_S


def test_the_receipt_says_how_it_was_made_in_the_answer_and_in_the_picture(client1: Client) -> None:
    image = client1.draw("a pier", height=32, width=48, steps=3, guidance=2.5, seed=6)
    with Image.open(io.BytesIO(image.image_png), formats=["PNG"]) as picture:
        picture.load()
        texts = dict(picture.text)
    written = json.loads(texts["Receipt"])
    told = {field.name: getattr(image.receipt, field.name) for field in image.receipt.DESCRIPTOR.fields}
    assert written == {**told, "seed": 6, "height": 32, "width": 48}
    assert (told["steps"], told["guidance_scale"], told["attempts"]) == (3, 2.5, 1)
    assert told["worker_id"] == "worker-1"
    assert told["model"]
    assert told["precision"]
    assert texts["Description"] == "a pier"
    assert texts["Software"].startswith("flux-server")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 500), (1023, 1), (1024, 1024)])
def test_the_image_has_exactly_the_size_asked_for(client1: Client, height: int, width: int) -> None:
    image = client1.draw(height=height, width=width, steps=1)
    assert size_of(image.image_png) == (height, width)


def test_the_same_wish_gives_the_same_bytes_and_another_wish_others(client1: Client) -> None:
    def draw(prompt: str, seed: int) -> bytes:
        return client1.draw(prompt, steps=2, seed=seed).image_png

    first = draw("a red fox", 1)
    assert draw("a red fox", 1) == first
    assert pixels_of(draw("a blue whale", 1)) != pixels_of(first)
    assert pixels_of(draw("a red fox", 2)) != pixels_of(first)


def test_without_a_seed_one_is_drawn_that_makes_the_image_again(client1: Client) -> None:
    first, second = client1.draw(steps=2), client1.draw(steps=2)
    assert first.seed != second.seed
    assert pixels_of(first.image_png) != pixels_of(second.image_png)
    assert client1.draw(steps=2, seed=second.seed).image_png == second.image_png


@pytest.mark.parametrize("prompt", ["", "Straße, 東京, 🦊", "x" * 8192])
def test_any_text_is_a_prompt(client1: Client, prompt: str) -> None:
    assert size_of(client1.draw(prompt, height=16, width=16).image_png) == (16, 16)


def test_the_sample_client_runs_unchanged(grpc_server: Stack, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(SAMPLE_CLIENT), grpc_server.address],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
    )
    assert ended.returncode == 0, ended.stderr
    assert size_of((tmp_path / "output.png").read_bytes()) == (256, 256)
    assert ended.stdout.startswith("output.png: seed ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "-1"], "error: --seed: Value out of range: -1"),
        (["--output", "/"], "error: --output: / is a folder"),
        (["\udcff:1"], "error: address: only characters that can be printed are allowed"),
        (["localhost:1", "key\t2"], "error: api_key: only ASCII characters that can be printed are allowed"),
        (["localhost:1", "key", "/nothing.pem"], "error: authority: /nothing.pem: No such file or directory"),
    ],
)
def test_the_sample_client_says_in_a_line_what_is_wrong(arguments: list[str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(SAMPLE_CLIENT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].endswith(said)


# --- When it is busy --------------------------------------------------------------------------------


def test_single_user_queue_exhausted(grpc_server: Stack, client1: Client) -> None:
    first = client1.begin(height=1024, width=1024, steps=20)
    grpc_server.until_running(step=0)
    refusal = grpc_server.client("client1").begin().refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT_BUSY")
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0
    assert size_of(first.image().image_png) == (1024, 1024)


def test_multiple_clients_queue_positions(grpc_server: Stack, client1: Client, client2: Client) -> None:
    first = client1.begin(height=1024, width=1024, steps=20)
    grpc_server.until_running(step=0)
    refusal = client2.begin().refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ALL_WORKERS_BUSY")
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0
    assert size_of(first.image().image_png) == (1024, 1024)
    assert size_of(client2.draw().image_png) == (64, 64)


# --- What the service says about itself -------------------------------------------------------------


def test_the_metrics_tell_the_truth(grpc_server: Stack, client1: Client) -> None:
    row = grpc_server.until_state("worker-1", "ready")
    assert (row.engine, row.device) == ("embedded", "cpu")
    assert row.model
    assert "simple shapes" in row.warning, "nobody is to take it for the real model"
    before = client1.metrics()
    client1.draw(height=16, width=16)
    client1.begin(height=0).refusal()
    after = client1.metrics()
    assert (after.in_flight, after.queued) == (0, 0)
    assert after.completed == before.completed + 1
    assert after.failed == before.failed
    assert after.rejected == before.rejected, "what is invalid never gets as far as the broker"
    status, document = grpc_server.get("/metrics")
    assert status == 200
    assert document["worker_alive"] is document["grpc_alive"] is document["broker_alive"] is True
    assert document["completed"] == after.completed
    assert document["ram_used_mb"] > 0
    assert 0 <= document["cpu_percent"] <= 100
    assert document["gpu_used_mb"] == 0 or document["workers"][0]["gpus"]


def test_no_prompt_is_in_the_logs(grpc_server: Stack, client1: Client) -> None:
    client1.draw("a very secret garden", height=16, width=16)
    logs = "".join(component.log_text() for component in grpc_server.components)
    assert "job completed" in logs
    assert "secret garden" not in logs


def test_no_key_is_in_the_logs(tmp_path: Path) -> None:
    right, wrong = secrets.token_hex(16), secrets.token_hex(16)
    with Stack(tmp_path, keys=(right,)) as stack:
        for component in (stack.broker, stack.frontend):
            component.settings["log_level"] = "debug"
        stack.start(log_level="debug", fake_step_s=0)
        image = stack.client(right).draw()
        assert image.image_png.startswith(PNG_SIGNATURE)
        for key in (wrong, right + wrong):
            refusal = stack.client(key).begin().refusal()
            assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
            assert wrong not in refusal.text
        stack.broker.until_event("job completed")
        stack.frontend.until_event("call refused")
        stack.stop()
        logs = "".join(component.log_text() for component in stack.components)
    assert right not in logs
    assert wrong not in logs
