"""A site in somebody's Python takes part in the same secure sums as envoys over gRPC: real processes, real sockets."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fedveil
import numpy as np
import pytest
from fedveil import FederatedLearner
from fedveil.director.__main__ import app as director
from fedveil.director.founding import ROOT_FILE
from fedveil.director.server import REST_ADDRESS_FILE
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.journal import read_outbox
from fedveil.envoy.learner.own_data import OwnData
from fedveil.utils import errors
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.rest_calls import RestCalls
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

GRPC = ("site-a", "site-b", "site-c")
SITE = "site-d"
FOUR = (*GRPC, SITE)
PASSWORD = "correct horse battery staple"
SECURE = "[secure_sum]\nclip = 4.0\nmax_examples = 100\nstage_timeout_seconds = 20\n"
RULES = ["create:envoy:organization", "edit:envoy:organization", "view:envoy:organization"]


@dataclass
class World:
    """Three envoys over gRPC, a director with a REST API, and what a learner of North Hospital needs to know."""

    federation: object
    url: str
    root: Path
    organization: str
    key: str
    plan: object
    tmp: Path

    @property
    def folder(self) -> Path:
        return self.federation.folder / SITE

    def learner(self, **changes: object) -> FederatedLearner:
        given = {"url": self.url, "root": self.root, "folder": self.folder, "name": SITE} | changes
        return FederatedLearner(given.pop("organization", self.organization), given.pop("key", self.key), **given)


def images(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one site: as many as no other has, brighter where they are ill."""
    rng = np.random.default_rng(number)
    labels = rng.integers(0, 2, 30 + number)
    return (rng.integers(0, 120, (len(labels), 8, 8)) + 100 * labels[:, None, None]).astype(np.uint8), labels


def typed(app: object, *words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def world(tmp_path: Path, toy_federation: Callable[..., object]) -> Iterator[World]:
    with toy_federation(tmp_path / "federation", "") as federation:
        federation.sites = ()
        federation.director_settings = {"rest.listen": '"127.0.0.1:0"', "rest.needs_infrastructure_user": "false"}
        federation.set_up()
        for number, name in enumerate(GRPC):
            folder = federation.join(name, name.title())
            (folder / "envoy.toml").write_text(federation.envoy_settings, "utf-8")
            OwnData(folder).register("xrays", images(number))
        federation.sites = GRPC
        for name in GRPC:
            federation.start_envoy(name)
        build_plan(Path(__file__).parent / "linear_plan.py", tmp_path / "plan", {})
        home = federation.director_folder
        (tmp_path / "password").write_text(PASSWORD + "\n")
        words = ["user", "add", "north", "--organization", "North Hospital", "--role", "organization-admin"]
        typed(director, *words, "--folder", home, "--password-file", tmp_path / "password")
        url, root = (home / REST_ADDRESS_FILE).read_text(), home / ROOT_FILE
        with RestCalls(url, "", root.read_bytes()) as calls:
            calls.bearer = calls.json("POST", "/api/v1/sessions", {"name": "north", "password": PASSWORD})["token"]
            me = calls.json("GET", "/api/v1/me")
            rules = [*RULES, "view:task:collaboration", "view:model:collaboration", "view:report:collaboration"]
            key = calls.json("POST", "/api/v1/keys", {"label": "learner", "rules": rules, "days": 1})["api_key"]
        yield World(federation, url, root, me["organization_id"], key, open_bundle(tmp_path / "plan"), tmp_path)
        federation.history._engine.dispose()


def simulated(plan: object, folder: Path, rounds: int) -> bytes:
    """The model of the same federation of four envoys, in one process."""
    sites = {name: str(next((folder / name / "own-data").glob("*.npz"))) for name in FOUR}
    text = f'name = "linear"\nsecure_aggregation = "required"\n{SECURE}'
    seed = int.from_bytes(hashlib.sha256(b"toy").digest())
    return fedveil.simulate(plan, sites, rounds=rounds, seed=seed, experiment=text).model


def test_a_learner_is_in_the_sum_and_the_model_is_that_of_four_envoys_bit_for_bit(world, settings):
    federation = world.federation
    for changes, error, message in (
        ({"key": "fv_" + "A" * 43}, errors.IdentityError, "key|token|nobody"),
        ({"organization": "0" * 32}, errors.ConfigError, "acts for organization"),
        ({"url": "https://127.0.0.1:1"}, errors.UnreachableError, "127.0.0.1:1"),
        ({"name": "site-a"}, errors.NameTakenError, "site-a"),
    ):  # who is not who it says, or calls elsewhere, is refused, and nothing is kept
        elsewhere = world.tmp / f"elsewhere-{next(iter(changes))}"
        with world.learner(folder=elsewhere, **changes) as learner, pytest.raises(error, match=f"(?i){message}"):
            learner.register()
        assert not (elsewhere / "credentials.json").exists()
    with world.learner() as learner:
        assert learner.register() == SITE
        (world.folder / "envoy.toml").write_text(federation.envoy_settings, "utf-8")
        run = federation.submit(settings("linear", rounds=2, quorum=4, secure="required") + SECURE, world.plan)

        # Nothing trains before the data manager's word.
        with pytest.raises(errors.NotApprovedError, match=rf"envoy plan approve \w+ --folder {world.folder}"):
            learner.train_local(images(3), timeout=60, approval_timeout=0)
        with pytest.raises(errors.WrongRoundError, match="no round was trained here"):
            learner.submit_gradients({"bias": np.zeros(1, np.float32)})
        federation.adopt(world.folder)

        with pytest.raises(errors.ConfigError, match=r"epochs=10: plan .* was approved with local_epochs = 1"):
            learner.train_local(images(3), epochs=10, timeout=60)
        with pytest.raises(errors.DatasetError, match="recorded from something else"):
            learner.train_local(images(4), timeout=60)
        update = learner.train_local(images(3), epochs=1, batch_size=32, timeout=60)
        again = learner.train_local("xrays", timeout=60)
        assert {name: one.shape for name, one in update.gradients.items()} == {"weights": (64,), "bias": (1,)}
        assert (update.round, update.run, update.num_examples) == (1, run, learner.analyze_local_data().num_train)
        assert all(np.array_equal(again.gradients[name], one) for name, one in update.gradients.items())

        # What cannot be submitted is refused, with all that is wrong, and the round stays open.
        bad = update.gradients | {"bias": np.full(1, np.nan, np.float32)}
        report = learner.validate_submission(bad, checks=["bounds_check", "nan_check", "privacy_check"])
        assert not report
        assert "bias holds NaN in 1 of 1 numbers" in str(report)
        with pytest.raises(errors.NonFiniteUpdateError, match="bias holds NaN"):
            learner.submit_gradients(bad, round=1)
        with pytest.raises(errors.UnsendableUpdateError, match=r"weights is float64"):
            learner.submit_gradients({name: one.astype(np.float64) for name, one in update.gradients.items()})
        with pytest.raises(errors.UnsendableUpdateError, match="weights is missing"):
            learner.submit_gradients({"bias": update.gradients["bias"]})
        with pytest.raises(errors.LayoutMismatchError, match="arrays by name"):
            learner.submit_gradients([1.0])
        with pytest.raises(errors.WrongRoundError, match="round 5 is not one"):
            learner.submit_gradients(update.gradients, round=5)
        with pytest.raises(errors.ConfigError, match="expected some of"):
            learner.validate_submission(update.gradients, checks=["size_check"])
        assert read_outbox(world.folder) == []  # nothing left so far

        assert learner.validate_submission(update.gradients, round=1)
        receipt = learner.submit_gradients(update.gradients, round=1, timeout=60)
        assert (receipt.run, receipt.round) == (run, 1)
        assert receipt.length > 0
        assert receipt.received_at <= time.time()
        assert learner.submit_gradients(update.gradients, round=1) == receipt
        other = {name: one * 2 for name, one in update.gradients.items()}
        with pytest.raises(errors.DuplicateUpdateError, match="a round has one answer"):
            learner.submit_gradients(other, round=1)

        second = learner.train_local("xrays", timeout=60)
        assert second.round == 2
        learner.submit_gradients(second.gradients, timeout=60)
        view = federation.finish(run)
        assert [one.sum.survivors for one in view.rounds] == [FOUR] * 3  # its evaluation too, by itself
        with federation.operator() as operator:
            model = operator.fetch(view.model)
        assert model == simulated(world.plan, federation.folder, 2)
        assert [row.kind for row in read_outbox(world.folder)] == ["masked"] * 2 + ["masked metrics"]

        found = learner.download_model()
        assert found.path.read_bytes() == model
        assert (found.sha256, found.training_round, found.organizations_contributed) == (view.model, 2, 4)
        assert set(found.weights) == {"weights", "bias"}
        assert learner.get_privacy_report().participants == 4
        assert learner.get_privacy_report(round=1).total_epsilon is None
        assert learner.get_current_epsilon().uncovered == 3
    assert "whole, signed by this site" in typed(envoy, "audit", "verify", "--folder", world.folder)
    assert (world.folder / "rest.json").stat().st_mode & 0o777 == 0o600
    # Another process finds what was submitted, and does not take it a second time.
    with world.learner() as learner:
        assert learner.submit_gradients(update.gradients, round=1) == receipt
        with pytest.raises(errors.DuplicateUpdateError):
            learner.submit_gradients(other, round=1)


def test_the_example_program_runs_as_it_stands_with_noise_and_under_secure_aggregation(world, settings):
    federation, path = world.federation, world.tmp / "own.npz"
    pixels, labels = images(3)
    np.savez(path, images=pixels, labels=labels)
    with world.learner() as learner:
        learner.register()
        learner.register_data("xrays", path)
    budget = ["--epsilon", "9", "--delta", "1e-5", "--unit", "site", "--allow-without-guarantee"]
    typed(envoy, "privacy", "budget", "xrays", *budget, "--folder", world.folder)
    (world.folder / "envoy.toml").write_text(federation.envoy_settings, "utf-8")
    federation.adopt(world.folder)
    run = federation.submit(settings("linear", rounds=2, quorum=3, secure="required") + SECURE, world.plan)
    told = {"FEDVEIL_URL": world.url, "FEDVEIL_ROOT": str(world.root), "FEDVEIL_API_KEY": world.key}
    words = [world.organization, "xrays", str(path), "--rounds", "2", "--epsilon", "1", "--name", SITE]
    done = subprocess.run(
        [sys.executable, "-m", "fedveil.workspace.examples.federated_api", *words, "--folder", str(world.folder)],
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert [f"round {number}: the director has" in said for number in (1, 2)] == [True, True]
    assert "participants 4" in said
    spent = re.search(r"this site: epsilon ([0-9.]+) at delta 1e-05 per site, and 2 tasks that no epsilon covers", said)
    assert 1 < float(spent[1]) < 9  # the noise of both rounds together; their metrics have no epsilon
    assert world.key not in said + done.stderr
    view = federation.finish(run)
    assert [one.sum.survivors for one in view.rounds if one.kind.value == "train"] == [FOUR] * 2
    with federation.operator() as operator:
        assert operator.fetch(view.model) != simulated_with(world, path)


def simulated_with(world: World, path: Path) -> bytes:
    """The model of the same federation without noise."""
    own = world.folder / "own-data"
    own.mkdir(exist_ok=True)
    (own / "xrays.npz").write_bytes(path.read_bytes())
    return simulated(world.plan, world.federation.folder, 2)
