"""What a site insists on before anything leaves it: the tables ``[protection]`` and ``[secure_aggregation]``.

Pure: settings of ``envoy.toml``, and how what a task asks for is added to them. What a policy says is done by
``protection`` and ``summing``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path

from ..utils.errors import ConfigError
from ..utils.messages import NAME_PATTERN, PayloadKind, Task
from ..utils.metrics import MetricSum
from ..utils.secure_sum.rules import SumFloors
from ..utils.secure_sum.terms import Suite
from ..utils.tensors import Digest

_EVERY = "*"
_TEST = "test_"
_SMALLEST_NORM = 1e-12
"""Smaller bounds are refused, whoever asks for them: noise in proportion to 1e-45 is nothing in float32, and the signs
of the update would leave without it."""
_LARGEST_NOISE = 1e30


class Step(Enum):
    """One step of the chain; they stand in this order."""

    CHECK = "check"  # finite, of the plan's layout, within bounds, not all zeros
    ENCODE = "encode"  # with the codec that a task names; without one nothing is encoded
    CLIP = "clip"  # of all that leaves, in one piece: the code and what passes beside it
    NOISE = "noise"  # Gaussian, in proportion to the clip's bound
    AUDIT = "audit"  # the leak test of this plan and chain must have passed


class CodecRule(Enum):
    """Whether updates leave as codes."""

    ALLOWED = "allowed"  # where a task names a codec and the chain encodes
    REQUIRED = "required"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ProtectionPolicy:
    """The table ``[protection]``: a minimum, in its order. What a task asks for can only add to it.

    Raises:
        ConfigError: the settings contradict each other; the message names them.
    """

    chain: tuple[Step, ...]
    max_norm: float | None = None  # L2 of what leaves; given with the step clip
    noise_multiplier: float = 0.0  # noise standard deviation / max_norm; more than 0 with the step noise
    codec: CodecRule = CodecRule.ALLOWED
    metrics: tuple[str, ...] = ("loss", "auc")  # names that may leave, of any split; "*" is every name
    max_leakage: float | None = None  # mean SSIM gain of the worst attack over chance, in (0, 1]; with the step audit
    canaries: Path | None = None  # public images for the leak test; none: the digits that come with scikit-learn
    audit_cpu_seconds: float = 60.0  # of the leak test, once for each plan and chain
    publish_leakage: bool = False  # the score is told to the director, with each update
    structure_check: bool = True  # refuse models that are built to remember single images

    def __post_init__(self) -> None:
        _check_order(self.chain)
        self._check_clip_and_noise()
        self._check_codec()
        if self.max_leakage is not None and not 0 < self.max_leakage <= 1:
            raise ConfigError(f"max_leakage is {self.max_leakage:g}, expected more than 0 and at most 1")
        _check_pair("max_leakage", Step.AUDIT, is_given=self.max_leakage is not None, chain=self.chain)
        if self.publish_leakage and self.max_leakage is None:
            raise ConfigError("publish_leakage without max_leakage: nothing is measured that could be published")
        if not self.audit_cpu_seconds > 0:
            raise ConfigError(f"audit_cpu_seconds is {self.audit_cpu_seconds:g}, expected more than 0")
        if _EVERY in self.metrics and len(self.metrics) > 1:
            raise ConfigError('metrics: "*" is every name; leave the others out')

    def _check_clip_and_noise(self) -> None:
        if Step.NOISE in self.chain and Step.CLIP not in self.chain:
            raise ConfigError("chain: noise without clip; noise is measured by the bound that was applied: add clip")
        if self.max_norm is not None:
            _check_norm(self.max_norm, "max_norm")
        if not 0 <= self.noise_multiplier < float("inf"):
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier:g}, expected at least 0")
        _check_pair("max_norm", Step.CLIP, is_given=self.max_norm is not None, chain=self.chain)
        _check_pair("noise_multiplier", Step.NOISE, is_given=self.noise_multiplier > 0, chain=self.chain)

    def _check_codec(self) -> None:
        encodes = Step.ENCODE in self.chain
        if self.codec is CodecRule.REQUIRED and not encodes:
            raise ConfigError('codec is "required" and the chain does not encode; add encode to the chain')
        if self.codec is CodecRule.REFUSED and encodes:
            raise ConfigError('codec is "refused" and the chain encodes; leave one of them out')

    def with_asked(self, task: Task) -> Measures:
        """What is done for one task: this minimum, and what the task adds to it.

        Guarantees (property-tested): the bound is at most this policy's and at most the asked one, the noise
        multiplier at least each of them, and no step of this policy's is missing.

        Raises:
            ConfigError: this site does not do what the task asks for; the text names no value of the site.
        """
        steps = set(self.chain)
        encodes = task.payload is PayloadKind.CODED
        if encodes and Step.ENCODE not in steps:
            raise ConfigError(f"{task.ref} has a codec; this site encodes nothing")
        if not encodes and self.codec is CodecRule.REQUIRED:
            raise ConfigError(f"{task.ref} has no codec; this site sends codes alone")
        bound, multiplier = _stricter(self, task)
        if bound is not None and multiplier * bound > _LARGEST_NOISE:
            raise ConfigError(f"{task.ref} asks for noise beyond {_LARGEST_NOISE:g}, where float32 ends")
        steps |= {Step.CLIP} if bound is not None else set()
        steps |= {Step.NOISE} if multiplier else set()
        steps -= set() if encodes else {Step.ENCODE}
        return Measures(tuple(step for step in Step if step in steps), bound, multiplier)

    def leaving(self, metrics: Iterable[MetricSum]) -> tuple[MetricSum, ...]:
        """Those metrics that may leave the site; a name covers the test split's too (``test_NAME``)."""
        return tuple(metric for metric in metrics if self.may_tell(metric.name.removeprefix(_TEST)))

    def may_tell(self, metric: str) -> bool:
        """May a metric of this name leave the site?"""
        return self.metrics == (_EVERY,) or metric in self.metrics


@dataclass(frozen=True, slots=True)
class Measures:
    """What is done to one task's update before it leaves."""

    steps: tuple[Step, ...]
    max_norm: float | None
    noise_multiplier: float

    @property
    def encodes(self) -> bool:
        """The update leaves as a code."""
        return Step.ENCODE in self.steps

    @property
    def has_noise(self) -> bool:
        """Drawn once for each task: a second draw would be a second release."""
        return Step.NOISE in self.steps

    def words(self, codec: Digest | None) -> str:
        """All of it in words, the same for the same measures: for the record of what left.

        >>> Measures((Step.CHECK, Step.CLIP, Step.NOISE), 2.0, 1.5).words(None)
        'check, clip 2, noise 1.5 x 2'
        """
        added = {
            Step.ENCODE: f" {codec}",
            Step.CLIP: f" {self.max_norm!r}".removesuffix(".0"),
            Step.NOISE: f" {self.noise_multiplier!r} x {self.max_norm!r}".removesuffix(".0"),
        }
        return ", ".join(step.value + added.get(step, "") for step in self.steps)


DIRECTOR = "director"


class SumRule(Enum):
    """Whether anything leaves but inside a secure sum."""

    REQUIRED = "required"  # nothing does
    ALLOWED = "allowed"  # what a task asks for in the clear leaves in the clear


@dataclass(frozen=True, slots=True)
class SecureAggregationPolicy:
    """The table ``[secure_aggregation]``: this site's floors, which no director can lower.

    Raises:
        ConfigError: a floor is out of range; the message names it.
    """

    rule: SumRule = SumRule.REQUIRED
    min_organizations: int = 3  # in the cohort, and among those whose answers are summed
    colluding: int = 1  # organizations that may work together with the director
    honest: int = 2  # honest organizations that a sum must hold, this one among them
    suites: tuple[Suite, ...] = (Suite.MLKEM768_X25519,)
    max_differing_sums: int = 10  # a run: sums over nearly the same sites
    aggregators: tuple[str, ...] = (DIRECTOR,)  # who may make the sum: the director, or envoys by their names

    def __post_init__(self) -> None:
        _ = self.floors  # its own checks are these settings'
        if not self.aggregators:
            raise ConfigError(f'aggregators is empty; name who may make a sum, as in ["{DIRECTOR}"]')
        for name in self.aggregators:
            if not NAME_PATTERN.fullmatch(name):
                raise ConfigError(f"aggregators: {name[:80]!r} is neither {DIRECTOR!r} nor an envoy's name")

    @property
    def floors(self) -> SumFloors:
        """What ``utils.secure_sum`` holds each step of a sum against."""
        return SumFloors(self.min_organizations, self.colluding, self.honest, self.suites, self.max_differing_sums)

    def check(self, task: Task) -> None:
        """May this task be done here, as far as sums are concerned?

        Raises:
            ConfigError: it asks for an answer in the clear, or for a suite, which this site does not give.
        """
        if task.sum is None:
            if self.rule is SumRule.REQUIRED:
                raise ConfigError(
                    f"{task.ref} asks for an answer in the clear; this site takes part in secure sums alone"
                    ' (experiment.toml: secure_aggregation = "required")'
                )
            return
        if task.sum.suite not in self.suites:
            known = ", ".join(suite.value for suite in self.suites)
            raise ConfigError(f"{task.ref} seals with {task.sum.suite.value}; this site takes {known}")
        if (aggregator := task.sum.aggregator or DIRECTOR) not in self.aggregators:
            raise ConfigError(
                f"{task.ref} is summed by {aggregator}; this site takes part in sums of {', '.join(self.aggregators)}"
                " (envoy.toml: aggregators in [secure_aggregation])"
            )


def _stricter(policy: ProtectionPolicy, task: Task) -> tuple[float | None, float]:
    asked = task.asked
    # The noise of a secure sum is measured by its own norm, whatever else the task asks for.
    summed = task.sum.noise.max_norm if task.sum is not None and task.sum.noise is not None else None
    for norm in (asked.max_norm, summed):
        if norm is not None:
            _check_norm(norm, "the task's max_norm")
    bounds = [bound for bound in (policy.max_norm, asked.max_norm, summed) if bound is not None]
    return min(bounds, default=None), max(policy.noise_multiplier, asked.noise_multiplier)


def _check_order(chain: tuple[Step, ...]) -> None:
    if not chain or chain[0] is not Step.CHECK:
        raise ConfigError("chain: the first step must be check")
    if len(set(chain)) < len(chain):
        raise ConfigError("chain: a step comes twice")
    places = list(Step)
    for before, after in pairwise(chain):
        if places.index(after) < places.index(before):
            raise ConfigError(
                f"chain: {after.value} stands after {before.value}, expected this order:"
                f" {', '.join(step.value for step in Step)}"
            )


def _check_norm(norm: float, what: str) -> None:
    if not _SMALLEST_NORM <= norm < float("inf"):
        raise ConfigError(f"{what} is {norm:g}, expected at least {_SMALLEST_NORM:g}")


def _check_pair(key: str, step: Step, *, is_given: bool, chain: tuple[Step, ...]) -> None:
    if step in chain and not is_given:
        raise ConfigError(f"chain: {step.value} needs {key}; give it")
    if is_given and step not in chain:
        raise ConfigError(f"{key} is given and the chain has no {step.value}; add the step, or leave {key} out")


OPEN_POLICY = ProtectionPolicy((Step.CHECK, Step.ENCODE), metrics=(_EVERY,))
"""What ``envoy join`` writes and what simulations use: form is checked, and nobody is protected by it."""
REQUIRED_SUMS = SecureAggregationPolicy()
"""Of a site whose ``envoy.toml`` says nothing of it."""
PLAIN_ALLOWED = SecureAggregationPolicy(SumRule.ALLOWED)
"""Of simulations and tests whose rounds are in the clear."""
