"""Draws one image and writes it to a file; with the certificate of an authority the call is encrypted."""

import argparse
import sys
from pathlib import Path

try:
    import grpc

    import image_gen_pb2
    import image_gen_pb2_grpc
except ModuleNotFoundError as error:
    sys.exit(
        f"the module {error.name} is missing: it needs grpcio, protobuf, and image_gen_pb2*.py beside it"
    )

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("address", nargs="?", default="localhost:50051", help="host and port")
parser.add_argument("api_key", nargs="?", default="client1", help="one that the service knows")
parser.add_argument("authority", nargs="?", type=Path, help="a PEM file")
# The embedded model knows nothing else than such scenes.
parser.add_argument("--prompt", default="a small yellow star at the top left, blue background", help="text")
parser.add_argument("--width", type=int, default=256, help="pixels")
parser.add_argument("--height", type=int, default=256, help="pixels")
parser.add_argument("--steps", type=int, default=8, help="of denoising")
parser.add_argument("--guidance", type=float, default=3.5, help="how closely to follow the prompt")
parser.add_argument("--seed", type=int, help="the same one draws the same image again; unset: a new one")
parser.add_argument("--output", type=Path, default=Path("output.png"), help="a PNG")
wanted = parser.parse_args()

if not wanted.output.absolute().parent.is_dir():
    parser.error(f"--output: there is no folder {wanted.output.absolute().parent}")
if wanted.output.is_dir():
    parser.error(f"--output: {wanted.output} is a folder")
if not wanted.address.isprintable():
    parser.error("address: only characters that can be printed are allowed")
if not (wanted.api_key.isascii() and wanted.api_key.isprintable()):
    parser.error("api_key: only ASCII characters that can be printed are allowed")
request = image_gen_pb2.GenerateRequest(guidance_scale=wanted.guidance)
for option, field, value in (
    ("--prompt", "prompt", wanted.prompt),
    ("--width", "width", wanted.width),
    ("--height", "height", wanted.height),
    ("--steps", "num_inference_steps", wanted.steps),
    ("--seed", "seed", wanted.seed),
):
    try:
        if value is not None:
            setattr(request, field, value)
    except ValueError as error:  # More than the field's bits; what else is wrong the service says.
        parser.error(f"{option}: {error}")

if wanted.authority is None:
    opened = grpc.insecure_channel(wanted.address)
else:
    try:
        authority = wanted.authority.read_bytes()
    except OSError as error:
        parser.error(f"authority: {wanted.authority}: {error.strerror}")
    opened = grpc.secure_channel(wanted.address, grpc.ssl_channel_credentials(authority))

with opened as channel:
    stub = image_gen_pb2_grpc.ImageGenStub(channel)
    try:
        response = stub.Generate(request, metadata=[("api-key", wanted.api_key)])
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")

try:
    wanted.output.write_bytes(response.image_png)
except OSError as error:
    sys.exit(f"{wanted.output}: {error.strerror}; the image is lost, seed {response.seed} draws it again")
print(
    f"{wanted.output}: seed {response.seed}, {response.inference_time:.1f} s on {response.receipt.worker_id}"
)
print(f"drawn by {response.receipt.model}, {response.receipt.precision}, {response.receipt.steps} steps")
