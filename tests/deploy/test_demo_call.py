"""The demo's call, in surroundings where all else goes through a proxy."""

from pathlib import Path

import grpc
import pytest

import image_gen_pb2
import image_gen_pb2_grpc
from deploy.demo import generate
from deploy.settings import FrontendEnvironment, LauncherSettings
from deploy.stack import build_stack


class Drawn(image_gen_pb2_grpc.ImageGenServicer):
    async def Generate(self, _request, _context):  # noqa: N802
        return image_gen_pb2.GenerateResponse(image_png=b"png")


async def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = grpc.aio.server()
    image_gen_pb2_grpc.add_ImageGenServicer_to_server(Drawn(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        stack = build_stack(LauncherSettings(grpc_port=port), FrontendEnvironment(), Path("/run/flux"))
        assert (await generate(stack, 256)).image_png == b"png"
    finally:
        await server.stop(None)
