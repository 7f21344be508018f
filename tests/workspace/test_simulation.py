"""``simulate`` gives what the arithmetic says, and what real processes give."""

import hashlib
import json
import time
import traceback

import fedveil
import numpy as np
import pytest
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.inspection import inspect
from fedveil.envoy.policy import ProtectionPolicy, Step
from fedveil.envoy.records import DataOptions
from fedveil.gradient_leakage.vae.codec import codec_bytes, read_codec
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.utils.errors import ConfigError, DatasetError, FederationError, PlanError
from fedveil.utils.messages import TaskKind
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.secure_sum.groups import groups_of
from fedveil.utils.secure_sum.rehearsal import cast_of
from fedveil.utils.secure_sum.rules import SumFloors
from fedveil.utils.tensors import digest_of, read_model
from fedveil.workspace.local_federation import LocalFederation
from fedveil.workspace.plan_builder import build_plan
from safetensors.numpy import load

SIZES = {"site-a": 20, "site-b": 7, "site-c": 13}
CLASSES = ("normal", "pneumonia")
ROUNDS = 3
SEED = 11


@pytest.fixture
def sites(toy_site):
    return {name: toy_site(name, count) for name, count in SIZES.items()}


def rng_of(site, number, seed=SEED):
    """The lot of one site's training, as `WorkOrder.seed_for` states it."""
    words = ["fedveil/local", "training", f"{seed:064x}", site, number]
    text = json.dumps(words, separators=(",", ":")).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)


def trained(model, path, site, number):
    with np.load(path) as arrays:
        features, labels = arrays["train_images"][:, None].astype(np.float32) / np.float32(255), arrays["train_labels"]
    image = (model["image"] + features.mean(0)) / 2 + rng_of(site, number).standard_normal((1, 4, 4), np.float32) / 100
    return {"image": image, "share": (model["share"] + np.float32(labels.mean())) / 2}, len(labels)


def federated(sites, rounds):
    """FedAvg, written down plainly: the model before each round, and the last."""
    models = [{"image": np.full((1, 4, 4), 0.5, np.float32), "share": np.float32(0)}]
    for number in range(1, rounds + 1):
        answers = [trained(models[-1], path, site, number) for site, path in sorted(sites.items())]
        total = sum(count for _, count in answers)
        old = models[-1]
        models.append({k: old[k] + sum((new[k] - old[k]) * np.float32(n / total) for new, n in answers) for k in old})
    return models


def test_a_simulation_computes_what_numpy_does(toy_plan, sites):
    done = fedveil.simulate(toy_plan, sites, rounds=ROUNDS, seed=SEED)
    models, model = federated(sites, ROUNDS), load(done.model)
    assert model.keys() == models[-1].keys()
    for name, array in models[-1].items():
        np.testing.assert_allclose(model[name], array, rtol=1e-6)
    assert [one.kind for one in done.rounds] == [TaskKind.TRAIN] * ROUNDS + [TaskKind.EVALUATE]
    assert done.stop_reason == f"max_rounds: {ROUNDS} rounds are closed"
    # Each round reports the model that entered it, pooled over the validation images of all sites.
    held = np.concatenate([np.load(path)["val_images"] for path in sites.values()])[:, None] / 255
    distances = [np.abs(held - one["image"]).sum((1, 2, 3)).mean() for one in models]
    np.testing.assert_allclose([one.metrics["distance"] for one in done.rounds], distances, rtol=1e-5)
    assert done.view.bytes_up == ROUNDS * len(sites) * 4 * 17


def test_each_site_of_a_simulation_keeps_to_the_policy_that_was_given(toy_plan, sites):
    policy = ProtectionPolicy((Step.CHECK, Step.CLIP), max_norm=0.01)
    free = load(fedveil.simulate(toy_plan, sites, rounds=2).model)
    bounded = load(fedveil.simulate(toy_plan, sites, rounds=2, protection=policy).model)
    moved = [np.linalg.norm([np.linalg.norm(m["image"] - 0.5), np.linalg.norm(m["share"])]) for m in (free, bounded)]
    assert moved[0] > 0.1
    assert moved[1] <= 2 * 0.01 * (1 + 1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(toy_plan, sites):
    first = fedveil.simulate(toy_plan, sites, rounds=2, seed=1)
    assert fedveil.simulate(toy_plan, sites, rounds=2, seed=1).model == first.model
    assert fedveil.simulate(toy_plan, dict(reversed(sites.items())), rounds=2, seed=1).model == first.model
    assert fedveil.simulate(toy_plan, sites, rounds=2, seed=2).model != first.model


def learned_codec(layout, file):
    """Of three directions out of seventeen; gives its file."""
    updates = np.random.default_rng(0).standard_normal((3, layout.size)).astype(np.float32)
    file.write_bytes(codec_bytes(fit(layout, updates, 5.0)))
    return file


@pytest.mark.parametrize("is_coded", [False, True], ids=["plain", "coded"])
def test_a_simulation_gives_the_bits_of_real_processes(toy_plan, sites, tmp_path, is_coded):
    build_plan(toy_plan, tmp_path / "plan")
    bundle = open_bundle(tmp_path / "plan")
    codec = learned_codec(bundle.layout, tmp_path / "codec.safetensors") if is_coded else None
    table = f'[codec]\ndigest = "{digest_of(codec.read_bytes())}"\n' if codec else ""
    limits = f"study.purpose = 'a test'\n[rounds]\nmax_rounds = {ROUNDS}\nmin_participants = {len(sites)}\n"
    with LocalFederation(tmp_path, "real") as federation:
        federation.found()
        federation.start_director()
        federation.wait_for_director()
        for name, path in sites.items():
            folder = federation.join(name, name.title())
            file = folder / "envoy.toml"
            allowed = file.read_text("utf-8").replace('rule = "required"', 'rule = "allowed"')
            file.write_text(allowed + "\n[training]\npreload_torch = false\n", "utf-8")
            found = inspect("toy", path, DataOptions(CLASSES), time.time())
            DatasetRegistry(folder / "datasets").add(found.record, found.index)
            federation.start_envoy(name)
        settings = f'name = "toy"\nseed = "{SEED:064x}"\nsecure_aggregation = "off"\n{limits}{table}'
        view = federation.wait_for(federation.submit(settings, bundle, codec))
        assert view.state == "finished", view
        with federation.operator() as operator:
            model = operator.fetch(view.model)
    simulated = fedveil.simulate(bundle, sites, rounds=ROUNDS, seed=SEED, codec=codec)
    assert model == simulated.model
    assert [one.metrics for one in view.rounds] == [one.metrics for one in simulated.rounds]
    assert view.bytes_up == simulated.view.bytes_up == ROUNDS * len(sites) * 4 * (3 if is_coded else 17)


def test_with_a_codec_a_model_moves_along_the_codecs_directions_alone(toy_plan, sites, tmp_path):
    build_plan(toy_plan, tmp_path / "plan")
    bundle = open_bundle(tmp_path / "plan")
    file = learned_codec(bundle.layout, tmp_path / "codec.safetensors")
    models = [fedveil.simulate(bundle, sites, rounds=1, seed=SEED, codec=codec).model for codec in (None, file)]
    initial = bundle.initial()[0]
    plain, coded = (read_model(bundle.layout, model)[0] - initial for model in models)
    codec = read_codec(file.read_bytes())
    np.testing.assert_allclose(coded, codec.decode(codec.encode(plain)), atol=1e-6)
    assert np.linalg.norm(coded) < 0.9 * np.linalg.norm(plain)


def test_a_codec_that_is_not_there_is_said_to_be_missing(toy_plan, sites, tmp_path):
    with pytest.raises(ConfigError, match=r"codec .*none\.safetensors: cannot be read: No such file"):
        fedveil.simulate(toy_plan, sites, codec=tmp_path / "none.safetensors")


@pytest.mark.parametrize("threads", [1, 2])
def test_training_uses_the_threads_that_were_asked_for_and_leaves_the_process_its_own(sites, tmp_path, threads):
    import torch

    plan = tmp_path / "threads.py"
    plan.write_text(
        "import torch\n"
        "from fedveil import DataKind, DataSpec, TrainingPlan, mean_of\n"
        "class Threads(TrainingPlan):\n"
        "    data = DataSpec('toy', DataKind.IMAGES, (1, 4, 4), ('normal', 'pneumonia'))\n"
        "    def model(self):\n"
        "        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1))\n"
        "    def train_step(self, model, batch):\n"
        "        return model(batch[0]).square().mean()\n"
        "    def evaluate(self, model, loader):\n"
        "        yield mean_of('threads', torch.get_num_threads(), 1)\n"
    )
    before = torch.get_num_threads()
    done = fedveil.simulate(plan, sites, rounds=1, device="cpu", threads=threads)
    assert {one.metrics["threads"] for one in done.rounds} == {threads}
    assert torch.get_num_threads() == before


def test_further_tables_of_experiment_toml_are_heeded(toy_plan, sites):
    stop = '[stop]\nmetric = "distance"\nmode = "min"\npatience = 1\nmin_delta = 100.0\n'
    done = fedveil.simulate(toy_plan, sites, rounds=9, experiment=stop)
    assert len(done.rounds) < 9
    assert "distance" in done.stop_reason


def test_a_plan_that_breaks_at_one_site_is_told_with_its_reason(toy_plan, sites):
    with pytest.raises(FederationError, match=r"round 1 .*site-b: TrainingError: the plan raised ValueError") as caught:
        fedveil.simulate(toy_plan, sites, rounds=2, settings={"fails_at": SIZES["site-b"]})
    shown = "".join(traceback.format_exception(caught.value))
    assert "ValueError: a toy that breaks" in shown  # for whoever simulates; a real director gets the first line alone
    assert "toy.py" in shown


def test_what_cannot_be_simulated_is_refused(toy_plan, sites, tmp_path):
    with pytest.raises(PlanError, match="site-b has none"):
        fedveil.simulate(toy_plan, sites | {"site-b": None})
    with pytest.raises(DatasetError, match="is not there"):
        fedveil.simulate(toy_plan, sites | {"site-b": tmp_path / "nothing.npz"})
    with pytest.raises(ConfigError, match="device 'tpu': expected auto, cpu, cuda"):
        fedveil.simulate(toy_plan, sites, device="tpu")
    with pytest.raises(PlanError, match="unknown setting depth"):
        fedveil.simulate(toy_plan, sites, settings={"depth": 1})
    with pytest.raises(PlanError, match="cannot be read"):
        fedveil.simulate(tmp_path / "no.py", sites)
    in_no_file = type("Plan", (fedveil.ArrayPlan,), {"__module__": "builtins"})
    with pytest.raises(PlanError, match="lies in no file"):
        fedveil.simulate(in_no_file, sites)


def test_a_folder_keeps_the_files_of_a_simulation(toy_plan, sites, tmp_path):
    fedveil.simulate(toy_plan, sites, rounds=1, folder=tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept" / "sites").iterdir()} == set(sites)
    assert open_bundle(tmp_path / "kept" / "plan").manifest.name == "Toy"


SECURE = 'secure_aggregation = "required"\n[secure_sum]\nclip = 4.0\nmax_examples = 20\n'


def test_secure_sums_give_the_plain_model_but_for_rounding_and_the_same_bits_each_time(toy_plan, sites):
    plain = fedveil.simulate(toy_plan, sites, rounds=2, seed=SEED)
    secure = fedveil.simulate(toy_plan, sites, rounds=2, seed=SEED, experiment=SECURE)
    for name, array in load(plain.model).items():
        np.testing.assert_allclose(load(secure.model)[name], array, atol=1e-6)
    assert fedveil.simulate(toy_plan, dict(reversed(sites.items())), rounds=2, seed=SEED, experiment=SECURE).model == (
        secure.model
    )
    assert [one.sum.survivors for one in secure.rounds] == [tuple(sorted(sites))] * 3
    assert [one.sum for one in plain.rounds] == [None] * 3
    for one, other in zip(secure.rounds, plain.rounds, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-5)


GROUPS = """
secure_aggregation = "required"
[aggregation]
method = "coordinate_median"
[secure_sum]
clip = 4.0
max_examples = 20
groups = 3
"""


def test_the_median_over_groups_that_are_summed_apart_is_what_numpy_says(toy_plan, toy_site):
    counts = {f"site-{letter}": 3 + 2 * place for place, letter in enumerate("abcdefghi")}
    sites = {name: toy_site(name, count) for name, count in counts.items()}
    done = fedveil.simulate(toy_plan, sites, rounds=1, seed=SEED, experiment=GROUPS)
    assert [one.sum.survivors for one in done.rounds] == [tuple(sites)] * 2
    groups = groups_of(cast_of(list(sites)).roster, SEED.to_bytes(32), 3, SumFloors()).groups
    assert {len(group) for group in groups} == {3}
    old, means = federated(sites, 0)[0], []
    for group in groups:
        answers = [trained(old, sites[name], name, 1) for name in group]
        total = sum(count for _, count in answers)
        means.append({k: sum((new[k] - old[k]) * np.float32(n / total) for new, n in answers) for k in old})
    for name, array in load(done.model).items():
        middle = np.median([mean[name] for mean in means], axis=0)
        np.testing.assert_allclose(array, old[name] + middle, atol=1e-5)
    assert fedveil.simulate(toy_plan, sites, rounds=1, seed=SEED, experiment=GROUPS).model == done.model


def test_two_sites_alone_make_no_secure_sum(toy_plan, sites):
    two = dict(list(sites.items())[:2])
    with pytest.raises(ConfigError, match="min_participants is 2, and under secure aggregation"):
        fedveil.simulate(toy_plan, two, experiment=SECURE)
