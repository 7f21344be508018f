"""What a site publishes by subgroups is the site's own, or it is not taken."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.fairness_desk import FairnessDesk
from fedveil.utils import fairness
from fedveil.utils.errors import IdentityError, MalformedMessageError
from fedveil.utils.fairness import Cell, FairnessTable, Statement
from fedveil.utils.messages import EnvoyName, RunId, TaskRef
from fedveil.utils.tensors import Digest

REF = TaskRef(RunId("lungs-1"), 1, 1, Digest("ab" * 32))
A, B = EnvoyName("site-a"), EnvoyName("site-b")
KEYS = {name: Ed25519PrivateKey.generate() for name in (A, B)}
DESK = FairnessDesk("lungs", 10, lambda name: KEYS[name].public_key().public_bytes_raw() if name in KEYS else None)
TABLE = FairnessTable("test", "patients", 10, (Cell("", "", 20, 49, ()),))


def said(site: EnvoyName, by: EnvoyName):
    return fairness.sign(Statement("lungs", site, REF, TABLE), KEYS[by].sign)


def test_a_site_speaks_for_itself_alone():
    DESK.check(A, REF, said(A, A))
    with pytest.raises(IdentityError, match="identity key"):
        DESK.check(A, REF, said(A, B))
    with pytest.raises(MalformedMessageError, match="something else"):
        DESK.check(B, REF, said(A, B))
    with pytest.raises(IdentityError, match="no member"):
        DESK.check(EnvoyName("site-c"), REF, said(A, A))


def test_a_smaller_cell_than_the_federation_allows_is_not_taken():
    with pytest.raises(MalformedMessageError, match="fewer than 12"):
        FairnessDesk("lungs", 12, DESK.key_of).check(A, REF, said(A, A))
