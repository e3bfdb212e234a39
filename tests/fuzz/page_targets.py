"""Whatever brokers say of the service: its pages can be made, and read."""

import json
from typing import Final

from fuzz.target import Finding, Target
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from samples import strategies as wire

from frontend.brokers import Standing
from frontend.call_tally import CallTally
from frontend.cluster import BrokerPicture, ServicePicture
from frontend.media_type import MediaType
from frontend.metric_families import FrontendPicture
from frontend.metrics_page import _Text, json_page
from frontend.status import HostLoad, metrics_response, service_status

THIS_HOST: Final = HostLoad(cpu_percent=1.0, ram_used_mb=1.0, gpu_used_mb=0.0)
OWN: Final = FrontendPicture(
    version="1", grpc_up=True, ready=True, open_calls=0, calls=CallTally().numbers(), refused_keys={}
)
pictures = st.builds(
    ServicePicture,
    brokers=st.lists(
        st.builds(
            BrokerPicture,
            broker_id=wire.names,
            endpoint=st.sampled_from(("tcp://a:1", "tcp://b:1")),
            standing=st.sampled_from(Standing),
            gets_calls=st.booleans(),
            snapshot=wire.optional(wire.snapshots),
            age_s=st.floats(0, 1e6),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda broker: broker.broker_id,
    ).map(tuple),
)


@settings(wire.REPEATABLE, max_examples=20)  # each makes four pages
@given(picture=pictures)
def pages_show(picture: ServicePicture) -> None:
    """Whatever brokers say, there is a page in each form, and it can be read."""
    json.loads(json_page(picture, THIS_HOST, grpc_alive=True), parse_constant=_no_json)
    metrics_response(service_status(picture)).SerializeToString()
    page = _Text()
    page.page(MediaType.OPEN_METRICS, OWN, picture)
    list(text_string_to_metric_families(page.page(MediaType.PROMETHEUS, OWN, picture).decode()))


def _no_json(constant: str) -> None:
    raise Finding(f"{constant} is no JSON")


TARGETS: Final = (
    Target(
        name="pages",
        judge=pages_show.hypothesis.fuzz_one_input,
        property_test=pages_show,
        modules=("frontend.status", "frontend.metric_families", "frontend.metrics_page"),
        share=0.1,
    ),
)
