import copy

import numpy as np
import pytest
import torch
from fedveil import BATCH_NORM_LAYERS, DataKind, DataSpec, TrainingPlan, auc_of, mean_of
from fedveil.envoy.batch_sizes import batch_sizes
from fedveil.envoy.batches import Batches
from fedveil.envoy.initial_weights import initial_of
from fedveil.envoy.layouts import tensors_of
from fedveil.envoy.records import LoadedDataset
from fedveil.envoy.training import LocalRound, run_round
from fedveil.utils.errors import (
    ConfigError,
    DatasetError,
    LayoutMismatchError,
    NonFiniteUpdateError,
    PlanError,
    StorageError,
    TrainingError,
    UnsendableUpdateError,
)
from fedveil.utils.messages import TaskKind
from fedveil.utils.tensors import Role, named_views
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

SPEC = DataSpec("x", DataKind.TABLE, (3,), ("a", "b"))


class Linear(TrainingPlan):
    data = SPEC

    def model(self):
        return nn.Linear(3, 2)

    def train_step(self, model, batch):
        features, labels = batch
        return functional.cross_entropy(model(features), labels)

    def evaluate(self, model, loader):
        for features, labels in loader:
            scores = model(features)
            yield mean_of("accuracy", (scores.argmax(1) == labels).sum(), len(labels))
            yield auc_of("auc", scores.softmax(1)[:, 1], labels)


class Normed(Linear):
    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def dataset(train=10, validation=4, test=3, seed=0):
    rng = np.random.default_rng(seed)
    count = train + validation + test
    split = np.repeat(np.array([0, 1, 2], np.uint8), [train, validation, test])
    return LoadedDataset(rng.random((count, 3), np.float32), rng.integers(0, 2, count, dtype=np.int64), split)


def task(plan, data=None, **changes):
    layout, vector, exact = initial_of(plan)
    given_round = {
        "kind": TaskKind.TRAIN,
        "model_seed": 1,
        "round_seed": 2,
        "layout": layout,
        "vector": vector,
        "exact": exact,
        "data": data or dataset(),
        "device": "cpu",
    }
    return LocalRound(**(given_round | changes))


def train(plan, given_round):
    out = np.full(given_round.layout.size, np.nan, np.float32)
    result, state = run_round(plan, given_round, out)
    return result, {entry.name: view for entry, view in named_views(given_round.layout, out)}, state


def reference_batches(given_round, plan):
    """The batches in the order in which training draws them."""
    batches = Batches(
        given_round.data.features,
        given_round.data.labels,
        np.flatnonzero(given_round.data.split == 0),
        plan.settings.batch_size,
        torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(given_round.round_seed)
    return [batch for _ in range(plan.settings.local_epochs) for batch in batches.shuffled(generator)]


def naive(plan, given_round, control=None, own=None):
    """FedAvg, FedProx and SCAFFOLD written down from the papers, tensor by tensor, without an optimizer."""
    model = plan.model()
    start = {
        entry.name: torch.from_numpy(view.copy())
        for entry, view in named_views(given_round.layout, given_round.vector)
        if entry.role is Role.PARAMETER
    }
    weights = {name: tensor.clone() for name, tensor in start.items()}
    rate, mu, steps = plan.settings.learning_rate, plan.settings.proximal_mu, 0
    for features, labels in reference_batches(given_round, plan):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
        loss = functional.cross_entropy(torch.func.functional_call(model, leaves, features), labels)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name, gradient in gradients.items():
            step = gradient + mu * (weights[name] - start[name])
            if control is not None:
                step = step - own[name] + control[name]
            weights[name] = weights[name] - rate * step
        steps += 1
    return start, weights, steps


@pytest.mark.parametrize("settings", [{}, {"local_epochs": 3}, {"proximal_mu": 0.7, "local_epochs": 2}])
def test_update_is_local_minus_global_of_the_published_algorithm(settings):
    plan = Linear(learning_rate=0.3, batch_size=4, **settings)
    given_round = task(plan)
    result, update, _ = train(plan, given_round)
    start, weights, _ = naive(plan, given_round)
    assert result.num_examples == 10
    for name, view in update.items():
        assert np.allclose(view, (weights[name] - start[name]).numpy(), atol=1e-6)


def test_a_proximal_term_keeps_the_model_nearer():
    far = train(Linear(learning_rate=0.5, local_epochs=20), task(Linear()))[1]["weight"]
    near = train(Linear(learning_rate=0.5, local_epochs=20, proximal_mu=1.0), task(Linear()))[1]["weight"]
    assert np.linalg.norm(near) < np.linalg.norm(far)


def test_scaffold_follows_algorithm_1_with_option_2_over_two_rounds():
    plan = Linear(learning_rate=0.2, batch_size=4, local_epochs=2, scaffold=True)
    first = task(plan)
    rng = np.random.default_rng(5)
    vector = first.vector.copy()
    vector[first.layout.slice_of(Role.CONTROL)] = rng.normal(0, 0.1, 8).astype(np.float32)
    state = {}
    for number in range(2):
        given_round = task(plan, vector=vector, state=state, round_seed=number)
        control = {
            entry.name.removeprefix("control/"): torch.from_numpy(view.copy())
            for entry, view in named_views(given_round.layout, vector)
            if entry.role is Role.CONTROL
        }
        own = {name: state.get(f"control/{name}", torch.zeros_like(c)) for name, c in control.items()}
        _, update, state = train(plan, given_round)
        start, weights, steps = naive(plan, given_round, control, own)
        assert steps == 6
        for name, common in control.items():
            expected = own[name] - common + (start[name] - weights[name]) / (steps * 0.2)
            assert np.allclose(update[name], (weights[name] - start[name]).numpy(), atol=1e-6)
            assert np.allclose(update[f"control/{name}"], (expected - own[name]).numpy(), atol=1e-5)
            assert torch.allclose(state[f"control/{name}"], expected, atol=1e-5)


def test_scaffold_is_refused_with_an_optimizer_that_is_not_plain_sgd():
    class WithAdam(Linear):
        def optimizer(self, model):
            return torch.optim.Adam(model.parameters())

    class WithMomentum(Linear):
        def optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    for plan in (WithAdam(scaffold=True), WithMomentum(scaffold=True)):
        with pytest.raises(TrainingError, match="SCAFFOLD needs plain SGD"):
            train(plan, task(plan))


class Random(Normed):
    """Draws from every generator that a plan may reach."""

    def train_step(self, model, batch):
        features, labels = batch
        noise = torch.rand(()) + float(np.random.rand())  # noqa: NPY002
        return functional.cross_entropy(model(functional.dropout(features)), labels) * noise


def test_the_same_round_gives_the_same_bits_and_leaves_no_trace():
    plan = Random(local_epochs=3, batch_size=3)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = train(plan, task(plan))
    torch.manual_seed(99)
    again = train(plan, task(plan))
    other = train(plan, task(plan, round_seed=3))
    assert first[0] == again[0]
    assert all(np.array_equal(first[1][name], again[1][name]) for name in first[1])
    assert not np.array_equal(first[1]["0.weight"], other[1]["0.weight"])
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert not torch.are_deterministic_algorithms_enabled()
    torch.random.set_rng_state(before[0])


def test_running_statistics_travel_as_buffers_and_the_counter_does_not_change():
    plan = Normed()
    given_round = task(plan)
    roles = {entry.name: entry.role for entry in given_round.layout.entries}
    assert roles["1.running_mean"] is Role.BUFFER
    assert [entry.name for entry in given_round.layout.exact] == ["1.num_batches_tracked"]
    _, update, state = train(plan, given_round)
    assert np.abs(update["1.running_mean"]).max() > 0
    assert not state


def test_a_cumulative_batch_norm_is_refused_unless_it_stays_at_the_site():
    class Cumulative(Linear):
        def model(self):
            return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None))

    class Local(Cumulative):
        site_local = (BATCH_NORM_LAYERS,)

    with pytest.raises(PlanError, match="1: BatchNorm with momentum=None"):
        initial_of(Cumulative())
    assert initial_of(Local())[0].size == 16


class FedBN(Normed):
    site_local = (BATCH_NORM_LAYERS,)


def test_site_local_layers_stay_at_the_site_and_go_on_from_where_they_were():
    plan = FedBN(learning_rate=0.1)
    given_round = task(plan)
    names = [entry.name for entry in given_round.layout.entries] + [e.name for e in given_round.layout.exact]
    assert names == ["0.weight", "0.bias", "3.weight", "3.bias"]
    _, update, state = train(plan, given_round)
    assert set(update) == set(names)
    assert set(state) == {
        f"local/1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert state["local/1.num_batches_tracked"] == 1
    _, _, later = train(plan, task(plan, state=state))
    assert later["local/1.num_batches_tracked"] == 2
    assert state["local/1.num_batches_tracked"] == 1


def test_an_evaluation_uses_the_sites_own_layers_and_changes_nothing():
    plan = FedBN(learning_rate=0.5, local_epochs=5)
    _, _, state = train(plan, task(plan))
    result, after = run_round(plan, task(plan, kind=TaskKind.EVALUATE, state=state), None)
    assert after is state
    assert [metric.name for metric in result.metrics] == ["accuracy", "auc", "test_accuracy", "test_auc"]
    assert [metric.weight for metric in result.metrics] == [4, 4, 3, 3]
    assert result.num_examples == 7


def test_a_state_of_another_plan_is_refused():
    plan = FedBN()
    _, _, state = train(plan, task(plan))
    with pytest.raises(StorageError, match=r"no local/1\.weight"):
        train(plan, task(plan, state={"local/9.weight": torch.zeros(1)}))
    with pytest.raises(StorageError, match="expected"):
        train(plan, task(plan, state=dict(state) | {"local/1.weight": torch.zeros(7)}))


def test_metrics_are_of_the_federations_model_and_sum_over_batches():
    plan = Linear(learning_rate=100.0)
    data = dataset(train=3, validation=600)
    given_round = task(plan, data)
    result, _, _ = train(plan, given_round)
    evaluated, _ = run_round(plan, task(plan, data, kind=TaskKind.EVALUATE), None)
    assert result.metrics[:2] == evaluated.metrics[:2]
    assert result.metrics[0].weight == 600
    assert (result.metrics[2].name, result.metrics[2].weight) == ("train_loss", 3)


def test_a_site_without_validation_examples_reports_the_training_loss_alone():
    result, _, _ = train(Linear(), task(Linear(), dataset(validation=0)))
    assert [metric.name for metric in result.metrics] == ["train_loss"]


def test_a_site_without_training_examples_says_so():
    with pytest.raises(DatasetError, match="no training example"):
        train(Linear(), task(Linear(), dataset(train=0)))


@given(st.integers(0, 200), st.integers(1, 50))
def test_every_example_is_in_one_batch_and_none_is_alone(count, size):
    sizes = batch_sizes(count, size)
    assert sum(sizes) == count
    assert size == 1 or count == 1 or 1 not in sizes
    assert all(given_size <= size + 1 for given_size in sizes)


def test_batch_norm_trains_where_one_example_would_be_left_over():
    plan = Normed(batch_size=4)
    assert train(plan, task(plan, dataset(train=9)))[0].num_examples == 9


def test_features_are_float32_between_0_and_1_and_nothing_else_is_copied():
    features = np.arange(0, 256, dtype=np.uint8).reshape(64, 1, 2, 2)
    features.flags.writeable = False
    batches = Batches(features, np.zeros(64, np.int64), np.arange(64), 64, torch.device("cpu"))
    ((images, labels),) = batches
    assert images.dtype is torch.float32
    assert labels.dtype is torch.int64
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_a_tensor_that_would_have_to_be_cast_is_refused_by_name(dtype):
    class Odd(Linear):
        def model(self):
            model = nn.Linear(3, 2)
            model.register_buffer("scale", torch.ones(2, dtype=dtype))
            return model

    with pytest.raises(PlanError, match=f"scale is {str(dtype).removeprefix('torch.')}"):
        initial_of(Odd())


class Counting(Linear):
    """Has an integer buffer, and changes it if it is told to."""

    changes = True

    def model(self):
        model = nn.Linear(3, 2)
        model.register_buffer("seen", torch.tensor(7))
        return model

    def train_step(self, model, batch):
        if self.changes:
            model.seen += 1
        return super().train_step(model, batch)


def test_an_integer_buffer_is_carried_exactly_or_the_update_is_refused():
    with pytest.raises(UnsendableUpdateError, match="training changed seen"):
        train(Counting(), task(Counting()))

    class Still(Counting):
        changes = False

    plan = Still()
    assert np.frombuffer(task(plan).exact, "<i8").tolist() == [7]
    train(plan, task(plan))


def test_tied_weights_travel_once_and_overlapping_ones_are_refused():
    class Tied(Linear):
        def model(self):
            model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
            model[1].weight = model[0].weight
            return model

    class Overlapping(Linear):
        def model(self):
            model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
            model[1].weight = nn.Parameter(model[0].weight.data)
            return model

    assert [e.name for e in initial_of(Tied())[0].entries][:3] == ["0.weight", "0.bias", "1.bias"]
    train(Tied(), task(Tied()))
    with pytest.raises(PlanError, match=r"1\.weight shares memory with 0\.weight"):
        initial_of(Overlapping())


def test_a_pattern_that_matches_nothing_and_a_model_that_stays_whole_are_refused():
    class Typo(Linear):
        site_local = ("haed.*",)

    class Everything(Linear):
        site_local = ("*",)

    with pytest.raises(PlanError, match=r"no tensor matches 'haed\.\*'"):
        initial_of(Typo())
    with pytest.raises(PlanError, match="nothing to learn together"):
        initial_of(Everything())


def test_a_model_that_is_not_the_bundles_is_refused_with_the_first_difference():
    with pytest.raises(LayoutMismatchError, match=r"another model than the plan's bundle.*expected Entry\(name='0"):
        train(Linear(), task(Normed()))

    class Growing(Linear):
        def train_step(self, model, batch):
            loss = super().train_step(model, batch)
            model.extra = nn.Parameter(torch.zeros(1))
            return loss

    with pytest.raises(LayoutMismatchError, match="training changed the model's tensors"):
        train(Growing(), task(Growing()))


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda loss: loss.item(), TrainingError, "returned float, expected the loss as a scalar"),
        (lambda loss: loss.detach(), TrainingError, "without grad"),
        (lambda loss: torch.stack([loss, loss]), TrainingError, r"shape \(2,\)"),
        (lambda loss: loss * float("nan"), NonFiniteUpdateError, r"NaN or infinite in train_step \(epoch 1, step 1\)"),
        (lambda loss: None, TrainingError, "returned NoneType"),
        (lambda loss: 1 // 0, TrainingError, r"raised ZeroDivisionError in train_step \(epoch 1, step 1\)"),
    ],
)
def test_a_loss_that_cannot_be_stepped_on_is_named_with_its_step(loss, error, message):
    class Bad(Linear):
        def train_step(self, model, batch):
            return loss(super().train_step(model, batch))

    with pytest.raises(error, match=message):
        train(Bad(), task(Bad()))


def test_weights_that_became_infinite_are_not_sent():
    plan = Linear(learning_rate=1e38, local_epochs=1, batch_size=100)

    class Huge(Linear):
        def train_step(self, model, batch):
            return super().train_step(model, batch) * 1e30

    with pytest.raises(NonFiniteUpdateError, match="weight is NaN or infinite after training"):
        train(Huge(learning_rate=1e30, batch_size=100), task(plan))


def test_what_a_plan_raises_does_not_show_values():
    class Leaking(Linear):
        def evaluate(self, model, loader):
            for features, _ in loader:
                raise ValueError(f"the pixels are {features}")
            yield None

    with pytest.raises(TrainingError) as caught:
        train(Leaking(), task(Leaking()))
    assert str(caught.value) == "the plan raised ValueError in evaluate; the site's worker log has the details"


def test_an_evaluation_yields_metrics_of_which_none_is_the_frameworks():
    class Number(Linear):
        def evaluate(self, model, loader):
            return [0.5]

    class Taken(Linear):
        def evaluate(self, model, loader):
            return [mean_of("train_loss", 1, 1)]

    with pytest.raises(TrainingError, match="something else than a MetricSum"):
        train(Number(), task(Number()))
    with pytest.raises(TrainingError, match="the framework's own metric"):
        train(Taken(), task(Taken()))


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="expected auto, cpu or cuda"):
        train(Linear(), task(Linear(), device="tpu"))


def test_frozen_parameters_travel_without_a_change_and_have_no_control_variate():
    class Frozen(Linear):
        def model(self):
            model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
            model[0].requires_grad_(requires_grad=False)
            return model

    plan = Frozen(scaffold=True, learning_rate=0.1)
    _, update, _ = train(plan, task(plan))
    assert not update["0.weight"].any()
    assert update["1.weight"].any()
    assert {name for name in update if name.startswith("control/")} == {"control/1.weight", "control/1.bias"}


def test_layout_does_not_depend_on_a_models_training():
    model = Normed().model()
    before = tensors_of(model, Normed()).layout
    trained = copy.deepcopy(model)
    trained(torch.rand(4, 3)).sum().backward()
    assert tensors_of(trained, Normed()).layout == before
