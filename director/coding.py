"""The codec of an experiment: read from what an operator put, and held against the plan. Does no coding itself."""

from __future__ import annotations

from ..gradient_leakage.vae.codec import Codec, read_codec
from ..utils.artifacts import ArtifactStore
from ..utils.errors import ConfigError, LayoutMismatchError, MalformedMessageError
from ..utils.tensors import Layout, Role
from .experiments import ExperimentSettings


def read_run_codec(settings: ExperimentSettings, layout: Layout, artifacts: ArtifactStore) -> Codec | None:
    """The codec that an experiment names, or None where it names none.

    Args:
        settings: of the experiment.
        layout: of the plan's updates.
        artifacts: where the codec's file lies by its digest.

    Raises:
        ConfigError: the plan uses SCAFFOLD, whose control variates no codec may mix with the weights.
        LayoutMismatchError: the codec is of another model.
        MalformedMessageError: the file is no codec.
        UnknownArtifactError: the file is not here.
    """
    if settings.codec is None:
        return None
    digest = settings.codec.digest
    if layout.slice_of(Role.CONTROL).stop:
        raise ConfigError("[codec]: the plan uses SCAFFOLD, whose control variates are not coded; leave [codec] out")
    try:
        codec = read_codec(artifacts.read(digest))
    except MalformedMessageError as error:
        raise MalformedMessageError(f"codec.digest {digest[:12]}…: {error}") from error
    if codec.layout != layout:
        raise LayoutMismatchError(
            f"codec.digest {digest[:12]}… codes layout {codec.layout.digest[:12]}, and the plan has"
            f" {layout.digest[:12]}; `fedveil codec fit` makes one for this plan"
        )
    return codec
