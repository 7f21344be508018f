import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.threat_model import PublicImages
from fedveil.gradient_leakage.verification import Verifier, _in_blocks, degraded, train_verifier
from fedveil.utils.errors import ConfigError
from torch import Tensor
from torch.nn import functional

Examples = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def public(request) -> PublicImages:
    """PneumoniaMNIST's training part: of other children than its test part."""
    folder = os.environ.get("FEDVEIL_DATA_DIR") or request.config.rootpath.parent / "shared" / "data"
    path = Path(folder, "pneumoniamnist", "pneumoniamnist.npz")
    if not path.exists():
        pytest.skip("pneumoniamnist is not there")
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    return PublicImages(
        torch.from_numpy(images[:, None] / np.float32(255)), torch.from_numpy(labels[:, 0].astype(np.int64))
    )


@pytest.fixture(scope="module")
def verifier(public: PublicImages) -> Verifier:
    torch.set_num_threads(1)
    return train_verifier(public, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gallery(xrays28: Examples) -> Tensor:
    """200 unseen X-rays of one class."""
    images, labels = xrays28
    return images[labels == 1][:200]


def first_rate(ours: Tensor, gallery: Tensor) -> float:
    """Share of the first rows that are nearest to the row of their own number, by cosine."""
    likeness = functional.normalize(ours, dim=1) @ functional.normalize(gallery, dim=1).T
    return float((likeness.argmax(1) == torch.arange(len(ours))).double().mean())


def pixels(images: Tensor) -> Tensor:
    """The strongest plain matching: brightness and contrast fall out."""
    flat = images.flatten(1)
    return flat - flat.mean(1, keepdim=True)


def shifted(images: Tensor) -> Tensor:
    return images.roll((2, 1), (2, 3))


def shifted_and_bleached(images: Tensor) -> Tensor:
    return images.roll((-2, 1), (2, 3)) ** 0.7 * 0.5 + 0.4


def shifted_under_noise(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images.roll((1, -2), (2, 3)) + 0.1 * noise).clamp(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("change", [shifted, shifted_and_bleached, shifted_under_noise])
def test_moved_copies_of_unseen_xrays_are_found_far_above_chance_and_more_often_than_by_pixels(
    verifier: Verifier, gallery: Tensor, change: Callable[[Tensor], Tensor]
):
    """Chance is 0.5 %. Without a shift, under noise and blur, pixels are as good or better: a report shows both."""
    ours = first_rate(verifier.embed(change(gallery)), verifier.embed(gallery))
    by_pixels = first_rate(pixels(change(gallery)), pixels(gallery))
    assert ours > 0.4
    assert ours > by_pixels + 0.1


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda images, _: images, 0.99),  # the set holds one picture twice
        (lambda images, _: images * 0.4 + 0.3, 0.95),
        (lambda images, _: functional.avg_pool2d(images, 3, 1, 1), 0.8),
        (lambda images, rng: (images + 0.2 * torch.randn(images.shape, generator=rng)).clamp(0, 1), 0.9),
        (lambda images, _: _in_blocks(images, torch.full((len(images), 1, 1, 1), 0.2)), 0.9),
        (degraded, 0.4),
    ],
    ids=["same", "contrast", "blur", "noise", "jpeg", "everything at once"],
)
def test_worn_copies_of_unseen_xrays_are_found(
    verifier: Verifier, gallery: Tensor, rng, change: Callable[[Tensor, torch.Generator], Tensor], least: float
):
    rate = first_rate(verifier.embed(change(gallery, rng)), verifier.embed(gallery))
    assert rate >= least


def test_a_picture_of_another_patient_is_matched_by_chance_alone(verifier: Verifier, gallery: Tensor, xrays28):
    images, labels = xrays28
    strangers = images[labels == 1][200:390]
    assert first_rate(verifier.embed(strangers), verifier.embed(gallery[:190])) <= 0.03  # chance is 0.5 %


def test_larger_images_are_taken_and_other_channels_refused(verifier: Verifier, xrays64):
    embedded = verifier.embed(xrays64[0][:5])
    assert embedded.shape == (5, 200)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(5))
    with pytest.raises(ConfigError, match="knows 1 channels"):
        verifier.embed(torch.zeros(2, 3, 28, 28))


def test_the_same_seed_trains_the_same_verifier_and_the_global_generator_is_not_touched(public: PublicImages):
    few = PublicImages(public.images[:300], public.labels[:300])
    before = torch.get_rng_state()
    first, second = (train_verifier(few, torch.Generator().manual_seed(4), epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.embed(few.images[:9]), second.embed(few.images[:9]))


def test_too_few_public_images_are_refused(public: PublicImages, rng):
    with pytest.raises(ConfigError, match="199 public images; a verifier needs at least 200"):
        train_verifier(PublicImages(public.images[:199], public.labels[:199]), rng)


def test_degraded_copies_stay_images_and_no_rounding_is_no_change(public: PublicImages, rng):
    images = public.images[:100]
    worn = degraded(images, rng)
    assert worn.shape == images.shape
    assert bool(((worn >= 0) & (worn <= 1)).all())
    assert torch.allclose(_in_blocks(images, torch.full((100, 1, 1, 1), 1e-5)), images, atol=1e-4)
