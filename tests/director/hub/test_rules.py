"""Who may do what: nothing by default, wider covers narrower, and a key never does more than its user."""

import pytest
from fedveil.director.hub.roles import ADMIN, PRESETS
from fedveil.director.hub.rules import Actor, Operation, Resource, Role, Rule, Scope, Target, decide
from fedveil.utils.errors import ConfigError
from hypothesis import assume, given
from hypothesis import strategies as st

rules = st.builds(Rule, st.sampled_from(Operation), st.sampled_from(Resource), st.sampled_from(Scope))
near = st.builds(
    Rule, st.sampled_from(list(Operation)[:2]), st.sampled_from(list(Resource)[:2]), st.sampled_from(Scope)
)
organizations, users = st.sampled_from(["north", "south"]), st.sampled_from(["anna", "ben"])
collaborations = st.frozensets(st.sampled_from(["lungs", "bones"]))
roles = st.lists(st.builds(Role, st.sampled_from(["one", "two"]), st.frozensets(near, max_size=4)), max_size=2).map(
    tuple
)
actors = st.builds(Actor, users, organizations, collaborations, roles)
targets = st.builds(Target, st.none() | organizations, collaborations, st.none() | users)
asked = st.tuples(st.sampled_from(list(Operation)[:2]), st.sampled_from(list(Resource)[:2]), targets)


def with_rule(actor, rule):
    return Actor(
        actor.user, actor.organization, actor.collaborations, (*actor.roles, Role("more", frozenset({rule}))), actor.key
    )


def with_key(actor, key):
    return Actor(actor.user, actor.organization, actor.collaborations, actor.roles, key)


@given(rules)
def test_a_rule_is_read_as_it_is_written(rule):
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "view", "view:model", "view:model:planet", "see:model:own", "view:models:own", "a:b:c:d"]
)
def test_a_text_that_is_no_rule_is_refused_with_the_words_there_are(text):
    with pytest.raises(ConfigError, match="expected operation:resource:scope"):
        Rule.parse(text)


@given(actors, asked)
def test_without_a_rule_about_it_nothing_is_allowed(actor, asked):
    operation, resource, target = asked
    assume(not actor.grants(operation, resource))
    assert not decide(actor, operation, resource, target).is_allowed


@given(actors, near, asked)
def test_one_more_rule_refuses_nothing_that_was_allowed(actor, rule, asked):
    if decide(actor, *asked).is_allowed:
        assert decide(with_rule(actor, rule), *asked).is_allowed


@given(actors, asked, st.sampled_from(Scope), st.sampled_from(Scope))
def test_a_wider_rule_allows_what_a_narrower_one_does(actor, asked, one, other):
    operation, resource, target = asked
    bare = Actor(actor.user, actor.organization, actor.collaborations)
    narrow, wide = (with_rule(bare, Rule(operation, resource, scope)) for scope in sorted((one, other)))
    assert (
        decide(wide, operation, resource, target).is_allowed >= decide(narrow, operation, resource, target).is_allowed
    )


@given(actors, st.frozensets(near, max_size=4), asked)
def test_a_key_allows_nothing_that_its_user_may_not(actor, key, asked):
    assert decide(with_key(actor, key), *asked).is_allowed <= decide(actor, *asked).is_allowed


@given(actors, st.frozensets(near, max_size=4), asked)
def test_a_key_allows_nothing_that_it_is_not_for(actor, key, asked):
    everything = Actor(actor.user, actor.organization, actor.collaborations, (PRESETS[ADMIN],), key)
    only_key = Actor(actor.user, actor.organization, actor.collaborations, (Role("key", key),))
    assert decide(everything, *asked).is_allowed == decide(only_key, *asked).is_allowed


@given(actors, asked)
def test_what_is_of_another_organization_and_no_common_collaboration_is_reached_by_the_federations_scope_alone(
    actor, asked
):
    operation, resource, target = asked
    assume(target.organization != actor.organization and target.owner != actor.user)
    assume(not target.collaborations & actor.collaborations)
    decision = decide(actor, operation, resource, target)
    if decision.is_allowed:
        assert decision.rule is not None
        assert decision.rule.scope is Scope.FEDERATION


@given(actors, asked)
def test_why_names_the_rule_that_allowed_it_and_the_role_that_has_it(actor, asked):
    decision = decide(actor, *asked)
    assert (decision.rule is not None) is decision.is_allowed
    if decision.rule is not None:
        named = next(role for role in actor.roles if decision.rule in role.rules and role.name in decision.why)
        assert str(decision.rule) in decision.why
        assert named


@given(actors, st.lists(near, max_size=4))
def test_nobody_hands_on_what_they_do_not_have(actor, wished):
    lacking = actor.may_hand_on(wished)
    for rule in wished:
        has = any(own.covers(rule) for role in actor.roles for own in role.rules)
        assert (rule in lacking) is not has


def test_presets_may_do_what_they_are_for_and_not_what_others_are():
    def may(role, text, **target):
        operation, resource, _ = text.split(":")
        actor = Actor("anna", "north", frozenset({"lungs"}), (PRESETS[role],))
        return decide(actor, Operation(operation), Resource(resource), Target(**target)).is_allowed

    lungs = {"organization": "south", "collaborations": frozenset({"lungs"})}
    assert may("researcher", "start:task:", **lungs)
    assert not may("researcher", "approve:plan:", **lungs)
    assert not may("auditor", "start:task:", **lungs)
    assert may("auditor", "view:audit:")
    assert may("reviewer", "approve:plan:", organization="north")
    assert not may("reviewer", "approve:plan:", organization="south")
    assert may("organization-admin", "create:user:", organization="north")
    assert not may("organization-admin", "create:user:", organization="south")
    assert may("dpo", "approve:agreement:", organization="north")
    assert not any(may(role, "create:collaboration:", **lungs) for role in PRESETS if role != ADMIN)
