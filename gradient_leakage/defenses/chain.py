"""Defenses one after the other, in an order that makes sense of each."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

from ...utils.errors import ConfigError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Digest, Vector, canonical_json, digest_of
from .clip import Clip
from .coded import Coded
from .defense import Defense
from .gaussian import GaussianMechanism
from .outpost import Outpost
from .partial import PartialNoise
from .sketch import Sketch
from .soteria import Soteria

_ENCODERS = (Coded, Sketch)  # what comes out is no longer in the order of the layout
_BOUNDS = (Clip, GaussianMechanism)
_OF_THE_LAYOUT = (Soteria, Outpost, PartialNoise)  # they know where tensors lie


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps of what a site does to an update before it leaves; itself a defense. Empty: nothing is done.

    Guarantees:
        - what comes out is what the steps give one after the other, from the same draws;
        - ``decoded`` of a chain without an encoder is the payload itself;
        - ``describe`` is the same text for the same steps with the same parameters, and for no others.

    Raises:
        ConfigError: a clip or noise before an encoder, two encoders, noise twice, or a step that looks for tensors
            where there is a code.
    """

    steps: tuple[Defense, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an order in which a step would not do what it promises."""
        kinds = [type(step) for step in self.steps]
        encoders = [place for place, kind in enumerate(kinds) if kind in _ENCODERS]
        if len(encoders) > 1:
            raise ConfigError("two encoders in a chain: the second has no layout to work on; leave one out")
        if kinds.count(GaussianMechanism) > 1:
            raise ConfigError("noise twice in a chain: one noise, as large as it has to be, can be accounted for")
        for place in encoders:
            if any(kind in _BOUNDS for kind in kinds[:place]):
                raise ConfigError("an encoder after the clip or its noise: clip where the noise is added, in the code")
            lost = [step.label for step in self.steps[place:] if isinstance(step, _OF_THE_LAYOUT)]
            if lost:
                raise ConfigError(f"{lost[0]} after an encoder: its tensors are no longer there")

    @property
    def label(self) -> str:
        """The labels of the steps.

        >>> Chain((Clip(1.0),)).label, Chain().label
        ('clip 1', 'none')
        """
        return ", ".join(step.label for step in self.steps) or "none"

    @property
    def encoder(self) -> Coded | Sketch | None:
        """The step after which a payload is no longer an update, where there is one."""
        return next((step for step in self.steps if isinstance(step, _ENCODERS)), None)

    @property
    def without_encoder(self) -> Chain:
        """The other steps: clip and noise on the update itself.

        >>> Chain((Clip(1.0),)).without_encoder.label
        'clip 1'
        """
        return Chain(tuple(step for step in self.steps if step is not self.encoder))

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """What leaves the site.

        Raises:
            UnsendableUpdateError: as the steps do.
        """
        for step in self.steps:
            vector = step(vector, rng)
        return vector

    def decoded(self, payload: Vector) -> Vector:
        """What the director reads, in the order of the layout: a code or a sketch decoded, all else as it is."""
        return payload if self.encoder is None else self.encoder.decode(payload)

    def describe(self) -> str:
        """Canonical JSON of the steps and their parameters; what has a digest of its own stands there by it."""
        return canonical_json([[type(step).__name__, _plain(step)] for step in self.steps]).decode()

    @property
    def digest(self) -> Digest:
        """Of the description."""
        return digest_of(self.describe().encode())


def _plain(value: object) -> object:
    """A step's parameter as JSON."""
    digest = getattr(value, "digest", None)
    if isinstance(digest, str):
        return digest
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value
