"""PROTOCOL.md tells the fields as they are."""

import re

from proto import messages
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
