"""A private step: whom it draws, what a patient can change, what is noised, and what never leaves."""

import json

import numpy as np
import pytest
import torch
from fedveil import BATCH_NORM_LAYERS, DataKind, DataSpec, DifferentialPrivacy, TrainingPlan, mean_of
from fedveil.envoy.initial_weights import initial_of
from fedveil.envoy.private_models import require_private
from fedveil.envoy.private_training import PrivateGradient, drawn, units_of
from fedveil.envoy.records import LoadedDataset
from fedveil.envoy.training import LocalRound, run_round
from fedveil.gradient_leakage.one_run_audit import OneRunAudit
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.utils.errors import DatasetError, PlanError, TrainingError, UnsendableUpdateError
from fedveil.utils.messages import TaskKind
from fedveil.utils.privacy.noise import SystemNoise
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import named_views
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional

SPEC = DataSpec("x", DataKind.TABLE, (3,), ("a", "b"))
CPU = torch.device("cpu")


def private(unit="patient", **changes):
    values = {"max_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 1.0, "units": 10} | changes
    return DifferentialPrivacy(unit, **values)


class Linear(TrainingPlan):
    data = SPEC
    privacy = private()

    def model(self):
        return nn.Linear(3, 2)

    def train_step(self, model, batch):
        features, labels = batch
        return functional.cross_entropy(model(features), labels)

    def evaluate(self, model, loader):
        for features, labels in loader:
            yield mean_of("accuracy", (model(features).argmax(1) == labels).sum(), len(labels))


class Silent:
    """Draws everybody, and no noise."""

    def standard_normal(self, size):
        return np.zeros(size)

    def random(self, size):
        return np.zeros(size)


def dataset(patients, *, scale=1.0, seed=0, held=2):
    """One example for each of ``patients``, which names whose it is, and some that are not trained on."""
    rng, count = np.random.default_rng(seed), len(patients) + held
    split = np.repeat(np.array([0, 1], np.uint8), [len(patients), held])
    whose = np.array([*patients, *range(1000, 1000 + held)], np.int64)
    features = (rng.standard_normal((count, 3)) * scale).astype(np.float32)
    return LoadedDataset(features, np.arange(count, dtype=np.int64) % 2, split, whose)


def gradient(plan, data, *, noise=None, step=1, seed=3):
    torch.manual_seed(0)
    model = plan.model().train()
    private_gradient = PrivateGradient(plan, model, data, plan.privacy, seed, CPU, noise or Silent())
    private_gradient.put(step)
    return np.concatenate([one.grad.numpy().reshape(-1) for one in model.parameters()])


def own_gradients(plan, data):
    """Each patient's mean gradient, by one backward of all of its examples."""
    torch.manual_seed(0)
    model, rows = plan.model(), []
    for patient in dict.fromkeys(data.patients[data.split == 0]):
        mine = (data.patients == patient) & (data.split == 0)
        loss = plan.train_step(model, (torch.from_numpy(data.features[mine]), torch.from_numpy(data.labels[mine])))
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy())
    return np.stack(rows)


def train(plan, data, **changes):
    layout, vector, exact = initial_of(plan)
    given_round = {"kind": TaskKind.TRAIN, "model_seed": 1, "round_seed": 2, "layout": layout, "vector": vector}
    given_round |= {"exact": exact, "data": data, "device": "cpu", "privacy": plan.privacy}
    out = np.full(layout.size, np.nan, np.float32)
    result, state = run_round(plan, LocalRound(**(given_round | changes)), out)
    return result, out, state


def test_a_step_by_hand():
    plan, data = Linear(), dataset([0, 0, 1], scale=5.0)
    rows = own_gradients(plan, data)
    norms = np.linalg.norm(rows, axis=1)
    assert norms.min() < 1 < norms.max()
    clipped = rows / np.maximum(1, norms)[:, None]
    np.testing.assert_allclose(gradient(plan, data), clipped.sum(0) / 10, rtol=1e-5, atol=1e-7)


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.floats(0.01, 10),
    st.floats(0.01, 100),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_one_patient_more_moves_the_step_by_at_most_the_bound_however_many_images_it_has(
    patients, bound, scale, batch_size, seed
):
    class Bounded(Linear):
        privacy = private(max_norm=bound)

    plan, data = Bounded(batch_size=batch_size), dataset(patients, scale=scale, seed=seed)
    gone = patients[0]
    kept = (data.patients != gone) & (data.split == 0)
    rest = LoadedDataset(data.features[kept], data.labels[kept], data.split[kept], data.patients[kept])
    less = gradient(plan, rest) if kept.any() else np.zeros(8)
    assert np.linalg.norm((gradient(plan, data) - less).astype(np.float64)) <= bound / 10 * (1 + 1e-4)


def test_a_patient_with_many_images_counts_once():
    once, often = dataset([0]), dataset([0])
    where = np.array([0] * 50 + [1, 2])
    often = LoadedDataset(once.features[where], once.labels[where], once.split[where], once.patients[where])
    np.testing.assert_allclose(gradient(Linear(), often), gradient(Linear(), once), rtol=1e-4)
    assert len(units_of(often, Unit.PATIENT)) == 1
    assert len(units_of(often, Unit.RECORD)) == 50


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_every_training_example_is_in_the_one_unit_of_its_patient(patients):
    data = dataset(patients)
    units = units_of(data, Unit.PATIENT)
    assert len(units) == len(set(patients))
    assert sorted(np.concatenate([units.of(n) for n in range(len(units))])) == list(range(len(patients)))
    assert all(len(set(data.patients[units.of(n)])) == 1 for n in range(len(units)))


def test_a_dataset_that_names_no_patients_cannot_protect_them():
    data = dataset([0, 1])
    nameless = LoadedDataset(data.features, data.labels, data.split)
    with pytest.raises(DatasetError, match=r"does not say whose the examples are.*--patient"):
        train(Linear(), nameless)

    class Record(Linear):
        privacy = private("record")

    assert np.isfinite(train(Record(), nameless)[1]).all()


def test_each_unit_is_drawn_by_a_coin_of_the_sampling_rate():
    rng, rate, units, steps = np.random.default_rng(5), 0.07, 300, 400
    taken = np.zeros((steps, units), bool)
    for step in range(steps):
        taken[step, drawn(units, rate, rng)] = True
    assert stats.binomtest(int(taken.sum()), taken.size, rate).pvalue > 1e-3
    sizes = taken.sum(1)  # of Poisson sampling they vary as a binomial does
    assert 0.8 < sizes.var() / (units * rate * (1 - rate)) < 1.25
    assert min(stats.binomtest(int(n), steps, rate).pvalue for n in taken.sum(0)) > 1e-6


def test_the_noise_of_a_step_is_gaussian_of_the_bound_and_on_every_number():
    class Wide(Linear):
        privacy = private(max_norm=0.5, noise_multiplier=2.0, units=4)

        def model(self):
            return nn.Linear(3, 20_000)

        def train_step(self, model, batch):
            return model(batch[0]).mean() * 0.0

    found = gradient(Wide(), dataset([0, 1]), noise=SystemNoise()) * 4
    assert found.size == 80_000
    assert stats.kstest(found, "norm", args=(0, 1.0)).pvalue > 1e-6


class Seeding(Linear):
    def train_step(self, model, batch):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        return super().train_step(model, batch)


def test_a_plan_that_sets_every_seed_knows_neither_the_noise_nor_who_is_drawn():
    data = dataset(range(30))
    updates = [train(Seeding(), data)[1] for _ in range(2)]
    assert (updates[0] != updates[1]).all()

    class Sampled(Seeding):
        privacy = private(sampling_rate=0.5, noise_multiplier=1e-9)

    updates = [train(Sampled(), data)[1] for _ in range(2)]
    assert np.abs(updates[0] - updates[1]).max() > 1e-4


class Random(Linear):
    def train_step(self, model, batch):
        features, labels = batch
        chance = float(np.random.rand())  # noqa: NPY002
        return functional.cross_entropy(model(features + torch.rand(len(features), 3) * chance), labels)


def test_what_a_plan_draws_for_a_patient_does_not_depend_on_who_comes_before():
    data = dataset([0, 1, 2], scale=3)
    later = (data.patients > 0) & (data.split == 0)
    without = LoadedDataset(data.features[later], data.labels[later], data.split[later], data.patients[later])
    first = ~later & (data.split == 0)
    alone = LoadedDataset(data.features[first], data.labels[first], data.split[first], data.patients[first])
    whole, rest, one = (gradient(Random(), some) for some in (data, without, alone))
    np.testing.assert_allclose(whole, rest + one, atol=1e-6)
    assert not np.allclose(gradient(Random(), data, step=2), whole)


def test_nothing_but_the_update_of_the_public_weight_leaves():
    data = dataset([0, 1, 1])
    result, update, state = train(Linear(), data)
    assert (result.num_examples, result.metrics, state) == (1, (), {})
    assert np.isfinite(update).all()
    evaluated, _, _ = train(Linear(), data, kind=TaskKind.EVALUATE)
    assert (evaluated.num_examples, evaluated.metrics) == (0, ())


def test_a_round_has_as_many_steps_as_the_manifest_says_whatever_the_site_has():
    class Counting(Linear):
        privacy = private(steps=7, noise_multiplier=1e-9)

    class Counter(Silent):
        steps = 0

        def standard_normal(self, size):
            self.steps += 1
            return np.zeros(size)

    for patients in ([0], range(40)):
        counter = Counter()
        train(Counting(), dataset(patients), noise=counter)
        assert counter.steps == 7


def test_a_gradient_that_is_no_number_counts_as_none():
    data = dataset([0, 1, 2])
    broken = np.where((data.patients == 1)[:, None], np.inf, data.features).astype(np.float32)
    kept = (data.patients != 1) & (data.split == 0)
    rest = LoadedDataset(data.features[kept], data.labels[kept], data.split[kept], data.patients[kept])
    torn = LoadedDataset(broken, data.labels, data.split, data.patients)
    np.testing.assert_array_equal(gradient(Linear(), torn), gradient(Linear(), rest))


def test_fedprox_and_scaffold_add_to_the_noised_gradient_what_is_no_secret():
    class Plain(Linear):
        privacy = private(steps=2)

    class Fixed(Silent):
        def standard_normal(self, size):
            return np.arange(size) / size

    data = dataset([0, 1, 2])
    free = train(Plain(learning_rate=1.0), data, noise=Fixed())[1]
    near = train(Plain(learning_rate=1.0, proximal_mu=0.9), data, noise=Fixed())[1]
    assert np.linalg.norm(near) < np.linalg.norm(free)
    plan = Plain(learning_rate=0.5, scaffold=True)
    _, update, state = train(plan, data, noise=Fixed())
    views = {entry.name: view for entry, view in named_views(initial_of(plan)[0], update)}
    for name in ("weight", "bias"):  # c_i = (x - y) / (K lr), of what was noised already
        np.testing.assert_allclose(views[f"control/{name}"], -views[name] / (2 * 0.5), rtol=1e-5)
        assert torch.allclose(state[f"control/{name}"], torch.from_numpy(views[f"control/{name}"]))


class LocalHead(Linear):
    site_local = ("1.*",)
    privacy = private(noise_multiplier=3.0)

    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_layers_that_stay_at_the_site_are_in_the_clip_and_get_the_noise_too():
    data = dataset([0, 1], scale=100.0)
    assert np.linalg.norm(gradient(LocalHead(), data)) <= 2 / 10 * (1 + 1e-6)
    assert gradient(LocalHead(), data).size == 26
    states = [train(LocalHead(), data)[2]["local/1.weight"] for _ in range(2)]
    assert (states[0] != states[1]).all()


def codec_for(plan):
    layout = initial_of(plan)[0]
    return fit(layout, np.random.default_rng(0).standard_normal((4, layout.size)).astype(np.float32), 4.0)


def test_with_a_codec_each_patients_code_is_clipped_and_the_noise_is_in_the_code():
    plan, data = Linear(learning_rate=1.0), dataset([0, 0, 1, 2], scale=5.0)
    codec = codec_for(plan)
    rows = codec.encode_rows(own_gradients(plan, data))
    clipped = (rows / np.maximum(1, np.linalg.norm(rows, axis=1))[:, None]).sum(0)

    class Ones(Silent):
        def standard_normal(self, size):
            assert size == codec.size
            return np.ones(size)

    torch.manual_seed(0)
    model = plan.model().train()
    PrivateGradient(plan, model, data, plan.privacy, 3, CPU, Ones(), codec).put(1)
    found = np.concatenate([one.grad.numpy().reshape(-1) for one in model.parameters()])
    np.testing.assert_allclose(found, codec.decode(((clipped + 1) / 10).astype(np.float32)), rtol=1e-4, atol=1e-6)
    update = train(plan, data, codec=codec)[1]  # one step of SGD: what leaves lies in the code
    np.testing.assert_allclose(codec.decode(codec.encode(update)), update, atol=1e-5)


def test_with_a_codec_a_parameter_that_it_does_not_know_is_refused():
    with pytest.raises(TrainingError, match=r"1\.weight is trained, stays at the site and is in no code"):
        train(LocalHead(), dataset([0]), codec=codec_for(LocalHead()))


class Normed(Linear):
    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class FedBN(Normed):
    site_local = (BATCH_NORM_LAYERS,)


class Counting(Linear):
    """Keeps a mean of what it saw, in a buffer."""

    def model(self):
        model = nn.Linear(3, 2)
        model.register_buffer("seen", torch.zeros(3))
        return model

    def train_step(self, model, batch):
        model.seen += batch[0].mean(0)
        return super().train_step(model, batch)


class Local(Counting):
    site_local = ("seen",)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Normed(), "1 is BatchNorm1d: it mixes the examples.*GroupNorm"),
        (FedBN(), "1 is BatchNorm1d.*also with site_local"),
        (Counting(), "training changed seen"),
        (Local(), "training changed seen"),
        (Linear(local_epochs=3), "local_epochs is 3, and with privacy it counts nothing"),
    ],
)
def test_a_plan_that_would_let_something_out_without_noise_is_refused_when_it_is_built(plan, message):
    pytest.importorskip("opacus")
    with pytest.raises(PlanError, match=message):
        require_private(plan, plan.data, plan.privacy)


def test_group_norm_instance_norm_and_a_recurrent_layer_are_taken():
    pytest.importorskip("opacus")

    class Image(Linear):
        data = DataSpec("x", DataKind.IMAGES, (1, 6, 6), ("a", "b"))

        def model(self):
            norms = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
            return nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.Flatten(), nn.Dropout(), nn.Linear(64, 2))

    class Recurrent(Linear):
        def model(self):
            model = nn.Module()
            model.lstm, model.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)
            return model

        def train_step(self, model, batch):
            return functional.cross_entropy(model.head(model.lstm(batch[0][:, :, None])[0][:, -1]), batch[1])

    for plan in (Image(), Recurrent()):
        require_private(plan, plan.data, plan.privacy)


def test_without_the_extra_a_private_plan_is_not_built_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opacus.validators", None)
    with pytest.raises(PlanError, match=r"pip install 'fedveil\[dp\]'"):
        require_private(Linear(), SPEC, Linear.privacy)


def test_a_buffer_that_changes_only_at_a_hospital_is_refused_there():
    with pytest.raises(UnsendableUpdateError, match="training changed seen"):
        train(Counting(), dataset([0, 1]))


def test_a_plan_is_not_trained_with_another_privacy_than_was_approved():
    for approved in (None, private(noise_multiplier=0.5)):
        with pytest.raises(TrainingError, match="was approved with"):
            train(Linear(), dataset([0]), privacy=approved)


SIZE, DELTA = 60, 1e-6


def released(plan, noise, examples):
    """What an audit sees of the real step: canaries as patients of so many examples, each along a number of its own."""

    class OneNumberEach(plan):
        def model(self):
            model = nn.Module()
            model.weight = nn.Parameter(torch.zeros(SIZE))
            return model

        def train_step(self, model, batch):
            return (batch[0] @ model.weight).mean()

    def release(contributions):
        if not len(contributions):
            return noise.standard_normal(SIZE) * plan.privacy.noise_multiplier
        rows = np.repeat(contributions, examples, axis=0).astype(np.float32)
        whose, nothing = np.repeat(np.arange(len(contributions)), examples), np.zeros(len(rows), np.uint8)
        data = LoadedDataset(rows, nothing.astype(np.int64), nothing, whose)
        return gradient(OneNumberEach(), data, noise=Everybody(noise)) * plan.privacy.expected_units

    return release


class Everybody(Silent):
    def __init__(self, noise):
        self.standard_normal = noise.standard_normal


class Noise:
    def __init__(self, share):
        self._rng, self._share = np.random.default_rng(1), share

    def standard_normal(self, size):
        return self._rng.standard_normal(size) * self._share


@pytest.mark.parametrize("bug", [None, "half the noise", "no clip", "a clip of the examples and not of the patient"])
def test_the_step_that_a_site_takes_is_audited_and_planted_bugs_are_caught(bug, monkeypatch):
    from fedveil.gradient_leakage import private_steps
    from fedveil.gradient_leakage.one_run_audit import gaussian_epsilon

    class Audited(Linear):
        privacy = private(noise_multiplier=2.0)

    examples = 1
    if bug == "no clip":
        monkeypatch.setattr(private_steps, "factor_to", lambda *_: 1.0)
    elif bug is not None and "patient" in bug:
        Audited.privacy, examples = private("record", noise_multiplier=2.0), 3
    noise = Noise(0.5 if bug == "half the noise" else 1.0)
    audit = OneRunAudit(1.0, DELTA, canaries=20_000 if bug == "half the noise" else 6_000, group=SIZE)
    found = audit(released(Audited, noise, examples), SIZE, np.random.default_rng(0))
    assert found.contradicts(gaussian_epsilon(2.0, DELTA)) == (bug is not None)


def test_the_codec_of_a_private_round_reaches_the_training_process():
    from pathlib import Path

    from fedveil.envoy.orders import CodecOrder, WorkOrder, order_from_json, order_to_json
    from fedveil.utils.messages import TaskRef

    ref = TaskRef("run-1", 2, 1, "a" * 64)
    common = {"kind": TaskKind.TRAIN, "seed": bytes(32), "envoy": "site-a", "dataset": None, "index_path": None}
    paths = {name: Path("/x") for name in ("bundle", "model_path", "update_path", "state_folder")}
    for codec in (None, CodecOrder(Path("/x/codec.safetensors"), "b" * 64, b"seed")):
        order = WorkOrder(ref=ref, codec=codec, **common, **paths)
        assert order_from_json(json.loads(json.dumps(order_to_json(order)))) == order
