"""What was trained is remembered, over any end of the process."""

import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from fedveil.envoy.journal import FinishedWork, Journal, read_outbox
from fedveil.envoy.orders import WorkResult
from fedveil.envoy.promises import Row
from fedveil.utils.errors import StorageError
from fedveil.utils.messages import PayloadKind, TaskRef
from fedveil.utils.metrics import auc_of, mean_of
from hypothesis import given, settings
from hypothesis import strategies as st

PLAN = "ab" * 32
REF = TaskRef("lungs-1", 1, 1, PLAN)
OTHERS = [
    TaskRef("lungs-2", 1, 1, PLAN),
    TaskRef("lungs-1", 2, 1, PLAN),
    TaskRef("lungs-1", 1, 2, PLAN),
    TaskRef("lungs-1", 1, 1, "cd" * 32),
]
RESULT = WorkResult(17, (mean_of("loss", 1.25, 17), auc_of("auc", [0.1, 0.9], [0, 1])))
DIGEST = "ef" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "envoy.sqlite"


@pytest.fixture
def journal(path):
    made = Journal(path)
    yield made
    made.close()


def test_finished_work_is_found_again_and_for_its_task_alone(journal):
    done = journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    assert journal.finished(REF) == done
    assert (done.result, done.digest, done.length, done.is_received) == (RESULT, DIGEST, 400, False)
    assert [journal.finished(ref) for ref in OTHERS] == [None] * 4


def test_finished_work_survives_the_process(path, journal):
    journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    again = Journal(path)  # the first was not closed: a kill -9
    assert again.finished(REF).result == RESULT
    again.close()


def test_an_evaluation_has_no_update(journal):
    assert journal.finish(FinishedWork(REF, RESULT)).digest is None
    assert journal.finished(REF).digest is None


def test_a_receipt_is_kept_and_counted(journal):
    assert journal.count() == (0, None)
    journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    assert journal.count() == (0, None)
    journal.receive(REF)
    number, last = journal.count()
    assert number == 1
    assert last > 0
    assert journal.finished(REF).is_received


def test_work_that_was_not_received_is_forgotten_when_its_file_is_written_over(journal):
    journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    journal.finish(FinishedWork(OTHERS[0], RESULT, DIGEST, 400))
    assert journal.finished(REF) is None
    journal.receive(OTHERS[0])
    journal.finish(FinishedWork(OTHERS[1], RESULT, DIGEST, 400))
    assert journal.finished(OTHERS[0]).is_received


def test_work_may_be_done_anew(journal):
    journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    journal.finish(FinishedWork(REF, RESULT, "01" * 32, 400))
    assert journal.finished(REF).digest == "01" * 32


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.builds(
            mean_of,
            st.text("abc", min_size=1, max_size=3),
            st.floats(-1e300, 1e300),
            st.floats(0, 1e9),
        ),
        max_size=4,
    ),
    st.integers(0, 1 << 40),
)
def test_every_result_comes_back_as_it_was(tmp_path_factory, metrics, number):
    journal = Journal(tmp_path_factory.mktemp("journal") / "x.sqlite")
    result = WorkResult(number, tuple(metrics))
    journal.finish(FinishedWork(REF, result, None, 0))
    assert journal.finished(REF).result == result
    journal.close()


def test_threads_share_it(journal):
    refs = [TaskRef("lungs-1", number, 1, PLAN) for number in range(1, 21)]

    def work(ref):
        for _ in range(5):
            journal.finished(ref)
            journal.count()

    journal.finish(FinishedWork(refs[0], RESULT, DIGEST, 4))
    threads = [threading.Thread(target=work, args=(ref,)) for ref in refs]
    for thread in threads:
        thread.start()
    for ref in refs:
        journal.finish(FinishedWork(ref, RESULT, DIGEST, 4))
        journal.receive(ref)
    for thread in threads:
        thread.join(60.0)
    assert journal.count()[0] == 20


@pytest.mark.parametrize("content", [b"this is no database, " * 200, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_journal_is_said_so(path, content):
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"the journal .*envoy.sqlite cannot be used"):
        Journal(path)


def test_a_journal_of_a_newer_program_is_left_alone(path):
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="newer fedveil"):
        Journal(path)


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(StorageError, match="cannot be used"):
        Journal(tmp_path / "nowhere" / "envoy.sqlite")


def test_a_full_disk_is_said_and_what_was_written_stays(journal):
    journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    journal.receive(REF)
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages + 1}")
    large = WorkResult(1, tuple(auc_of(f"auc-{number}", [0.5], [1]) for number in range(8)))
    with pytest.raises(StorageError, match=r"cannot be written: .*full"):
        journal.finish(FinishedWork(OTHERS[0], large, DIGEST, 400))
    assert journal.finished(REF).is_received
    assert journal.finished(OTHERS[0]) is None
    journal._database.execute("PRAGMA max_page_count = 1000000")
    journal.finish(FinishedWork(OTHERS[0], large, DIGEST, 400))
    assert journal.finished(OTHERS[0]).result == large


def test_a_journal_that_another_process_holds_is_said_and_can_be_used_afterwards(path, journal):
    journal._database.execute("PRAGMA busy_timeout = 1")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"cannot be written: .*locked"):
        journal.finish(FinishedWork(REF, RESULT, DIGEST, 400))
    holder.execute("ROLLBACK")
    holder.close()
    assert not journal.finish(FinishedWork(REF, RESULT, DIGEST, 400)).is_received


# what left


CODED = FinishedWork(REF, RESULT, DIGEST, 40, PayloadKind.CODED, "cd" * 32, "check, encode, clip 1", "payload.f32")


def test_whatever_is_made_ready_is_in_the_outbox_at_once_and_its_receipt_later(journal):
    journal.finish(CODED, score=0.01, has_noise=True)
    (row,) = journal.departures()
    assert (row.ref, row.kind, row.num_bytes, row.digest, row.codec) == (REF, "coded", 40, DIGEST, "cd" * 32)
    assert (row.chain, row.has_noise, row.score, row.metrics) == (CODED.chain, True, 0.01, ("loss", "auc"))
    assert (row.num_examples, row.is_withheld, row.received_at) == (17, False, None)
    journal.receive(REF)
    assert journal.departures()[0].received_at >= row.ready_at


def test_the_journal_gives_back_what_it_was_given(journal):
    journal.finish(CODED)
    assert journal.finished(REF) == CODED


def test_a_second_answer_to_a_task_is_a_second_row_and_the_receipt_is_the_latters(journal):
    journal.finish(CODED)
    journal.finish(FinishedWork(REF, RESULT, "01" * 32, 40))
    journal.receive(REF)
    assert [row.received_at is None for row in journal.departures()] == [True, False]


def test_the_outbox_forgets_nothing_that_the_journal_forgets(journal):
    for ref in OTHERS:
        journal.finish(FinishedWork(ref, RESULT, DIGEST, 400))
    assert [journal.finished(ref) is None for ref in OTHERS] == [True, True, True, False]
    assert [row.ref for row in journal.departures()] == OTHERS


def test_noise_that_was_drawn_is_remembered_also_when_its_answer_is_forgotten(journal):
    journal.finish(CODED, has_noise=True)
    journal.finish(FinishedWork(OTHERS[0], RESULT, DIGEST, 400))
    assert journal.finished(REF) is None
    assert [journal.drew_noise(ref) for ref in (REF, *OTHERS)] == [True, False, False, False, False]


def test_zeros_of_weight_zero_are_told_from_the_answer_to_an_evaluation(journal):
    journal.finish(FinishedWork(REF, WorkResult(0, ()), DIGEST, 400))
    journal.finish(FinishedWork(OTHERS[0], RESULT))
    withheld, metrics = journal.departures()
    assert (withheld.kind, withheld.is_withheld, metrics.kind, metrics.is_withheld) == ("plain", True, "metrics", False)


def test_a_journal_of_the_first_version_is_taken_over_without_what_passed_no_chain(path):
    database = sqlite3.connect(path)
    database.executescript(_VERSION_1)
    row = (*REF_KEY, '{"num_examples": 17, "metrics": []}', DIGEST, 400, 1.0)
    database.execute("INSERT INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, 2.0)", row)
    database.execute("INSERT INTO work VALUES (?, 2, ?, ?, ?, ?, ?, ?, NULL)", (row[0], *row[2:]))
    database.commit()
    database.close()
    journal = Journal(path)
    assert journal.finished(REF) == FinishedWork(REF, WorkResult(17, ()), DIGEST, 400, is_received=True)
    assert journal.finished(OTHERS[1]) is None
    assert journal.departures() == []
    journal.finish(CODED)
    journal.close()
    assert [row.kind for row in read_outbox(path.parent)] == ["coded"]


def test_an_outbox_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(StorageError, match=r"no envoy\.sqlite: no envoy has worked there yet"):
        read_outbox(tmp_path)


REF_KEY = (REF.run, REF.round, REF.attempt, REF.plan)
_VERSION_1 = """
CREATE TABLE work (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, plan TEXT NOT NULL, result TEXT NOT NULL,
    digest TEXT NOT NULL, length INTEGER NOT NULL, finished_at REAL NOT NULL, received_at REAL,
    PRIMARY KEY (run, round, attempt, plan)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_VERSION_2 = """
CREATE TABLE work (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, plan TEXT NOT NULL, result TEXT NOT NULL,
    digest TEXT NOT NULL, length INTEGER NOT NULL, finished_at REAL NOT NULL, received_at REAL,
    kind TEXT NOT NULL DEFAULT 'plain', codec TEXT NOT NULL DEFAULT '', chain TEXT NOT NULL DEFAULT '',
    file TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (run, round, attempt, plan)
) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, ready_at REAL NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    attempt INTEGER NOT NULL, plan TEXT NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL, digest TEXT NOT NULL,
    codec TEXT NOT NULL, chain TEXT NOT NULL, has_noise INTEGER NOT NULL, score REAL, metrics TEXT NOT NULL,
    num_examples INTEGER NOT NULL, received_at REAL
) STRICT;
PRAGMA user_version = 2;
"""


def test_a_journal_of_the_second_version_is_taken_over_with_all_its_work(path):
    database = sqlite3.connect(path)
    database.executescript(_VERSION_2)
    row = (*REF_KEY, '{"num_examples": 17, "metrics": []}', DIGEST, 400, 1.0, None, "coded", "cd" * 32, "check", "f")
    database.execute(f"INSERT INTO work VALUES ({', '.join('?' * len(row))})", row)
    database.commit()
    database.close()
    journal = Journal(path)
    expected = FinishedWork(REF, WorkResult(17, ()), DIGEST, 400, PayloadKind.CODED, "cd" * 32, "check", "f")
    assert journal.finished(REF) == expected
    assert not journal.finished(REF).is_summed
    assert journal.promised(REF.run) == []
    journal.promise(PROMISE)
    journal.close()


# secure sums

MODEL = "12" * 32
SUMMED = FinishedWork(REF, RESULT, DIGEST, 400, file="update.f32", chain="check", model=MODEL, is_summed=True)
PROMISE = Row(REF.run, 1, 1, MODEL, DIGEST, '{"masked": true}')


def test_what_is_under_masks_is_in_the_outbox_once_masked_words_are_about_to_leave(journal):
    journal.finish(SUMMED, score=0.02, has_noise=True)
    assert journal.departures() == []
    journal.depart(SUMMED, 4096, "secure sum of 4, threshold 3", PROMISE)
    (row,) = journal.departures()
    assert (row.kind, row.num_bytes, row.digest, row.score, row.has_noise) == ("masked", 4096, DIGEST, 0.02, True)
    assert row.chain == "check, secure sum of 4, threshold 3"
    assert not row.is_withheld
    assert journal.promised(REF.run) == [PROMISE]
    journal.receive(REF)
    assert journal.departures()[0].received_at is not None


def test_masked_metrics_are_no_withheld_update(journal):
    done = FinishedWork(REF, WorkResult(0, RESULT.metrics), is_summed=True)
    journal.finish(done)
    journal.depart(done, 64, "secure sum of 4, threshold 3", PROMISE)
    (row,) = journal.departures()
    assert (row.kind, row.is_withheld, row.chain) == ("masked metrics", False, "secure sum of 4, threshold 3")


def test_work_of_an_earlier_attempt_with_the_same_model_serves_a_later_one_and_no_other(journal):
    journal.finish(SUMMED, score=0.02, has_noise=True)
    second = TaskRef(REF.run, 1, 2, PLAN)
    assert journal.finished_before(second, "34" * 32) is None
    assert journal.finished_before(TaskRef(REF.run, 2, 1, PLAN), MODEL) is None
    assert journal.finished_before(REF, MODEL) is None
    taken = journal.take_over(journal.finished_before(second, MODEL), second)
    assert (taken.ref, taken.trained_ref, taken.digest) == (second, REF, DIGEST)
    assert journal.finished(second) == taken
    third = TaskRef(REF.run, 1, 3, PLAN)
    again = journal.take_over(journal.finished_before(third, MODEL), third)
    assert again.trained_ref == REF
    journal.depart(again, 4096, "secure sum", PROMISE)
    assert (journal.departures()[-1].score, journal.departures()[-1].has_noise) == (0.02, True)


def test_masked_words_that_the_director_has_are_known_by_their_digest(journal):
    journal.finish(SUMMED)
    journal.left_masked(REF, "56" * 32, 4096)
    done = journal.finished(REF)
    assert (done.masked_digest, done.masked_length) == ("56" * 32, 4096)
    assert journal.unreceived(REF.run) == [done]


def test_a_promise_takes_the_place_of_what_the_attempt_promised_before_and_is_read_by_run(journal):
    later = Row(REF.run, 1, 1, MODEL, DIGEST, '{"consented": []}')
    other = Row("lungs-2", 1, 1, MODEL, DIGEST, "{}")
    second = Row(REF.run, 2, 1, MODEL, DIGEST, "{}")
    for row in (second, PROMISE, other, later):
        journal.promise(row)
    assert journal.promised(REF.run) == [later, second]


def test_a_promise_is_on_the_disk_before_it_is_given_and_other_work_need_not_be(journal):
    """SQLite's FULL: the log of a transaction has been through an fsync when it is over."""
    said = []
    journal._database.set_trace_callback(lambda text: said.append(text) if "synchronous" in text else None)
    journal.promise(PROMISE)
    journal.depart(SUMMED, 1, "", PROMISE)
    journal.finish(SUMMED)
    assert [text.rpartition(" ")[2] for text in said] == ["FULL", "FULL", "NORMAL"]


PROMISING = """
import os, signal, sys
from pathlib import Path
from fedveil.envoy.journal import Journal
from fedveil.envoy.promises import Row
journal = Journal(Path(sys.argv[1]))
journal.promise(Row("lungs-1", 1, 1, "m", "p", "said"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_promise_outlives_a_kill(path):
    done = subprocess.run([sys.executable, "-c", PROMISING, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(path)
    assert journal.promised("lungs-1") == [Row("lungs-1", 1, 1, "m", "p", "said")]
    journal.close()


# the secret of the noise in a secure sum

NOISED = replace(SUMMED, noise_secret=bytes(range(32)))


def test_the_secret_of_the_noise_lives_as_long_as_the_payload_and_no_longer(journal, path):
    journal.finish(NOISED)
    journal.receive(REF)  # the round may be tried again all the same
    assert journal.finished(REF).noise_secret == bytes(range(32))
    second = replace(REF, attempt=2)
    assert journal.take_over(NOISED, second).noise_secret == journal.finished(second).noise_secret == bytes(range(32))
    journal.finish(replace(SUMMED, ref=replace(REF, round=2)))
    assert journal.finished(REF).noise_secret is None
    journal.close()
    assert bytes(range(32)) not in path.read_bytes()
    assert not path.with_name(f"{path.name}-wal").exists()


def test_nobody_else_reads_the_journal(journal, path):
    journal.finish(NOISED)
    assert {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir() if path.name in one.name} == {
        path.name: 0o600,
        f"{path.name}-wal": 0o600,
        f"{path.name}-shm": 0o600,
    }


def test_a_journal_that_others_could_read_is_closed_to_them(path):
    Journal(path).close()
    path.chmod(0o644)
    Journal(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_secret_is_in_no_repr():
    assert "noise_secret" not in repr(NOISED)


def test_a_journal_of_the_third_version_is_taken_over_with_all_its_work(path, journal):
    journal.finish(SUMMED)
    journal.close()
    database = sqlite3.connect(path)
    database.executescript("ALTER TABLE work DROP COLUMN noise_secret; PRAGMA user_version = 3;")
    database.close()
    after = Journal(path)
    assert after.finished(REF) == SUMMED
    after.finish(NOISED)
    assert after.finished(REF) == NOISED
    after.close()
