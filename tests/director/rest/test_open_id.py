"""Sign-in through a real OpenID provider, by its device flow; what it says that is not right is not believed."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urljoin

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fedveil.director.hub.device_sign_in import MOST, DeviceSignIns
from fedveil.director.hub.open_id import DeviceCode, NotYet, OpenIdProvider
from fedveil.director.rest.app import make_app
from fedveil.utils.addresses import Address
from fedveil.utils.certificates import certificate_pem, issue_server, key_pem, make_issuer, make_key, make_root
from fedveil.utils.errors import ConfigError, IdentityError, TooManyCallsError, UnreachableError

HERE = Path(__file__).parent / "open_id_provider"
NODE = shutil.which("node", path=str(Path(sys.executable).parent))
PACKAGES = Path(sys.prefix) / "open-id-provider" / "node_modules"


@dataclass(frozen=True, slots=True)
class Running:
    """A provider that listens."""

    issuer: str
    ca_file: Path


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A certified implementation, in a process of its own, over TLS with a certificate of our making."""
    if NODE is None or not PACKAGES.exists():
        pytest.skip("no OpenID provider: `make setup` installs it, where npm reaches its registry")
    folder = tmp_path_factory.mktemp("provider")
    shutil.copy(HERE / "provider.mjs", folder)
    (folder / "node_modules").symlink_to(PACKAGES)
    root, key, now = make_root("provider", time.time()), make_key(), time.time()
    issuer = make_issuer(root, "provider", now)
    certificate = issue_server(issuer, key.public_key(), "provider", [Address.parse("127.0.0.1")], 86_400.0, now)
    (folder / "certificate.pem").write_bytes(certificate_pem(certificate, issuer.certificate))
    (folder / "key.pem").write_bytes(key_pem(key))
    (folder / "ca.pem").write_bytes(certificate_pem(root.certificate))
    words = [NODE, folder / "provider.mjs", folder / "certificate.pem", folder / "key.pem"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, (folder / "log").read_text()
        yield Running(url, folder / "ca.pem")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Forms(HTMLParser):
    """The first form of a page: where it goes, and what it holds."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._is_over = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "form" and self.action is None:
            self.action = said.get("action") or ""
        elif tag == "input" and self.action is not None and not self._is_over and said.get("name"):
            self.fields[str(said["name"])] = said.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        self._is_over = self._is_over or (tag == "form" and self.action is not None)


def at_the_provider(provider: Running, page: str, name: str) -> None:
    """What a user does in a browser: the code is in the address; confirm it, sign in, consent."""
    tls = ssl.create_default_context(cafile=str(provider.ca_file))
    with httpx.Client(verify=tls, follow_redirects=True) as browser:
        answer = browser.get(page)
        for _ in range(8):
            form = Forms(answer.text)
            if form.action is None:
                break
            filled = {**form.fields, **{key: name for key in ("login", "password") if key in form.fields}}
            answer = browser.post(urljoin(str(answer.url), form.action), data=filled)
        assert "Sign-in Success" in answer.text, answer.text[:2000]


@pytest.fixture
def open_id(provider: Running, world) -> OpenIdProvider:
    return OpenIdProvider(provider.issuer, "fedveil", "", provider.ca_file, world.clock)


@pytest.fixture
def anna(world, open_id):
    """A researcher with no password at all, and the door with the provider."""
    hub = replace(world.hub, device_sign_ins=DeviceSignIns(open_id, world.clock))
    world.hub, world.app = hub, make_app(hub)
    north = hub.organizations.first(hub.organizations.table.c.name == "North Hospital")
    new = {"name": "anna", "organization_id": north.id, "roles": ["researcher"], "subject": "anna@north"}
    made = world.signed_in("north-admin").post("/api/v1/users", json=new)
    assert made.status_code == 201, made.text
    assert (made.json()["has_password"], made.json()["has_subject"]) == (False, True)
    return made.json()


def begun(world):
    answer = world.anonymous().post("/api/v1/sessions/device")
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {
        "sign_in_id",
        "user_code",
        "verification_uri",
        "verification_uri_complete",
        "expires_at",
        "interval",
    }
    return answer.json()


def asked(world, sign_in):
    world.clock.now += sign_in["interval"]
    return world.anonymous().post(f"/api/v1/sessions/device/{sign_in['sign_in_id']}")


def test_a_user_without_a_password_signs_in_at_the_provider_and_gets_a_session(world, provider, anna):
    sign_in = begun(world)
    waiting = asked(world, sign_in)
    assert waiting.status_code == 202
    assert waiting.json()["user_code"] == sign_in["user_code"]
    at_the_provider(provider, sign_in["verification_uri_complete"], "anna@north")
    answer = asked(world, sign_in)
    assert answer.status_code == 201, answer.text
    me = world.anonymous().get("/api/v1/me", headers={"Authorization": f"Bearer {answer.json()['token']}"}).json()
    assert (me["name"], me["user_id"], me["roles"]) == ("anna", anna["user_id"], ["researcher"])
    assert answer.headers["cache-control"] == "no-store"


def test_a_sign_in_is_finished_once(world, provider, anna, problem_of):
    sign_in = begun(world)
    at_the_provider(provider, sign_in["verification_uri_complete"], "anna@north")
    assert asked(world, sign_in).status_code == 201
    problem_of(asked(world, sign_in), 404)


@pytest.mark.parametrize("how", ["a stranger", "disabled"])
def test_whom_the_provider_knows_and_the_hub_does_not_gets_no_session(world, provider, anna, problem_of, how):
    if how == "disabled":
        admin = world.signed_in("north-admin")
        tag = {"If-Match": f'"{anna["version"]}"'}
        assert admin.patch(f"/api/v1/users/{anna['user_id']}", json={"is_disabled": True}, headers=tag).is_success
    sign_in = begun(world)
    at_the_provider(provider, sign_in["verification_uri_complete"], "anna@north" if how == "disabled" else "mallory")
    problem_of(asked(world, sign_in), 401)


def test_the_provider_is_not_asked_more_often_than_it_allows(world, provider, anna, open_id, monkeypatch):
    questions = []
    ask = OpenIdProvider.ask
    monkeypatch.setattr(OpenIdProvider, "ask", lambda self, code: (questions.append(1), ask(self, code))[1])
    sign_in = begun(world)
    for _ in range(5):
        assert world.anonymous().post(f"/api/v1/sessions/device/{sign_in['sign_in_id']}").status_code == 202
    assert questions == []
    assert asked(world, sign_in).status_code == 202
    assert questions == [1]


def test_a_code_that_is_too_old_and_a_handle_that_was_guessed_are_the_same_to_the_caller(world, anna, problem_of):
    sign_in = begun(world)
    world.clock.now = sign_in["expires_at"]
    late = problem_of(asked(world, sign_in), 404)
    guessed = problem_of(asked(world, {**sign_in, "sign_in_id": "guess"}), 404)
    assert late["detail"] == guessed["detail"]


def test_nobody_sets_the_subject_of_a_user_who_exists(world, anna, problem_of):
    admin, tag = world.signed_in("north-admin"), {"If-Match": '"1"'}
    problem_of(admin.patch(f"/api/v1/users/{anna['user_id']}", json={"subject": "mallory"}, headers=tag), 422)
    new = {"name": "mallory", "organization_id": anna["organization_id"], "subject": "anna@north"}
    problem_of(admin.post("/api/v1/users", json=new), 409)


def test_without_a_provider_there_is_no_such_sign_in(world, problem_of):
    problem_of(world.anonymous().post("/api/v1/sessions/device"), 404)
    north = world.hub.organizations.first(world.hub.organizations.table.c.name == "North Hospital")
    new = {"name": "anna", "organization_id": north.id, "subject": "anna@north"}
    problem_of(world.signed_in("north-admin").post("/api/v1/users", json=new), 422)


def test_sign_ins_under_way_are_bounded_and_the_old_ones_make_room(world):
    codes = iter(range(10_000))
    provider = SimpleNamespace(begin=lambda: DeviceCode(str(next(codes)), "", "", "", world.clock() + 600, 5))
    sign_ins = DeviceSignIns(provider, world.clock)
    for _ in range(MOST):
        sign_ins.begin()
    with pytest.raises(TooManyCallsError):
        sign_ins.begin()
    world.clock.now += 600
    sign_ins.begin()


# an ID token that is not good


CLIENT = httpx.Client
KEY = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
CLAIMS = {"iss": "https://provider", "aud": "fedveil", "sub": "anna@north", "iat": 1_800_000_000, "exp": 1_800_000_600}


def answering(token_of, monkeypatch, **more):
    """A provider that answers with a token of ours; its transport alone is replaced."""
    answers = {
        "/.well-known/openid-configuration": {
            "issuer": "https://provider",
            "jwks_uri": "https://provider/keys",
            "token_endpoint": "https://provider/token",
        },
        "/keys": {"keys": [{**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key())), "kid": "1"}]},
        "/token": {"id_token": token_of()},
        **more,
    }
    made = OpenIdProvider("https://provider", "fedveil", "", None, lambda: 1_800_000_000.0)

    def handled(request):
        answer = answers[request.url.path]
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    monkeypatch.setattr(httpx, "Client", lambda **_: CLIENT(transport=httpx.MockTransport(handled)))
    return made


CODE = DeviceCode("secret", "CODE", "https://provider/device", "", 1_800_000_600.0, 5.0)


def signed(key=KEY, algorithm="RS256", **claims):
    now = int(time.time())
    said = {**CLAIMS, "iat": now, "exp": now + 600, **claims}
    return jwt.encode({k: v for k, v in said.items() if v is not None}, key, algorithm, headers={"kid": "1"})


def test_a_good_token_says_who_it_is(monkeypatch):
    assert answering(signed, monkeypatch).ask(CODE) == "anna@north"


@pytest.mark.parametrize(
    "token_of",
    [
        lambda: signed(OTHER),
        lambda: signed(aud="another"),
        lambda: signed(iss="https://mallory"),
        lambda: signed(exp=1_000_000_000),
        lambda: signed(iat=4_000_000_000, exp=4_000_000_600),
        lambda: signed(sub=None),
        lambda: signed(sub=""),
        lambda: jwt.encode(CLAIMS, None, "none", headers={"kid": "1"}),
        lambda: jwt.encode(CLAIMS, "k" * 64, "HS256", headers={"kid": "1"}),
        lambda: signed()[:-4] + "AAAA",
        lambda: "no token",
        lambda: None,
    ],
    ids=["key", "audience", "issuer", "old", "early", "nobody", "empty", "none", "secret", "cut", "text", "nothing"],
)
def test_a_token_that_is_not_good_is_not_believed(token_of, monkeypatch):
    with pytest.raises(IdentityError, match="not good"):
        answering(token_of, monkeypatch).ask(CODE)


@pytest.mark.parametrize(("error", "kind"), [("access_denied", IdentityError), ("expired_token", IdentityError)])
def test_who_says_no_and_who_is_late_begin_again(error, kind, monkeypatch):
    said = httpx.Response(400, json={"error": error})
    with pytest.raises(kind, match="begin again"):
        answering(signed, monkeypatch, **{"/token": said}).ask(CODE)


def test_slow_down_means_five_seconds_more_between_questions(monkeypatch):
    said = httpx.Response(400, json={"error": "slow_down"})
    found = answering(signed, monkeypatch, **{"/token": said}).ask(CODE)
    assert isinstance(found, NotYet)
    assert found.after(5.0) == 10.0


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, text="oops"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[1]),
        httpx.Response(400, json={"error": "invalid_client"}),
        httpx.Response(200, content=b" " * (2 << 20)),
        httpx.Response(302, headers={"Location": "https://mallory/"}),
    ],
    ids=["500", "page", "list", "client", "long", "redirect"],
)
def test_a_provider_that_answers_oddly_is_unreachable_and_nobody_is_signed_in(answer, monkeypatch):
    with pytest.raises(UnreachableError, match="https://provider"):
        answering(signed, monkeypatch, **{"/token": answer}).ask(CODE)


def test_discovery_that_names_another_issuer_or_an_endpoint_in_clear_is_refused(monkeypatch):
    about = "/.well-known/openid-configuration"
    with pytest.raises(UnreachableError, match="another issuer"):
        answering(signed, monkeypatch, **{about: {"issuer": "https://mallory"}}).ask(CODE)
    clear = {"issuer": "https://provider", "token_endpoint": "http" + "://provider/token"}
    with pytest.raises(UnreachableError, match="not https"):
        answering(signed, monkeypatch, **{about: clear}).ask(CODE)


def test_a_provider_that_is_down_is_told_and_a_wrong_certificate_too(provider, tmp_path):
    other = make_root("other", time.time())
    (tmp_path / "other.pem").write_bytes(certificate_pem(other.certificate))
    with pytest.raises(UnreachableError, match="does not answer"):
        OpenIdProvider(provider.issuer, "fedveil", "", tmp_path / "other.pem", time.time).begin()
    with pytest.raises(ConfigError, match="https"):
        OpenIdProvider("http" + "://provider", "fedveil", "", None, time.time)
    with pytest.raises(ConfigError, match="ca_file"):
        OpenIdProvider("https://provider", "fedveil", "", tmp_path / "none.pem", time.time)
