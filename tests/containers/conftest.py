"""The images, built once, and a client outside the containers."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers.engine import Container, Engine, require_means
from containers.images import collect_wheels, make_base, without_model

SOURCE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Kept for the next run, with all layers, by whoever names a folder for it."""
    require_means()
    return Path(os.environ.get("FLUX_CONTAINERS_CACHE") or tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def engine(cache) -> Engine:
    return Engine(cache)


@pytest.fixture(scope="session")
def wheels(cache) -> Path:
    return collect_wheels(SOURCE, cache)


@pytest.fixture(scope="session")
def image(cache, engine, wheels, tmp_path_factory) -> Callable[[str], str]:
    """Builds the image of a target when it is asked for; `full`: with the model's libraries."""
    make_base(engine, cache)
    lean = without_model(SOURCE, tmp_path_factory.mktemp("lean") / "source")

    def build(target: str, *, full: bool = False) -> str:
        source, tag = (SOURCE, "full") if full else (lean, "latest")
        return engine.build(source, target, wheels=wheels, tag=tag)

    return functools.cache(build)


@pytest.fixture
def start(engine, image, request) -> Iterator[Callable[..., Container]]:
    """Starts a container of a target; all are removed at the end. A failure's report has what they wrote."""
    started: list[Container] = []

    def begin(name: str, target: str, *options: str, full: bool = False) -> Container:
        container = engine.start(f"flux-{os.getpid()}-{name}", image(target, full=full), *options)
        started.append(container)
        return container

    yield begin
    for container in started:
        request.node.add_report_section("teardown", container.name, container.logs[-6000:])
        container.remove()


@pytest.fixture(scope="session", autouse=True)
def enough_room(cache) -> None:
    free_gb = shutil.disk_usage(cache if cache.exists() else "/").free / 1e9
    assert free_gb > 15, f"images need up to 15 GB, {free_gb:.0f} GB are free"
