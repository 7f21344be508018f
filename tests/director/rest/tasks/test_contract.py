"""Whatever is asked of the API, by whomever: it answers as its description says, and never with an error of its own.

schemathesis makes the calls, from the description alone: a fixed number of each sort, always the same ones.
"""

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CALLS = 3
"""Of each operation, as described and not as described, by each caller."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/x-protobuf", "application/x-protobuf-stream")
def as_it_is(_, value):
    """Messages are bytes to the description."""
    return getattr(value, "data", None) or str(value).encode("utf-8", "surrogatepass")


@pytest.fixture
def known(study):
    """What is there: calls as described ask about it, since hardly a random id is one."""
    client = study.researcher("anna")
    task = study.submit(client, "anna")
    hub, now = study.hub, study.world.clock()
    north = study.organizations["north"]
    anna = next(one for one in hub.users.all() if one.name == "anna")
    study.world.user("steward", north, "data-manager")
    dataset = client_of(study.world, "steward").post(
        "/api/v1/datasets", json={"name": "xrays", "envoy": "north-1", "examples": "100-499"}
    )
    assert dataset.status_code == 201, dataset.text
    key, _ = hub.sign_in.make_key(anna, "a key", frozenset(), now, now + 1000)
    return {
        "task_id": task["task_id"],
        "task": task["task_id"],
        "collaboration_id": study.collaboration.id,
        "organization_id": north.id,
        "organizations": [north.id],
        "parties": [north.id],
        "agreement_id": hub.agreements.all()[0].id,
        "user_id": anna.id,
        "owner_id": anna.id,
        "dataset_id": dataset.json()["dataset_id"],
        "role_id": "researcher",
        "roles": ["researcher"],
        "key_id": key.id,
        "plan_digest": task["plan_digest"],
        "name": "north-1",
        "envoy": "north-1",
        "blob": study.plan().manifest.files[0].sha256,
        "If-Match": '"1"',
    }


def client_of(world, name: str) -> TestClient:
    return world.signed_in(name) if name else TestClient(world.app)


def about(case: Case, known) -> Case:
    """The same call about what is there."""
    for given_ in (case.path_parameters, case.query, case.headers, case.body):
        if isinstance(given_, dict) or hasattr(given_, "update"):
            given_.update({name: value for name, value in known.items() if name in given_})
    return case


def asked_as_said(operation, mode: GenerationMode, known, headers, answered: dict[str, set[int]]) -> None:
    """Some calls of one operation; raises where an answer is not as the description says."""

    @settings(
        max_examples=CALLS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def call(case: Case) -> None:
        answer = about(case, known).call(headers=headers)
        answered.setdefault(operation.label, set()).add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    call()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "who"),
    [("sqlite", "root"), ("sqlite", "anna"), ("sqlite", ""), ("postgresql", "root")],
    indirect=["database_url"],
    ids=["admin", "researcher", "nobody", "admin-postgresql"],
)
def test_every_call_is_answered_as_the_description_says(study, known, who, monkeypatch):
    monkeypatch.setattr("fedveil.director.rest.limits.Buckets.take", lambda *_: 0.0)
    study.world.app.state.ends.set()  # streams of events end at once, as where the director closes
    token = dict(client_of(study.world, who).headers).get("authorization")
    headers = {"Authorization": token} if token else {}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", study.world.app)
    answered: dict[str, set[int]] = {}
    wrong: list[str] = []
    for operation in (one.ok() for one in schema.get_all_operations()):
        for mode in GenerationMode:
            try:
                asked_as_said(operation, mode, known if mode is GenerationMode.POSITIVE else {}, headers, answered)
            except Unsatisfiable:  # nothing of it can be wrong: it takes no argument
                assert mode is GenerationMode.NEGATIVE, operation.label
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - all that is wrong is told at once
                wrong.append(f"{operation.label}: {error} {getattr(error, 'exceptions', '')}")
    assert not wrong, "\n\n".join(wrong)
    assert len(answered) > 90
