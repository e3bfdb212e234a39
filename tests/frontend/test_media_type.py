"""Which form of /metrics a client gets."""

import pytest

from frontend.media_type import MediaType, wanted_type

JSON, OPEN_METRICS, PROMETHEUS = MediaType.JSON, MediaType.OPEN_METRICS, MediaType.PROMETHEUS

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_TEXT_ONLY = "text/plain;version=0.0.4;q=0.6,*/*;q=0.1"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        ([BROWSER], JSON),
        (["application/json"], JSON),
        (["application/*"], JSON),
        (["text/plain, application/json"], JSON),
        (["application/json;q=0.5, text/plain;q=0.5"], JSON),
        (["image/png"], JSON),
        (["text/plain"], PROMETHEUS),
        (['TEXT/Plain ; Version="0.0.4"'], PROMETHEUS),
        (["text/*"], PROMETHEUS),
        (["text/plain;q=0.9, application/json;q=0.899"], PROMETHEUS),
        (["application/json;q=0, */*"], OPEN_METRICS),
        (["application/json;q=0", "text/plain"], PROMETHEUS),
        (["*/*;q=0.1, text/plain;q=0.2"], PROMETHEUS),
        (["*/*, text/plain;q=0.2, application/openmetrics-text;q=0"], JSON),
        (["application/openmetrics-text"], OPEN_METRICS),
        (["application/openmetrics-text, text/plain"], OPEN_METRICS),
        (["application/openmetrics-text;version=0.0.1, text/plain;q=0.1"], PROMETHEUS),
        (["text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6, */*;q=0.1"], PROMETHEUS),
        (["text/plain;version=1.0.0, text/plain;version=0.0.4;q=0"], JSON),
        (["text/plain;version=0.0.4;q=0.2, application/json;q=0.5, text/plain;version=1.0.0"], JSON),
        (["text/plain;version=2.0.0"], JSON),
        ([PROMETHEUS_2], OPEN_METRICS),
        ([PROMETHEUS_3], OPEN_METRICS),
        ([PROMETHEUS_TEXT_ONLY], PROMETHEUS),
    ],
)
def test_the_form_with_the_highest_quality(accept, wanted):
    assert wanted_type(accept) is wanted


@pytest.mark.parametrize("quality", ["nan", "inf", "-1", "1.1", "0.1234", "1e-1", "", "x", "0,5"])
def test_a_malformed_entry_is_left_out(quality):
    assert wanted_type([f"text/plain;q={quality}"]) in {JSON, PROMETHEUS if quality == "0,5" else JSON}
    assert wanted_type([f"text/plain;q={quality}, application/openmetrics-text;q=0.1"]) is OPEN_METRICS


@pytest.mark.parametrize("accept", [",", ";", ";;,=", "*", "/", "text", "a/b;q=1;q=0"])
def test_nonsense_gets_json(accept):
    assert wanted_type([accept]) is JSON


def test_each_form_says_what_it_is():
    for media_type in MediaType:
        name, versions, content_type = media_type.value
        assert content_type.startswith(name)
        assert all(f"version={version};" in content_type for version in versions[:1])
        assert "charset=utf-8" in content_type
