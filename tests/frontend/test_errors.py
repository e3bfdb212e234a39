"""Every reason has a status, and a program can read it."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from frontend import errors
from frontend.actions import JobGivenUp, JobRefused
from frontend.validation import FieldViolation
from proto.failures import FailureCode, RefusalReason

REFUSAL_CODES = {
    RefusalReason.CLIENT_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.CLIENT_QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.ALL_WORKERS_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.DEADLINE_TOO_SHORT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.BROKER_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.FRONTEND_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.WORKERS_NOT_READY: grpc.StatusCode.UNAVAILABLE,
    RefusalReason.NO_WORKERS: grpc.StatusCode.UNAVAILABLE,
    RefusalReason.BROKER_UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    RefusalReason.BROKER_DRAINING: grpc.StatusCode.UNAVAILABLE,
    RefusalReason.FRONTEND_DRAINING: grpc.StatusCode.UNAVAILABLE,
    RefusalReason.IDEMPOTENCY_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
}
FAILURE_CODES = {
    FailureCode.OUT_OF_MEMORY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FailureCode.ENGINE_CRASHED: grpc.StatusCode.UNAVAILABLE,
    FailureCode.ENGINE_HUNG: grpc.StatusCode.UNAVAILABLE,
    FailureCode.DEVICE_POISONED: grpc.StatusCode.UNAVAILABLE,
    FailureCode.POISON_JOB: grpc.StatusCode.INTERNAL,
    FailureCode.WORKER_LOST: grpc.StatusCode.UNAVAILABLE,
    FailureCode.ENGINE_ERROR: grpc.StatusCode.INTERNAL,
    FailureCode.NON_FINITE_IMAGE: grpc.StatusCode.INTERNAL,
    FailureCode.IMAGE_TOO_LARGE: grpc.StatusCode.INTERNAL,
    FailureCode.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    FailureCode.CANCELLED: grpc.StatusCode.CANCELLED,
}


def unpacked(status, kind):
    found = [kind.FromString(detail.value) for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    return found[0] if found else None


@pytest.mark.parametrize("reason", list(RefusalReason))
def test_every_refusal_has_a_status_and_its_reason(reason):
    status = errors.refused(JobRefused(reason=reason, detail="", retry_after_s=None))
    assert status.code != grpc.StatusCode.OK.value[0]
    assert status.message
    info = unpacked(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (reason.value, "imagegen")
    assert unpacked(status, error_details_pb2.RetryInfo) is None
    ours_only = grpc.StatusCode.INTERNAL
    assert rpc_status.to_status(status).code is REFUSAL_CODES.get(reason, ours_only)


@pytest.mark.parametrize("code", list(FailureCode))
def test_every_failure_has_a_status_its_reason_and_the_number_of_attempts(code):
    status = errors.given_up(JobGivenUp(code=code, detail="CUDA said: /srv/secret/path", attempts=3))
    assert rpc_status.to_status(status).code is FAILURE_CODES[code]
    info = unpacked(status, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == (code.value, {"attempts": "3"})
    assert "3 attempts" in status.message
    assert "CUDA" not in status.message


def test_one_attempt_is_not_called_attempts():
    status = errors.given_up(JobGivenUp(code=FailureCode.ENGINE_ERROR, detail="", attempts=1))
    assert status.message.endswith("(1 attempt)")


def test_a_job_that_ends_engines_is_said_to_be_at_its_end():
    status = errors.given_up(JobGivenUp(code=FailureCode.POISON_JOB, detail="SIGSEGV", attempts=2))
    assert status.message == "the job ended two engine processes and is not tried again (2 attempts)"


def test_a_repeat_that_asks_for_another_image_hears_which_entry_is_to_blame():
    refusal = JobRefused(reason=RefusalReason.IDEMPOTENCY_MISMATCH, detail="", retry_after_s=None)
    status = errors.refused(refusal)
    (violation,) = unpacked(status, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("metadata 'idempotency-key'", status.message)


@pytest.mark.parametrize("retry_after_s", [0.0, 0.25, 12.5, 600.0])
def test_a_retry_delay_is_told_to_programs_and_people(retry_after_s):
    refusal = JobRefused(reason=RefusalReason.ALL_WORKERS_BUSY, detail="", retry_after_s=retry_after_s)
    status = errors.refused(refusal)
    delay = unpacked(status, error_details_pb2.RetryInfo).retry_delay
    assert delay.seconds + delay.nanos / 1e9 == retry_after_s
    assert f"try again in {retry_after_s:.1f} s" in status.message


def test_a_full_broker_says_when_to_come_again():
    status = errors.refused(JobRefused(reason=RefusalReason.BROKER_FULL, detail="", retry_after_s=1.0))
    assert unpacked(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1


def test_the_brokers_detail_is_part_of_the_message():
    refusal = JobRefused(reason=RefusalReason.WORKERS_NOT_READY, detail="2 loading", retry_after_s=None)
    assert "(2 loading)" in errors.refused(refusal).message


def test_all_violations_are_in_the_message_and_in_the_details():
    status = errors.invalid_request(
        [
            FieldViolation(field="height", value="0", allowed="1 to 1024"),
            FieldViolation(field="width", value="9999", allowed="1 to 1024"),
        ]
    )
    assert rpc_status.to_status(status).code is grpc.StatusCode.INVALID_ARGUMENT
    fields = unpacked(status, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in fields] == ["height", "width"]
    assert all(violation.description in status.message for violation in fields)
    assert errors.reason_of(status) == "INVALID_REQUEST"


def test_a_status_of_a_job_names_it_and_is_the_same_otherwise():
    nameless = errors.given_up(JobGivenUp(code=FailureCode.ENGINE_ERROR, detail="", attempts=1))
    named = errors.of_job(nameless, "0123abcd")
    info = unpacked(named, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"attempts": "1", "job_id": "0123abcd"}
    assert (info.reason, named.message, named.code) == ("ENGINE_ERROR", nameless.message, nameless.code)
    assert "job_id" not in unpacked(nameless, error_details_pb2.ErrorInfo).metadata
