"""The least a gRPC server can do: answer each `Generate` with one image. The service is held against it."""

import argparse
import asyncio

import grpc

import image_gen_pb2

_SERVICE = "imagegen.ImageGen"


async def serve(image_bytes: int) -> None:
    """Prints its port, and serves until it is killed."""
    answer = image_gen_pb2.GenerateResponse(image_png=bytes(image_bytes)).SerializeToString()

    async def generate(_request: bytes, _context: object) -> bytes:
        return answer

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(generate)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, {"Generate": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--image-bytes", type=int, required=True)
    asyncio.run(serve(parser.parse_args().image_bytes))
