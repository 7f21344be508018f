"""fedveil: hospitals train a model together without their images leaving them.

What plans and notebooks use is imported from here; each name is loaded when it is first used, so that
``import fedveil`` stays light and torch is imported only where something is trained.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .director.researcher.federation import connect as connect
    from .envoy.learner.learner import FederatedLearner as FederatedLearner
    from .envoy.plans import BATCH_NORM_LAYERS as BATCH_NORM_LAYERS
    from .envoy.plans import ArrayPlan as ArrayPlan
    from .envoy.plans import PlanSettings as PlanSettings
    from .envoy.plans import TrainingPlan as TrainingPlan
    from .envoy.plans import steerable as steerable
    from .gradient_leakage.defenses.bottlenecks import bottleneck_kl as bottleneck_kl
    from .gradient_leakage.defenses.bottlenecks import with_bottleneck as with_bottleneck
    from .utils import vision as vision
    from .utils.data_spec import DataKind as DataKind
    from .utils.data_spec import DataSpec as DataSpec
    from .utils.differential_privacy import DifferentialPrivacy as DifferentialPrivacy
    from .utils.metrics import MetricSum as MetricSum
    from .utils.metrics import auc_of as auc_of
    from .utils.metrics import mean_of as mean_of

__version__ = "0.1.0"

# gRPC reads its TLS 1.2 ciphers from here when its core is loaded. With our P-256 certificates an RSA cipher alone
# leaves TLS 1.3 (utils/transport.py).
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

_HOMES = {
    "ArrayPlan": ".envoy.plans",
    "BATCH_NORM_LAYERS": ".envoy.plans",
    "DataKind": ".utils.data_spec",
    "DataSpec": ".utils.data_spec",
    "DifferentialPrivacy": ".utils.differential_privacy",
    "FederatedLearner": ".envoy.learner.learner",
    "MetricSum": ".utils.metrics",
    "PlanSettings": ".envoy.plans",
    "TrainingPlan": ".envoy.plans",
    "auc_of": ".utils.metrics",
    "connect": ".director.researcher.federation",
    "bottleneck_kl": ".gradient_leakage.defenses.bottlenecks",
    "mean_of": ".utils.metrics",
    "simulate": ".workspace.simulation",
    "steerable": ".envoy.plans",
    "with_bottleneck": ".gradient_leakage.defenses.bottlenecks",
}


def __getattr__(name: str) -> Any:
    if name == "vision":
        return importlib.import_module(".utils.vision", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "vision"])
