"""A client outside the containers."""

import io
import threading
from dataclasses import dataclass, field

import grpc
from containers.engine import LIMIT_S
from PIL import Image

import image_gen_pb2
import image_gen_pb2_grpc

KEY = "client1"


@dataclass
class Call:
    """One that runs in a thread of its own."""

    address: str
    steps: int
    outcome: str = ""
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> str:
        """`WIDTHxHEIGHT` of the picture, or the code and text of the refusal."""
        self._thread.join(LIMIT_S)
        assert not self.is_open, "the call does not end"
        return self.outcome

    def _draw(self) -> None:
        self.outcome = draw(self.address, steps=self.steps)


def draw(address: str, *, key: str = KEY, steps: int = 2) -> str:
    """As `Call.end` tells it."""
    request = image_gen_pb2.GenerateRequest(
        prompt="a lighthouse", height=64, width=96, num_inference_steps=steps, guidance_scale=3.5
    )
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = image_gen_pb2_grpc.ImageGenStub(channel)
        try:
            response = stub.Generate(request, metadata=[("api-key", key)], timeout=LIMIT_S)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    with Image.open(io.BytesIO(response.image_png)) as picture:
        picture.load()
        return f"{picture.width}x{picture.height}"


PICTURE = "96x64"
