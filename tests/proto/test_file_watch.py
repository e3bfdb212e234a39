"""Files that are noticed to have changed."""

import asyncio

import pytest

from proto.file_watch import FileWatch


@pytest.fixture
def files(tmp_path):
    files = [tmp_path / name for name in ("one", "two")]
    for each in files:
        each.write_text("old")
    return files


@pytest.fixture
async def watch(files):
    """Does not look by itself: `look` does."""
    changes = []
    watch = FileWatch(files, lambda: changes.append(len(changes)), look_s=3600)
    watch.changes = changes
    yield watch
    watch.close()


async def test_what_stays_is_no_change(watch):
    for _ in range(3):
        watch._look()
    assert watch.changes == []


def replace(path):
    new = path.with_suffix(".new")
    new.write_text("old")
    new.rename(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("longer"),
        lambda path: path.unlink(),
        lambda path: path.chmod(0o400),
        replace,
    ],
)
async def test_a_change_is_told_once_when_it_is_over(watch, files, change):
    change(files[1])
    watch._look()
    assert watch.changes == []
    watch._look()
    watch._look()
    assert watch.changes == [0]


async def test_a_file_that_is_being_written_is_waited_for(watch, files):
    for length in range(1, 5):
        files[0].write_text("more and " * length)
        watch._look()
    assert watch.changes == []
    watch._look()
    assert watch.changes == [0]


async def test_it_looks_by_itself(files):
    changed = asyncio.Event()
    watch = FileWatch(files, changed.set, look_s=0.001)
    files[0].unlink()
    async with asyncio.timeout(15):
        await changed.wait()
    watch.close()
