"""``envoy plan check`` and ``envoy plan leak-test``: a look at a plan before somebody lets it run here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..utils.command_line import errors_in_words
from ..utils.errors import PlanError, StorageError

if TYPE_CHECKING:
    from ..gradient_leakage.defenses.chain import Chain
    from ..utils.plan_bundle import Bundle, Manifest
    from .canaries import Canaries
    from .gate import Outcome
    from .leak_test import Attempt, LeakTest
    from .plan_scan import ScanReport
    from .policy import Measures, ProtectionPolicy

_CONSOLE = Console(soft_wrap=True)
PICTURES = "leak-tests"

plan = typer.Typer(help="Look at a plan before it runs here.", no_args_is_help=True)

BundleArgument = Annotated[str, typer.Argument(help="The plan's bundle, or the digest of one that was fetched.")]
FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]
_DEFAULT = Path("fedveil-envoy")


@plan.command("check")
def check_plan(bundle: BundleArgument, folder: FolderOption = _DEFAULT) -> None:
    """What does it import and reach for, and is its first model built to keep single images? Exit status 1 if so.

    Both are looks at text and numbers, and prove nothing: what confines a plan is the sandbox.
    """
    from ..gradient_leakage.structure import check_structure
    from .config import load_config
    from .plan_scan import scan

    with errors_in_words():
        opened = find_plan(bundle, folder)
        report = scan(opened, load_config(folder).approval.imports)
        flags = check_structure(opened.layout, opened.initial()[0])
    for line in describe_plan(opened.manifest, report):
        _CONSOLE.print(line, markup=False, highlight=False)
    for flag in flags:
        _CONSOLE.print(str(flag), markup=False, highlight=False)
    _CONSOLE.print(f"{opened.manifest.name}: {len(flags)} layers or biases look built for an attack (a heuristic).")
    raise typer.Exit(1 if flags or report.forbidden else 0)


@plan.command("leak-test")
def leak_test(
    bundle: BundleArgument,
    folder: FolderOption = _DEFAULT,
    images: Annotated[
        Path | None, typer.Option(help="Own images instead of canaries; neither score nor pictures leave this folder.")
    ] = None,
    codec: Annotated[Path | None, typer.Option(help="The codec's file, of an experiment that has one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where pictures go; leak-tests/ in the folder by default.")] = None,
) -> None:
    """Attack what the plan would send of single images, through the chain of envoy.toml. Exit status 1: gate closed."""
    from .canaries import canaries_for
    from .config import load_config
    from .gate import LOG_FILE, LeakGate, Outcome, canary_source
    from .leak_test import measure
    from .plan_scan import require_allowed, scan
    from .policy import OPEN_POLICY
    from .protection import Open
    from .sandbox.sandbox import Sandbox

    with errors_in_words():
        opened, config = find_plan(bundle, folder), load_config(folder)
        policy = config.protection or OPEN_POLICY
        require_allowed(scan(opened, config.approval.imports), opened.manifest.name)
        chain = chain_at(policy, codec)
        used = canaries_for(opened.manifest.data, images or canary_source(policy, folder))
        kept = _private(out or folder / PICTURES / f"{opened.digest[:12]}{'-own' if images else ''}")
        gate = LeakGate(folder, policy, Sandbox(config.sandbox, folder))
        _CONSOLE.print(f"{opened.manifest.name}, {chain.label}: at most {policy.audit_cpu_seconds:g} CPU-s ...")
        test = measure(
            opened,
            chain,
            used,
            cpu_seconds=policy.audit_cpu_seconds,
            rng=gate.noise,
            log=folder / "state" / LOG_FILE,
            sandbox=gate.sandbox,
            keep=kept / "pixels",
        )
        if images is None:
            gate.keep(opened, chain, used, test)
        files = draw(test, used, kept)
        shutil.rmtree(kept / "pixels", ignore_errors=True)
        outcome = Outcome.of(test)
        if images is None and chain.encoder is not None:
            _CONSOLE.print(f"without the encoder, {chain.without_encoder.label}: as long again ...")
            outcome = gate.outcome(opened, chain)
    _CONSOLE.print(table_of(test))
    _CONSOLE.print(f"pictures: {', '.join(map(str, files)) or 'none'}", markup=False)
    bound = policy.max_leakage
    verdict = outcome.verdict(1.0 if bound is None else bound)
    for line in words_of(outcome, test, bound, is_open=isinstance(verdict, Open), is_own=images is not None):
        _CONSOLE.print(line, markup=False)
    raise typer.Exit(0 if isinstance(verdict, Open) else 1)


def describe_plan(manifest: Manifest, report: ScanReport) -> Iterable[str]:
    """What a plan asks for and does, as far as its text says."""
    data, kind = manifest.data, "no code" if manifest.is_declarative else "code"
    yield f"{manifest.name}: {manifest.kind.value}, {kind}"
    yield f"data: {data.name}, {data.kind.value} {data.shape}{f', modality {data.modality}' if data.modality else ''}"
    if data.columns:
        yield f"columns: {', '.join(data.columns)}"
    if manifest.recipe is not None:
        yield from (f"{word}: {text}" for word, text in manifest.recipe.lines())
    else:
        yield from report.lines()


def find_plan(bundle: str, folder: Path) -> Bundle:
    """A bundle by its folder, or by the beginning of its digest, or its proposal's, among those that were fetched.

    Raises:
        PlanError: there is none, or several begin so.
    """
    from ..utils.plan_bundle import open_bundle
    from .approval_store import APPROVALS_FILE
    from .decisions import plan_proposed

    if Path(bundle).is_dir():
        return open_bundle(Path(bundle))
    fetched = (
        sorted(path for path in (folder / "plans").glob(f"{bundle}*") if path.is_dir()) if bundle.isalnum() else []
    )
    if not fetched and (folder / APPROVALS_FILE).exists():
        fetched = [folder / "plans" / plan_proposed(folder, bundle)]
    if len(fetched) != 1:
        raise PlanError(f"no plan {bundle}: expected the folder of a bundle, or a digest in {folder / 'plans'}")
    return open_bundle(fetched[0])


def chain_at(policy: ProtectionPolicy, codec: Path | None) -> Chain:
    """The policy's chain, as far as it does not come from a task.

    Raises:
        ConfigError: a codec where the policy encodes nothing.
        StorageError: the codec's file cannot be read.
    """
    from ..gradient_leakage.vae.codec import read_codec
    from .protection import chain_of

    try:
        held = None if codec is None else read_codec(codec.read_bytes())
    except OSError as error:
        raise StorageError(f"{codec} cannot be read: {error.strerror}") from error
    return chain_of(_measures(policy, encodes=held is not None), held)


def _measures(policy: ProtectionPolicy, *, encodes: bool) -> Measures:
    from .policy import Measures, Step

    steps = tuple(step for step in policy.chain if step is not Step.ENCODE or encodes)
    return Measures(steps, policy.max_norm, policy.noise_multiplier)


def table_of(test: LeakTest) -> Table:
    """One line an attack."""
    table = Table("sent", "protected", "attack", "steps", "SSIM", "gain", "found")  # 80 columns hold it
    for each in test.attempts:
        found = "not run" if each.gain is None else f"{each.identified} of {each.targets}"
        table.add_row(
            each.sent.value,
            "yes" if each.is_defended else "no",
            escape(each.attack),
            str(each.iterations or ""),
            "" if each.ssim is None else f"{each.ssim:.2f}",
            "" if each.gain is None else f"{each.gain:.2f}",
            found,
        )
    return table


def words_of(outcome: Outcome, test: LeakTest, bound: float | None, *, is_open: bool, is_own: bool) -> Iterable[str]:
    """What follows from it."""
    reasons = dict.fromkeys(attempt.reason for attempt in test.attempts if attempt.reason)
    yield from (f"not run: {reason}" for reason in reasons)
    spent = f"{outcome.cpu_seconds:.0f} CPU-s"
    if outcome.score is None:
        yield f"{outcome.obstacle} ({spent})"
    else:
        yield f"score {outcome.score:.2f}: mean SSIM gain of the worst attack over its null ({spent}, +-0.06)"
    if is_own:
        yield "of own images: it stays here, and the gate does not know it"
    elif bound is None:
        yield "the gate is off: envoy.toml sets no max_leakage"
    else:
        yield f"gate {'open' if is_open else 'closed'} at max_leakage {bound:g}"


def draw(test: LeakTest, canaries: Canaries, folder: Path) -> list[Path]:
    """Truth beside what the worst attack found, undefended and behind the chain; readable by the owner alone."""
    import numpy as np

    from ..gradient_leakage.pictures import Pair, draw_pairs
    from .leak_test import SEEN_FILE, Sent

    files = []
    for name, is_defended in (("undefended", False), ("defended", True)):
        worst = _worst(test.attempts, is_defended=is_defended)
        if worst is None:
            continue
        found = np.load(folder / "pixels" / Path(worst.pictures).name, allow_pickle=False)
        seen = folder / "pixels" / SEEN_FILE
        sought = np.load(seen, allow_pickle=False) if worst.sent is Sent.GRADIENT else canaries.images
        pairs = [
            Pair(sought[at], found[at], (worst.attack, f"gain {worst.gain:.2f}") if not at else ("",))
            for at in range(len(found))
        ]
        files.append(_write(folder / f"{name}.png", draw_pairs(pairs)))
    return files


def _worst(attempts: Iterable[Attempt], *, is_defended: bool) -> Attempt | None:
    drawn = [one for one in attempts if one.is_defended is is_defended and one.gain is not None]
    return max(drawn, key=lambda one: one.gain or 0.0, default=None)


def _private(folder: Path) -> Path:
    """A folder that its owner alone can look into; what an earlier test left in it goes."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        if (folder / "pixels").exists():
            shutil.rmtree(folder / "pixels")
    except OSError as error:
        raise StorageError(f"pictures cannot be kept in {folder}: {error.strerror}") from error
    return folder


def _write(path: Path, raw: bytes) -> Path:
    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(raw)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    return path
