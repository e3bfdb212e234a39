"""Asks the frontend on this network for one image, and prints how that ended, as JSON."""

import argparse
import json

import grpc

import image_gen_pb2
import image_gen_pb2_grpc

ADDRESS = "127.0.0.1:50051"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--deadline-s", type=float, default=50.0)
    wanted = parser.parse_args()
    request = image_gen_pb2.GenerateRequest(
        prompt="a lighthouse", height=64, width=64, num_inference_steps=wanted.steps, guidance_scale=2.5
    )
    with grpc.insecure_channel(ADDRESS) as channel:
        stub = image_gen_pb2_grpc.ImageGenStub(channel)
        try:
            response = stub.Generate(
                request, metadata=[("api-key", wanted.key)], timeout=wanted.deadline_s, wait_for_ready=True
            )
            outcome = "image" if response.image_png.startswith(b"\x89PNG") else "no PNG"
        except grpc.RpcError as error:
            outcome = f"{error.code().name}: {error.details()}"
    print(json.dumps({"outcome": outcome}))


if __name__ == "__main__":
    main()
