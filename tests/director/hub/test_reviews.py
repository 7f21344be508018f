"""Whose verdicts on a plan count, and what they decide."""

from __future__ import annotations

import pytest
from fedveil.director.hub.agreements import Collaboration, Permit
from fedveil.director.hub.remarks import Opinion, Verdict
from fedveil.director.hub.reviews import Reviewer, check_reviewed, counting
from fedveil.director.hub.roles import PRESETS
from fedveil.utils.errors import AgreementError

YES, NO = Verdict.APPROVED, Verdict.REJECTED
REVIEWS, RESEARCHES = (PRESETS["reviewer"],), (PRESETS["researcher"],)


def collaboration(reviews_needed):
    permit = Permit("7", "the board", "pneumonia", 0.0, 1e9, frozenset({"x-rays"}))
    parties = frozenset({"north", "south"})
    return Collaboration("c", "Lungs", parties, permit, reviews_needed=reviews_needed)


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize(
    ("reviewer", "organization", "authors", "counts"),
    [
        (Reviewer(REVIEWS), "north", (), True),
        (Reviewer(RESEARCHES + REVIEWS), "south", ("other",), True),
        (Reviewer(REVIEWS), "east", (), False),  # no part of the collaboration
        (Reviewer(REVIEWS), "north", ("rita", "other"), False),
        (Reviewer(REVIEWS, is_disabled=True), "north", (), False),
        (Reviewer(REVIEWS, is_revoked=True), "north", (), False),
        (Reviewer(RESEARCHES), "north", (), False),
        (Reviewer(()), "north", (), False),
    ],
)
def test_a_verdict_counts_while_its_user_is_a_reviewer_with_no_part_in_the_plan(
    reviewer, organization, authors, counts, verdict
):
    given = Opinion("rita", organization, verdict)
    assert counting(collaboration(1), [given], {"rita": reviewer}, authors) == ((given,) if counts else ())


@pytest.mark.parametrize(
    ("needed", "given", "said"),
    [
        (0, [("a", "north", NO)], None),
        (1, [], "0 approved this one"),
        (1, [("a", "north", YES)], None),
        (2, [("a", "north", YES), ("b", "north", YES)], "1 approved this one"),
        (2, [("a", "north", YES), ("b", "south", YES)], None),
        (1, [("a", "north", YES), ("b", "south", NO)], "a reviewer of south rejects"),
        (1, [("a", "south", YES), ("b", "south", NO)], "a reviewer of south rejects"),
        (1, [("a", "south", NO), ("b", "north", NO)], "a reviewer of north, south rejects"),
    ],
)
def test_so_many_organizations_approve_and_none_rejects(needed, given, said):
    opinions = [Opinion(*one) for one in given]
    if said is None:
        check_reviewed(collaboration(needed), opinions)
        return
    with pytest.raises(AgreementError, match=said):
        check_reviewed(collaboration(needed), opinions)
