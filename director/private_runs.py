"""What an experiment may ask of a plan with differential privacy. Pure; the plan's code is not run for it."""

from __future__ import annotations

from ..utils.errors import ConfigError
from ..utils.plan_bundle import Manifest
from .experiments import ExperimentSettings


def check_privacy(settings: ExperimentSettings, manifest: Manifest) -> None:
    """Do the settings ask for something that such a plan lets nobody know?

    Raises:
        ConfigError: a rule that reads metrics, or weights by the number of examples.
    """
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
