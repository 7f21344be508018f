"""Every attack by name, with its paper and its adversary. One line an attack; nothing registers itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ...utils.errors import ConfigError
from ..threat_model import Adversary


@dataclass(frozen=True, slots=True)
class Listed:
    """One attack as ``fedveil attack list`` shows it."""

    name: str
    title: str
    paper: str  # authors, year and arXiv number
    adversary: Adversary
    module: str  # in this folder
    class_name: str
    finds: str  # "images", "labels", "members", ...

    def make(self, **options: Any) -> Any:
        """The attack with its options.

        Raises:
            ConfigError: an option that it does not have, of another type than its own, or out of range.
        """
        made: Callable[..., Any] = getattr(import_module(f".{self.module}", __package__), self.class_name)
        hints = get_type_hints(made)
        kinds = {field.name: hints[field.name] for field in fields(made)}  # type: ignore[arg-type]
        for name, value in options.items():
            if name not in kinds:
                there = ", ".join(f"{each} ({_words(kind)})" for each, kind in kinds.items())
                raise ConfigError(f"attack {self.name}: no option {name}; it has {there or 'none'}")
            if not _is_of(kinds[name], value):
                raise ConfigError(
                    f"attack {self.name}: option {name}: expected {_words(kinds[name])}, "
                    f"got {value!r} ({type(value).__name__})"
                )
        return made(**options)


def _is_of(kind: Any, value: Any) -> bool:
    """Is it of this type? A whole number is a float too, a bool is no number; of a generic type its class alone."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return any(_is_of(one, value) for one in get_args(kind))
    plain = float | int if kind is float else get_origin(kind) or kind
    if not isinstance(plain, type | UnionType):
        return True
    return isinstance(value, plain) and (kind is bool or not isinstance(value, bool))


def _words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


ATTACKS: tuple[Listed, ...] = (
    Listed(
        "dlg",
        "Deep leakage from gradients: L-BFGS on the squared difference, with labels or without",
        "Zhu et al. 2019, arXiv:1906.08935",
        Adversary.CURIOUS_DIRECTOR,
        "dlg",
        "Dlg",
        "images and labels",
    ),
    Listed(
        "inverting-gradients",
        "Inverting Gradients: cosine similarity and total variation",
        "Geiping et al. 2020, arXiv:2003.14053",
        Adversary.CURIOUS_DIRECTOR,
        "inverting_gradients",
        "InvertingGradients",
        "images",
    ),
    Listed(
        "fedavg",
        "FedAvg updates by walking the local steps",
        "Dimitrov et al. 2022, arXiv:2206.12395",
        Adversary.CURIOUS_DIRECTOR,
        "fedavg",
        "FedAvgInversion",
        "images",
    ),
    Listed(
        "see-through",
        "GradInversion: BatchNorm statistics and a group of restarts",
        "Yin et al. 2021, arXiv:2104.07586",
        Adversary.CURIOUS_DIRECTOR,
        "see_through",
        "SeeThrough",
        "images",
    ),
    Listed(
        "learned-inversion",
        "A network from defended updates to images",
        "Wu et al. 2023, arXiv:2210.10880",
        Adversary.CURIOUS_DIRECTOR,
        "learned_inversion",
        "LearnedInversion",
        "images",
    ),
    Listed(
        "rmia",
        "Members of the training set, by reference models",
        "Zarifzadeh et al. 2024, arXiv:2312.03262",
        Adversary.MODEL_READER,
        "membership",
        "Rmia",
        "members",
    ),
    Listed(
        "first-layer",
        "One image by division, at a first linear layer",
        "Phong et al. 2018, IEEE TIFS 13(5); Geiping et al. 2020, arXiv:2003.14053",
        Adversary.CURIOUS_DIRECTOR,
        "first_layer",
        "FirstLayer",
        "images",
    ),
    Listed(
        "r-gap",
        "One image in closed form, layer by layer",
        "Zhu and Blaschko 2021, arXiv:2010.07733",
        Adversary.CURIOUS_DIRECTOR,
        "r_gap",
        "RGap",
        "images",
    ),
    Listed(
        "spear",
        "Whole batches exactly, through a first linear layer with ReLU",
        "Dimitrov et al. 2024, arXiv:2403.03945",
        Adversary.CURIOUS_DIRECTOR,
        "spear",
        "Spear",
        "images",
    ),
    Listed(
        "imprint",
        "Robbing the Fed: a layer that keeps single images",
        "Fowl et al. 2022, arXiv:2110.13057",
        Adversary.MALICIOUS_DIRECTOR,
        "imprint",
        "Imprint",
        "images",
    ),
    Listed(
        "loki",
        "Imprints of their own for each site, in a sum",
        "Zhao et al. 2024, arXiv:2303.12233",
        Adversary.MALICIOUS_DIRECTOR,
        "loki",
        "Loki",
        "images",
    ),
    Listed(
        "fishing",
        "One example of a large batch, by the last layer's numbers",
        "Wen et al. 2022, arXiv:2202.00580",
        Adversary.MALICIOUS_DIRECTOR,
        "fishing",
        "Fishing",
        "images",
    ),
    Listed(
        "seer",
        "SEER-like: one image of a large batch, through a secret direction",
        "Garov et al. 2023, arXiv:2306.03013",
        Adversary.MALICIOUS_DIRECTOR,
        "seer",
        "Seer",
        "images",
    ),
    Listed(
        "precode-break",
        "PRECODE's noise and what lies behind it read off, then DLG on what lies before",
        "Balunovic et al. 2022, arXiv:2111.04706, on Scheliga et al. 2022 (WACV)",
        Adversary.CURIOUS_DIRECTOR,
        "precode_break",
        "PrecodeBreak",
        "images and labels",
    ),
    Listed(
        "defended-matching",
        "Matching gradients as the known defense would have sent them",
        "Zhu et al. 2019 and Geiping et al. 2020, with the defense as Balunovic et al. 2022 take it, arXiv:2111.04706",
        Adversary.CURIOUS_DIRECTOR,
        "defended_matching",
        "DefendedMatching",
        "images",
    ),
    Listed(
        "ignore-bottleneck",
        "The layers before a noisy bottleneck alone, with the features where they can be divided out",
        "Scheliga et al. 2022, arXiv:2208.04767",
        Adversary.CURIOUS_DIRECTOR,
        "ignore_bottleneck",
        "IgnoreBottleneck",
        "images",
    ),
    Listed(
        "noise-variable",
        "A bottleneck's noise sought along with the image, by L-BFGS",
        "Balunovic et al. 2022, arXiv:2111.04706, section 5",
        Adversary.CURIOUS_DIRECTOR,
        "noise_variable",
        "NoiseVariable",
        "images",
    ),
    Listed(
        "all-rows",
        "One image from all rows of a noisy first linear layer",
        "total least squares, Golub and Van Loan 1980, on Phong et al. 2018",
        Adversary.CURIOUS_DIRECTOR,
        "all_rows",
        "AllRows",
        "images",
    ),
    Listed(
        "idlg-label",
        "The label of a single example",
        "Zhao et al. 2020, arXiv:2001.02610",
        Adversary.CURIOUS_DIRECTOR,
        "labels",
        "IdlgLabel",
        "labels",
    ),
    Listed(
        "llg",
        "Labels of a batch, counted off",
        "Wainakh et al. 2021, arXiv:2105.09369",
        Adversary.CURIOUS_DIRECTOR,
        "labels",
        "LabelLeakage",
        "labels",
    ),
    Listed(
        "bias-labels",
        "Labels of a batch by a linear system",
        "Ma et al. 2023, ICLR",
        Adversary.CURIOUS_DIRECTOR,
        "labels",
        "BiasLabels",
        "labels",
    ),
    Listed(
        "cross-round",
        "Single updates from sums with changing cohorts",
        "So et al. 2021, arXiv:2106.03328; Lam et al. 2021, arXiv:2106.06089",
        Adversary.SUM_READER,
        "cross_round",
        "CrossRound",
        "updates",
    ),
    Listed(
        "sratta",
        "Images out of secure sums, grouped by site",
        "Marchand et al. 2023, arXiv:2306.07644",
        Adversary.SUM_READER,
        "sratta",
        "Sratta",
        "images",
    ),
)


def listed(name: str) -> Listed:
    """The attack of that name.

    Raises:
        ConfigError: there is none; the message names them all.
    """
    for attack in ATTACKS:
        if attack.name == name:
            return attack
    raise ConfigError(f"attack {name!r}: expected one of {', '.join(attack.name for attack in ATTACKS)}")
