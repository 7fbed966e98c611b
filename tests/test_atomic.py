"""Files and folders that appear at once: what a failure, a kill and another writer leave."""

import threading

import pytest

from scalecov_jax.atomic import replacing


def write(path, text, shared=False):
    with replacing(path, shared=shared) as partial:
        partial.write_text(text)


def write_folder(path):
    with replacing(path) as partial:
        partial.mkdir()
        (partial / "whole").write_text("a")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as partial:
        partial.write_text("a")
        assert names(path.parent) == ["table.partial.csv"]
    assert path.read_text() == "a"
    write(path, "b")
    assert path.read_text() == "b"
    assert names(path.parent) == ["table.csv"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    write(path, "a")
    for shared in (False, True):
        with pytest.raises(UnicodeEncodeError):
            write(path, "half \udc80", shared)
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "a"
    assert names(tmp_path) == ["table.csv"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "table.partial.csv").write_text("hal")
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "half").write_text("hal")
    write(tmp_path / "table.csv", "a")
    write_folder(tmp_path / "set")
    assert names(tmp_path) == ["set", "table.csv"]
    assert names(tmp_path / "set") == ["whole"]


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "precious").write_text("a")
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "set")
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["precious"]


def test_several_writers_of_a_shared_file(tmp_path):
    path, together = tmp_path / "features.npz", threading.Barrier(4)

    def writer(text):
        with replacing(path, shared=True) as partial:
            together.wait(10)
            partial.write_text(text)
            together.wait(10)

    threads = [threading.Thread(target=writer, args=(text * 1000,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in {text * 1000 for text in "abcd"}
    assert names(tmp_path) == ["features.npz"]
