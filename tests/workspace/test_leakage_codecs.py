"""What the benchmark's defenses learn is learned from public images, once."""

import dataclasses

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.benchmark import attack_one
from fedveil.gradient_leakage.cells import Cell, Run
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, PublicImages
from fedveil.utils.errors import StorageError
from fedveil.workspace import leakage_codecs
from fedveil.workspace.leakage_codecs import Codecs
from fedveil.workspace.leakage_laboratory import RealLaboratory

DOMAIN = ImageDomain((1, 8, 8), 10)
CELL = Cell("digits", "lenet", "dlg", defense="codec")


@pytest.fixture
def public():
    rng = torch.Generator().manual_seed(0)
    return PublicImages(torch.rand((40, *DOMAIN.shape), generator=rng), torch.arange(40) % 10)


def taught(folder, public, cell=CELL, seed=0):
    leakage_codecs._taught.cache_clear()
    return Codecs(folder).public_side(cell, build(cell.model, DOMAIN, seed), public, DOMAIN.num_classes)


def test_a_codec_is_fitted_once_and_then_read_from_its_file(tmp_path, public, monkeypatch):
    first = taught(tmp_path, public)
    assert first.codec.compression >= 99
    assert first.max_norm > 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".codec"]
    monkeypatch.setattr(leakage_codecs, "fit", None)
    again = taught(tmp_path, public)
    assert again.codec.digest == first.codec.digest
    assert again.max_norm == first.max_norm


def test_another_model_another_training_and_other_images_give_another_codec(tmp_path, public):
    taught(tmp_path, public)
    taught(tmp_path, public, seed=1)
    taught(tmp_path, public, dataclasses.replace(CELL, local_steps=2))
    taught(tmp_path, PublicImages(public.images[:30], public.labels[:30]))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_clip_is_taught_a_length_and_nothing_is_kept(tmp_path, public):
    side = taught(tmp_path, public, dataclasses.replace(CELL, defense="clip"))
    assert side.max_norm == taught(tmp_path / "other", public).max_norm
    assert side.codec is None
    assert not list(tmp_path.glob("*.*"))


def test_a_damaged_file_is_named(tmp_path, public):
    taught(tmp_path, public)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"nothing")
    with pytest.raises(StorageError, match="delete it"):
        taught(tmp_path, public)
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="cannot be kept"):
        taught(tmp_path / "taken", public)


def test_a_nonlinear_vae_is_kept_too(tmp_path, public, monkeypatch):
    monkeypatch.setattr(leakage_codecs, "_FOR_NETWORK", 5)
    cell = dataclasses.replace(CELL, defense="nonlinear-vae")
    first, again = (taught(tmp_path, public, cell).nonlinear for _ in range(2))
    assert first.digest == again.digest
    assert first.label == "nonlinear VAE, 64 latents"


@pytest.mark.parametrize("defense", ["clip-noise-small", "seeded", "soteria", "ppp"])
def test_a_run_of_the_benchmark_passes_its_chain(tmp_path, defense):
    options = (("iterations", 3),)
    runs = [
        Run(dataclasses.replace(CELL, attack="inverting-gradients", options=options, defense=name), 0)
        for name in ("none", defense)
    ]
    plain, defended = (attack_one(RealLaboratory(tmp_path), run) for run in runs)
    assert plain.error == defended.error == ""
    assert np.array_equal(plain.arrays["truth"], defended.arrays["truth"])
    assert not np.array_equal(plain.arrays["found"], defended.arrays["found"])
    again = attack_one(RealLaboratory(tmp_path), runs[1])
    assert np.array_equal(again.arrays["found"], defended.arrays["found"])
