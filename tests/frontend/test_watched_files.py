"""Files are read again when they have changed, and what cannot be used changes nothing."""

import pytest
from structlog.testing import capture_logs

from frontend.operator_files import FileUnusable
from frontend.watched_files import WatchedFiles


class Loader:
    def __init__(self):
        self.loads = 0
        self.problem = ""

    def __call__(self):
        if self.problem:
            raise FileUnusable(self.problem)
        self.loads += 1


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("1")
    return paths


@pytest.fixture
def load():
    return Loader()


def test_they_are_read_at_once_and_not_again_while_nothing_changes(files, load):
    watched = WatchedFiles("files", files, load)
    for _ in range(3):
        watched.look()
    assert load.loads == 1


def test_what_cannot_be_used_at_first_is_raised(files, load):
    load.problem = "broken"
    with pytest.raises(FileUnusable, match="broken"):
        WatchedFiles("files", files, load)


@pytest.mark.parametrize("number", [0, 1])
def test_a_change_is_taken_when_it_has_come_to_rest(files, load, number):
    watched = WatchedFiles("files", files, load)
    for size in (2, 3):
        files[number].write_text("x" * size)
        watched.look()
    assert load.loads == 1, "it still changes"
    with capture_logs() as lines:
        watched.look()
        watched.look()
    assert load.loads == 2
    assert [line["event"] for line in lines] == ["files read again"]


def test_another_file_of_the_same_size_is_a_change(files, load):
    watched = WatchedFiles("files", files, load)
    new = files[0].with_name("new")
    new.write_text("2")
    new.replace(files[0])
    watched.look()
    watched.look()
    assert load.loads == 2


def test_a_broken_change_is_said_once_and_its_repair_is_noticed(files, load):
    watched = WatchedFiles("files", files, load)
    load.problem = "line 3: broken"
    files[0].write_text("broken")
    with capture_logs() as lines:
        for _ in range(4):
            watched.look()
    assert [(line["log_level"], line["what"], line["problem"]) for line in lines] == [
        ("error", "files", "line 3: broken")
    ]
    load.problem = ""
    files[0].write_text("1")
    watched.look()
    watched.look()
    assert load.loads == 2


def test_a_file_that_is_gone_is_a_change(files, load):
    watched = WatchedFiles("files", files, load)
    load.problem = "gone"
    files[1].unlink()
    with capture_logs() as lines:
        watched.look()
        watched.look()
    assert len(lines) == 1


def test_on_request_they_are_read_even_without_a_change(files, load):
    watched = WatchedFiles("files", files, load)
    watched.read_again()
    watched.read_again()
    watched.look()
    assert load.loads == 3
