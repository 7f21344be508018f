"""What is said in a secure sum is on disk before it counts, in order, and torn lines did not happen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedveil.director.sum_log import EVENTS_FILE, Event, SumLog, Way
from fedveil.utils.errors import StorageError
from fedveil.utils.messages import EnvoyName, RunId, TaskRef
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REF = TaskRef(RunId("toy-1"), 2, 1, "ab" * 32)
A = EnvoyName("site-a")
events = st.one_of(
    st.builds(Event, st.just(Way.UP), st.sampled_from(["advert", "shares"]), st.just(A), st.binary(max_size=200)),
    st.builds(
        lambda stage, names, content: Event(Way.HERE, stage, "", content, tuple(names)),
        st.sampled_from(["advert", "declined"]),
        st.lists(st.just(A), max_size=2),
        st.binary(max_size=20),
    ),
)


def opened(folder: Path, *, keep: bool = False) -> SumLog:
    return SumLog(folder / "sums", REF, durable=False, keep=keep)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(events, max_size=6), torn=st.integers(0, 400))
def test_what_was_written_comes_back_in_order_and_a_torn_end_did_not_happen(tmp_path_factory, said, torn: int):
    folder = tmp_path_factory.mktemp("log")
    log = opened(folder)
    for event in said:
        log.append(event, 1.5)
    log.close()
    path = folder / "sums" / "toy-1" / "2-1" / EVENTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - torn, 0)])
    left = path.read_bytes().count(b"\n")
    again = opened(folder)
    assert again.replay() == said[:left]
    again.append(Event(Way.UP, "advert", A, b"later"), 2.0)  # behind what is whole
    assert again.replay() == [*said[:left], Event(Way.UP, "advert", A, b"later")]
    again.close()


def test_a_line_that_is_no_event_is_not_skipped(tmp_path: Path):
    log = opened(tmp_path)
    log.append(Event(Way.UP, "advert", A, b"x"), 1.0)
    path = tmp_path / "sums" / "toy-1" / "2-1" / EVENTS_FILE
    path.write_bytes(b'{"way": "sideways"}\n' + path.read_bytes())
    with pytest.raises(StorageError, match="is no event of a secure sum"):
        log.replay()
    log.close()


def test_what_went_down_is_kept_for_auditors_alone(tmp_path: Path):
    for keep, count in ((False, 0), (True, 1)):
        log = opened(tmp_path / str(keep), keep=keep)
        log.append(Event(Way.DOWN, "shares", A, b"x"), 1.0)
        assert len(log.replay()) == count
        log.close()


def test_nothing_stays_behind_but_where_sums_are_kept(tmp_path: Path):
    log = opened(tmp_path)
    log.append(Event(Way.UP, "advert", A, b"x"), 1.0)
    log.end({"outcome": "opened"})
    assert not list((tmp_path / "sums").iterdir())
    (tmp_path / "site-a.spool").write_bytes(b"head" + bytes(range(8)) + b"old")
    kept = opened(tmp_path, keep=True)
    kept.keep_vectors([(A, tmp_path / "site-a.spool", 4, 8)])
    kept.end({"outcome": "opened"})
    folder = tmp_path / "sums" / "toy-1" / "2-1"
    assert json.loads((folder / "sum.json").read_bytes()) == {"outcome": "opened"}
    assert (folder / "site-a.masked").read_bytes() == bytes(range(8))
