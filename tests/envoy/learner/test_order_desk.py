"""Orders wait for somebody: nothing is trained before it is asked for, and nothing leaves before it is handed in."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.learner.order_desk import OrderDesk
from fedveil.envoy.orders import WorkOrder, WorkResult
from fedveil.utils import messages as m
from fedveil.utils.errors import NotApprovedError, TrainingError, UnreachableError
from fedveil.utils.tensors import digest_of

REF = m.TaskRef(m.RunId("study-1"), 3, 1, digest_of(b"plan"))
UPDATE = np.arange(6, dtype=np.float32)


class Boxed:
    """Writes an update as a plan's process does, and keeps its file open afterwards."""

    def __init__(self):
        self.runs, self.held, self.failure = 0, None, None

    def run(self, order, timeout_seconds, cancelled):
        self.runs += 1
        if self.failure is not None:
            raise self.failure
        if order.kind is m.TaskKind.TRAIN:
            order.update_path.write_bytes(UPDATE.tobytes())
            self.held = order.update_path.open("r+b")
        return WorkResult(17, ())

    def warm_up(self):
        pass

    def close(self):
        if self.held is not None:
            self.held.close()


@pytest.fixture
def boxed():
    made = Boxed()
    yield made
    made.close()


@pytest.fixture
def desk(boxed):
    made = OrderDesk(boxed)
    yield made
    made.close()


def order(folder: Path, kind=m.TaskKind.TRAIN, ref=REF) -> WorkOrder:
    return WorkOrder(
        ref, kind, bytes(32), m.EnvoyName("a"), folder, None, None, folder / "m", folder / "update.f32", folder
    )


class Session(threading.Thread):
    """Asks the desk as a session does."""

    def __init__(self, desk, wanted, seconds=60.0):
        super().__init__(daemon=True)
        self.desk, self.wanted, self.seconds = desk, wanted, seconds
        self.cancelled, self.answer, self.error = threading.Event(), None, None
        self.start()

    def run(self):
        try:
            self.answer = self.desk.run(self.wanted, self.seconds, self.cancelled)
        except TrainingError as error:
            self.error = error


def lying(desk):
    deadline = time.monotonic() + 60
    while (found := desk.order) is None and time.monotonic() < deadline:
        desk.wait(0.01)
    assert found is not None
    return found


def test_a_round_is_trained_once_when_asked_and_what_was_handed_in_is_what_leaves(desk, boxed, tmp_path):
    session = Session(desk, order(tmp_path))
    found = lying(desk)
    assert boxed.runs == 0
    result, vector = desk.trained(found)
    again = desk.trained(found)
    assert (boxed.runs, result.num_examples) == (1, 17)
    np.testing.assert_array_equal(vector, UPDATE)
    vector[:] = 0
    np.testing.assert_array_equal(again[1], UPDATE)  # each caller has its own
    assert session.is_alive()
    desk.hand_in(found, UPDATE * 2)
    session.join(30)
    assert session.answer == WorkResult(17, ())
    np.testing.assert_array_equal(np.fromfile(tmp_path / "update.f32", np.float32), UPDATE * 2)
    assert desk.order is None


def test_a_plans_process_that_still_holds_its_file_cannot_change_what_was_handed_in(desk, boxed, tmp_path):
    session = Session(desk, order(tmp_path))
    found = lying(desk)
    desk.trained(found)
    desk.hand_in(found, UPDATE * 2)
    session.join(30)
    boxed.held.seek(0)
    boxed.held.write(bytes(24))
    boxed.held.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "update.f32", np.float32), UPDATE * 2)
    assert (tmp_path / "update.f32").stat().st_mode & 0o777 == 0o600


def test_an_evaluation_waits_for_nobody(desk, boxed, tmp_path):
    assert desk.run(order(tmp_path, m.TaskKind.EVALUATE), 10.0, threading.Event()).num_examples == 17
    assert desk.order is None


def test_a_round_that_is_withdrawn_wakes_whoever_waits_and_takes_nothing_any_more(desk, tmp_path):
    session = Session(desk, order(tmp_path))
    found = lying(desk)
    desk.trained(found)
    session.cancelled.set()
    session.join(30)
    assert "withdrawn" in str(session.error)
    with pytest.raises(TrainingError, match="withdrawn"):
        desk.hand_in(found, UPDATE)


def test_a_round_whose_time_is_over_is_given_up(desk, tmp_path):
    session = Session(desk, order(tmp_path), seconds=0.0)
    session.join(30)
    assert "the round was over before this site was asked to train" in str(session.error)


def test_what_the_plan_fails_with_reaches_the_session_and_the_caller(desk, boxed, tmp_path):
    boxed.failure = TrainingError("the plan raised ValueError")
    session = Session(desk, order(tmp_path))
    found = lying(desk)
    with pytest.raises(TrainingError, match="the plan raised ValueError"):
        desk.trained(found)
    session.join(30)
    assert session.error is boxed.failure


def test_nothing_that_was_not_trained_can_be_handed_in(desk, tmp_path):
    Session(desk, order(tmp_path))
    with pytest.raises(TrainingError, match="nothing was trained"):
        desk.hand_in(lying(desk), UPDATE)


def test_the_end_of_the_learner_ends_a_round_that_waits(desk, tmp_path):
    session = Session(desk, order(tmp_path))
    lying(desk)
    desk.close()
    session.join(30)
    assert session.error is not None


def test_a_receipt_of_any_attempt_of_the_round_counts_and_of_no_other(desk):
    later = m.TaskRef(REF.run, REF.round, 2, REF.plan)
    other = m.TaskRef(REF.run, REF.round + 1, 1, REF.plan)
    desk.note_receipt(m.Receipt(other, digest_of(b"o"), 1))
    desk.note_receipt(m.Receipt(later, digest_of(b"x"), 24))
    receipt, at = desk.receipt(REF, lambda: True, time.monotonic() + 60)
    assert (receipt.ref, receipt.length) == (later, 24)
    assert at <= time.time()


def test_a_refusal_comes_back_as_the_error_that_it_was(desk):
    desk.note_refusal(m.Refusal(REF, "NotApprovedError", "not so many rounds"))
    with pytest.raises(NotApprovedError, match="not so many rounds"):
        desk.receipt(REF, lambda: True, time.monotonic() + 60)


def test_without_a_receipt_in_time_it_is_said_that_it_goes_on(desk):
    with pytest.raises(UnreachableError, match="is kept here, and sent"):
        desk.receipt(REF, lambda: True, time.monotonic() - 1)
    with pytest.raises(TrainingError, match="closed, or was withdrawn"):
        desk.receipt(REF, lambda: False, time.monotonic() + 60)
