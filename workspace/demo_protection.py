"""What the demo's sites do to an update before it leaves, and the codec that they code it with.

Both are choices to look at. Neither shows that a patient is protected: a codec saves bytes, a clip bounds what one
hospital can do to the model, and the noise here is far too small for a guarantee.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from ..gradient_leakage.vae.codec import Basis, Codec, read_codec
from ..utils.errors import ConfigError, LayoutMismatchError
from ..utils.plan_bundle import Bundle
from .chest_xrays import Part

PUBLIC_SHARE = 0.1
"""Of the training patients: set aside to fit a codec, so that no site has them."""
_RATIO = 100.0
_MAX_NORM = 2.0  # updates of the demo's plan have norms of 1.5 to 6, the first rounds' the longest
_NOISE_MULTIPLIER = 0.01
_ENVOY = """
log_level = "info"

[training]
device = "cpu"
threads = 1

[secure_aggregation]
rule = "required"

# The best box that this machine has, as everywhere; where it has none, the demo's own plan still runs.
[sandbox]
minimum = "none"

[protection]
metrics = ["*"]
"""


class DemoDefense(Enum):
    """What every site adds to its minimum of checks."""

    NONE = "none"
    CLIP = "clip"
    CLIP_NOISE = "clip-noise"

    @property
    def words(self) -> str:
        """What it does, and what it does not."""
        bound = f"each update is clipped to an L2 norm of {_MAX_NORM:g}"
        noise = f"Gaussian noise of {_NOISE_MULTIPLIER:g} times that is added to each of its numbers"
        return {
            DemoDefense.NONE: "no defense but masks: updates are checked for their form, and their sum is exact",
            DemoDefense.CLIP: f"{bound}; by itself that hides no patient",
            DemoDefense.CLIP_NOISE: f"{bound}, and {noise}: far too little for a guarantee of differential privacy",
        }[self]


def defense_of(name: str) -> DemoDefense:
    """The defense of a name.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return DemoDefense(name)
    except ValueError as error:
        known = ", ".join(one.value for one in DemoDefense)
        raise ConfigError(f"--defense {name}: expected one of {known}") from error


def envoy_settings(defense: DemoDefense) -> str:
    """The text of the sites' envoy.toml."""
    chain = {
        DemoDefense.NONE: 'chain = ["check", "encode"]\n',
        DemoDefense.CLIP: f'chain = ["check", "encode", "clip"]\nmax_norm = {_MAX_NORM}\n',
        DemoDefense.CLIP_NOISE: (
            f'chain = ["check", "encode", "clip", "noise"]\nmax_norm = {_MAX_NORM}\n'
            f"noise_multiplier = {_NOISE_MULTIPLIER}\n"
        ),
    }
    return _ENVOY + chain[defense]


@dataclass(frozen=True, slots=True)
class DemoCodec:
    """A codec's file, ready to be submitted."""

    file: Path
    codec: Codec
    description: str

    @property
    def table(self) -> str:
        """The lines of experiment.toml."""
        return f'\n[codec]\ndigest = "{self.codec.digest}"\n'


def given_codec(file: Path, bundle: Bundle) -> DemoCodec:
    """A codec that was fitted before.

    Raises:
        ConfigError: it cannot be read.
        MalformedMessageError: it is no codec.
        LayoutMismatchError: it is of another model than the demo's.
    """
    try:
        codec = read_codec(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--codec-file {file}: cannot be read: {error.strerror}") from error
    if codec.layout != bundle.layout:
        raise LayoutMismatchError(
            f"--codec-file {file}: a codec of another model than the demo's; fit one with --codec"
        )
    return DemoCodec(file, codec, f"{file}, given by --codec-file")


def fitted_codec(bundle: Bundle, public: Part, folder: Path, seed: int) -> DemoCodec:
    """A codec as `fedveil codec fit` makes it from public images; its file and theirs are written to a folder."""
    from .codec_fitting import Rehearsal
    from .codec_making import Wanted, make_codec, opened

    folder.mkdir(parents=True, exist_ok=True)
    images, file = folder / "images.npz", folder / "codec.safetensors"
    np.savez(images, train_images=public.images, train_labels=public.labels.astype(np.uint8)[:, None])
    wanted = Wanted(bundle.folder, _RATIO, Basis.LEARNED, images, (), None, Rehearsal(seed=seed))
    started = time.process_time()
    (folder / "codec.txt").write_text("\n".join(make_codec(wanted, file)) + "\n", "utf-8")
    spent = time.process_time() - started
    words = f"fitted on {len(public.labels)} images that no site has, in {spent:.0f} CPU-s"
    return DemoCodec(file, opened(file), words)
