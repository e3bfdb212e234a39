"""Draws one image and writes it to output.png.

python examples/generate.py [ADDRESS [API_KEY [AUTHORITY.pem]]]

With the certificate of an authority the call is encrypted.
"""

import sys
from pathlib import Path

import grpc

import image_gen_pb2
import image_gen_pb2_grpc

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
api_key = sys.argv[2] if len(sys.argv) > 2 else "client1"

if len(sys.argv) > 3:
    authority = grpc.ssl_channel_credentials(Path(sys.argv[3]).read_bytes())
    opened = grpc.secure_channel(address, authority)
else:
    opened = grpc.insecure_channel(address)

with opened as channel:
    stub = image_gen_pb2_grpc.ImageGenStub(channel)
    prompt = "a small yellow star at the top left, blue background"  # the embedded model knows nothing else
    request = image_gen_pb2.GenerateRequest(
        prompt=prompt, height=256, width=256, num_inference_steps=8, guidance_scale=3.5
    )
    try:
        response = stub.Generate(request, metadata=[("api-key", api_key)])
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")

Path("output.png").write_bytes(response.image_png)
print(f"output.png: seed {response.seed}, {response.inference_time:.1f} s on {response.receipt.worker_id}")
print(f"drawn by {response.receipt.model}, {response.receipt.precision}, {response.receipt.steps} steps")
