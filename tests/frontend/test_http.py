"""The pages for people, probes and scrapers; and what a request that is none of that gets."""

import asyncio
import json
import socket
import threading

import grpc
import pytest
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse
from structlog.testing import capture_logs

from frontend import http, metrics_page
from frontend.cluster import ServicePicture

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def raw(port, request_bytes):
    """Status, headers and body of the answer to anything that a socket can carry."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes)
    await writer.drain()
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    writer.close()
    await writer.wait_closed()
    return int(head[0].split()[1]), headers, body


async def test_metrics_need_no_key_and_are_json(frontend):
    status, document = await frontend.get("/metrics")
    assert status == 200
    assert document["grpc_alive"] is True
    assert document["worker_alive"] is False
    assert document["workers"] == []
    assert document["age_s"] is None
    assert document["ram_used_mb"] > 0


async def test_metrics_are_there_without_a_broker(frontend):
    frontend.cluster.broker_alive = False
    frontend.cluster.picture = ServicePicture(brokers=())
    status, document = await frontend.get("/metrics")
    assert (status, document["broker_alive"]) == (200, False)


async def test_a_slow_scrape_blocks_nobody_and_ends(frontend, monkeypatch):
    monkeypatch.setattr(metrics_page, "ANSWER_LIMIT_S", 0.5)
    asked = asyncio.Event()

    async def never():
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(frontend.cluster, "service_picture", never)
    scrape = asyncio.create_task(frontend.get("/metrics"))
    await asked.wait()
    assert (await frontend.get("/healthz"))[0] == 200
    status, document = await scrape
    assert (status, document) == (504, {"error": "no answer within 0.5 s"})


async def test_a_bug_is_a_500_in_json(frontend, monkeypatch):
    async def broken():
        raise RuntimeError("secret detail")

    monkeypatch.setattr(frontend.cluster, "service_picture", broken)
    assert await frontend.get("/metrics") == (500, {"error": "the frontend failed to handle this request"})
    assert (await frontend.get("/healthz"))[0] == 200


async def test_readyz_follows_the_workers_and_the_broker(frontend):
    assert await frontend.get("/readyz") == (503, {"error": "no worker is ready"})
    frontend.cluster.ready_workers = 1
    assert await frontend.get("/readyz") == (200, {"status": "ok"})
    frontend.cluster.broker_alive = False
    assert await frontend.get("/readyz") == (503, {"error": "no broker answers"})
    assert await frontend.get("/healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/metrics/../secret", "//metrics", "/%00"])
async def test_an_unknown_path_is_a_404_that_names_the_known_ones(frontend, path):
    status, headers, body = await raw(frontend.http_port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (status, headers["content-type"]) == (404, "application/json; charset=utf-8")
    assert json.loads(body) == {"error": "no such page; there are /metrics, /healthz, /readyz"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_a_wrong_method_is_a_405_that_names_the_right_ones(frontend, method):
    async with frontend.http.request(method, f"http://127.0.0.1:{frontend.http_port}/metrics") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"
        assert await answer.json() == {"error": "/metrics answers only GET, HEAD"}


async def test_head_is_answered_without_a_body(frontend):
    async with frontend.http.head(f"http://127.0.0.1:{frontend.http_port}/metrics") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_a_huge_header_is_a_431(frontend, request_bytes):
    status, headers, body = await raw(frontend.http_port, request_bytes)
    assert (status, headers["content-type"]) == (431, "application/json; charset=utf-8")
    assert json.loads(body) == {"error": "the request line or a header is longer than 8190 bytes"}
    assert (await frontend.get("/healthz"))[0] == 200


async def test_many_headers_are_a_client_error(frontend):
    lines = b"".join(b"X-%d: 1\r\n" % number for number in range(5000))
    status, _headers, body = await raw(
        frontend.http_port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n"
    )
    assert 400 <= status < 500
    assert json.loads(body)["error"]


@pytest.mark.parametrize("request_bytes", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"what?\r\n\r\n"])
async def test_what_is_no_http_gets_a_400_in_json(frontend, request_bytes):
    status, _headers, body = await raw(frontend.http_port, request_bytes)
    assert (status, json.loads(body)) == (400, {"error": "this is not a valid HTTP request"})


async def connected(port, *, asks=b"", from_host="127.0.0.1"):
    """Reader and writer of a connection that stays open; it has its answer if it asks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(from_host, 0))
    if asks:
        writer.write(asks)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    return reader, writer


async def test_a_new_connection_takes_the_place_of_the_one_that_was_idle_for_longest(frontend, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    port = frontend.http_port
    silent = await connected(port)
    asked = await connected(port, asks=HEALTHZ)
    other = await connected(port, asks=HEALTHZ)
    assert (await raw(port, HEALTHZ))[0] == 200
    assert await asyncio.wait_for(silent[0].read(), 10) == b"", "it never asked"
    other[1].write(HEALTHZ)
    await asyncio.wait_for(other[0].readuntil(b"ok"), 10)
    for _, writer in (silent, asked, other):
        writer.close()


async def test_one_that_has_asked_and_is_idle_again_gives_way_too(frontend, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    port = frontend.http_port
    first, second = [await connected(port, asks=HEALTHZ) for _ in range(2)]
    assert (await raw(port, HEALTHZ))[0] == 200
    await asyncio.wait_for(first[0].readuntil(b'{"status": "ok"}'), 10)
    assert await asyncio.wait_for(first[0].read(), 10) == b""
    for _, writer in (first, second):
        writer.close()


async def test_a_thousand_connections_that_ask_nothing_keep_no_probe_out(frontend, monkeypatch):
    """Nor do they end a connection of another address, however long that has been idle."""
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 20)
    port = frontend.http_port
    scraper = await connected(port, asks=HEALTHZ, from_host="127.0.0.2")
    silent = []
    with capture_logs() as logs:
        for _ in range(50):
            silent += [await connected(port) for _ in range(20)]
            assert (await raw(port, HEALTHZ))[0] == 200
    assert [line["address"] for line in logs] == ["127.0.0.1"], "one line, not a thousand"
    await asyncio.wait_for(scraper[0].readuntil(b'{"status": "ok"}'), 10)
    scraper[1].write(HEALTHZ)
    await asyncio.wait_for(scraper[0].readuntil(b'{"status": "ok"}'), 10)
    for _, writer in (scraper, *silent):
        writer.close()


async def test_where_all_are_being_answered_the_new_connection_ends(frontend, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def late():
        asked.set()
        await go_on.wait()
        return ServicePicture(brokers=())

    monkeypatch.setattr(frontend.cluster, "service_picture", late)
    scrape = asyncio.create_task(frontend.get("/metrics"))
    await asyncio.wait_for(asked.wait(), 10)
    reader, writer = await connected(frontend.http_port)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    go_on.set()
    assert (await scrape)[0] == 200


# --- For Prometheus -----------------------------------------------------------------------------


async def scraped(frontend, accept="text/plain"):
    """Status, headers and text of /metrics."""
    url, headers = f"http://127.0.0.1:{frontend.http_port}/metrics", {"Accept": accept}
    async with frontend.http.get(url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


async def values(frontend):
    _status, _headers, text = await scraped(frontend)
    found = [sample for family in parse(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


async def test_prometheus_gets_its_text(frontend):
    status, headers, text = await scraped(frontend)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert headers["Vary"] == "Accept"
    names = {family.name for family in parse(text)}
    assert {"flux_frontend_ready", "process_cpu_seconds", "python_info"} <= names


async def test_or_open_metrics(frontend):
    _status, headers, text = await scraped(
        frontend, "application/openmetrics-text;version=1.0.0, text/plain;q=0.5"
    )
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert "flux_build" in {family.name for family in parse_open_metrics(text)}
    assert text.endswith("# EOF\n")


async def test_others_still_get_json(frontend):
    assert (await frontend.get("/metrics", headers={"Accept": "text/html, */*;q=0.8"}))[1][
        "grpc_alive"
    ] is True


async def test_a_call_is_counted_with_its_time_and_image(frontend):
    before = await values(frontend)
    answer = await frontend.generate()
    after = await values(frontend)
    assert before["flux_frontend_calls_total", "OK", "Generate"] == 0, "or rate() would miss the first"
    assert after["flux_frontend_calls_total", "OK", "Generate"] == 1
    assert after["flux_frontend_request_seconds_count", "OK"] == 1
    assert after["flux_frontend_image_bytes_sum",] == len(answer.image_png)
    assert after["flux_frontend_open_calls",] == 0


async def test_a_wrong_key_is_counted(frontend):
    with pytest.raises(grpc.aio.AioRpcError):
        await frontend.generate(metadata=(("api-key", "hush"),))
    found = await values(frontend)
    assert found["flux_frontend_refused_keys_total", "API_KEY_WRONG"] == 1
    assert "hush" not in str(found)


async def test_while_a_page_is_made_the_loop_goes_on_and_others_wait_for_the_same_one(frontend, monkeypatch):
    made, begun, may_end = [], asyncio.Event(), threading.Event()
    loop, make = asyncio.get_running_loop(), metrics_page.families

    def held(*sources):
        made.append(sources)
        loop.call_soon_threadsafe(begun.set)
        assert may_end.wait(10)
        return make(*sources)

    monkeypatch.setattr(metrics_page, "families", held)
    try:
        scrapes = [asyncio.create_task(scraped(frontend)) for _ in range(5)]
        await begun.wait()
        assert (await frontend.get("/healthz"))[0] == 200
        assert (await frontend.generate()).seed == 7
        assert not any(scrape.done() for scrape in scrapes)
        late = asyncio.create_task(scraped(frontend))
        assert (await frontend.get("/readyz"))[0] == 503, "the scrape before it has been received"
    finally:
        may_end.set()
    answers = [await scrape for scrape in (*scrapes, late)]
    assert {status for status, *_ in answers} == {200}
    assert len(made) <= 2, "one page, and a second one for who came too late for it"


async def test_a_bug_in_a_page_is_told_to_all_who_wait_and_the_next_one_is_made(frontend, monkeypatch):
    make = metrics_page.families
    monkeypatch.setattr(metrics_page, "families", None)
    answers = await asyncio.gather(scraped(frontend), scraped(frontend))
    assert {status for status, *_ in answers} == {500}
    monkeypatch.setattr(metrics_page, "families", make)
    assert (await scraped(frontend))[0] == 200


async def test_more_scrapes_than_allowed_are_refused_at_once(frontend, monkeypatch):
    monkeypatch.setattr(http, "MAX_SCRAPES", 0)
    async with frontend.http.get(f"http://127.0.0.1:{frontend.http_port}/metrics") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert await answer.json() == {"error": "0 scrapes are being answered already"}
    assert (await frontend.get("/healthz"))[0] == 200


async def test_a_client_that_does_not_read_is_given_no_more_than_it_takes_and_cut_off(frontend, monkeypatch):
    pieces, body, ended = [], bytes(64 * 1024 * 1024), asyncio.Event()
    write, send = web.StreamResponse.write, http._sent
    left = []

    async def counted(response, piece):
        await write(response, piece)
        pieces.append(len(piece))

    async def watched(request, *rest):
        transport = request.transport
        try:
            return await send(request, *rest)
        finally:
            left.append((transport.is_closing(), transport.get_write_buffer_size()))
            ended.set()

    async def large(*_):
        return body

    monkeypatch.setattr(web.StreamResponse, "write", counted)
    monkeypatch.setattr(http, "_sent", watched)
    monkeypatch.setattr(metrics_page.MetricsPage, "body", large)
    monkeypatch.setattr(http, "SEND_LIMIT_S", 0.3)
    with socket.create_connection(("127.0.0.1", frontend.http_port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await ended.wait()
    assert 0 < sum(pieces) < len(body) / 2, "the rest was never handed over"
    assert left == [(True, 0)], "nothing of it is kept for the client"
    assert (await frontend.get("/healthz"))[0] == 200


async def test_a_client_that_leaves_while_it_is_sent_a_page_is_no_bug(frontend, monkeypatch, log_lines):
    send, ended = http._sent, asyncio.Event()

    async def watched(*request):
        try:
            return await send(*request)
        finally:
            ended.set()

    async def large(*_):
        return bytes(64 * 1024 * 1024)

    monkeypatch.setattr(http, "_sent", watched)
    monkeypatch.setattr(metrics_page.MetricsPage, "body", large)
    _reader, writer = await asyncio.open_connection("127.0.0.1", frontend.http_port, limit=1024)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await _reader.readline()
    writer.transport.abort()
    async with asyncio.timeout(10):
        await ended.wait()
    assert (await frontend.get("/healthz"))[0] == 200
    assert log_lines.empty()


async def test_head_says_how_long_the_text_is_and_sends_none(frontend):
    request = b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", frontend.http_port)
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    assert b"text/plain; version=0.0.4" in head
    assert body == b""


# --- With a key ---------------------------------------------------------------------------------


@pytest.fixture
async def guarded(start_frontend):
    async with start_frontend(http_needs_key=True) as running:
        yield running


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer key-of-alice"},
        {"authorization": "bearer  key-of-bob"},
        {"API-Key": "key-of-alice"},
        {"api-key": "key-of-alice", "Authorization": "Bearer key-of-alice"},
        {"api-key": "key-of-alice", "Authorization": "Basic something else"},
    ],
)
async def test_metrics_are_for_those_with_a_key(guarded, headers):
    assert (await guarded.get("/metrics", headers=headers))[0] == 200


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ({}, "no API key: send it as 'Authorization: Bearer KEY' or 'api-key: KEY'"),
        ({"Authorization": "Basic key-of-alice"}, "no API key: send it as"),
        ({"Authorization": "Bearer "}, "the API key is not valid"),
        ({"Authorization": "Bearer hush"}, "the API key is not valid"),
        ({"api-key": "hüsh"}, "the API key is not valid"),
        ({"api-key": "key-of-alice", "Authorization": "Bearer key-of-bob"}, "more than one API key"),
    ],
)
async def test_others_get_a_401_that_says_how(guarded, headers, complaint):
    async with guarded.http.get(f"http://127.0.0.1:{guarded.http_port}/metrics", headers=headers) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        said = (await answer.json())["error"]
    assert said.startswith(complaint)
    assert "hush" not in said


async def test_a_refused_scrape_is_logged_without_its_key(guarded, log_lines):
    await guarded.get("/metrics", headers={"api-key": "hush"})
    line = await log_lines.get()
    assert (line["event"], line["method"], line["reason"]) == (
        "call refused",
        "GET /metrics",
        "API_KEY_WRONG",
    )
    assert "hush" not in str(line)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/nothing"])
async def test_probes_need_no_key(guarded, path):
    assert (await guarded.get(path))[0] in {200, 404, 503}
