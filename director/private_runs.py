"""What an experiment may ask of a plan with differential privacy. Pure; the plan's code is not run for it."""

from __future__ import annotations

from ..utils.errors import ConfigError
from ..utils.plan_bundle import Manifest
from ..utils.privacy.events import Mechanism
from .experiments import ExperimentSettings
from .privacy_budget import a_round_of, check_budget
from .sum_terms import noise_of


def check_privacy(settings: ExperimentSettings, manifest: Manifest, size: int) -> None:
    """Do the settings ask for something that such a plan lets nobody know, or allow it too little for one round?

    Args:
        settings: of the experiment.
        manifest: of its plan.
        size: numbers in what leaves a site.

    Raises:
        ConfigError: a rule that reads metrics, or weights by the number of examples; or a budget that is none.
    """
    if settings.privacy_budget is not None:
        delta = None if manifest.privacy is None else manifest.privacy.delta
        check_budget(settings.privacy_budget, release_of(settings, manifest, size), delta)
    if manifest.privacy is None:
        return
    what = f"plan {manifest.name} is trained with differential privacy ({manifest.privacy.label})"
    if settings.stop.metric is not None:
        raise ConfigError(f"stop.metric: {what}, and no metric of it leaves a site; leave it out")
    if settings.is_secure and not settings.secure_sum.equal_weights:
        raise ConfigError(
            f"{what}, and each site weighs 1: how many examples it has is not told; set equal_weights = true in"
            " [secure_sum]"
        )


def release_of(settings: ExperimentSettings, manifest: Manifest, size: int) -> Mechanism | None:
    """What one training round of a run releases of each site, as its sites count it; None: nothing bounds it.

    Args:
        settings: of the experiment.
        manifest: of its plan.
        size: numbers in what leaves a site.
    """
    plan = None if manifest.privacy is None else manifest.privacy.release().mechanism
    return a_round_of(plan, settings.protection.noise_multiplier, noise_of(settings), size)
