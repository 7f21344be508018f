"""Databases for the director's tests: SQLite files, and a real PostgreSQL server that the suite brings along."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.database import open_database
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.proposals import propose
from fedveil.utils.certificates import certificate_pem, issue_identity, make_issuer, make_root
from fedveil.utils.config import parse_toml
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.plan_bundle import Manifest
from fedveil.utils.proposal import Patch, Proposal, sign
from fedveil.utils.signed_document import SignedDocument
from sqlalchemy.engine import Engine


class Researcher:
    """An operator of a federation of its own, who signs what it proposes."""

    def __init__(self, federation: str, name: str = "alice") -> None:
        now = time.time()
        root = make_root(federation, now)
        self.issuer, self.root = make_issuer(root, federation, now), root.certificate
        self.peer, self.key = PeerId(federation, Role.OPERATOR, name), Ed25519PrivateKey.generate()
        self.chain = self.chain_of(self.peer)

    def chain_of(self, peer: PeerId) -> bytes:
        """Certificates that let the researcher's key sign as somebody."""
        identity = issue_identity(self.issuer, self.key.public_key(), peer, time.time())
        return certificate_pem(identity, self.issuer.certificate)

    def proposal(self, text: str, manifest: Manifest, now: float | None = None) -> Proposal:
        """What an experiment asks of sites."""
        settings = parse_toml(text, ExperimentSettings, "experiment.toml")
        return propose(settings, text, manifest, self.peer.federation, self.peer, time.time() if now is None else now)

    def sign(self, text: Proposal | Patch) -> SignedDocument:
        """With its own key."""
        return sign(text, self.key, self.chain)


@pytest.fixture(scope="session")
def researcher() -> Callable[..., Researcher]:
    """Makes one, of a federation."""
    return Researcher


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One empty database a test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'director.sqlite'}"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An open database with all tables."""
    engine = open_database(database_url, durable=False)
    yield engine
    engine.dispose()
