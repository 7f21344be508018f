"""``/api/v1/keys``: API keys, for programs that act for a user within rules of their own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ConfigError, NotAuthorizedError, UnknownEntityError
from ..hub.api_keys import MAX_DAYS, ApiKey
from ..hub.rules import Operation, Resource, Rule, Target
from .asking import TheCaller, TheHub
from .problems import documented

router = APIRouter(prefix="/api/v1/keys", tags=["keys"], responses=documented(400, 401, 403, 413, 422, 429, 503))
_DAY_SECONDS = 86400.0
_MAX_KEYS = 50


class KeyBody(BaseModel):
    """A key without its secret."""

    key_id: str
    label: str
    rules: list[str]
    created_at: float
    expires_at: float
    revoked_at: float | None
    last_used_at: float | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyBody:
        """As it is shown."""
        return cls(
            key_id=key.id,
            label=key.label,
            rules=sorted(map(str, key.rules)),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
        )


class NewKey(BaseModel):
    """What a key is for, and for how long."""

    model_config = ConfigDict(extra="forbid")
    label: str = Field(min_length=1, max_length=100)
    rules: list[str] = Field(min_length=1, max_length=100, examples=[["view:model:collaboration"]])
    days: float = Field(gt=0, le=MAX_DAYS)


class MadeKey(KeyBody):
    """A new key, with what is told once."""

    api_key: str


class KeyList(BaseModel):
    """All keys of a user."""

    items: list[KeyBody]


@router.get("")
def list_keys(hub: TheHub, caller: TheCaller) -> KeyList:
    """The caller's own."""
    hub.admit(caller, Operation.VIEW, Resource.KEY, Target(caller.user.organization, owner=caller.user.id))
    return KeyList(items=[KeyBody.of(key) for key in hub.sign_in.keys(caller.user.id)])


@router.post("", status_code=status.HTTP_201_CREATED)
def make_key(hub: TheHub, caller: TheCaller, new: NewKey, response: Response) -> MadeKey:
    """A new key of the caller's own, who is signed in; it may do no more than the caller.

    An API key makes no other: one that leaked would live on in those that it made, after its day and though it was
    taken back.
    """
    hub.allow(caller, Operation.CREATE, Resource.KEY, Target(caller.user.organization, owner=caller.user.id))
    if caller.key is not None:
        raise NotAuthorizedError("an API key makes no other: sign in")
    rules = frozenset(map(Rule.parse, new.rules))
    if lacking := caller.actor.may_hand_on(rules):
        raise NotAuthorizedError(f"a key may do no more than its user, who lacks {', '.join(map(str, lacking[:5]))}")
    now = hub.now()
    if sum(key.is_good(now) for key in hub.sign_in.keys(caller.user.id)) >= _MAX_KEYS:
        raise ConfigError(f"{_MAX_KEYS} keys are good already: delete one")
    if not new.label.isprintable():
        raise ConfigError("label: expected one printable line")
    hub.did(caller, "key made", label=new.label, rules=sorted(map(str, rules)))()
    key, told = hub.sign_in.make_key(caller.user, new.label, rules, now, now + new.days * _DAY_SECONDS)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"/api/v1/keys/{key.id}"
    return MadeKey(**KeyBody.of(key).model_dump(), api_key=told)


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT, responses=documented(404))
def delete_key(hub: TheHub, caller: TheCaller, key_id: Annotated[str, Path(max_length=16)]) -> None:
    """Take a key back, at once and for good."""
    key = hub.sign_in.key(key_id)
    if key is None:
        raise UnknownEntityError("there is no such key")
    owner = hub.users.get(key.user)
    hub.allow(caller, Operation.DELETE, Resource.KEY, Target(owner.organization, owner=owner.id))
    hub.did(caller, "key taken back", target=key.id, user=owner.name)()
    hub.sign_in.revoke_key(key.id, hub.now())
