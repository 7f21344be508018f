"""What all calls share: who asks (``Authorization: Bearer``), which page, which version of a thing."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from pydantic import BaseModel, Field

from ...utils.errors import ConfigError, IdentityError
from ..hub.hub import Hub
from ..hub.sign_in import Caller
from .numbers import Numbers

MAX_PAGE = 200
BEARER = HTTPBearer(auto_error=False, description="A session's token (POST /api/v1/sessions) or an API key.")
_TAG = re.compile(r'(?:W/)?"(\d{1,10})"')
Item = TypeVar("Item", bound=BaseModel)


def hub_of(request: Request) -> Hub:
    """The hub that this app is a door of."""
    hub: Hub = request.app.state.hub
    return hub


def caller_of(
    hub: Annotated[Hub, Depends(hub_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> Caller:
    """Who asks.

    Raises:
        IdentityError: nobody said so, or nobody is known by it.
    """
    if credentials is None:
        raise IdentityError("say who asks: Authorization: Bearer, and a session's token or an API key")
    return hub.sign_in.caller(credentials.credentials, hub.now())


def token_of(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> str:
    """What was presented."""
    return "" if credentials is None else credentials.credentials


def numbers_of(request: Request) -> Numbers:
    """What this app counts."""
    numbers: Numbers = request.app.state.numbers
    return numbers


TheNumbers = Annotated[Numbers, Depends(numbers_of)]
TheToken = Annotated[str, Depends(token_of)]
TheHub = Annotated[Hub, Depends(hub_of)]
TheCaller = Annotated[Caller, Depends(caller_of)]


class Page(BaseModel, Generic[Item]):
    """Some things, and where the next ones begin."""

    items: list[Item]
    next: str | None = Field(
        None, description="Ask with `after` set to this for the next ones; none are left without it."
    )


class Where(BaseModel):
    """Which page."""

    after: str = Field("", max_length=64, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=MAX_PAGE)

    @property
    def last_id(self) -> str:
        """Of the page before."""
        try:
            return base64.urlsafe_b64decode(self.after + "=" * (-len(self.after) % 4)).decode("ascii")
        except ValueError:
            raise ConfigError("after: expected what `next` of an earlier page says") from None


ThePage = Annotated[Where, Query()]


def next_after(id_: str) -> str:
    """A cursor."""
    return base64.urlsafe_b64encode(id_.encode("ascii")).rstrip(b"=").decode("ascii")


def seen_version(
    if_match: Annotated[str | None, Header(description="The ETag of what the change is of.")] = None,
) -> int:
    """Which version a change was decided on.

    Raises:
        ConfigError: it is not said.
    """
    found = _TAG.fullmatch(if_match or "")
    if found is None:
        raise ConfigError(
            'If-Match: expected the ETag of what you read, such as "3"; without it two may undo each other'
        )
    return int(found.group(1))


TheVersion = Annotated[int, Depends(seen_version)]


def tag(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'
