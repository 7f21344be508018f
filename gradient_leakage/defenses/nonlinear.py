"""The nonlinear VAE as a step of a chain: a baseline that codes and decodes at the site. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...utils.errors import MalformedMessageError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Digest, Layout, Role, Vector, digest_of
from ..vae.nonlinear import NonlinearCoder, UpdateVae
from .pieces import require_sendable

_SCALE = "scale"


@dataclass(frozen=True, slots=True, eq=False)
class Nonlinear:
    """Send what the decoder makes of a sampled code, in place of the update: it is as long as before.

    Guarantees:
        - shape and dtype are kept, and buffers to the last bit; NaN and infinity are refused;
        - the same draws give the same result.

    A heuristic: the noise is calibrated to nothing, and a decoded update still lies among updates of images.
    """

    coder: NonlinearCoder
    digest: Digest  # of its file

    @property
    def label(self) -> str:
        """What it is, in tables."""
        return self.coder.label

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Encode, draw one Gaussian for each number of the code, decode.

        Raises:
            LayoutMismatchError: not as long as the layout.
            NonFiniteUpdateError: NaN or infinity.
        """
        require_sendable(vector)
        return self.coder(vector, rng)


def nonlinear_bytes(coder: NonlinearCoder) -> bytes:
    """The file: safetensors of both networks and the scale. The layout is not in it."""
    tensors = {name: tensor.contiguous() for name, tensor in coder.network.state_dict().items()}
    return save(tensors | {_SCALE: torch.tensor(coder.scale, dtype=torch.float64)})


def read_nonlinear(raw: bytes, layout: Layout) -> Nonlinear:
    """What ``nonlinear_bytes`` wrote, for updates of this layout.

    Raises:
        MalformedMessageError: not such a file, or one for updates of another length.
    """
    where = layout.slice_of(Role.PARAMETER)
    try:
        tensors = load(raw)
        scale, widths = float(tensors.pop(_SCALE)), tensors["decoder.0.weight"].shape
        network = UpdateVae(where.stop - where.start, widths[1], widths[0])
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise MalformedMessageError(f"not a nonlinear VAE for updates of {layout.size} numbers: {error}") from error
    coder = NonlinearCoder(layout, network.eval().requires_grad_(requires_grad=False), scale, widths[1])
    return Nonlinear(coder, digest_of(raw))
