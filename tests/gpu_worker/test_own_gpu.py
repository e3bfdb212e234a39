"""Each worker sees one GPU of its host, or none."""

import pytest

from gpu_worker.own_gpu import OwnGpu, own_gpu


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, OwnGpu("cpu", "")),
        ("cpu", "1,0", OwnGpu("cpu", "")),
        ("auto", None, OwnGpu("auto", "0")),
        ("cuda", None, OwnGpu("cuda", "0")),
        ("cuda:0", None, OwnGpu("cuda", "0")),
        ("cuda:1", None, OwnGpu("cuda", "1")),
        ("auto", "1,0", OwnGpu("auto", "1")),
        ("cuda", "3", OwnGpu("cuda", "3")),
        ("cuda:1", "1,0", OwnGpu("cuda", "0")),
        ("cuda:1", " 2 , 5 ", OwnGpu("cuda", "5")),
        ("cuda:1", "GPU-aa,GPU-bb", OwnGpu("cuda", "GPU-bb")),
        ("auto", "MIG-aa", OwnGpu("auto", "MIG-aa")),
        ("cuda:2", "1,0", OwnGpu("cuda", "")),
        ("cuda:1", "1,-1,0", OwnGpu("cuda", "")),
        ("cuda:2", "1,-1,0", OwnGpu("cuda", "")),
        ("auto", "", OwnGpu("auto", "")),
        ("auto", "-1", OwnGpu("auto", "")),
        ("GPU-bb", None, OwnGpu("cuda", "GPU-bb")),
        ("MIG-bb", "0", OwnGpu("cuda", "MIG-bb")),
    ],
)
def test_one_of_the_gpus_that_the_operator_allows(device: str, visible: str | None, expected: OwnGpu) -> None:
    assert own_gpu(device, visible) == expected


def test_two_workers_of_one_host_share_nothing() -> None:
    seen = {
        own_gpu(f"cuda:{number}", visible).visible for number in range(4) for visible in (None, "0,1,2,3")
    }
    assert seen == {"0", "1", "2", "3"}
