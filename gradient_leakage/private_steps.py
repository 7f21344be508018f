"""One differentially private step of a site's training: each patient's gradient is coded, clipped, summed and noised.

DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1) without a codec; with one, the clip and the noise are *in the
code*, as in gradient embedding perturbation (Yu et al. 2021, arXiv:2102.12677) without its second, residual release.
What a codec leaves out is lost: there is no error feedback here, whose memory would carry a patient across steps.

This is the arithmetic of a step. Who is in it (Poisson sampling) and what all steps together spend (an accountant) are
the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import ConfigError
from ..utils.privacy.noise import NoiseSource
from ..utils.tensors import Vector
from .defenses.clip import factor_to
from .defenses.gaussian import GaussianMechanism
from .vae.codec import Codec


def private_payload(
    per_patient: NDArray[np.float32], codec: Codec | None, mechanism: GaussianMechanism, rng: NoiseSource
) -> NDArray[np.float64]:
    """The noised sum of the patients' clipped payloads: all that is released of the patients.

    One joint clip a patient of ``[code ; entries that pass]``, and the same noise on every number.

    Guarantees:
        - each patient adds a vector of an L2 norm of at most ``max_norm``, so with or without it the sum before the
          noise differs by at most that (neighbours by adding or removing one patient);
        - the noise is independent in each number, of standard deviation ``noise_multiplier * max_norm``, whoever is in
          the step, also where nobody is.

    Args:
        per_patient: (patients, layout.size), one gradient for each patient, the mean over its images.
        codec: drawn for this round (``for_round``); None: the gradient itself is clipped and noised.
        mechanism: bound and noise, of one patient in the sum.
        rng: of the noise.

    Returns:
        (codec.size,), or (layout.size,) without a codec.

    Raises:
        NonFiniteUpdateError: a gradient holds NaN or infinity. Whether that happens depends on patients: nobody outside
            the site may be told.
        LayoutMismatchError: the codec is of another layout.
    """
    return _noised(clipped_sum(per_patient, codec, mechanism.max_norm), mechanism, rng)


def clipped_sum(per_patient: NDArray[np.float32], codec: Codec | None, max_norm: float) -> NDArray[np.float64]:
    """Of the patients' payloads, each within ``max_norm`` by itself; shapes and errors as ``private_payload``.

    It is not private: nothing of it may be released without noise.
    """
    payloads = per_patient if codec is None else codec.encode_rows(per_patient)
    total = np.zeros(payloads.shape[1])
    for payload in payloads:
        total += np.multiply(payload, factor_to(max_norm, payload), dtype=np.float64)
    return total


def _noised(total: NDArray[np.float64], mechanism: GaussianMechanism, rng: NoiseSource) -> NDArray[np.float64]:
    if mechanism.noise_multiplier:
        total += rng.standard_normal(total.size) * mechanism.noise_std
    return total


def private_gradient(
    per_patient: NDArray[np.float32],
    codec: Codec | None,
    mechanism: GaussianMechanism,
    rng: NoiseSource,
    expected_patients: float,
) -> Vector:
    """The step's gradient, (layout.size,): ``private_payload`` over a fixed number, decoded once.

    Args:
        per_patient: as ``private_payload``.
        codec: as ``private_payload``.
        mechanism: as ``private_payload``.
        rng: as ``private_payload``.
        expected_patients: sampling rate times the patients of the site: public and fixed, never how many came.

    Raises:
        ConfigError: an expected number that is not above 0.
        NonFiniteUpdateError, LayoutMismatchError: as ``private_payload``.
    """
    return noised_mean([per_patient], per_patient.shape[1], codec, mechanism, rng, expected_patients)


def noised_mean(
    parts: Iterable[NDArray[np.float32]],
    size: int,
    codec: Codec | None,
    mechanism: GaussianMechanism,
    rng: NoiseSource,
    expected_patients: float,
) -> Vector:
    """``private_gradient`` of patients who come in parts, so that not all gradients are in memory; (size,).

    Args:
        parts: (some patients, size) each; perhaps none. A patient is in one part alone.
        size: numbers of a gradient.
        codec: as ``private_payload``.
        mechanism: as ``private_payload``.
        rng: as ``private_payload``; asked once, after the last part.
        expected_patients: as ``private_gradient``.

    Raises:
        ConfigError, NonFiniteUpdateError, LayoutMismatchError: as ``private_gradient``.
    """
    if not 0 < expected_patients < float("inf"):
        raise ConfigError(f"expected_patients is {expected_patients:g}, expected a number above 0")
    total = np.zeros(size if codec is None else codec.size)
    for part in parts:
        total += clipped_sum(part, codec, mechanism.max_norm)
    mean = (_noised(total, mechanism, rng) / expected_patients).astype(np.float32)
    return mean if codec is None else codec.decode(mean)
