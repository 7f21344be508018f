"""What was told of a data set by one set of subgroups is told by no other, nor of a state of it that a few make."""

from __future__ import annotations

import dataclasses

import pytest
from fedveil.envoy.datasets import DataOptions, inspect
from fedveil.envoy.fairness_book import BOOK_FILE, FairnessBook
from fedveil.envoy.splits import SplitRule
from fedveil.envoy.subgroups import Asked
from fedveil.utils.errors import StorageError

BY_SEX = Asked(("sex",), 10)


@pytest.fixture
def people(tmp_path):
    """Makes a data set of so many rows, of which every second is held out."""

    def make(rows: int):
        path = tmp_path / f"people-{rows}.csv"
        path.write_text("age,ill,part\n" + "".join(f"{n},{n % 2},{('train', 'test')[n % 2]}\n" for n in range(rows)))
        options = DataOptions(("0", "1"), None, "ill", ("age",), split_column="part", rule=SplitRule(0.8, 0.1, 0.1))
        found = inspect("people", path, options, 1.0)
        return found.record, found.index

    return make


def test_two_overlapping_sets_of_subgroups_of_one_data_set_are_not_both_told(tmp_path, people):
    record, index = people(100)
    assert FairnessBook(tmp_path).enter(record, index, BY_SEX) == ""
    assert FairnessBook(tmp_path).enter(record, index, BY_SEX) == ""
    for other in (Asked(("sex", "age_band"), 10), Asked((), 10), Asked(("sex",), 9), Asked(("sex",), 20)):
        assert "could be subtracted" in FairnessBook(tmp_path).enter(record, index, other)
    assert FairnessBook(tmp_path).enter(record, index, BY_SEX) == ""
    assert (tmp_path / BOOK_FILE).stat().st_mode & 0o777 == 0o600


def test_a_data_set_to_which_a_few_were_added_is_not_told_of_until_they_are_a_crowd(tmp_path, people):
    book = FairnessBook(tmp_path)
    assert book.enter(*people(100), BY_SEX) == ""
    assert "9 held-out examples" in book.enter(*people(118), BY_SEX)
    assert "9 held-out examples" in book.enter(*people(118), BY_SEX)  # asked again, it is the same
    assert book.enter(*people(120), BY_SEX) == ""
    assert "10 held-out" not in book.enter(*people(100), BY_SEX)  # as far apart again


def test_each_data_set_has_its_own_line(tmp_path, people):
    record, index = people(100)
    book = FairnessBook(tmp_path)
    assert book.enter(record, index, BY_SEX) == ""
    other = dataclasses.replace(record, name="others")
    assert book.enter(other, index, Asked(("age_band",), 10)) == ""
    assert "could be subtracted" in book.enter(record, index, Asked(("age_band",), 10))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"schema":"another","datasets":{}}', b"\xff"])
def test_a_damaged_book_lets_nothing_be_told(tmp_path, people, raw):
    (tmp_path / BOOK_FILE).write_bytes(raw)
    with pytest.raises(StorageError, match="damaged"):
        FairnessBook(tmp_path).enter(*people(100), BY_SEX)
