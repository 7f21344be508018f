"""Every defense by name, with its source, its weakness, and the attacks that were made for it.

A defense that nobody attacked with full knowledge of it is worth nothing, so ``Registered`` refuses one without such
attacks. Which defense protects how much is the benchmark's to say; nothing here does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor, nn

from ...utils.errors import ConfigError
from ...utils.tensors import Layout
from ..attacks.catalogue import listed
from ..cells import Options
from ..vae.codec import Codec
from ..vae.fitting import seeded
from .bottlenecks import Bottleneck, with_bottleneck
from .chain import Chain
from .clip import Clip
from .coded import Coded
from .defense import Defense
from .gaussian import GaussianMechanism
from .outpost import Outpost, Span
from .partial import PartialNoise
from .quantise import Quantise
from .representation import soteria_of
from .sketch import Sketch
from .top_k import TopK

RATIO = 100.0
"""How many times smaller a code is than its update, in the benchmark."""
LITTLE_NOISE, MUCH_NOISE = 0.01, 1.0
"""Multipliers. One release of a site that is there or not: 1 is epsilon 4.4 at delta 1e-5 (Balle and Wang 2018,
arXiv:1805.06530, theorem 8); 0.01 is no protection that a figure could be given for."""
_PPP = 0.1  # length of the noise before the bottleneck, over the length of a usual update


@dataclass(frozen=True, slots=True)
class Adaptive:
    """An attack that knows the defense, as the benchmark runs it."""

    attack: str  # of the catalogue
    knowledge: tuple[str, ...] = ()  # names of ``Knowledge`` beside ``defense``
    options: Options = ()


class Lesson(Enum):
    """What a defense wants to be taught from updates that no patient made."""

    NOTHING = "nothing"
    LENGTH = "length"
    CODEC = "codec"
    NONLINEAR = "nonlinear"


@dataclass(frozen=True, slots=True, eq=False)
class PublicSide:
    """What was learned; at least what the defense's ``Lesson`` asks for."""

    codec: Codec | None = None
    max_norm: float = 1.0  # the median length of the updates
    nonlinear: Defense | None = None  # a network that codes and decodes


@dataclass(frozen=True, slots=True, eq=False)
class SiteSide:
    """What a chain may be built from at the site. A director knows the chain that comes out, not its images."""

    layout: Layout
    model: nn.Module  # as published, with its bottleneck
    images: Tensor  # (count, channels, height, width) in [0, 1]
    labels: Tensor  # (count,) int64
    codec: Codec | None = None  # learned on public images
    max_norm: float = 1.0  # of clips; the median length of public updates is a good one
    nonlinear: Defense | None = None  # ``vae.nonlinear``, learned on public images
    round_seed: bytes = bytes(32)  # public, and the round's
    iteration: int = 0  # of the training


@dataclass(frozen=True, slots=True)
class Registered:
    """One defense.

    Raises:
        ConfigError: no attack was made for it, or one that the catalogue does not have.
    """

    name: str
    title: str
    source: str
    weakness: str  # what breaks it
    adaptive: tuple[Adaptive, ...]
    chain: Callable[[SiteSide], Chain] | None = None  # None: what is sent is what was computed
    on_model: Callable[[nn.Module, int], nn.Module] | None = None  # fresh, and a seed; before it is trained
    is_heuristic: bool = True  # no theorem says what it hides
    learns: Lesson = Lesson.NOTHING

    def __post_init__(self) -> None:
        """Hold every defense to its attackers."""
        if not self.adaptive:
            raise ConfigError(f"defense {self.name} names no attack that was made for it, so it cannot be registered")
        for adaptive in self.adaptive:
            listed(adaptive.attack)


def _codec_of(side: SiteSide) -> Codec:
    if side.codec is None:
        raise ConfigError("this defense needs a codec that was learned on public updates")
    return side.codec


def _nonlinear(side: SiteSide) -> Chain:
    if side.nonlinear is None:
        raise ConfigError("this defense needs a nonlinear VAE that was learned on public updates")
    return Chain((side.nonlinear,))


def _seeded(side: SiteSide) -> Chain:
    return Chain((Coded(seeded(side.layout, RATIO).for_round(side.round_seed)),))


def _sketch(side: SiteSide) -> Chain:
    return Chain((Sketch(int.from_bytes(side.round_seed[:8], "big"), 0.05, side.layout.size),))


def _outpost(side: SiteSide) -> Chain:
    weights = dict(side.model.named_parameters())
    spans = tuple(
        Span(entry.offset, entry.offset + entry.size, min(float(weights[entry.name].detach().var()), 1.0))
        for entry in side.layout.entries
        if entry.name in weights and entry.size > 1
    )
    return Chain((Outpost(spans, side.iteration),))


def _partial_noise(side: SiteSide) -> Chain:
    """Noise on what comes before the bottleneck, in the model's order."""
    name = next((name for name, module in side.model.named_modules() if isinstance(module, Bottleneck)), None)
    if name is None:
        raise ConfigError("PPP perturbs what lies before a bottleneck, and this model has none")
    names = [each for each, _ in side.model.named_parameters()]
    first = next(place for place, each in enumerate(names) if each.startswith(f"{name}."))
    before = [entry for entry in side.layout.entries if entry.name in names[:first]]
    count = sum(entry.size for entry in before)
    spans = tuple((entry.offset, entry.offset + entry.size) for entry in before)
    return Chain((PartialNoise(spans, _PPP * side.max_norm / max(count, 1) ** 0.5),))


_LABELS = ("labels",)
_COSINE = Adaptive("inverting-gradients", _LABELS)
_LEARNED = Adaptive("learned-inversion", ("public_data",))
_MATCHED = Adaptive("defended-matching", _LABELS)

_ALL = (
    Registered(
        "none",
        "Nothing: what the site computed is what it sends",
        "McMahan et al. 2017, arXiv:1602.05629",
        "every attack",
        (Adaptive("dlg", _LABELS), _COSINE),
    ),
    Registered(
        "clip",
        "The whole update scaled down to a bound",
        "McMahan et al. 2018, arXiv:1710.06963",
        "a cosine does not see the scale",
        (_MATCHED, _COSINE),
        chain=lambda side: Chain((Clip(side.max_norm),)),
        learns=Lesson.LENGTH,
    ),
    Registered(
        "clip-noise-small",
        f"Clip, and Gaussian noise of {LITTLE_NOISE:g} of the bound in each number",
        "Abadi et al. 2016, arXiv:1607.00133",
        "many noisy numbers say one image: likelihood with a prior, all rows at once",
        (_MATCHED, _COSINE, Adaptive("all-rows"), _LEARNED),
        chain=lambda side: Chain((GaussianMechanism(side.max_norm, LITTLE_NOISE),)),
        learns=Lesson.LENGTH,
    ),
    Registered(
        "clip-noise",
        f"Clip, and Gaussian noise of {MUCH_NOISE:g} of the bound in each number",
        "Abadi et al. 2016, arXiv:1607.00133",
        "rounds add up; one site's release is the unit, and no patient",
        (_MATCHED, _COSINE, Adaptive("all-rows"), _LEARNED),
        chain=lambda side: Chain((GaussianMechanism(side.max_norm, MUCH_NOISE),)),
        is_heuristic=False,
        learns=Lesson.LENGTH,
    ),
    Registered(
        "topk-10",
        "The tenth of the numbers with the largest magnitude",
        "Lin et al. 2018, arXiv:1712.01887",
        "matching the kept numbers alone",
        (_MATCHED, _COSINE, _LEARNED),
        chain=lambda _: Chain((TopK(0.1),)),
    ),
    Registered(
        "topk-1",
        "The hundredth of the numbers with the largest magnitude",
        "Lin et al. 2018, arXiv:1712.01887",
        "matching the kept numbers alone",
        (_MATCHED, _COSINE, _LEARNED),
        chain=lambda _: Chain((TopK(0.01),)),
    ),
    Registered(
        "sketch-5",
        "A count sketch of orthonormal rows to 5 % of the numbers",
        "Charikar, Chen and Farach-Colton 2002",
        "matching sketches instead of updates",
        (_MATCHED, _COSINE, _LEARNED),
        chain=_sketch,
    ),
    Registered(
        "quantise-8",
        "Unbiased rounding to 8 bits",
        "Alistarh et al. 2017, arXiv:1610.02132",
        "little noise, and it averages out",
        (_MATCHED, _COSINE, Adaptive("dlg", _LABELS)),
        chain=lambda _: Chain((Quantise(8),)),
    ),
    Registered(
        "soteria",
        "A tenth of a representation hidden from the gradient of its layer",
        "Sun et al. 2021, arXiv:2012.06043",
        "dropping the hidden columns: all other layers say the same image (Balunović 2022, arXiv:2111.04706)",
        (_MATCHED, _COSINE, _LEARNED),
        chain=lambda side: Chain((soteria_of(side.model, side.images, side.layout),)),
    ),
    Registered(
        "outpost",
        "Pruning, and noise where the Fisher information is large",
        "Wang, Hugenroth and Li 2023 (INFOCOM)",
        "weights by magnitude; later rounds are rarely perturbed",
        (_MATCHED, _COSINE, _LEARNED),
        chain=_outpost,
    ),
    Registered(
        "precode",
        "A variational bottleneck before the last linear layer",
        "Scheliga et al. 2022 (WACV), arXiv:2108.04725",
        "its own layers give its noise away; what lies before it can be matched alone",
        (
            Adaptive("precode-break", _LABELS),
            Adaptive("noise-variable", _LABELS),
            Adaptive("ignore-bottleneck", _LABELS),
        ),
        on_model=lambda model, seed: with_bottleneck(model, "precode", seed=seed),
    ),
    Registered(
        "ppp",
        "PRECODE, and noise on the tensors before it",
        "Scheliga et al. 2022, arXiv:2208.04767",
        "the noise that PRECODE gives away, and little noise before it",
        (
            Adaptive("ignore-bottleneck", _LABELS, (("gradients", False),)),
            Adaptive("ignore-bottleneck", _LABELS),
            _LEARNED,
        ),
        chain=_partial_noise,
        on_model=lambda model, seed: with_bottleneck(model, "precode", seed=seed),
        learns=Lesson.LENGTH,
    ),
    Registered(
        "cvb",
        "A convolutional variational bottleneck behind the first convolution",
        "Scheliga et al. 2023, arXiv:2309.04515",
        "its noise is one more unknown, sought beside the image",
        (Adaptive("noise-variable", _LABELS), Adaptive("ignore-bottleneck", _LABELS), _LEARNED),
        on_model=lambda model, seed: with_bottleneck(model, "cvb", seed=seed),
    ),
    Registered(
        "codec",
        f"The learned linear-Gaussian code, {RATIO:g} times smaller, without noise",
        "Tipping and Bishop 1999; gradient_leakage/vae",
        "matching in code space; an encoder is no privacy mechanism, and a learned one keeps what matters",
        (_MATCHED, _COSINE, _LEARNED),
        chain=lambda side: Chain((Coded(_codec_of(side)),)),
        learns=Lesson.CODEC,
    ),
    Registered(
        "codec-noise",
        f"The learned code, clipped, with Gaussian noise of {MUCH_NOISE:g} of the bound in each of its numbers",
        "gradient_leakage/vae; Abadi et al. 2016, arXiv:1607.00133",
        "rounds add up; one site's release is the unit, and no patient",
        (_MATCHED, _COSINE, _LEARNED),
        chain=lambda side: Chain((Coded(_codec_of(side)), GaussianMechanism(side.max_norm, MUCH_NOISE))),
        is_heuristic=False,
        learns=Lesson.CODEC,
    ),
    Registered(
        "seeded",
        f"A random projection, {RATIO:g} times smaller, drawn anew each round",
        "Chen et al. 2022, arXiv:2203.03761",
        "matching in code space; rounds add up; no privacy by itself",
        (_MATCHED, _COSINE, _LEARNED),
        chain=_seeded,
    ),
    Registered(
        "nonlinear-vae",
        "A nonlinear VAE with a sampled code; the site decodes it, and sends an update as long as before",
        "Kingma and Welling 2014, arXiv:1312.6114; gradient_leakage/vae/nonlinear",
        "it keeps what its public updates have in common, and nothing calibrates its noise",
        (_COSINE, _LEARNED),
        chain=_nonlinear,
        learns=Lesson.NONLINEAR,
    ),
)

DEFENSES: Mapping[str, Registered] = {defense.name: defense for defense in _ALL}


def registered(name: str) -> Registered:
    """The defense of that name.

    Raises:
        ConfigError: there is none; the message names them all.
    """
    if name not in DEFENSES:
        raise ConfigError(f"defense {name!r}: expected one of {', '.join(DEFENSES)}")
    return DEFENSES[name]
