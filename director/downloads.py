"""What is sent down: an artifact from an offset on, in parts."""

from __future__ import annotations

from collections.abc import Callable, Generator

from ..utils.artifacts import ArtifactStore
from ..utils.errors import ProtocolError
from ..utils.messages import PART_BYTES, Data, DownloadRequest, Opening, Part


def download(
    artifacts: ArtifactStore, request: DownloadRequest, count: Callable[[int], None] = lambda _: None
) -> Generator[Part, None, None]:
    """An artifact from an offset on: an opening, then data.

    Raises:
        UnknownArtifactError: it is not here.
        ProtocolError: the offset lies behind its end.
    """
    length = artifacts.size(request.digest)
    if request.offset > length:
        raise ProtocolError(f"a download from {request.offset} on of {length} bytes")
    yield Opening(length, request.offset, digest=request.digest)
    with artifacts.open(request.digest) as file:
        file.seek(request.offset)
        while content := file.read(PART_BYTES):
            count(len(content))
            yield Data(content)
