"""The public service `imagegen.ImageGen`."""

import secrets
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import grpc
import structlog

import image_gen_pb2
from frontend import errors
from frontend.actions import ImageDelivered, JobGivenUp, JobRefused
from frontend.auth import caller
from frontend.call_span import name_span, trace_call
from frontend.call_tally import DRAWING_METHOD, CallTally
from frontend.cluster import Cluster
from frontend.events import JobOpened
from frontend.render_thread import RenderThread, SharedAnswer
from frontend.repeats import Repeats, read_repeats
from frontend.rpc import Context, OpenCalls, name_job, unary_method
from frontend.status import metrics_response, service_status
from frontend.validation import RequestLimits, ValidJob, validate
from proto.identifiers import new_identifier
from proto.logs import short_id
from proto.messages import ImageParameters, ModelCard, TraceContext

if TYPE_CHECKING:
    from proto.spans import Tracing

SERVICE_NAME: Final = "imagegen.ImageGen"
SEED_BITS: Final = 64

log = structlog.get_logger()

_IMAGE_PNG_TAG: Final = bytes([image_gen_pb2.GenerateResponse.IMAGE_PNG_FIELD_NUMBER << 3 | 2])


class ImageGenService:
    """Answers the three methods; each returns its encoded response."""

    def __init__(
        self,
        cluster: Cluster,
        limits: RequestLimits,
        max_job_s: float,
        tally: CallTally,
        render_thread: RenderThread,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._cluster = cluster
        self._limits = limits
        self._max_job_s = max_job_s
        self._tally = tally
        self._render_thread = render_thread
        self._tracing = tracing
        self._metrics = SharedAnswer(self._make_metrics)

    def handlers(self, open_calls: OpenCalls) -> grpc.GenericRpcHandler:
        """What to register with the server.

        Not the generated registration: it has gRPC decode the request and encode the response.
        """
        method = partial(unary_method, open_calls=open_calls, tally=self._tally)
        methods = {
            "Ping": method("Ping", image_gen_pb2.PingRequest, self.ping),
            DRAWING_METHOD: method(DRAWING_METHOD, image_gen_pb2.GenerateRequest, self.generate),
            "Metrics": method("Metrics", image_gen_pb2.MetricsRequest, self.metrics),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def ping(self, _request: image_gen_pb2.PingRequest, _context: Context) -> bytes:
        return image_gen_pb2.PingResponse(message="Pong").SerializeToString()

    async def generate(self, request: image_gen_pb2.GenerateRequest, context: Context) -> bytes:
        """Draw one image. A call that ends early cancels this coroutine, and takes a waiter from the job."""
        client = caller.get()
        trace = None if self._tracing is None else self._trace(self._tracing, context)
        job, repeats = self._judge(request, context.invocation_metadata() or (), client.name)
        opened = JobOpened(
            job_id=new_identifier(),
            key_fingerprint=client.name,
            key_job_limit=client.active_jobs,
            key_queue_share=client.queue_share,
            job=job,
            time_remaining_s=self._time_remaining_s(context),
            # Whoever detaches a job does not want it to end with the call, however that ends.
            job_time_s=self._max_job_s if repeats.detach else None,
            idempotency_hash=repeats.idempotency_hash,
            detach=repeats.detach,
            trace=trace,
        )
        name_job(opened.job_id)
        if self._tracing is not None:
            wanted = job.parameters
            name_span(short_id(opened.job_id), width=wanted.width, height=wanted.height, steps=wanted.steps)
        end = await self._cluster.draw(opened)
        match end:
            case ImageDelivered():
                self._tally.image_sent(memoryview(end.png).nbytes)
                return encode_answer(end, job.parameters)
            case JobRefused():
                raise errors.RpcFailed(errors.refused(end))
            case JobGivenUp():
                log.warning("job given up", code=end.code.value, detail=end.detail, attempts=end.attempts)
                raise errors.RpcFailed(errors.given_up(end))
            case _:
                assert_never(end)

    async def metrics(self, _request: image_gen_pb2.MetricsRequest, _context: Context) -> bytes:
        return await self._metrics.get()

    async def _make_metrics(self) -> bytes:
        picture = await self._cluster.service_picture()
        return await self._render_thread.run(
            lambda: metrics_response(service_status(picture)).SerializeToString()
        )

    @staticmethod
    def _trace(tracing: "Tracing", context: Context) -> TraceContext | None:
        facts = {"rpc.system": "grpc", "rpc.service": SERVICE_NAME, "rpc.method": DRAWING_METHOD}
        name = f"{SERVICE_NAME}/{DRAWING_METHOD}"
        metadata = context.invocation_metadata() or ()
        return trace_call(tracing.of_call(metadata, name, time.monotonic(), facts))

    def _judge(
        self,
        request: image_gen_pb2.GenerateRequest,
        metadata: Iterable[tuple[str, str | bytes]],
        key_fingerprint: str,
    ) -> tuple[ValidJob, Repeats]:
        """What is asked for; raises `RpcFailed` with all that is wrong with the request and its metadata."""
        repeats = read_repeats(metadata, key_fingerprint)
        derived_seed = repeats.seed if isinstance(repeats, Repeats) else None
        job = validate(request, self._limits, draw_seed if derived_seed is None else lambda: derived_seed)
        if isinstance(job, ValidJob) and isinstance(repeats, Repeats):
            return job, repeats
        violations = [
            violation for found in (job, repeats) if isinstance(found, tuple) for violation in found
        ]
        raise errors.RpcFailed(errors.invalid_request(violations))

    def _time_remaining_s(self, context: Context) -> float:
        remaining_s: float | None = context.time_remaining()  # None for a call without a deadline
        return self._max_job_s if remaining_s is None else min(remaining_s, self._max_job_s)


def draw_seed() -> int:
    return secrets.randbits(SEED_BITS)


def encode_answer(image: ImageDelivered, asked_for: ImageParameters) -> bytes:
    """The encoded `GenerateResponse`, with one copy of the image instead of three."""
    rest = image_gen_pb2.GenerateResponse(
        inference_time=image.inference_time_s, seed=image.seed, receipt=receipt_of(image, asked_for)
    )
    size = _varint(memoryview(image.png).nbytes)
    return b"".join((_IMAGE_PNG_TAG, size, image.png, rest.SerializeToString()))


def receipt_of(image: ImageDelivered, asked_for: ImageParameters) -> image_gen_pb2.Receipt:
    model = image.model or ModelCard(engine="", name="", precision="", device="")
    return image_gen_pb2.Receipt(
        steps=asked_for.steps,
        guidance_scale=asked_for.guidance,
        model=model.name,
        revision=model.revision,
        quantization=model.quantization,
        precision=model.precision,
        versions=model.versions,
        worker_id=image.worker_id,
        attempts=image.attempts,
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
