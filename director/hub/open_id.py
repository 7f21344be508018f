"""Sign-in through the federation's OpenID provider by its device flow: no password comes near the director.

The director asks the provider for a code, the user types it into the provider's own page, on any device, and the
director fetches what came of it: an ID token, whose signature, issuer, audience and time it checks. The device code and
the tokens stay between director and provider; the user's side holds a handle of ours. Sources: RFC 8628 (device flow),
OpenID Connect Core 1.0, 3.1.3.7 (what is checked), OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt

from ...utils.errors import ConfigError, IdentityError, UnreachableError

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DISCOVERY = "/.well-known/openid-configuration"
_ALGORITHMS = ["RS256", "PS256", "ES256", "ES384", "EdDSA"]  # never "none", never a shared secret
_TIMEOUT_SECONDS = 10.0
_MOST_BYTES = 1 << 20
_SKEW_SECONDS = 60
_SLOWER_SECONDS = 5.0  # RFC 8628, 3.5: slow_down adds as much


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What the provider gave for one sign-in."""

    secret: str = field(repr=False)  # the device code
    user_code: str
    verification_uri: str
    verification_uri_complete: str  # "" where the provider has none
    expires_at: float  # seconds since 1970
    interval: float  # seconds between two questions


@dataclass(frozen=True, slots=True)
class NotYet:
    """The user has not finished."""

    is_too_often: bool = False

    def after(self, interval: float) -> float:
        """Seconds between two questions from now on."""
        return interval + _SLOWER_SECONDS if self.is_too_often else interval


class OpenIdProvider:
    """One provider; safe to share between threads. Nothing is asked of it before the first sign-in.

    Args:
        issuer: its URL, https.
        client_id: under which it knows this federation.
        client_secret: "" for a public client.
        ca_file: PEM of whom its certificate is from; None: the system's.
        now: seconds since 1970.

    Raises:
        ConfigError: the issuer is no https URL, or the file cannot be read.
    """

    def __init__(
        self, issuer: str, client_id: str, client_secret: str, ca_file: Path | None, now: Callable[[], float]
    ) -> None:
        if not issuer.startswith("https://"):
            raise ConfigError(f"open_id.issuer is {issuer!r}, expected a URL that begins with https://")
        self.issuer, self._client_id, self._client_secret, self._now = issuer, client_id, client_secret, now
        try:
            self._tls = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"open_id.ca_file {ca_file}: cannot be read as PEM certificates") from error
        self._lock = threading.Lock()
        self._known: Mapping[str, Any] | None = None

    def begin(self) -> DeviceCode:
        """Ask for a code.

        Raises:
            UnreachableError: the provider does not answer, or not as it should.
        """
        said = self._post("device_authorization_endpoint", {"client_id": self._client_id, "scope": "openid"})
        try:
            return DeviceCode(
                secret=_text(said, "device_code"),
                user_code=_text(said, "user_code"),
                verification_uri=_text(said, "verification_uri"),
                verification_uri_complete=str(said.get("verification_uri_complete", "")),
                expires_at=self._now() + float(said["expires_in"]),
                interval=max(1.0, float(said.get("interval", 5))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._odd("a device authorization without what RFC 8628 says") from error

    def ask(self, code: DeviceCode) -> str | NotYet:
        """What came of it.

        Returns:
            the subject: who it is at this provider.

        Raises:
            IdentityError: the user said no, the code is too old, or the ID token is not good.
            UnreachableError: the provider does not answer, or not as it should.
        """
        form = {"grant_type": GRANT, "device_code": code.secret, "client_id": self._client_id}
        said = self._post("token_endpoint", form, is_error_an_answer=True)
        match said.get("error"):
            case None:
                return self._subject(said.get("id_token"))
            case "authorization_pending" | "slow_down" as error:
                return NotYet(error == "slow_down")
            case "access_denied" | "expired_token" as error:
                why = "you said no at the provider" if error == "access_denied" else "the code is too old"
                raise IdentityError(f"not signed in: {why}; begin again")
            case _:
                raise self._odd("an error that no user can do anything about")

    def _subject(self, id_token: object) -> str:
        try:
            keys = jwt.PyJWKSet.from_dict(dict(self._get(_text(self._about(), "jwks_uri"))))
            kid = jwt.get_unverified_header(str(id_token)).get("kid")
            key = next(one for one in keys.keys if one.key_id == kid or kid is None)
            claims = jwt.decode(
                str(id_token),
                key,
                algorithms=_ALGORITHMS,
                audience=self._client_id,
                issuer=self.issuer,
                leeway=_SKEW_SECONDS,
                options={"require": ["exp", "iat", "sub"]},
            )
            return _text(claims, "sub")
        except (jwt.PyJWTError, StopIteration, KeyError, TypeError) as error:
            raise IdentityError(
                "the provider's ID token is not good: its signature, issuer, audience or time"
            ) from error

    def _about(self) -> Mapping[str, Any]:
        with self._lock:
            known = self._known
        if known is None:
            known = self._get(self.issuer.rstrip("/") + _DISCOVERY)
            if known.get("issuer") != self.issuer:
                raise self._odd("discovery that names another issuer")
            with self._lock:
                self._known = known
        return known

    def _get(self, url: str) -> Mapping[str, Any]:
        return self._ask("GET", url, None, is_error_an_answer=False)

    def _post(self, endpoint: str, form: dict[str, str], *, is_error_an_answer: bool = False) -> Mapping[str, Any]:
        url = self._about().get(endpoint)
        if not isinstance(url, str):
            raise self._odd(f"no {endpoint} in its discovery: has it the device flow?")
        return self._ask("POST", url, form, is_error_an_answer=is_error_an_answer)

    def _ask(
        self, method: str, url: str, form: dict[str, str] | None, *, is_error_an_answer: bool
    ) -> Mapping[str, Any]:
        if not url.startswith("https://"):
            raise self._odd("an endpoint that is not https")
        auth = (self._client_id, self._client_secret) if self._client_secret and form is not None else None
        try:
            with (
                httpx.Client(verify=self._tls, timeout=_TIMEOUT_SECONDS, trust_env=True) as client,
                client.stream(method, url, data=form, auth=auth) as answer,
            ):
                raw = b""
                for piece in answer.iter_bytes():
                    raw += piece
                    if len(raw) > _MOST_BYTES:
                        raise self._odd("an answer of more than a mebibyte")
                status = answer.status_code
        except httpx.HTTPError as error:
            raise UnreachableError(f"the OpenID provider {self.issuer} does not answer; try again later") from error
        try:
            said = httpx.Response(200, content=raw).json()
        except ValueError as error:
            raise self._odd(f"status {status} and no JSON") from error
        if not isinstance(said, dict) or not (status == 200 or (is_error_an_answer and "error" in said)):
            raise self._odd(f"status {status}")
        return said

    def _odd(self, what: str) -> UnreachableError:
        return UnreachableError(f"the OpenID provider {self.issuer} answered with {what}; tell the director's operator")


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said[name]
    if not isinstance(value, str) or not value:
        raise TypeError(name)
    return value
