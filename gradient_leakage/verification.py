"""Is it the same picture? A small network that looks past what a reconstruction does to an X-ray.

A convolutional network learns from public images to put degraded copies of one picture together and other pictures of
the same class apart (the normalised-temperature cross-entropy of Chen et al. 2020, arXiv:2002.05709, as it is used to
verify X-rays of patients by Packhaeuser et al. 2022, arXiv:2103.08562). A linear discriminant on its features, in
closed form from further copies, then weighs each feature by how well it survives the degrading. It sees no attacked
image and no attack: what it is given must be of other patients than the targets, which the caller holds to.

``Verifier.embed`` is what ``metrics.re_identification`` takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..utils.errors import ConfigError
from .threat_model import PublicImages

PUBLIC_MINIMUM = 200
_SIDE = 28  # pixels: larger images are averaged down, which costs detail that no reconstruction has
_BATCH = 64
_TEMPERATURE = 0.07
_LEARNING_RATE = 5e-3
_COPIES = 4  # degraded copies of each image for the discriminant
_DIRECTIONS = 200
_BLOCK = 8  # of JPEG


@dataclass(frozen=True, slots=True, eq=False)
class Verifier:
    """Trained once on public images; compare what it embeds by cosine or, as all have length 1, by distance."""

    network: nn.Module
    centre: Tensor  # (features,)
    directions: Tensor  # (features, dimensions)
    channels: int

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors (count, dimensions), on the CPU, of images (count, channels, height, width) in [0, 1].

        Raises:
            ConfigError: images of other channels than the public ones.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ConfigError(f"images of shape {tuple(images.shape)}; this verifier knows {self.channels} channels")
        with torch.no_grad():
            features = torch.cat([self.network(_small(part)) for part in torch.split(images.cpu().float(), 512)])
        return functional.normalize((features - self.centre) @ self.directions, dim=1)


def train_verifier(public: PublicImages, rng: torch.Generator, epochs: int = 8) -> Verifier:
    """Train on public images alone; about 20 CPU seconds for 4,700 of them.

    Raises:
        ConfigError: too few images.
    """
    if len(public.images) < PUBLIC_MINIMUM:
        raise ConfigError(f"{len(public.images)} public images; a verifier needs at least {PUBLIC_MINIMUM}")
    images, channels = _small(public.images.cpu().float()), public.images.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        features, head = _features(channels), nn.Linear(32 * 16, 128)
    optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=_LEARNING_RATE)
    batches = len(images) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs * batches + 1)
    for _ in range(epochs):
        for chosen in _of_one_class(public.labels.cpu(), rng):
            plain = images[chosen]
            first = torch.where(_drawn(plain, 0.5, rng), degraded(plain, rng), plain)
            ours, others = (functional.normalize(head(features(x)), dim=1) for x in (first, degraded(plain, rng)))
            likeness, own = ours @ others.T / _TEMPERATURE, torch.arange(len(plain))
            loss = functional.cross_entropy(likeness, own) + functional.cross_entropy(likeness.T, own)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return Verifier(features.eval().requires_grad_(False), *_discriminant(features, images, rng), channels)


def degraded(images: Tensor, rng: torch.Generator) -> Tensor:
    """Copies as noise, a poor reconstruction or a detour through another format would leave them.

    Moved, turned and scaled by a few percent; blurred; coarse; of other contrast, brightness and gamma; with the blocks
    of JPEG; under noise, clouds and dead pixels: each with a probability of its own.

    Args:
        images: (count, channels, height, width) in [0, 1]; so is what returns.
        rng: draws everything.
    """
    side = images.shape[-2:]
    seen = torch.where(_drawn(images, 0.6, rng), _moved(images, rng), images)
    seen = torch.where(_drawn(images, 0.5, rng), _blurred(seen, float(_between(images[:1], 0.5, 1.7, rng))), seen)
    coarse = functional.interpolate(functional.avg_pool2d(seen, int(torch.randint(2, 4, (), generator=rng))), size=side)
    seen = torch.where(_drawn(images, 0.3, rng), coarse, seen)
    contrast, brightness = _between(images, 0.4, 1.5, rng), _between(images, -0.2, 0.2, rng)
    seen = torch.where(_drawn(images, 0.5, rng), (seen - 0.5) * contrast + 0.5 + brightness, seen)
    seen = torch.where(_drawn(images, 0.5, rng), seen.clamp(0, 1) ** _between(images, 0.6, 1.6, rng), seen)
    seen = torch.where(_drawn(images, 0.3, rng), _in_blocks(seen, _between(images, 0.05, 0.4, rng)), seen)
    noise = torch.randn(images.shape, generator=rng) * _between(images, 0, 0.4, rng)
    seen = torch.where(_drawn(images, 0.7, rng), seen + noise, seen)
    clouds = functional.interpolate(torch.randn(*images.shape[:2], 4, 4, generator=rng), size=side, mode="bicubic")
    seen = torch.where(_drawn(images, 0.3, rng), seen + clouds * _between(images, 0, 0.15, rng), seen)
    dead = (torch.rand(images.shape, generator=rng) < _between(images, 0, 0.2, rng)) & _drawn(images, 0.2, rng)
    return torch.where(dead, torch.rand(images.shape, generator=rng), seen).clamp(0, 1)


class _Contrast(nn.Module):
    """Each image to mean 0 and variance 1."""

    def forward(self, images: Tensor) -> Tensor:
        centred: Tensor = images - images.mean((1, 2, 3), keepdim=True)
        return centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)


def _features(channels: int) -> nn.Module:
    """Images of ``_SIDE`` to 512 features."""
    layers: list[nn.Module] = [_Contrast()]
    for before, after, width, stride in ((channels, 16, 5, 2), (16, 32, 3, 2), (32, 32, 3, 1)):
        layers += [nn.Conv2d(before, after, width, stride, width // 2), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())


def _of_one_class(labels: Tensor, rng: torch.Generator) -> list[Tensor]:
    """Batches in random order, as far as they fill within one class: other classes would be too easy to tell apart."""
    order = torch.randperm(len(labels), generator=rng)
    order = order[labels[order].argsort(stable=True)]
    batches = [part for part in torch.split(order, _BATCH) if len(part) == _BATCH]
    return [batches[place] for place in torch.randperm(len(batches), generator=rng)]


def _discriminant(features: nn.Module, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centre and directions of Fisher's linear discriminant with every image a class of its own degraded copies."""
    with torch.no_grad():
        views = [images, *(degraded(images, rng) for _ in range(_COPIES))]
        seen = torch.stack([torch.cat([features(part) for part in torch.split(view, 512)]) for view in views]).double()
    means = seen.mean(0)
    centre = means.mean(0)
    within, between = (seen - means).flatten(0, 1), means - centre
    spread = within.T @ within / len(within)
    spread += 0.01 * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
    root = torch.linalg.cholesky(spread)
    whitened = torch.linalg.solve_triangular(root, between.T, upper=False)
    values, vectors = torch.linalg.eigh(whitened @ whitened.T / len(between))
    values, vectors = values[-_DIRECTIONS:].clamp(min=0), vectors[:, -_DIRECTIONS:]
    # The square root of the share of a direction's variance that is the picture's own.
    directions = torch.linalg.solve_triangular(root.T, vectors, upper=True) * (values / (values + 1)).sqrt()
    return centre.float(), directions.float()


def _small(images: Tensor) -> Tensor:
    if images.shape[-2:] == (_SIDE, _SIDE):
        return images
    return functional.interpolate(images, size=(_SIDE, _SIDE), mode="area")


def _drawn(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, generator=rng) < probability


def _between(images: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """One number an image, uniform, of shape (count, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=rng)


def _moved(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shifted by up to a tenth of the side, turned by up to 5 degrees, scaled by up to 6 %."""
    angle, scale, right, down = (
        _between(images, -size, size, rng).flatten() for size in (math.radians(5), 0.06, 0.2, 0.2)
    )
    cosine, sine = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    rows = torch.stack([cosine, -sine, right, sine, cosine, down], 1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _blurred(images: Tensor, deviation: float) -> Tensor:
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * deviation**2))
    kernel, channels = kernel / kernel.sum(), images.shape[1]
    padded = functional.pad(images, (3, 3, 3, 3), mode="reflect")
    along = functional.conv2d(padded, kernel.expand(channels, 1, 1, 7), groups=channels)
    return functional.conv2d(along, kernel[:, None].expand(channels, 1, 7, 1), groups=channels)


def _in_blocks(images: Tensor, step: Tensor) -> Tensor:
    """What JPEG does: each 8x8 block's cosine transform, rounded to steps that grow with the frequency."""
    height, width = images.shape[-2:]
    places = torch.arange(_BLOCK, dtype=images.dtype)
    cosines = torch.cos(math.pi / _BLOCK * (places + 0.5) * places[:, None]) * math.sqrt(2 / _BLOCK)
    cosines[0] /= math.sqrt(2)
    padded = functional.pad(images, (0, -width % _BLOCK, 0, -height % _BLOCK), mode="replicate")
    blocks = padded.unfold(2, _BLOCK, _BLOCK).unfold(3, _BLOCK, _BLOCK)
    steps = step[..., None, None] * (1 + places + places[:, None]) / _BLOCK
    rounded = (cosines @ blocks @ cosines.T / steps).round() * steps
    back = (cosines.T @ rounded @ cosines).transpose(3, 4)
    return back.reshape(padded.shape)[..., :height, :width]
