import numpy as np
import pytest
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of
from fedveil.envoy.array_training import ArrayRound, layout_of, run_round
from fedveil.envoy.records import LoadedDataset
from fedveil.utils.errors import DatasetError, LayoutMismatchError, PlanError, TrainingError, UnsendableUpdateError
from fedveil.utils.messages import TaskKind

NOTHING = LoadedDataset(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.uint8))
INITIAL = {"w": np.array([[1, 2], [3, 4]], np.float32), "steps": np.array(5), "b": np.array([9], np.float32)}


class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return INITIAL

    def train(self, weights, data, rng):
        return {"w": weights["w"] * 2, "b": weights["b"] - 1, "steps": weights["steps"]}, 7

    def evaluate(self, weights, data):
        yield mean_of("b", weights["b"][0], 1)


def task(kind=TaskKind.TRAIN, data=NOTHING, seed=0):
    layout, vector, exact = layout_of(INITIAL)
    return ArrayRound(kind, seed, layout, vector, exact, data)


def train(plan, given=None):
    out = np.full(5, np.nan, np.float32)
    return run_round(plan, given or task(), out), out


def test_update_is_local_minus_global_in_the_layouts_order():
    result, out = train(Toy())
    assert out.tolist() == [1, 2, 3, 4, -1]
    assert result.num_examples == 7
    assert result.metrics == (mean_of("b", 9, 1),)


def test_a_plan_may_write_its_update_without_a_copy():
    class Direct(Toy):
        def update(self, weights, out, data, rng):
            np.negative(weights["w"], out=out["w"])
            out["b"][...] = 0.5
            return 3

    result, out = train(Direct())
    assert out.tolist() == [-1, -2, -3, -4, 0.5]
    assert result.num_examples == 3


def test_the_federations_model_cannot_be_written_to():
    class Writing(Toy):
        def train(self, weights, data, rng):
            weights["w"] += 1
            return weights, 1

    with pytest.raises(TrainingError, match="raised ValueError in train"):
        train(Writing())


def test_randomness_is_the_rounds():
    class Noisy(Toy):
        def train(self, weights, data, rng):
            return dict(weights) | {"w": rng.random((2, 2), np.float32)}, 1

    assert np.array_equal(train(Noisy())[1], train(Noisy())[1])
    assert not np.array_equal(train(Noisy())[1], train(Noisy(), task(seed=1))[1])


def test_an_evaluation_trains_nothing():
    result = run_round(Toy(), task(TaskKind.EVALUATE), None)
    assert result.metrics == (mean_of("b", 9, 1),)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w": np.zeros((2, 3), np.float32)}, LayoutMismatchError, r"w as float32 \(2, 3\), expected float32 \(2, 2\)"),
        ({"w": np.zeros((2, 2))}, LayoutMismatchError, "w as float64"),
        ({"w": [1, 2]}, LayoutMismatchError, "w as list"),
        ({"v": np.zeros(1)}, LayoutMismatchError, "differ in v"),
        ({"steps": np.array(6)}, UnsendableUpdateError, "training changed steps"),
    ],
)
def test_other_arrays_than_the_models_are_refused(change, error, message):
    class Bad(Toy):
        def train(self, weights, data, rng):
            return dict(weights) | change, 1

    with pytest.raises(error, match=message):
        train(Bad())


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None])
def test_a_number_of_examples_is_a_whole_number_of_at_least_1(number):
    class Bad(Toy):
        def train(self, weights, data, rng):
            return weights, number

    with pytest.raises(TrainingError, match="number of examples"):
        train(Bad())


def test_each_call_sees_its_own_split_with_images_between_0_and_1():
    seen = []

    class Images(Toy):
        data = DataSpec("x", DataKind.IMAGES, (1, 1, 1), ("a", "b"))

        def train(self, weights, data, rng):
            seen.append(("train", data.features.ravel().tolist(), data.labels.tolist()))
            return weights, len(data)

        def evaluate(self, weights, data):
            seen.append(("evaluate", data.features.ravel().tolist(), data.labels.tolist()))
            return ()

    data = LoadedDataset(
        np.array([0, 255, 51, 255], np.uint8).reshape(4, 1, 1, 1),
        np.array([0, 1, 1, 0]),
        np.array([0, 0, 1, 2], np.uint8),
    )
    assert train(Images(), task(data=data))[0].num_examples == 2
    run_round(Images(), task(TaskKind.EVALUATE, data), None)
    fifth = float(np.float32(51) / np.float32(255))
    assert seen == [
        ("evaluate", [fifth], [1]),
        ("train", [0.0, 1.0], [0, 1]),
        ("evaluate", [fifth], [1]),
        ("evaluate", [1.0], [0]),
    ]
    with pytest.raises(DatasetError, match="no training example"):
        train(Images())


@pytest.mark.parametrize("array", [np.zeros(2), np.zeros(2, np.float16), np.zeros(2, complex), np.array(["a"]), [1.0]])
def test_initial_arrays_that_cannot_travel_are_refused_by_name(array):
    with pytest.raises(PlanError, match="odd is"):
        layout_of(INITIAL | {"odd": array})


def test_what_is_for_torch_alone_is_refused():
    with pytest.raises(PlanError, match="steps by itself"):
        train(Toy(proximal_mu=0.1))
