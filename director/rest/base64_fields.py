"""Bytes in JSON: standard base64 with its padding, and nothing else."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import Field

from ...utils.errors import MalformedMessageError

Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", json_schema_extra={"contentEncoding": "base64"})]


def bytes_of(text: str, what: str) -> bytes:
    """What a field holds.

    Raises:
        MalformedMessageError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessageError(f"{what}: expected standard base64") from error
