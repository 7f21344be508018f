"""The client of the federated API under one name: ``from fedveil.federated import FederatedLearner``."""

from __future__ import annotations

from .envoy.learner.learner import FederatedLearner
from .utils.differential_privacy import DifferentialPrivacy

__all__ = ["DifferentialPrivacy", "FederatedLearner"]
