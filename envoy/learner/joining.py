"""A learner's site is registered over the REST API on its first use; from then on its folder is an envoy's."""

from __future__ import annotations

import time

from ...utils.addresses import Address
from ...utils.errors import ConfigError, IdentityError
from ...utils.rest_calls import RestCalls, address_of, proxy_to
from ..config import load_config, write_default_config
from ..enrolment import CREDENTIALS_FILE, Credentials, load_credentials
from ..registration import RestAccess, register, save_access
from .place import Place


def calls_of(place: Place, access: RestAccess) -> RestCalls:
    """How the director is called: through the site's proxy, if it has one.

    Raises:
        ConfigError, IdentityError: the settings, or the root, are not right.
    """
    address: Address = address_of(access.url)
    way = load_config(place.folder).way_to(str(address), place.folder)
    return RestCalls(access.url, access.api_key, place.root, proxy_to(access.url, way))


def joined(place: Place, access: RestAccess, calls: RestCalls) -> Credentials:
    """What the site holds; it is registered first where it was not yet. The key that was given is the one in use.

    Raises:
        ConfigError: the key acts for another organization than the one that was named.
        IdentityError: the answer is not for this name, these keys, or the federation whose root was given; or the
            folder's credentials are not right.
        FederationError: what the director refuses.
    """
    now = time.time()
    if (place.folder / CREDENTIALS_FILE).exists():
        held = load_credentials(place.folder, now)
        if held.root != place.root or held.peer.name != place.name:
            raise IdentityError(
                f"{place.folder} holds the credentials of {held.peer}: the learner is {place.name}'s, of the federation"
                " whose root certificate was given; take another folder"
            )
        save_access(place.folder, access)
        return held
    _check_organization(place, calls)
    way = load_config(place.folder).way_to(str(address_of(access.url)), place.folder)
    credentials = register(place.folder, access, place.root, place.name, now, way)
    write_default_config(place.folder)
    return credentials


def _check_organization(place: Place, calls: RestCalls) -> None:
    me = calls.json("GET", "/api/v1/me")
    own = me.get("organization_id") if isinstance(me, dict) else None
    if own != place.organization_id:
        raise ConfigError(
            f"the API key acts for organization {str(own)[:80]}, and the learner for {place.organization_id}; a site"
            " belongs to the organization of its key"
        )
