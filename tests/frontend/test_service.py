"""Generate, from a real gRPC client to a scripted cluster and back."""

import asyncio
import json

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from samples.wire import PARAMETERS

import image_gen_pb2
import image_gen_pb2_grpc
from frontend.actions import ImageDelivered, JobGivenUp, JobRefused
from frontend.api_keys import fingerprint
from frontend.service import SERVICE_NAME, encode_answer, receipt_of
from frontend.validation import ValidJob
from proto.failures import FailureCode, RefusalReason
from proto.messages import ModelCard


async def failure(call):
    """The status a call ends with, as a client reads it from the trailers."""
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    return await rpc_status.aio.from_call(call)


def code_of(status):
    return rpc_status.to_status(status).code


async def end_of_call(log_lines):
    """The line about a call is written when its handler ends, which a client cannot see."""
    async with asyncio.timeout(10):
        while (line := await log_lines.get())["event"] != "call ended":
            assert "private" not in str(line)
    return line


async def test_an_image_comes_back_with_its_time_and_seed(frontend):
    frontend.cluster.end = ImageDelivered(
        png=memoryview(b"\x89PNG..."), inference_time_s=2.25, seed=2**64 - 1
    )
    answer = await frontend.generate(seed=2**64 - 1)
    assert (answer.image_png, answer.inference_time, answer.seed) == (b"\x89PNG...", 2.25, 2**64 - 1)


async def test_an_image_comes_with_its_receipt(frontend):
    frontend.cluster.end = ImageDelivered(
        png=b"png",
        inference_time_s=1.0,
        seed=1,
        worker_id="worker",
        attempts=2,
        model=ModelCard(
            engine="flux",
            name="FLUX.1-dev",
            precision="bfloat16",
            device="cuda:0",
            revision="0ef5fff",
            quantization="hqq",
            versions="torch 2.13.0",
        ),
    )
    answer = await frontend.generate(num_inference_steps=3, guidance_scale=2.5)
    assert answer.receipt == image_gen_pb2.Receipt(
        steps=3,
        guidance_scale=2.5,
        model="FLUX.1-dev",
        revision="0ef5fff",
        quantization="hqq",
        precision="bfloat16",
        versions="torch 2.13.0",
        worker_id="worker",
        attempts=2,
    )


async def test_a_worker_that_does_not_say_what_it_draws_with_has_a_receipt_without_that(frontend):
    answer = await frontend.generate()
    assert (answer.receipt.model, answer.receipt.precision) == ("", "")
    assert answer.receipt.steps > 0


async def test_the_cluster_gets_a_valid_job_and_whose_it_is(frontend):
    await frontend.generate(prompt="ein Fuchs 🦊", seed=3, metadata=(("api-key", "key-of-bob"),))
    (draw,) = frontend.cluster.draws
    assert isinstance(draw.job, ValidJob)
    assert draw.job.prompt == "ein Fuchs 🦊"
    assert draw.job.parameters.seed == 3
    assert draw.key_fingerprint == fingerprint("key-of-bob")


async def test_without_a_seed_each_call_gets_another(frontend):
    await frontend.generate()
    await frontend.generate()
    first, second = (draw.job for draw in frontend.cluster.draws)
    assert first.parameters.seed != second.parameters.seed
    assert first.digest == second.digest


async def test_a_plain_call_has_no_repeats_and_ends_with_its_caller(frontend):
    await frontend.generate()
    (draw,) = frontend.cluster.draws
    assert (draw.idempotency_hash, draw.detach) == (None, False)


async def test_a_repeat_is_another_job_with_the_same_hash_digest_and_seed(frontend):
    metadata = (*frontend.key, ("idempotency-key", "order 66"), ("on-disconnect", "detach"))
    await frontend.generate(metadata=metadata)
    await frontend.generate(metadata=metadata)
    first, second = frontend.cluster.draws
    assert first.job_id != second.job_id
    assert first.idempotency_hash == second.idempotency_hash
    assert len(first.idempotency_hash) == 16
    assert first.job == second.job
    assert first.detach
    assert second.detach


async def test_an_idempotency_key_counts_for_its_api_key(frontend):
    for key in ("key-of-alice", "key-of-bob"):
        await frontend.generate(metadata=(("api-key", key), ("idempotency-key", "order 66")))
    first, second = frontend.cluster.draws
    assert first.idempotency_hash != second.idempotency_hash
    assert first.job.parameters.seed != second.job.parameters.seed


async def test_a_seed_that_the_caller_gave_stays_in_a_repeat(frontend):
    await frontend.generate(seed=3, metadata=(*frontend.key, ("idempotency-key", "order 66")))
    assert frontend.cluster.draws[0].job.parameters.seed == 3


async def test_bad_metadata_and_bad_fields_are_named_together_and_the_key_is_not_told(frontend, log_lines):
    secret = "s3cret" * 30
    metadata = (*frontend.key, ("idempotency-key", secret), ("on-disconnect", "perhaps"))
    status = await failure(frontend.generate(height=0, metadata=metadata))
    assert code_of(status) is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest.FromString(status.details[1].value)
    named = {violation.field for violation in bad_request.field_violations}
    assert named == {"height", "metadata 'idempotency-key'", "metadata 'on-disconnect'"}
    assert "s3cret" not in str(status)
    assert "s3cret" not in str(await end_of_call(log_lines))
    assert not frontend.cluster.draws


async def test_bad_metadata_alone_is_an_invalid_argument(frontend):
    status = await failure(frontend.generate(metadata=(*frontend.key, ("on-disconnect", "detach"))))
    assert code_of(status) is grpc.StatusCode.INVALID_ARGUMENT
    assert "'detach' needs a metadata entry 'idempotency-key'" in status.message
    assert not frontend.cluster.draws


@pytest.mark.parametrize(
    ("timeout", "lowest", "highest"), [(5.0, 3.0, 5.1), (3000.0, 600.0, 600.0), (None, 600.0, 600.0)]
)
async def test_the_deadline_is_passed_on_and_bounded(frontend, timeout, lowest, highest):  # noqa: ASYNC109
    await frontend.generate(timeout=timeout)
    assert lowest <= frontend.cluster.draws[0].time_remaining_s <= highest


async def test_a_bad_request_names_every_bad_field_and_never_reaches_the_cluster(frontend):
    status = await failure(frontend.generate(height=0, width=1025, guidance_scale=float("nan")))
    assert code_of(status) is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest.FromString(status.details[1].value)
    named = {violation.field for violation in bad_request.field_violations}
    assert named == {"height", "width", "guidance_scale"}
    assert all(f"{field}: " in status.message for field in named)
    assert not frontend.cluster.draws


async def test_a_prompt_far_too_long_still_hears_which_field_it_is(frontend):
    status = await failure(frontend.generate(prompt="x" * 900_000))
    assert code_of(status) is grpc.StatusCode.INVALID_ARGUMENT
    assert "prompt: a text of 900000 bytes is out of range" in status.message


async def test_a_refusal_tells_its_reason_and_when_to_come_again(frontend):
    frontend.cluster.end = JobRefused(reason=RefusalReason.ALL_WORKERS_BUSY, detail="", retry_after_s=4.5)
    status = await failure(frontend.generate())
    assert code_of(status) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_details_pb2.ErrorInfo.FromString(status.details[0].value).reason == "ALL_WORKERS_BUSY"
    assert error_details_pb2.RetryInfo.FromString(status.details[1].value).retry_delay.seconds == 4


async def test_a_job_that_was_given_up_says_how_often_it_was_tried(frontend):
    frontend.cluster.end = JobGivenUp(code=FailureCode.WORKER_LOST, detail="x", attempts=3)
    status = await failure(frontend.generate())
    assert code_of(status) is grpc.StatusCode.UNAVAILABLE
    assert "3 attempts" in status.message


async def test_an_image_comes_with_the_id_of_its_job(frontend):
    call = frontend.generate()
    await call
    assert dict(await call.trailing_metadata())["job-id"] == frontend.cluster.draws[0].job_id.hex()


@pytest.mark.parametrize(
    "end",
    [
        JobRefused(reason=RefusalReason.NO_WORKERS, detail="", retry_after_s=1.0),
        JobGivenUp(code=FailureCode.ENGINE_ERROR, detail="x", attempts=1),
        RuntimeError("a bug"),
    ],
)
async def test_a_call_that_failed_has_the_id_of_its_job_for_programs_and_people(frontend, end):
    frontend.cluster.end = end
    call = frontend.generate()
    status = await failure(call)
    job_id = frontend.cluster.draws[0].job_id.hex()
    assert dict(await call.trailing_metadata())["job-id"] == job_id
    assert error_details_pb2.ErrorInfo.FromString(status.details[0].value).metadata["job_id"] == job_id


async def test_a_call_without_a_job_has_no_job_id(frontend):
    await frontend.generate()
    refused = frontend.generate(height=0)
    status = await failure(refused)
    assert "job-id" not in dict(await refused.trailing_metadata())
    assert not error_details_pb2.ErrorInfo.FromString(status.details[0].value).metadata
    ping = frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=frontend.key)
    await ping
    assert "job-id" not in dict(await ping.trailing_metadata())


RETRYING = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE_NAME}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


async def test_a_client_whose_grpc_retries_gets_its_image_as_the_same_call(frontend, monkeypatch):
    """gRPC retries no call that the server has begun to answer: so the job's id comes at the end."""
    draw = frontend.cluster.draw

    async def refuse_the_first(opened):
        image = await draw(opened)
        refused = JobRefused(reason=RefusalReason.NO_WORKERS, detail="", retry_after_s=None)
        return refused if len(frontend.cluster.draws) == 1 else image

    monkeypatch.setattr(frontend.cluster, "draw", refuse_the_first)
    target, options = f"127.0.0.1:{frontend.grpc_port}", [("grpc.service_config", json.dumps(RETRYING))]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        generate = image_gen_pb2_grpc.ImageGenStub(channel).Generate
        request = image_gen_pb2.GenerateRequest(height=8, width=8, num_inference_steps=1, guidance_scale=1)
        answer = await generate(request, metadata=(*frontend.key, ("idempotency-key", "order 66")))
    assert answer.image_png
    first, second = frontend.cluster.draws
    assert (first.idempotency_hash, first.job) == (second.idempotency_hash, second.job)


async def test_a_bug_is_an_internal_error_that_tells_nothing_and_the_service_goes_on(frontend):
    frontend.cluster.end = RuntimeError("secret detail")
    status = await failure(frontend.generate())
    assert code_of(status) is grpc.StatusCode.INTERNAL
    assert "secret" not in str(status)
    frontend.cluster.end = ImageDelivered(png=b"x", inference_time_s=1.0, seed=1)
    assert (await frontend.generate()).image_png == b"x"


async def test_a_client_that_cancels_cancels_the_job(frontend, log_lines, limit_s):
    frontend.cluster.may_end.clear()
    call = frontend.generate()
    await frontend.cluster.draw_begun.wait()
    call.cancel()
    await asyncio.wait_for(frontend.cluster.draw_cancelled.wait(), limit_s)
    assert (await end_of_call(log_lines))["code"] == "CANCELLED"


async def test_a_client_that_goes_away_cancels_the_job(frontend, limit_s):
    frontend.cluster.may_end.clear()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.grpc_port}") as channel:
        generate = channel.unary_unary(f"/{SERVICE_NAME}/Generate")
        request = image_gen_pb2.GenerateRequest(height=8, width=8, num_inference_steps=1, guidance_scale=1)
        call = generate(request.SerializeToString(), metadata=frontend.key)
        await frontend.cluster.draw_begun.wait()
        await channel.close()
        assert call.cancelled()
    await asyncio.wait_for(frontend.cluster.draw_cancelled.wait(), limit_s)


async def test_a_call_that_runs_out_of_time_cancels_the_job(frontend, log_lines, limit_s):
    frontend.cluster.may_end.clear()
    assert await frontend.generate(timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(frontend.cluster.draw_cancelled.wait(), limit_s)
    assert (await end_of_call(log_lines))["code"] in {"DEADLINE_EXCEEDED", "CANCELLED"}


async def test_every_call_leaves_one_line_without_key_and_prompt(frontend, log_lines):
    frontend.cluster.end = JobRefused(reason=RefusalReason.NO_WORKERS, detail="", retry_after_s=None)
    await failure(frontend.generate(prompt="a very private wish"))
    line = await end_of_call(log_lines)
    assert line["method"] == "Generate"
    assert line["code"] == "UNAVAILABLE"
    assert line["reason"] == "NO_WORKERS"
    assert line["key"] == fingerprint("key-of-alice")
    assert line["duration_s"] >= 0
    assert line["job_id"] == frontend.cluster.draws[0].job_id.hex()
    assert "private" not in str(line)
    assert "key-of-alice" not in str(line)


def test_all_methods_of_the_contract_are_there():
    methods = image_gen_pb2.DESCRIPTOR.services_by_name["ImageGen"].methods_by_name
    assert image_gen_pb2.DESCRIPTOR.services_by_name["ImageGen"].full_name == SERVICE_NAME
    assert set(methods) == {"Ping", "Generate", "Metrics"}


@given(
    png=st.binary(max_size=300) | st.sampled_from([b"x" * size for size in (127, 128, 16383, 16384, 2**21)]),
    inference_time_s=st.floats(allow_nan=False),
    seed=st.integers(0, 2**64 - 1),
    view=st.booleans(),
)
def test_the_answer_is_what_protobuf_would_have_made(png, inference_time_s, seed, view):
    end = ImageDelivered(png=memoryview(png) if view else png, inference_time_s=inference_time_s, seed=seed)
    made = image_gen_pb2.GenerateResponse.FromString(encode_answer(end, PARAMETERS))
    assert made == image_gen_pb2.GenerateResponse(
        image_png=png, inference_time=inference_time_s, seed=seed, receipt=receipt_of(end, PARAMETERS)
    )
