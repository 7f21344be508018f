"""kill -9 at every instant that matters: the run goes on by itself, and its final model is the same to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.rounds import RoundState
from fedveil.gradient_leakage.vae.codec import codec_bytes
from fedveil.gradient_leakage.vae.fitting import fit

SITES = ("site-a", "site-b", "site-c")
UPDATE_BYTES = (3000 + 7 * 11) * 4
BLOCKS, RUNS_EACH = 4, 4


@dataclass(frozen=True)
class Doom:
    """What is killed in one run."""

    directors: list[list[str]]  # of each director in turn, how it dies; the one after them lives
    site: str
    victim: str | None  # the site's envoy, or its worker
    trainings: int  # how often the site has begun to train when that happens

    @classmethod
    def drawn(cls, seed: int) -> Doom:
        lot = random.Random(seed)
        deaths = [cls._death(lot) for _ in range(lot.choice([1, 1, 1, 2]))]
        victim = lot.choice([None, None, None, "envoy", "worker"])
        return cls(deaths, lot.choice(SITES), victim, lot.randint(1, 2))

    @staticmethod
    def _death(lot: random.Random) -> list[str]:
        if lot.random() < 0.3:
            torn = ["--torn"] if lot.random() < 0.5 else []
            return ["--kill-at-byte", str(lot.randrange(1, 6 * UPDATE_BYTES)), *torn]
        return ["--kill-at", str(lot.randint(1, 24)), "--when", lot.choice(["before", "after"])]


def undisturbed(
    federation, settings: Callable[..., str], plan, optimizer: str, table: str = "", codec: Path | None = None
) -> str:
    run = federation.submit(settings(f"undisturbed-{optimizer}", optimizer=optimizer) + table, plan, codec)
    return federation.finish(run).model


def suffer(
    federation, text: str, name: str, plan, doom: Doom, wait_until: Callable[..., None], codec: Path | None = None
) -> None:
    """One run, with all that is to be killed in it."""
    began = federation.trainings()[doom.site]
    deaths = list(doom.directors)
    federation.kill_director()
    federation.start_doomed_director(*deaths.pop(0))
    federation.submit_once(text, plan, codec)
    victim = doom.victim

    def moves_on() -> bool:
        nonlocal victim
        if victim and federation.trainings()[doom.site] >= began + doom.trainings:
            if victim == "envoy":
                federation.kill_envoy(doom.site)
                federation.start_envoy(doom.site)
            else:
                federation.kill_worker(doom.site)
            victim = None
        if federation.is_director_dead:
            if deaths:
                federation.start_doomed_director(*deaths.pop(0))
            else:
                federation.start_director()
        record = federation.record(name)
        return record is not None and record.state.is_over

    wait_until(moves_on, f"{name} with {doom}", 90.0)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_is_killed_the_final_model_is_bit_identical(block: int, federation, settings, wait_until):
    """16 seeded runs."""
    plan = federation.plan(seconds=0.02)
    expected = {name: undisturbed(federation, settings, plan, name) for name in ("fedavg", "fedadam")}
    for seed in range(block * RUNS_EACH, (block + 1) * RUNS_EACH):
        name, optimizer, doom = f"seed-{seed}", ("fedavg", "fedadam")[seed % 2], Doom.drawn(seed)
        before = federation.trainings()
        suffer(federation, settings(name, optimizer=optimizer), name, plan, doom, wait_until)
        record = federation.record(name)
        assert (record.state.value, record.reason) == ("finished", "max_rounds: 2 rounds are closed"), doom
        assert record.model == expected[optimizer], doom
        rounds = federation.rounds(record.run)
        assert all(len(one.round.cohort) == 3 for one in rounds if one.round.state is RoundState.CLOSED), doom
        if doom.victim is None:  # a director's death fails no round and repeats no training
            assert [one.round.ref.attempt for one in rounds] == [1, 1, 1], doom
            assert {site: n - before[site] for site, n in federation.trainings().items()} == dict.fromkeys(SITES, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("transition", "when"), [(2, "after"), (3, "before")])
def test_a_director_killed_at_every_single_transition_gets_through(
    transition: int, when: str, federation, settings, wait_until
):
    """Each director lives for one transition of the run (and the one that it resumes with)."""
    plan = federation.plan()
    expected = undisturbed(federation, settings, plan, "fedadam")
    before, lives = federation.trainings(), federation.lives
    federation.kill_director()
    federation.start_doomed_director("--kill-at", "1", "--when", "after")
    federation.submit_once(settings("chain", optimizer="fedadam"), plan)

    def moves_on() -> bool:
        if federation.is_director_dead:
            federation.start_doomed_director("--kill-at", str(transition), "--when", when)
        record = federation.record("chain")
        return record is not None and record.state.is_over

    wait_until(moves_on, "a run whose directors all die", 110.0)
    assert federation.record("chain").model == expected
    assert {site: n - before[site] for site, n in federation.trainings().items()} == dict.fromkeys(SITES, 2)
    assert federation.lives - lives > 15


@pytest.mark.slow
def test_a_director_killed_amid_codes_and_before_their_sum_is_kept_decodes_to_the_same_bits(
    federation, settings, wait_until, tmp_path: Path
):
    plan, file = federation.plan(), tmp_path / "codec.safetensors"
    updates = np.random.default_rng(0).standard_normal((40, plan.layout.size)).astype(np.float32)
    codec = fit(plan.layout, updates, 30.0)
    file.write_bytes(codec_bytes(codec))
    table = f'[codec]\ndigest = "{codec.digest}"\n'
    expected = undisturbed(federation, settings, plan, "fedadam", table, file)
    amid = ["--kill-at-byte", str(5 * codec.size), "--torn"]
    for number, death in enumerate(([amid], [amid, ["--kill-at", "7", "--when", "before"]])):
        name = f"coded-{number}"
        text = settings(name, optimizer="fedadam") + table
        suffer(federation, text, name, plan, Doom(death, "site-a", "envoy", 1), wait_until, file)
        record = federation.record(name)
        assert (record.state.value, record.model) == ("finished", expected)
        assert record.bytes_up < 3 * 3 * 4 * codec.size  # never an update
