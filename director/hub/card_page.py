"""A model card for people, in Markdown. What others wrote is quoted, and cannot pass for the card's own words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...utils.identity import when
from ...utils.model_card import SignedCard
from ...utils.privacy.values import rounded_up

_MARKED = re.compile(r"([\\`*_{}\[\]<>()#+!|~&-])")


def as_markdown(signed: SignedCard, withdrawn_since: Sequence[str], fingerprint: str) -> str:
    """The card, and what became known since.

    Args:
        signed: the card.
        withdrawn_since: datasets that were withdrawn after it was signed, in words.
        fingerprint: of the key that signed it.
    """
    card = signed.card
    lines = [f"# {_plain(card['name'])} {_plain(card['version'])}", ""]
    if withdrawn_since or card["withdrawn_datasets"]:
        lines += ["**Data that this model was trained on were withdrawn.** See the end.", ""]
    lines += _facts(card)
    for title, key in (("Intended use", "intended_use"), ("Limitations", "limitations")):
        lines += [f"## {title}", "", "As declared by whoever registered the model:", "", *_quoted(card[key]), ""]
    lines += _origin(card["lineage"])
    lines += _measured(card)
    lines += _protected(card)
    lines += ["## Withdrawn data", ""]
    lines += [f"- {_plain(one)}, before the card was signed" for one in card["withdrawn_datasets"]]
    lines += [f"- {_plain(one)}, after the card was signed" for one in withdrawn_since]
    if lines[-1] == "":
        lines.append("None that was registered, as of this answer.")
    lines += [
        "",
        "## Signature",
        "",
        f"The key of the director's audit log with fingerprint `{fingerprint}` signed this card's text (SHA-256",
        f"`{signed.digest}`), which names the file. Check both: `fedveil model verify FILE --card CARD.json`",
    ]
    return "\n".join(lines) + "\n"


def _facts(card: Mapping[str, Any]) -> list[str]:
    permit, owner, published = card["permit"], card["intellectual_property"], card["published"]
    together = ", ".join(one["name"] for one in card["collaboration"]["organizations"])
    lasts = f"{when(permit['starts_at'])} to {when(permit['ends_at'])}"
    rows = [
        ("Federation", card["federation"]),
        ("File", f"safetensors, {card['file']['bytes']} bytes, SHA-256 {card['file']['sha256']}"),
        ("Purpose", card["purpose"] or "not in the records"),
        ("Legal basis", card["legal_basis"] or "none named in the proposal"),
        ("Collaboration", f"{card['collaboration']['name']}: {together}"),
        ("Permit", f"{permit['number']} of {permit['authority']}, {lasts}: {permit['purpose']}"),
        ("Agreement on data", f"{card['processing']['kind']}, version {card['processing']['version']}"),
        ("Owner of results", owner["owner"] if owner else "no consortium agreement in force says"),
        ("Registered by", _by(card["registered"])),
        ("Published by", _by(published) if published else "not published"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {_plain(said)} |" for name, said in rows), ""]


def _by(said: Mapping[str, Any]) -> str:
    return f"{said['user']} of {said['organization']['name']}, {when(said['at'])}"


def _origin(lineage: Mapping[str, Any]) -> list[str]:
    data = f"dataset {_plain(lineage['data'])} as the sites have it" if lineage["data"] else "no dataset"
    lines = [
        "## Where it comes from",
        "",
        f"Trained on {data}, by plan `{lineage['plan']}`,",
        f"in {len(lineage['rounds'])} rounds of {_plain(lineage['run'])}. It began with `{lineage['began_with']}`.",
        "",
    ]
    parents = [f"{_plain(one['name'])} {_plain(one['semver'])}" for one in lineage["parents"]]
    if parents:
        lines += [f"That is {', '.join(parents)}, and so it comes from the data of these too.", ""]
    lines += ["| site | registered dataset | rounds |", "|---|---|---|"]
    for one in lineage["datasets"]:
        known = f"`{one['dataset']}`" if one["dataset"] else "none is registered"
        lines.append(f"| {_plain(one['site'])} | {known} | {', '.join(map(str, one['rounds']))} |")
    return [*lines, ""]


def _measured(card: Mapping[str, Any]) -> list[str]:
    lines = ["## Metrics of the federation", ""]
    rows = [
        f"| {one['round']} ({one['kind']}, {one['sites']} sites) | {_plain(name)} | {value:.6g} |"
        for one in card["metrics"]
        for name, value in sorted(one["values"].items())
    ]
    if not rows:
        return [*lines, "None in the records.", ""]
    head = ["On the sites' own data, over all sites together.", "", "| round | metric | value |", "|---|---|---|"]
    return [*lines, *head, *rows, ""]


def _protected(card: Mapping[str, Any]) -> list[str]:
    protection, privacy = card["protection"], card["privacy"]
    sums, asked = protection["secure_aggregation"], protection["asked_of_sites"]
    lines = ["## Protection and privacy", ""]
    lines.append(f"- Secure aggregation in {sums['secure']} of {sums['rounds']} rounds.")
    if asked and asked["max_norm"] is not None:
        lines.append(
            f"- The proposal asked sites to clip to {asked['max_norm']:g} and for a noise multiplier of"
            f" {asked['noise_multiplier'] or 0:g}; sites may do more."
        )
    if protection["noise_in_sums"]:
        lines.append(f"- Noise of the sites together in each sum: multiplier {protection['noise_in_sums']:g}.")
    for site, one in sorted(privacy["epsilons"].items()):
        epsilon = f"{rounded_up(one['epsilon'])} at delta {one['delta']:g}, per {_plain(one['unit'])}"
        lines.append(f"- {_plain(site)} published epsilon {epsilon}, by its own account, over all its studies.")
    if privacy["without_epsilon"]:
        lines.append(f"- No epsilon was published by {_plain(', '.join(privacy['without_epsilon']))}.")
    for site, score in sorted(privacy["leakage_scores"].items()):
        said = f"a leak test score of {score:.3f}: mean SSIM gain of its worst attack over chance"
        lines.append(f"- {_plain(site)} published {said}.")
    if privacy["without_leakage_score"]:
        lines.append(f"- No leak test score was published by {_plain(', '.join(privacy['without_leakage_score']))}.")
    return [*lines, ""]


def _plain(text: object) -> str:
    """One line without any mark-up."""
    return _MARKED.sub(r"\\\1", " ".join(str(text).split()))


def _quoted(text: str) -> list[str]:
    return [f"> {_plain(line)}".rstrip() for line in text.splitlines()] or ["> "]
