"""The log format: one event a line, whoever writes it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from proto.logs import short_id

LIMIT_S = 30


def logged(code: str, log_format: str, level: str = "info") -> list[str]:
    """The lines that a process of its own writes: the configuration is for a whole process."""
    program = f"""
from proto.logs import configure_logging, short_id
configure_logging("example", {level!r}, {log_format!r})
import logging
import structlog
log = structlog.get_logger()
{textwrap.dedent(code)}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=True,
    )
    assert done.stdout == "", "logs belong to stderr"
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def events() -> list[dict]:
    lines = logged(
        """
        log.info("job started", job_id=short_id(bytes(range(16))), steps=4)
        log.warning("line\\nbreak", text="a\\nb\\u2028c")
        logging.getLogger("some.library").warning("from %s", "elsewhere")
        log.debug("not asked for")
        logging.getLogger("some.library").debug("not asked for")
        def fails(api_key):
            raise ValueError("went wrong")
        try:
            fails("key-in-a-local-variable")
        except ValueError:
            log.exception("job failed", job_id="-")
            logging.getLogger("some.library").exception("library failed")
        structlog.contextvars.bind_contextvars(job_id="bound")
        log.info("bound event")
        log.info("odd values", raw=b"\\xff", many=[1, {"a": None}], thing=object())
        """,
        "json",
    )
    return [json.loads(line) for line in lines]


def event_of(events: list[dict], name: str) -> dict:
    return next(event for event in events if event["event"] == name)


def test_an_event_is_a_line_of_json_with_its_facts(events):
    event = event_of(events, "job started")
    assert event["component"] == "example"
    assert event["level"] == "info"
    assert event["job_id"] == "000102030405060708090a0b0c0d0e0f"
    assert event["steps"] == 4
    assert event["timestamp"].endswith("Z")


def test_a_line_break_does_not_break_the_line(events):
    assert event_of(events, "line\nbreak")["text"] == "a\nb\u2028c"


def test_a_librarys_record_looks_like_ours(events):
    event = event_of(events, "from elsewhere")
    assert (event["component"], event["level"]) == ("example", "warning")


def test_what_is_below_the_level_is_not_written(events):
    assert not [event for event in events if event["event"] == "not asked for"]


@pytest.mark.parametrize("name", ["job failed", "library failed"])
def test_an_exception_is_one_line_without_local_variables(events, name):
    event = event_of(events, name)
    assert "ValueError: went wrong" in event["exception"]
    assert "in fails" in event["exception"]
    assert "key-in-a-local-variable" not in json.dumps(event)


def test_the_job_id_can_be_bound_to_a_call(events):
    assert event_of(events, "bound event")["job_id"] == "bound"


def test_no_value_is_too_odd_to_be_logged(events):
    assert event_of(events, "odd values")["many"] == [1, {"a": None}]


def test_the_console_format_is_for_people():
    lines = logged(
        """
        log.info("job started", job_id="abc")
        logging.getLogger("some.library").error("from a library")
        def fails(api_key):
            raise ValueError("went wrong")
        try:
            fails("key-in-a-local-variable")
        except ValueError:
            log.exception("job failed")
        """,
        "console",
    )
    assert "job started" in lines[0]
    assert "job_id=abc" in lines[0]
    assert not lines[0].startswith("{")
    assert "from a library" in lines[1]
    text = "\n".join(lines)
    assert "ValueError: went wrong" in text
    assert "key-in-a-local-variable" not in text


def test_where_nobody_looks_the_format_is_json():
    assert json.loads(logged('log.info("hello")', "auto")[0])["event"] == "hello"


def test_debug_shows_our_events_but_not_those_of_libraries():
    code = 'log.debug("ours"); logging.getLogger("some.library").debug("theirs")'
    assert [json.loads(line)["event"] for line in logged(code, "json", "debug")] == ["ours"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_log_that_nobody_reads_any_more_stops_nothing(log_format):
    code = """
        import os, sys
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        log.info("to a full disk")
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)
        log.warning("to nobody")
        logging.getLogger("some.library").error("neither")
        log.info("still running")
        os._exit(0)
        """
    assert logged(code, log_format) == []


def test_an_identifier_is_written_in_full():
    assert short_id(b"\xff" * 16) == "f" * 32
    assert short_id(None) == "-"
