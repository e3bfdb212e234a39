"""Keys come and go while the frontend serves."""

import grpc
import pytest
from structlog.testing import capture_logs

import image_gen_pb2
from frontend.api_keys import fingerprint


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.toml"

    def write(text):
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


async def ping(frontend, key):
    """None, or why the call is refused."""
    try:
        await frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=(("api-key", key),))
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


async def test_a_removed_key_ends_no_call_and_begins_none(start_frontend, key_file, limit_s):
    path = key_file('[clients.alice]\nkeys = ["old"]')
    async with start_frontend(api_keys=None, api_keys_file=path) as frontend:
        frontend.cluster.may_end.clear()
        call = frontend.generate(metadata=(("api-key", "old"),))
        await frontend.cluster.draw_begun.wait()
        key_file('[clients.alice]\nkeys = ["old", "new"]')
        await frontend.read_again()
        assert [await ping(frontend, key) for key in ("old", "new")] == [None, None]
        key_file('[clients.alice]\nkeys = ["new"]')
        await frontend.read_again()
        refused = grpc.StatusCode.UNAUTHENTICATED
        assert [await ping(frontend, key) for key in ("old", "new")] == [refused, None]
        frontend.cluster.may_end.set()
        assert (await call).image_png


async def test_a_call_counts_for_its_client_with_its_limits(start_frontend, key_file):
    text = '[clients.alice]\nkeys = ["1", "2"]\nactive_jobs = 3\nqueue_share = 0.25'
    async with start_frontend(api_keys=None, api_keys_file=key_file(text)) as frontend:
        for key in "12":
            await frontend.generate(metadata=(("api-key", key), ("idempotency-key", "x")))
    first, second = frontend.cluster.draws
    assert (first.key_fingerprint, first.key_job_limit, first.key_queue_share) == ("alice", 3, 0.25)
    assert second.key_fingerprint == "alice"
    assert first.idempotency_hash == second.idempotency_hash, "a repeat may come with the new key"


async def test_a_broken_file_keeps_the_old_keys_and_says_what_is_wrong(start_frontend, key_file):
    path = key_file('[clients.alice]\nkeys = ["old"]')
    async with start_frontend(api_keys=None, api_keys_file=path) as frontend:
        key_file('[clients.alice]\nkeys = ["hush hush"]')
        with capture_logs() as lines:
            await frontend.read_again()
        assert await ping(frontend, "old") is None
    problem = f"{path}: clients.alice.keys.1: a key consists of printable ASCII characters without spaces"
    assert [(line["event"], line["why"]) for line in lines] == [
        ("files not read again, what was there stays", problem)
    ]


async def test_keys_of_the_setting_stay_beside_the_file_which_says_more(start_frontend, key_file):
    path = key_file('[clients.alice]\nkeys = ["key-of-alice"]')
    async with start_frontend(api_keys_file=path) as frontend:
        for key in ("key-of-alice", "key-of-bob"):
            await frontend.generate(metadata=(("api-key", key),))
    names = [draw.key_fingerprint for draw in frontend.cluster.draws]
    assert names == ["alice", fingerprint("key-of-bob")]
