"""The codec: an update as a few numbers that can be summed, masked, and decoded once.

A variational autoencoder whose decoder is linear and Gaussian, of mean 0: ``x = W z + noise``. Its evidence lower bound
has its maximum in closed form (``linear_gaussian``), and since decoding is linear *the decoded sum of codes is the sum
of the decoded codes*. Codes here are coordinates along orthonormal directions: ``encode`` is the limit of the posterior
mean for a noise of 0 (PCA), ``encode_mean`` the posterior mean itself, which shrinks.

**An encoder alone is no privacy mechanism**: whoever knows it matches codes instead of updates, and a learned basis
keeps what matters. A ``seeded`` codec learns nothing: it is a random projection and no VAE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...utils.aggregation import is_finite
from ...utils.errors import LayoutMismatchError, NonFiniteUpdateError
from ...utils.messages import TaskRef
from ...utils.tensors import Digest, Entry, Layout, Role, Vector, canonical_json, digest_of
from .blocks import Block, Dense, Matrix
from .codec_file import CODE, Basis, Contents, file_bytes, read_file

__all__ = ["Basis", "Codec", "codec_bytes", "codec_of", "read_codec", "round_seed"]


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """Codes updates of one layout. Pure; what is random of it comes from a round's seed.

    Guarantees (each has a property test), all up to float32 rounding:
        - ``decode`` is linear: the decoded sum of payloads is the sum of the decoded payloads;
        - ``|encode(x)| <= |x|``, and ``encode(decode(p)) == p``;
        - ``decode(encode(x))`` is the orthogonal projection of x, and exactly x in the entries that pass.

    With a fixed basis the error ``x - decode(encode(x))`` is orthogonal to all that is ever sent: error feedback then
    sends nothing of it. It needs fresh directions (``seeded``, or a share of a learned codec's code).
    """

    layout: Layout  # of the updates
    basis: Basis
    blocks: tuple[Block, ...]
    noise_variance: float  # the decoder's sigma squared, in squared units of the parameters
    digest: Digest  # SHA-256 of its file

    @property
    def size(self) -> int:
        """Numbers of a payload: the code, then the entries that pass."""
        return self.code_size + sum(entry.size for entry in self.passed)

    @property
    def code_size(self) -> int:
        """Numbers of the code alone."""
        return sum(block.size for block in self.blocks)

    @property
    def passed(self) -> tuple[Entry, ...]:
        """Entries that are sent as they are: buffers, and small parameters that no block codes."""
        coded = {name for block in self.blocks for name in block.names}
        return tuple(entry for entry in self.layout.entries if entry.name not in coded)

    @property
    def payload_layout(self) -> Layout:
        """Of what ``encode`` gives."""
        passed = [(entry.name, entry.shape, entry.role) for entry in self.passed]
        return Layout.of([(CODE, (self.code_size,), Role.PARAMETER), *passed])

    @property
    def num_parameters(self) -> int:
        """Numbers that its file holds."""
        return sum(block.num_parameters for block in self.blocks)

    @property
    def compression(self) -> float:
        """How many times smaller a payload is than the update."""
        return self.layout.size / self.size

    @property
    def is_drawn_each_round(self) -> bool:
        """Whether ``for_round`` has something to draw, so that error feedback has something to work on."""
        return any(isinstance(block, Dense) and block.fresh for block in self.blocks)

    def for_round(self, seed: bytes) -> Codec:
        """The codec of one round, from ``round_seed``: its fresh directions are drawn; itself where it has none."""
        blocks = tuple(block.for_round(seed + nth.to_bytes(4, "big")) for nth, block in enumerate(self.blocks))
        return self if blocks == self.blocks else replace(self, blocks=blocks)

    def encode(self, vector: Vector) -> Vector:
        """The payload, (size,), of an update, (layout.size,).

        Raises:
            LayoutMismatchError: the update has another length.
            NonFiniteUpdateError: it holds NaN or infinity.
        """
        if vector.shape != (self.layout.size,) or vector.dtype != np.float32:
            raise LayoutMismatchError(
                f"an update of shape {vector.shape} {vector.dtype}, this codec is for ({self.layout.size},) float32"
            )
        if not is_finite(vector):
            raise NonFiniteUpdateError("the update holds NaN or infinity; it is not encoded")
        payload = np.empty(self.size, np.float32)
        for block, code in self._codes(payload):
            block.encode(vector, code)
        for entry, held in self._passed_of(payload):
            held[:] = vector[entry.offset : entry.offset + entry.size]
        return payload

    def encode_rows(self, rows: Matrix) -> Matrix:
        """The payloads of many updates, a row each: ``encode`` of every row, up to rounding.

        Args:
            rows: (count, layout.size); there may be none.

        Raises:
            LayoutMismatchError, NonFiniteUpdateError: as ``encode``.
        """
        if rows.ndim != 2 or rows.shape[1] != self.layout.size or rows.dtype != np.float32:
            raise LayoutMismatchError(
                f"updates of shape {rows.shape} {rows.dtype}, this codec is for rows of {self.layout.size} float32"
            )
        if not is_finite(rows.reshape(-1)):
            raise NonFiniteUpdateError("an update holds NaN or infinity; none of them is encoded")
        payloads, start = np.empty((len(rows), self.size), np.float32), 0
        for block in self.blocks:
            codes = np.empty((len(rows), block.size), np.float32)
            block.encode_rows(rows, codes)
            payloads[:, start : start + block.size] = codes
            start += block.size
        for entry in self.passed:
            payloads[:, start : start + entry.size] = rows[:, entry.offset : entry.offset + entry.size]
            start += entry.size
        return payloads

    def encode_mean(self, vector: Vector) -> Vector:
        """The posterior mean in the coordinates of ``encode``: ``decode`` of it is W E[z|x]. It is shrunk."""
        payload = self.encode(vector)
        payload[: self.code_size] *= self._shrinkage()
        return payload

    def sample(self, vector: Vector, rng: np.random.Generator) -> Vector:
        """A draw of the posterior in the coordinates of ``encode``; passed entries get no noise.

        The noise is the decoder's, sigma^2 (1 - sigma^2 / variance) a direction: calibrated to no sensitivity, so no
        differential privacy. Noise that is belongs to the chain that comes after.
        """
        payload, shrinkage = self.encode_mean(vector), self._shrinkage()
        noise = rng.standard_normal(self.code_size, np.float32) * np.sqrt(np.float32(self.noise_variance) * shrinkage)
        payload[: self.code_size] += noise
        return payload

    def decode(self, payload: Vector, out: Vector | None = None) -> Vector:
        """What a payload, or a mean of payloads, stands for: an update, (layout.size,).

        Args:
            payload: (size,) float32.
            out: where to write it; what it held is lost.

        Raises:
            LayoutMismatchError: the payload has another length.
        """
        if payload.shape != (self.size,) or payload.dtype != np.float32:
            raise LayoutMismatchError(
                f"a payload of shape {payload.shape} {payload.dtype}, this codec gives ({self.size},) float32"
            )
        update = np.empty(self.layout.size, np.float32) if out is None else out
        if update.shape != (self.layout.size,) or update.dtype != np.float32 or not update.flags.c_contiguous:
            raise ValueError(
                f"out has shape {update.shape} {update.dtype}, expected ({self.layout.size},) float32, dense"
            )
        for block, code in self._codes(payload):
            block.decode(code, update)
        for entry, held in self._passed_of(payload):
            update[entry.offset : entry.offset + entry.size] = held
        return update

    def _shrinkage(self) -> Vector:
        return np.concatenate([block.shrinkage(self.noise_variance) for block in self.blocks])

    def _codes(self, payload: Vector) -> Iterator[tuple[Block, Vector]]:
        start = 0
        for block in self.blocks:
            yield block, payload[start : start + block.size]
            start += block.size

    def _passed_of(self, payload: Vector) -> Iterator[tuple[Entry, Vector]]:
        start = self.code_size
        for entry in self.passed:
            yield entry, payload[start : start + entry.size]
            start += entry.size


def codec_of(layout: Layout, basis: Basis, blocks: tuple[Block, ...], noise_variance: float = 0.0) -> Codec:
    """A codec of blocks: what its file would give back.

    Raises:
        MalformedMessageError: its parts are none of a codec; says what is wrong.
    """
    return read_codec(file_bytes(Contents(layout, basis, blocks, noise_variance)))


def codec_bytes(codec: Codec) -> bytes:
    """The codec's file: safetensors, the same bytes for the same codec, and the same for every round of it."""
    return file_bytes(Contents(codec.layout, codec.basis, codec.blocks, codec.noise_variance))


def read_codec(raw: bytes | memoryview) -> Codec:
    """The codec of a file. Its layout is the caller's to compare with the model's.

    Raises:
        MalformedMessageError: not the file of a codec, not orthonormal, not finite; says what is wrong.
    """
    contents = read_file(raw)
    return Codec(contents.layout, contents.basis, contents.blocks, contents.noise_variance, digest_of(raw))


def round_seed(ref: TaskRef, model: Digest, codec: Digest) -> bytes:
    """32 bytes from what a round is; the same for each attempt of it.

    Nobody can aim its directions but who chooses among models or names of runs, and tries many.
    """
    said = ["fedveil/codec-seed", ref.run, ref.round, ref.plan, model, codec]
    return hashlib.sha256(canonical_json(said)).digest()
