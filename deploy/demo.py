"""`python -m deploy.demo`: starts the service, draws one image with it to demo.png, and stops it."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc

import image_gen_pb2
import image_gen_pb2_grpc
from deploy.console import EXIT_FAILED, Console
from deploy.launcher import Launcher
from deploy.readiness import WorkerProgress
from deploy.settings import FrontendEnvironment, LauncherSettings
from deploy.stack import Stack, build_stack, socket_folder
from proto.configuration import environment_name, load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_INTERRUPTED
from proto.messages import MAX_IMAGE_BYTES

PROGRAM: Final = "demo"
OUTPUT: Final = Path("demo.png")
PROMPT: Final = "a big red heart in the middle, white background"
"""The embedded model knows nothing but such scenes."""
EMBEDDED_SIDE: Final = 256
"""Pixels of the pictures that it is best at."""
FLUX_SIDE: Final = 512
SEED: Final = 5
"""The same picture each time."""
TLS_VARIABLE: Final = environment_name(FrontendEnvironment, "tls_certificate_file")
CALL_LIMIT_S: Final = 600.0
_DEFAULTS: Final = {"log_level": "warning", "log_format": "console", "grpc_port": 0, "http_port": 0}
"""Quiet, and beside a service that runs already."""


def main(argv: Sequence[str] | None = None) -> int:
    given = load_settings(LauncherSettings, argv, PROGRAM)
    unsaid = {name: value for name, value in _DEFAULTS.items() if name not in given.model_fields_set}
    inherited = load_settings(FrontendEnvironment, [], PROGRAM)
    if inherited.tls_certificate_file:
        print(f"{PROGRAM}: draws on this machine, without TLS: unset {TLS_VARIABLE}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    return asyncio.run(Demo(given.model_copy(update=unsaid), inherited).run())


class Demo:
    def __init__(self, settings: LauncherSettings, inherited: FrontendEnvironment) -> None:
        self._settings = settings
        self._inherited = inherited
        self._console = Console(PROGRAM, readable_logs=settings.log_format == "console")
        self._exit_status = EXIT_INTERRUPTED
        """Until a drawing has succeeded or failed."""

    async def run(self) -> int:
        """Returns the exit status."""
        self._console.tell("starting broker, worker and frontend; the first image takes a while")
        with socket_folder() as folder:
            stack = build_stack(self._settings, self._inherited, folder)
            launcher = Launcher(
                stack,
                stop_limit_s=self._settings.stop_limit_s,
                tell=self._console.tell,
                on_line=self._console.log_line,
            )

            async def draw(workers: list[WorkerProgress]) -> None:
                self._exit_status = await self._draw(stack, workers)

            outcome = await launcher.run(draw)
        return self._console.report(outcome) or self._exit_status

    async def _draw(self, stack: Stack, workers: list[WorkerProgress]) -> int:
        for warning in sorted({worker.warning for worker in workers if worker.warning}):
            self._console.tell(f"note: {warning}")
        side = EMBEDDED_SIDE if any(worker.engine == "embedded" for worker in workers) else FLUX_SIDE
        self._console.tell(f'drawing "{PROMPT}"')
        started_at = time.monotonic()
        try:
            response = await generate(stack, side)
            OUTPUT.write_bytes(response.image_png)
        except grpc.aio.AioRpcError as error:
            self._console.tell(f"no image: {error.code().name}: {error.details()}")
            return EXIT_FAILED
        except OSError as error:
            self._console.tell(f"cannot write the image: {error}")
            return EXIT_FAILED
        took_s = time.monotonic() - started_at
        self._console.tell(f"{OUTPUT.absolute()}: {side} x {side} pixels in {took_s:.1f} s")
        self._console.tell("next: make serve, then draw with examples/generate.py as it will say")
        return 0


async def generate(stack: Stack, side: int) -> image_gen_pb2.GenerateResponse:
    """Draws a picture of `side` pixels each way. Raises `AioRpcError`."""
    request = image_gen_pb2.GenerateRequest(
        prompt=PROMPT, height=side, width=side, num_inference_steps=15, guidance_scale=3.5, seed=SEED
    )
    options = [
        ("grpc.max_receive_message_length", MAX_IMAGE_BYTES + 1024),
        ("grpc.enable_http_proxy", 0),  # otherwise http_proxy holds for this machine, too
    ]
    async with grpc.aio.insecure_channel(stack.grpc_address, options=options) as channel:
        stub = image_gen_pb2_grpc.ImageGenStub(channel)
        metadata = (("api-key", stack.api_keys[0]),)
        return await stub.Generate(request, metadata=metadata, timeout=CALL_LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
