"""What a study is for and whom it asks: ``[study]`` of ``experiment.toml``, which sites read before they approve."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.errors import ConfigError, MalformedMessageError
from ..utils.messages import EnvoyName
from ..utils.proposal import Output, check_line, check_sites

_MAX_DAYS = 3660.0


@dataclass(frozen=True, slots=True)
class StudySettings:
    """``[study]``.

    Raises:
        ConfigError: a line that is none, a name that can be none or comes twice, or a time that is out of range.
    """

    purpose: str  # one line: what the result is for
    legal_basis: str = ""  # one line: the permit, agreement or article that allows it
    sites: tuple[EnvoyName, ...] = ()  # who is asked; empty: every site that approves
    outputs: tuple[Output, ...] = (Output.MODEL, Output.METRICS)  # what the study gives
    min_approvals: int | None = None  # before the first round; left out: as many as rounds.min_participants
    valid_days: float = 90.0  # from its submission on; no task of it is done later

    def __post_init__(self) -> None:
        if not self.purpose.strip():
            raise ConfigError("purpose is empty; say in one line what the result is for: the sites approve it")
        try:
            check_line("purpose", self.purpose)
            check_line("legal_basis", self.legal_basis)
            check_sites(tuple(sorted(self.sites)), least=0)
        except MalformedMessageError as error:
            raise ConfigError(str(error)) from error
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ConfigError("outputs: name model, metrics or both, each once")
        if not 0 < self.valid_days <= _MAX_DAYS:
            raise ConfigError(f"valid_days is {self.valid_days:g}, expected more than 0 and at most {_MAX_DAYS:g}")
