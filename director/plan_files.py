"""What a run is made of, beside its models: its plan's manifest, the blobs that it names, and the codec."""

from __future__ import annotations

from ..utils.artifacts import ArtifactStore
from ..utils.config import parse_toml
from ..utils.errors import FederationError
from ..utils.plan_bundle import read_manifest
from ..utils.tensors import Digest
from .experiments import ExperimentSettings
from .records import RunRecord


def files_of(record: RunRecord, artifacts: ArtifactStore) -> frozenset[Digest]:
    """By digest. The manifest's alone where it cannot be read: the run says why when it starts."""
    files = {record.plan}
    try:
        codec = parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}").codec
        files |= {digest for digest, _ in read_manifest(artifacts.read(record.plan)).blobs()}
    except FederationError:
        return frozenset(files)
    return frozenset(files | {codec.digest} if codec else files)
