"""The settings of an experiment, ``experiment.toml``: what an operator submits and the director keeps as text.

Contradictions are refused when the file is read, with the reason, and not in round 7. Settings of the plan itself
(epochs, batch size) are not here: they are part of the plan that the sites approve.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..utils.aggregation import Aggregation, Method
from ..utils.errors import ConfigError
from ..utils.messages import NAME_PATTERN, AskedProtection
from ..utils.proposal import MAX_ROUNDS
from ..utils.secure_sum.groups import LEAST_GROUPS
from ..utils.secure_sum.terms import NoiseTerms
from ..utils.tensors import Digest
from . import aggregation_config
from .aggregation_config import AggregationConfig
from .privacy_budget import BudgetMechanism, PrivacyBudget
from .rounds import RoundPolicy, Stragglers
from .server_optimizer import ServerOptimizer
from .stop_rule import Mode, StopRule
from .study import StudySettings
from .sum_settings import MIN_PARTICIPANTS, SecureAggregation, SecureSumSettings, noise_parts

_MAX_NAME = 56  # a run is the experiment's name, a hyphen and a number, together a name again
_MAX_TIMEOUT_SECONDS = 30 * 86_400
_SEED_PATTERN = re.compile(r"[0-9a-fA-F]{64}")
_DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """``[rounds]``: how many, who is asked, how long is waited.

    Raises:
        ConfigError: out of range, or a cohort smaller than the quorum.
    """

    max_rounds: int
    min_participants: int  # the quorum: answers without which a round fails
    cohort_size: int | None = None  # envoys that are asked, by lot; left out: all who are connected
    round_timeout_seconds: float = 600.0
    stragglers: Stragglers = Stragglers.WAIT
    max_attempts: int = 3  # of one round, before the run fails
    final_evaluation: bool = True  # a last round in which the sites evaluate the final model
    fairness_every: int = 0  # each so many-th training round, sites that publish by subgroups do; 0: at the end alone

    def __post_init__(self) -> None:
        for key, most in (("max_rounds", MAX_ROUNDS), ("min_participants", None), ("max_attempts", None)):
            value = getattr(self, key)
            if value < 1 or (most is not None and value > most):
                raise ConfigError(f"{key} is {value}, expected at least 1" + (f" and at most {most}" if most else ""))
        if self.fairness_every < 0:
            raise ConfigError(f"fairness_every is {self.fairness_every}, expected 0 (at the end alone) or more")
        if not 0 < self.round_timeout_seconds <= _MAX_TIMEOUT_SECONDS:
            raise ConfigError(
                f"round_timeout_seconds is {self.round_timeout_seconds:g}, expected more than 0 and at most 30 days"
            )
        if self.cohort_size is not None and self.cohort_size < self.min_participants:
            raise ConfigError(
                f"cohort_size is {self.cohort_size}, which cannot give the {self.min_participants} answers of "
                "min_participants; raise the one or lower the other"
            )


@dataclass(frozen=True, slots=True)
class StopSettings:
    """``[stop]``: what may end a run before ``max_rounds``.

    Raises:
        ConfigError: as ``StopRule``.
    """

    metric: str | None = None
    mode: Mode = Mode.MAX
    patience: int | None = None
    min_delta: float = 0.0
    wall_clock_seconds: float | None = None

    def __post_init__(self) -> None:
        self.rule(1)

    def rule(self, max_rounds: int) -> StopRule:
        """The rule of a run of at most so many rounds."""
        return StopRule(max_rounds, self.metric, self.mode, self.patience, self.min_delta, self.wall_clock_seconds)


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """``[codec]``: what the sites code their updates with.

    Raises:
        ConfigError: a digest that is none, or no file.
    """

    digest: Digest  # SHA-256 of the codec's file
    file: Path = Path("codec.safetensors")  # beside experiment.toml; read by the operator's command alone

    def __post_init__(self) -> None:
        if not _DIGEST_PATTERN.fullmatch(self.digest):
            raise ConfigError(
                f"digest is {self.digest[:80]!r}, expected 64 lower-case hexadecimal digits; `fedveil codec show FILE`"
                " prints it"
            )
        if not self.file.name:
            raise ConfigError("file is empty; name the codec's file, or leave it out for codec.safetensors")


@dataclass(frozen=True, slots=True)
class ExperimentSettings:
    """``experiment.toml``.

    Raises:
        ConfigError: a name that cannot be one, or tables that contradict each other.
    """

    name: str
    rounds: RoundSettings
    plan: str = ""  # folder of the plan bundle; read by the operator's command alone
    seed: str | None = None  # left out: drawn when the experiment is submitted
    aggregation: Aggregation = field(default_factory=Aggregation)
    server_optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    stop: StopSettings = field(default_factory=StopSettings)
    codec: CodecSettings | None = None  # left out: updates come as they are
    protection: AskedProtection = field(default_factory=AskedProtection)
    secure_aggregation: SecureAggregation = SecureAggregation.REQUIRED
    secure_sum: SecureSumSettings = field(default_factory=SecureSumSettings)
    study: StudySettings | None = None  # a submission needs it; None in runs of before there were proposals
    aggregation_config: AggregationConfig | None = None  # the same as [rounds] and secure_aggregation, in other words
    privacy_budget: PrivacyBudget | None = None  # left out: only the sites' own budgets end a run

    REFUSED: ClassVar[Mapping[str, str]] = {
        "adaptive_clipping": "it is client-level differential privacy, which hides a whole hospital and no patient of"
        " it; with ten hospitals the noise for that leaves nothing to learn from. For patients, declare privacy ="
        " DifferentialPrivacy(...) in the plan; to simulate many clients, fedveil.workspace.client_level has it"
    }

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name) or len(self.name) > _MAX_NAME:
            raise ConfigError(
                f"name: expected 1 to {_MAX_NAME} lower-case letters, digits, dots and hyphens, the first and last no "
                "dot or hyphen"
            )
        if self.seed is not None and not self.seed:
            raise ConfigError("seed is empty; leave it out to have one drawn")
        quorum, needed = self.rounds.min_participants, self.aggregation.min_updates
        if quorum < needed and not self.secure_sum.groups:
            raise ConfigError(
                f"aggregation.method {self.aggregation.method.value} needs {needed} updates as it is set, and "
                f"rounds.min_participants is {quorum}; raise min_participants to {needed}"
            )
        if self.codec is not None and self.aggregation.method is not Method.WEIGHTED_MEAN:
            raise ConfigError(
                f"aggregation.method {self.aggregation.method.value} promises something of updates, and with [codec]"
                " the director has codes alone; use weighted_mean, or leave [codec] out"
            )
        if self.is_secure:
            self._check_sums()
        elif self.secure_sum.groups:
            raise ConfigError(
                'secure_sum.groups with secure_aggregation = "off": the rule compares the updates themselves; leave'
                " groups out"
            )
        if self.study is not None:
            self._check_approvals(self.study)
        if self.privacy_budget is not None:
            self._check_budget(self.privacy_budget)
        if self.stop.patience is not None and self.stop.patience >= self.rounds.max_rounds:
            raise ConfigError(
                f"stop.patience is {self.stop.patience}, which can never end a run of {self.rounds.max_rounds} rounds; "
                "lower it or leave it out"
            )

    @classmethod
    def spelled_out(cls, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings with what ``[aggregation_config]`` stands for in its place; ``utils/config`` asks.

        Raises:
            ConfigError: it contradicts the native settings.
        """
        return aggregation_config.spelled_out(document)

    def _check_budget(self, budget: PrivacyBudget) -> None:
        """What the settings alone show of a budget; what the plan shows is looked at with the plan."""
        is_skellam = budget.mechanism is BudgetMechanism.SKELLAM
        if is_skellam and not (self.is_secure and self.secure_sum.noise_multiplier):
            raise ConfigError(
                "privacy_budget.mechanism is skellam, and secure_sum.noise_multiplier adds no such noise; give it, or"
                " say gaussian"
            )

    @property
    def min_approvals(self) -> int:
        """How many sites that are there must have approved before the first round."""
        asked = self.study.min_approvals if self.study is not None else None
        return self.rounds.min_participants if asked is None else asked

    def _check_approvals(self, study: StudySettings) -> None:
        """A run that starts has sites enough for its rounds, and one that waits can start."""
        least, most = self.rounds.min_participants, len(study.sites)
        if most and most < self.min_approvals:
            raise ConfigError(f"study.sites names {most} sites, and {self.min_approvals} are needed; name more")
        if self.min_approvals < least:
            raise ConfigError(
                f"study.min_approvals is {self.min_approvals}, and rounds.min_participants {least}; raise the one, or"
                " leave it out"
            )

    def _check_sums(self) -> None:
        """What a sum alone cannot give is refused here, and not in round 7."""
        off = 'or say secure_aggregation = "off", if the director may see single updates'
        if self.secure_sum.groups:
            self._check_groups()
        elif not self.aggregation.works_under_secure_aggregation:
            groups = " with secure_sum.groups over the sums of groups," if self._is_middle else ""
            raise ConfigError(
                f"aggregation.method {self.aggregation.method.value} compares single updates, and under secure"
                f" aggregation the director has their sum alone; use weighted_mean,{groups} {off}"
            )
        if self.rounds.min_participants < MIN_PARTICIPANTS:
            raise ConfigError(
                f"rounds.min_participants is {self.rounds.min_participants}, and under secure aggregation a sum of"
                f" fewer than {MIN_PARTICIPANTS} would show single updates to those who are in it; raise it to"
                f" {MIN_PARTICIPANTS} or more, {off}"
            )
        if self.secure_sum.equal_weights and self.stop.metric is not None:
            raise ConfigError(
                "stop.metric needs metrics, and with secure_sum.equal_weights the sites send none; leave one of the"
                " two out"
            )
        if self.secure_sum.noise_multiplier:
            self._check_noise()

    def _check_noise(self) -> None:
        """Noise inside the sum is measured by a norm that all sites clip to, and no other noise is asked for."""
        what = f"secure_sum.noise_multiplier is {self.secure_sum.noise_multiplier:g}"
        if self.protection.max_norm is None:
            raise ConfigError(
                f"{what} and protection.max_norm is not given; noise is measured by the norm that every site clips its"
                " update to: give max_norm in [protection]"
            )
        if self.protection.noise_multiplier:
            raise ConfigError(
                f"{what} and protection.noise_multiplier is {self.protection.noise_multiplier:g}; each site would add"
                " its whole noise beside its part of the sum's: leave one of them out"
            )
        parts = noise_parts(self.rounds.min_participants, self.secure_sum)
        if parts is None:
            raise ConfigError(
                f"{what}, and {self.rounds.min_participants} participants with secure_sum.colluding"
                f" {self.secure_sum.colluding} and honest {self.secure_sum.honest} have no threshold: raise"
                " rounds.min_participants"
            )
        _ = NoiseTerms(self.protection.max_norm, self.secure_sum.noise_multiplier, parts)  # its own checks

    def _check_groups(self) -> None:
        """Groups that are summed apart, and a rule over their means."""
        method, count, least = (
            self.aggregation.method.value,
            self.secure_sum.groups,
            self.secure_sum.floors.organizations,
        )
        if not self._is_middle:
            raise ConfigError(
                f"secure_sum.groups is {count}, and aggregation.method {method} is no rule over groups; use"
                " coordinate_median or trimmed_mean, or leave groups out"
            )
        if count < self.group_quorum:
            raise ConfigError(
                f"aggregation.method {method} needs {self.group_quorum} groups as it is set, and secure_sum.groups is"
                f" {count}"
            )
        if self.rounds.min_participants < self.group_quorum * least:
            raise ConfigError(
                f"rounds.min_participants is {self.rounds.min_participants}, and {self.group_quorum} groups of {least}"
                f" organizations are the least that a round needs; raise it to {self.group_quorum * least} or more"
            )
        if self.rounds.cohort_size is not None:
            raise ConfigError(
                "rounds.cohort_size draws other envoys each round, and secure_sum.groups stay as they are for a run;"
                " leave one of the two out"
            )

    @property
    def _is_middle(self) -> bool:
        return self.aggregation.method in {Method.COORDINATE_MEDIAN, Method.TRIMMED_MEAN}

    @property
    def group_quorum(self) -> int:
        """How many groups a round must have the sums of."""
        return max(LEAST_GROUPS, self.aggregation.min_updates)

    @property
    def is_secure(self) -> bool:
        """Do sums alone leave the sites?"""
        return self.secure_aggregation is SecureAggregation.REQUIRED

    @property
    def wants_final_evaluation(self) -> bool:
        """A last round in which the sites evaluate the final model; with equal weights there would be no metrics."""
        return self.rounds.final_evaluation and not (self.is_secure and self.secure_sum.equal_weights)

    @property
    def round_policy(self) -> RoundPolicy:
        """When a round may close."""
        return RoundPolicy(self.rounds.min_participants, self.rounds.round_timeout_seconds, self.rounds.stragglers)

    @property
    def stop_rule(self) -> StopRule:
        """When the run ends."""
        return self.stop.rule(self.rounds.max_rounds)

    @property
    def seed_bytes(self) -> bytes | None:
        """32 bytes: 64 hexadecimal digits as they are, any other text by its SHA-256; None if none is given."""
        if self.seed is None:
            return None
        return (
            bytes.fromhex(self.seed)
            if _SEED_PATTERN.fullmatch(self.seed)
            else hashlib.sha256(self.seed.encode()).digest()
        )
