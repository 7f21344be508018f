"""A table in a README is the command's; all around it is people's."""

import pytest
from fedveil.utils.errors import StorageError
from fedveil.workspace.benchmarks.marked_text import put_between_markers

TEXT = "# Title\n\n<!-- begin table -->\nold\n<!-- end table -->\n\nafter\n"


def test_only_what_stands_between_the_markers_is_replaced_and_a_second_time_nothing_changes(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(TEXT, "utf-8")
    put_between_markers(path, "table", ["| a |", "|---|"])
    written = path.read_text("utf-8")
    assert written == "# Title\n\n<!-- begin table -->\n\n| a |\n|---|\n\n<!-- end table -->\n\nafter\n"
    put_between_markers(path, "table", ["| a |", "|---|"])
    assert path.read_text("utf-8") == written
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "text", ["no marker\n", "<!-- begin table -->\n", TEXT + TEXT, "<!-- end table --> <!-- begin table -->"]
)
def test_a_file_without_a_place_for_the_table_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text, "utf-8")
    with pytest.raises(StorageError, match="<!-- begin table -->"):
        put_between_markers(path, "table", [])
    assert path.read_text("utf-8") == text


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        put_between_markers(tmp_path / "README.md", "table", [])
