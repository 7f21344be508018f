"""The API's description is in the repository, is OpenAPI 3.1, and says how everything may be refused."""

import json
from pathlib import Path

import fedveil
import pytest
from fedveil.director.rest.app import description

KEPT = Path(fedveil.__file__).parent / "director" / "rest" / "openapi.json"
DOCUMENT = json.loads(KEPT.read_text("utf-8"))
OPERATIONS = [(path, method) for path, ways in DOCUMENT["paths"].items() for method in ways]
OPEN = {"/healthz", "/readyz", "/metrics"}
SIGNING_IN = {
    ("/api/v1/sessions", "post"),
    ("/api/v1/sessions/device", "post"),
    ("/api/v1/sessions/device/{sign_in_id}", "post"),
}


def test_what_is_in_the_repository_is_what_a_director_says():
    assert KEPT.read_text("utf-8") == description(), "run: make openapi"


def test_it_is_openapi_3_1():
    assert DOCUMENT["openapi"].startswith("3.1.")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_operation_says_how_it_may_be_refused_and_what_it_is(path, method):
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    if path in OPEN:
        return
    assert path.startswith("/api/v1/")
    for status in ("401", "422", "429", "503"):
        assert set(operation["responses"][status]["content"]) == {"application/problem+json"}, status


def test_every_operation_but_signing_in_wants_to_know_who_asks():
    for path, method in OPERATIONS:
        is_secured = bool(DOCUMENT["paths"][path][method].get("security"))
        assert is_secured is (path not in OPEN and (path, method) not in SIGNING_IN), (path, method)
