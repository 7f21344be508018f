"""A small nonlinear VAE over updates: a baseline of the benchmark, not a codec.

Its codes cannot be summed: a mean of codes does not decode to the mean of what each decodes to. So it codes and decodes
at the envoy, and the update that leaves is as long as it was: nothing is saved on the wire. A few hundred proxy updates
train it poorly. Its sampled noise is no calibrated mechanism: it is a heuristic, and its attacker owns both networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...utils.errors import ConfigError, LayoutMismatchError
from ...utils.tensors import Layout, Role, Vector

_MAX_SIZE = 1 << 16  # two layers of this many times `hidden` weights is what it takes


class StandardNormal(Protocol):
    """Where the noise of a sampled code comes from; numpy's Generator is one."""

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """Independent draws, (size,)."""


class UpdateVae(nn.Module):
    """One hidden layer on each side; encoder of means and log variances, decoder of means."""

    def __init__(self, size: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, size))

    def encode(self, updates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), each (count, latent)."""
        mean, log_variance = self.encoder(updates).chunk(2, dim=-1)
        return mean, log_variance.clamp(-10, 5)

    def decode(self, codes: Tensor) -> Tensor:
        """(count, size)."""
        decoded: Tensor = self.decoder(codes)
        return decoded


@dataclass(frozen=True, slots=True, eq=False)
class NonlinearCoder:
    """Encode, sample, decode: an update goes in and an update comes out. Buffers pass as they are."""

    layout: Layout
    network: UpdateVae  # in evaluation mode; works on parameters alone, divided by `scale`
    scale: float
    latent: int

    @property
    def label(self) -> str:
        """What it is, in tables."""
        return f"nonlinear VAE, {self.latent} latents"

    def __call__(self, vector: Vector, rng: StandardNormal) -> Vector:
        """(layout.size,) to (layout.size,), with a code that is drawn from q(z|x).

        Raises:
            LayoutMismatchError: the update has another length.
        """
        if vector.shape != (self.layout.size,):
            raise LayoutMismatchError(f"an update of shape {vector.shape}, this VAE is for ({self.layout.size},)")
        where, drawn = self.layout.slice_of(Role.PARAMETER), rng.standard_normal(self.latent)
        noise = torch.from_numpy(np.asarray(drawn, np.float32))
        with torch.no_grad():
            mean, log_variance = self.network.encode(torch.tensor(vector[where]) / self.scale)
            decoded = self.network.decode(mean + (0.5 * log_variance).exp() * noise) * self.scale
        sent = vector.copy()
        sent[where] = decoded.numpy()
        return sent


def train_nonlinear(
    layout: Layout,
    updates: NDArray[np.float32],
    *,
    latent: int = 64,
    hidden: int = 128,
    steps: int = 400,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> NonlinearCoder:
    """Maximise the evidence lower bound of all proxy updates with Adam, full batch.

    E_q[log N(x; f(z), s^2 I)] - KL(q(z|x) || N(0, I)), Kingma & Welling 2014 (arXiv:1312.6114), with s^2 at its
    optimum for the batch (sigma-VAE, Rybkin et al. 2021, arXiv:2006.13202): -d/2 log(mean squared error) - KL + c.

    Args:
        layout: of the updates.
        updates: (count, layout.size), of public or proxy data.
        latent: numbers of a code.
        hidden: width of both hidden layers.
        steps: of Adam.
        learning_rate: of Adam.
        seed: of weights and sampled codes; the process's own generator is left alone.

    Raises:
        ConfigError: updates of another shape, all 0, too long for dense layers, or with control variates.
    """
    if updates.ndim != 2 or updates.shape[1] != layout.size or layout.slice_of(Role.CONTROL).stop:
        raise ConfigError(f"updates of shape {updates.shape}, expected (count, {layout.size}) without control variates")
    if layout.size > _MAX_SIZE:
        raise ConfigError(f"updates of {layout.size} numbers; this baseline is for at most {_MAX_SIZE}, use a codec")
    rows = torch.tensor(updates[:, layout.slice_of(Role.PARAMETER)])
    scale = float(rows.square().mean().sqrt())
    if not scale > 0:
        raise ConfigError("the proxy updates are all 0, or not finite; nothing can be learned from them")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = UpdateVae(rows.shape[1], latent, hidden)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            _negative_bound(network, rows / scale).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return NonlinearCoder(layout, network.eval().requires_grad_(requires_grad=False), scale, latent)


def _negative_bound(network: UpdateVae, rows: Tensor) -> Tensor:
    """Mean over the rows, in nats, up to a constant."""
    mean, log_variance = network.encode(rows)
    codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    error = (network.decode(codes) - rows).square().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
    return 0.5 * rows.shape[1] * error.log() + divergence
