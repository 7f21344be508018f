"""Who answers, and what time is it there: asked by every role, before and after joining."""

import time

import pytest
from fedveil.utils import messages as m
from fedveil.utils.errors import FederationError, NotAuthorizedError
from fedveil.utils.identity import Role


@pytest.mark.parametrize("role", [Role.ENVOY, Role.OPERATOR, Role.JOIN, Role.RENEW])
def test_whoever_is_of_the_federation_learns_who_answers_and_its_time(federation, role):
    before = time.time()
    said = federation.puppet("caller", federation.certificate(role)).client.hello()
    assert said.federation == "lungs"
    assert said.software.startswith("fedveil ")
    assert before <= said.now <= time.time()


def test_an_operator_learns_it_too(federation):
    with federation.operator() as operator:
        assert operator.hello().federation == "lungs"


def test_a_caller_of_another_federation_learns_nothing(federation):
    caller = federation.puppet("caller", federation.certificate(federation="hearts"))
    with pytest.raises(FederationError, match="another federation"):
        caller.client.hello()


@pytest.mark.parametrize("role", [Role.JOIN, Role.RENEW])
def test_a_certificate_that_may_say_hello_may_still_not_work(federation, role):
    with pytest.raises(NotAuthorizedError):
        federation.puppet("caller", federation.certificate(role)).client.beat(m.Heartbeat())


def test_every_heartbeat_is_answered_with_the_directors_time(federation):
    before = time.time()
    assert before <= federation.puppet("site-a").client.beat(m.Heartbeat()).now <= time.time()
