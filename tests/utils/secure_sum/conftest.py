"""Sites, specs and contributions that the tests of the secure sum share."""

import numpy as np
import pytest
from fedveil.utils.metrics import mean_of
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, cast_of, spec_for

SIZES = (23, 8)


@pytest.fixture
def network():
    """Makes one attempt of so many sites: ``network(10, drops=...)``; payloads and weights differ by site."""

    def make(count=10, *, sizes=SIZES, organizations=None, floors=None, terms=None, spec=None, **fields):
        names = [f"site-{place:02d}" for place in range(count)]
        cast = cast_of(names, organizations, floors)
        rng = np.random.default_rng(count)
        given = {
            name: Contribution(
                rng.normal(0, 0.3, sum(sizes)).astype(np.float32) if sizes else None,
                50 + 7 * place,
                (mean_of("loss", 3.0 * place, 50.0), mean_of(f"own-{place}", 1.0, 1.0)),
            )
            for place, name in enumerate(cast.names)
        }
        return Network(cast, spec or spec_for(sizes, count, terms), given, **fields)

    return make
