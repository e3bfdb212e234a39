"""PROTOCOL.md tells the fields as they are, and its examples are what is sent."""

import re

from proto import messages
from proto.codec import decode, encode
from proto.failures import FailureCode
from proto.field_tables import BEGIN, DOCUMENT, field_tables, renewed


def test_the_tables_are_fresh():
    document = DOCUMENT.read_text()
    assert BEGIN in document
    assert renewed(document) == document, "run: python -m proto.field_tables"


def test_every_type_that_is_named_has_a_table():
    tables = field_tables()
    named = set(
        re.findall(r"\b[A-Z][a-z]+[A-Z][A-Za-z]+\b", re.sub(r"\| [^|]* \|$", "|", tables, flags=re.MULTILINE))
    )
    told = set(re.findall(r"^\*\*(\w+)\*\*", tables, flags=re.MULTILINE))
    assert named <= told


def test_limits_and_defaults_are_told():
    tables = field_tables()
    assert "| `height` | integer, ≥ 1, ≤ 8192 | required |" in tables
    assert "| `idempotency_hash` | id or nil | nil |" in tables
    assert f"| `cancel` | list of id, at most {messages.MAX_LISTED} | empty |" in tables


def test_each_failure_is_told_with_what_becomes_of_it():
    rows = dict(
        re.findall(
            r"^\| `([A-Z_]+)` \| [^|]+ (\| [^|]*\| [^|]*\| [^|]*\|)$", field_tables(), flags=re.MULTILINE
        )
    )
    assert rows.keys() == set(FailureCode)
    assert rows["ENGINE_HUNG"] == "| yes | yes | yes |"
    assert rows["OUT_OF_MEMORY"] == "| yes |  | yes |"
    assert rows["ENGINE_ERROR"] == "|  |  |  |"


def test_the_examples_are_what_is_sent():
    blocks = re.findall(r"^```\n([0-9a-f\s]+)^```$", DOCUMENT.read_text(), flags=re.MULTILINE)
    frames = [[bytes.fromhex(text) for text in block.split("\n", 1)] for block in blocks]
    report, view = map(decode, frames)
    assert isinstance(report, messages.WorkerReport)
    assert (report.worker_id, report.activity) == ("gpu-a0", "loading transformer")
    assert view == messages.WorkerView(
        broker_id="b1", epoch=bytes(range(0xF0, 0x100)), echo=report.seq, heartbeat_interval_ms=1000
    )
    assert decode(encode(report)) == report
