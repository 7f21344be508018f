"""What changed between two versions of a plan, and of what is proposed with it, line by line. Pure; nothing is run.

What a plan's author wrote is shown as it is, except for characters that a terminal would act upon or hide (escapes,
text that runs from right to left): those are spelled out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from ..utils.errors import PlanError
from ..utils.plan_bundle import INITIAL_FILE, LAYOUT_FILE, Bundle, Manifest
from ..utils.proposal import Proposal
from ..utils.tensors import Layout
from ..utils.visible import visible

MAX_TEXT_BYTES = 1 << 20  # a longer file is compared by its digest
_BINARY = (INITIAL_FILE, LAYOUT_FILE)  # the layout is told in words


def difference(old: Bundle, new: Bundle) -> Iterator[str]:
    """Everything that differs between two plans; nothing where they are the same.

    Raises:
        PlanError: a file was changed on disk.
    """
    yield from _fields(settings_of(old.manifest), settings_of(new.manifest))
    yield from layout_changes(old.layout, new.layout)
    before = {file.path: file for file in old.manifest.files}
    after = {file.path: file for file in new.manifest.files}
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        digests = tuple(None if file is None else file.sha256 for file in (was, now))
        if digests[0] == digests[1] or path == LAYOUT_FILE:
            continue
        texts = text_of(old, path) if was else [], text_of(new, path) if now else []
        if texts[0] is None or texts[1] is None:
            yield f"{path}: {_told(digests[0])} -> {_told(digests[1])} (not text; by SHA-256)"
        else:
            yield from difflib.unified_diff(texts[0], texts[1], f"before/{path}", f"after/{path}", lineterm="")


def proposal_changes(old: Proposal, new: Proposal) -> Iterator[str]:
    """What is asked for otherwise than before."""
    yield from _fields(asked_for(old), asked_for(new))


def asked_for(proposal: Proposal) -> dict[str, str]:
    """What a proposal asks of a site, in words, by what it is about."""
    asked = proposal.asked
    bound = "none" if asked.max_norm is None else f"max_norm {asked.max_norm:g}, noise {asked.noise_multiplier:g}"
    return {
        "purpose": proposal.purpose or "not named",
        "legal basis": proposal.legal_basis or "not named",
        "answers": "in secure sums alone" if proposal.is_secure else "in the clear",
        "summed by": proposal.aggregator,
        "codec": proposal.codec or "none",
        "protection asked for": bound,
        "noise in the sum": f"{proposal.sum_noise:g} times its bound, of all sites together"
        if proposal.sum_noise
        else "none",
        "rounds": f"{proposal.max_rounds} at most",
        "sites": ", ".join(proposal.sites) or "all that approve",
        "outputs": ", ".join(output.value for output in proposal.outputs),
    }


def settings_of(manifest: Manifest) -> dict[str, str]:
    """What a plan's manifest says beside its files, in words."""
    data = manifest.data
    said = {f"setting {name}": repr(value) for name, value in manifest.settings.items()}
    said |= {f"data {name}": visible(repr(value)) for name, value in data.to_document().items()}
    if manifest.recipe is not None:
        said |= {f"recipe {word}": visible(text) for word, text in manifest.recipe.lines()}
    private = manifest.privacy
    return {
        "kind": manifest.kind.value,
        "entry": visible(manifest.entry),
        "differential privacy": "none" if private is None else str(private),
        "built by fedveil": visible(manifest.software),
        **said,
    }


def layout_changes(old: Layout, new: Layout) -> Iterator[str]:
    """Tensors that came, went, or have another shape, type or role."""
    before, after = _tensors(old), _tensors(new)
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name), after.get(name)
        if was is None:
            yield f"tensor {visible(name)}: new, {now}"
        elif now is None:
            yield f"tensor {visible(name)}: no longer there, was {was}"
        elif was != now:
            yield f"tensor {visible(name)}: {was} -> {now}"
    if before == after and list(before) != list(after):
        yield "the tensors are the same, in another order"


def text_of(bundle: Bundle, path: str) -> list[str] | None:
    """The lines of a plan's file; None where it is no text, or too long to be read.

    Raises:
        PlanError: it was changed on disk.
    """
    if path in _BINARY or bundle.manifest.file(path).size > MAX_TEXT_BYTES:
        return None
    try:
        content = bundle.blob(path)
        return [visible(line) for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise PlanError(f"{path} of plan {bundle.digest[:12]}… cannot be read: {error.strerror}") from error


def _fields(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            yield f"{visible(name)}: {old.get(name, 'not there')} -> {new.get(name, 'not there')}"


def _tensors(layout: Layout) -> dict[str, str]:
    floats: Iterable[tuple[str, str]] = (
        (one.name, f"{_shape(one.shape)} float32 {one.role.value}") for one in layout.entries
    )
    exact = ((one.name, f"{_shape(one.shape)} {one.dtype}") for one in layout.exact)
    return dict([*floats, *exact])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _told(digest: str | None) -> str:
    return "not there" if digest is None else digest[:12]
