"""What a codec costs in accuracy: the demo's federation with uploads of several sizes, all else equal.

Every arm of a seed has the same sites, the same first model and the same order of examples; a tenth of the training
images is public in every arm and no site's. No processes: a plain loop over the envoy's own training, one thread. A
run's rows are appended as they come and never made twice.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...envoy.datasets import load
from ...envoy.inspection import inspect
from ...envoy.plan_loading import plan_of
from ...envoy.records import LoadedDataset
from ...envoy.splits import Split
from ...gradient_leakage.vae.codec import Codec, codec_bytes, read_codec
from ...gradient_leakage.vae.fitting import fit, seeded
from ...gradient_leakage.vae.layered import fit_layered
from ...utils.errors import ConfigError, StorageError
from ...utils.plan_bundle import Bundle, open_bundle
from ...utils.tensors import Vector, canonical_json, digest_of, model_pieces
from ..chest_xrays import Images3, Part, find_images
from ..codec_fitting import Rehearsal, Updates, proxy_updates
from ..demo import PLAN, SITE_OPTIONS
from ..plain_rounds import SiteModel, local_update
from ..plan_builder import build_plan
from ..scoring import class_scores
from ..sites import THREE_SITES, divide, set_aside
from .uplinks import Coded, PowerSGD, Refreshed, TopK, Uncompressed, Uplink

PUBLIC_SHARE = 0.1
SEEDS = (1, 2, 3)
ROUNDS = (10, 30)
REHEARSAL = Rehearsal(sites=3, rounds=12, repeats=10, examples=1400, seed=7)
"""As many examples as the demo's sites have on average, so that a virtual site takes as many steps."""
REFRESHED_EVERY = 10
_REFRESHING = replace(REHEARSAL, rounds=5, repeats=6)
BASELINE = "none"


@dataclass(frozen=True, slots=True)
class UtilityRow:
    """One arm and seed after some rounds."""

    arm: str
    seed: int
    rounds: int
    bytes_up: int  # of one site's update
    compression: float
    auc_validation: float  # the only one that anything was chosen by
    auc: float  # on the test part
    cpu_seconds: float  # of the rounds so far, sites and director
    setup: str  # digest of everything else that determines the row
    scores: tuple[float, ...]  # of the test images, in their order: for paired differences

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes it the same measurement."""
        return self.setup, self.arm, self.seed, self.rounds


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms share."""

    bundle: Bundle
    images: Images3  # without the public part
    public: Part
    home: Path

    def sites(self, seed: int) -> list[LoadedDataset]:
        """The training images of each of the demo's sites; another seed divides them otherwise."""
        paths = divide(self.images, THREE_SITES, self.home / f"seed-{seed}", seed)
        found = [inspect("chest-xray", path, SITE_OPTIONS, 0.0) for path in paths.values()]
        return [_training_part(load(one.record, one.index, self.bundle.manifest.data)) for one in found]


def prepare(home: Path, data: Path | None = None) -> Setting:
    """Build the demo's plan and set the public part aside.

    Raises:
        DatasetError: the images cannot be used, or are not there.
    """
    images, public = set_aside(find_images(data, 28, home / "cache"), PUBLIC_SHARE)
    build_plan(PLAN, home / "plan")
    return Setting(open_bundle(home / "plan"), images, public, home)


class Codecs:
    """The codecs of a setting, each fitted once and kept beside the rows."""

    def __init__(self, setting: Setting, rehearsal: Rehearsal) -> None:
        self._setting, self._rehearsal = setting, rehearsal
        self._updates: Updates | None = None

    def layered(self, ratio: float, *, seeded_share: float = 0.0, two_sided: bool = False) -> Codec:
        """Fitted tensor by tensor."""
        layout = self._setting.bundle.layout
        return self._kept(
            f"layered-{ratio:g}-{seeded_share:g}{'-two-sided' if two_sided else ''}",
            lambda: fit_layered(layout, self.updates(), ratio, seeded_share=seeded_share, two_sided=two_sided),
        )

    def one_block(self, ratio: float) -> Codec:
        """Principal components of the whole update."""
        layout = self._setting.bundle.layout
        return self._kept(f"one-block-{ratio:g}", lambda: fit(layout, self.updates(), ratio))

    def seeded(self, ratio: float) -> Codec:
        """A random projection a round."""
        return seeded(self._setting.bundle.layout, ratio)

    def refitted(self, ratio: float, start: Vector, *, two_sided: bool) -> Codec:
        """As ``layered``, on rehearsals that begin with another model; not kept."""
        rows = proxy_updates(self._setting.bundle, self._public(), _REFRESHING, start)
        return fit_layered(self._setting.bundle.layout, rows, ratio, two_sided=two_sided)

    def updates(self) -> Updates:
        """What all of them are fitted on; rehearsed once, and kept."""
        file = self._setting.home / "proxy-updates.npy"
        if self._updates is None and file.exists():
            self._updates = np.load(file, allow_pickle=False)
        if self._updates is None:
            self._updates = proxy_updates(self._setting.bundle, self._public(), self._rehearsal)
            np.save(file, self._updates)
        return self._updates

    def _public(self) -> LoadedDataset:
        public = self._setting.public
        return LoadedDataset(public.images[:, None], public.labels, np.zeros(len(public.labels), np.uint8))

    def _kept(self, name: str, make: Callable[[], Codec]) -> Codec:
        file = self._setting.home / f"{name}.safetensors"
        if not file.exists():
            file.write_bytes(codec_bytes(make()))
        return read_codec(file.read_bytes())


def _refreshed(codecs: Codecs, ratio: float, *, two_sided: bool = False) -> Refreshed:
    first = Coded(codecs.layered(ratio, two_sided=two_sided))
    return Refreshed(REFRESHED_EVERY, lambda model: codecs.refitted(ratio, model, two_sided=two_sided), first)


ARMS: Mapping[str, Callable[[Setting, Codecs], Uplink]] = {
    BASELINE: lambda setting, _: Uncompressed(setting.bundle.layout),
    "learned 100x": lambda _, codecs: Coded(codecs.layered(100)),
    "learned 100x, refreshed": lambda _, codecs: _refreshed(codecs, 100),
    "learned 20x": lambda _, codecs: Coded(codecs.layered(20)),
    "learned 20x, two-sided, refreshed": lambda _, codecs: _refreshed(codecs, 20, two_sided=True),
    "learned 20x, two-sided": lambda _, codecs: Coded(codecs.layered(20, two_sided=True)),
    "top-k + EF, as learned 100x": lambda setting, _: TopK(setting.bundle.layout.num_bytes // 100),
    "top-k + EF, as learned 20x": lambda setting, _: TopK(setting.bundle.layout.num_bytes // 20),
    "PowerSGD rank 1 + EF": lambda setting, _: PowerSGD(setting.bundle.layout, 1),
    "seeded 100x + EF": lambda _, codecs: Coded(codecs.seeded(100), has_feedback=True),
    "seeded 20x + EF": lambda _, codecs: Coded(codecs.seeded(20), has_feedback=True),
    "learned 100x, half fresh + EF": lambda _, codecs: Coded(codecs.layered(100, seeded_share=0.5), has_feedback=True),
    "learned 100x, one block": lambda _, codecs: Coded(codecs.one_block(100)),
}


def measure(
    home: Path,
    arms: Sequence[str],
    *,
    data: Path | None = None,
    seeds: Sequence[int] = SEEDS,
    rounds: Sequence[int] = ROUNDS,
    rehearsal: Rehearsal = REHEARSAL,
) -> Iterator[UtilityRow]:
    """Every row of these arms, those from the folder first; what is missing is run and appended.

    Args:
        home: keeps plan, codecs and ``rows.jsonl``.
        arms: names out of ``ARMS``.
        data: the images; by default the demo's.
        seeds: of division, order and augmentation.
        rounds: after which a row is made; the last ends the run.
        rehearsal: what learned codecs are fitted on.

    Raises:
        ConfigError: no such arm.
        DatasetError: no images.
    """
    unknown = sorted(set(arms) - set(ARMS))
    if unknown:
        raise ConfigError(f"arm {', '.join(unknown)}: expected some of {', '.join(ARMS)}")
    home.mkdir(parents=True, exist_ok=True)
    setting = prepare(home, data)
    setup = _setup(setting, rehearsal)
    codecs, known = Codecs(setting, rehearsal), {row.key: row for row in read_rows(home / "rows.jsonl")}
    for arm, seed in itertools.product(arms, seeds):
        wanted = [(setup, arm, seed, number) for number in sorted(rounds)]
        if not all(key in known for key in wanted):
            for row in _run(setting, ARMS[arm](setting, codecs), arm, seed, rounds, setup):
                known[row.key] = row
                with (home / "rows.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
        yield from (known[key] for key in wanted)


def held(home: Path, arms: Sequence[str], *, seeds: Sequence[int], rounds: Sequence[int]) -> list[UtilityRow]:
    """The rows that a folder has of the newest setup in it, in the order of the arms; nothing is run."""
    rows = read_rows(home / "rows.jsonl")
    places = {arm: place for place, arm in enumerate(arms)}
    chosen = [
        row
        for row in rows
        if row.setup == rows[-1].setup and row.arm in places and row.seed in seeds and row.rounds in rounds
    ]
    return sorted(chosen, key=lambda row: (places[row.arm], row.rounds, row.seed))


def read_rows(path: Path) -> list[UtilityRow]:
    """The rows of a file; none where there is no file yet.

    Raises:
        StorageError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        documents = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [UtilityRow(**{**document, "scores": tuple(document["scores"])}) for document in documents]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is damaged: {error}; delete it, and the rows are measured again") from error


def _run(
    setting: Setting, uplink: Uplink, arm: str, seed: int, rounds: Sequence[int], setup: str
) -> Iterator[UtilityRow]:
    plan, layout = plan_of(setting.bundle), setting.bundle.layout
    initial, exact = setting.bundle.initial()
    vector, sites, spent = np.array(initial), setting.sites(seed), 0.0
    updates = [np.empty(layout.size, np.float32) for _ in sites]
    for number in range(1, max(rounds) + 1):
        began = time.process_time()
        if isinstance(uplink, Refreshed):
            uplink.begin(number, vector)
        model = SiteModel(layout, vector, exact)
        sizes = [
            local_update(plan, model, data, _round_seed(seed, number, site), out)
            for site, (data, out) in enumerate(zip(sites, updates, strict=True))
        ]
        weights = [size / sum(sizes) for size in sizes]
        vector = vector + uplink.mean(updates, weights, _round_seed(seed, number).to_bytes(32, "big"))
        spent += time.process_time() - began
        if number in rounds:
            file = b"".join(model_pieces(layout, vector, exact))
            validation = class_scores(setting.bundle, file, setting.images.validation.images)[:, 1]
            scores = class_scores(setting.bundle, file, setting.images.test.images)[:, 1]
            yield UtilityRow(
                arm,
                seed,
                number,
                uplink.num_bytes,
                round(layout.num_bytes / uplink.num_bytes, 2),
                _auc(setting.images.validation, validation),
                _auc(setting.images.test, scores),
                round(spent, 1),
                setup,
                tuple(round(float(score), 7) for score in scores),
            )


def _auc(part: Part, scores: NDArray[np.float32]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(part.labels, scores))


def _setup(setting: Setting, rehearsal: Rehearsal) -> str:
    """A digest of plan, images and rehearsal: rows of another setup are no answer."""
    images = digest_of(*(part.images.tobytes() for part in (setting.images.train, setting.images.test, setting.public)))
    return digest_of(canonical_json([setting.bundle.digest, images, asdict(rehearsal)]))[:12]


def _round_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _training_part(loaded: LoadedDataset) -> LoadedDataset:
    """Without the validation images, whose metrics nobody asks for here."""
    features, labels = loaded.part(Split.TRAIN)
    return LoadedDataset(features, labels, np.zeros(len(labels), np.uint8))
