"""The command line ``fedveil``: what composes director, envoys and plans."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError
from ..utils.secure_sum.terms import Suite
from .attack_commands import attack
from .audit_commands import audit
from .codec_commands import codec as codecs
from .model_commands import models
from .report_commands import report
from .secagg_commands import secagg

_CONSOLE = Console()

app = typer.Typer(
    help="fedveil: the demo, simulations, plans and benchmarks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
plans = typer.Typer(help="Build plans.", no_args_is_help=True)
bench = typer.Typer(help="Measure.", no_args_is_help=True)
app.add_typer(plans, name="plan")
app.add_typer(bench, name="bench")
app.add_typer(attack, name="attack")
app.add_typer(codecs, name="codec")
app.add_typer(secagg, name="secagg")
app.add_typer(report, name="report")
app.add_typer(audit, name="audit")
app.add_typer(models, name="model")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Takes summary.json, model.safetensors and curves.png.")] = Path(
        "runs/demo"
    ),
    data: Annotated[
        Path | None, typer.Option(help="MedMNIST-style npz, zip or folder of images by class (normal, pneumonia).")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How many.")] = 10,
    image_size: Annotated[int, typer.Option(help="Images are resized to so many pixels a side.")] = 28,
    codec: Annotated[
        bool,
        typer.Option(
            "--codec", help="Send codes a hundred times smaller; the codec is fitted on a tenth of the images."
        ),
    ] = False,
    codec_file: Annotated[Path | None, typer.Option(help="Send codes of this codec, from `fedveil codec fit`.")] = None,
    defense: Annotated[
        str, typer.Option(help="What each site does to what it sends: none, clip or clip-noise.")
    ] = "none",
) -> None:
    """Four hospitals train a pneumonia detector together: real processes, mutual TLS, secure sums."""
    from .demo import DemoOptions, run_demo
    from .demo_protection import defense_of

    with errors_in_words():
        options = DemoOptions(out, data, rounds, image_size, codec, codec_file, defense_of(defense))
        run_demo(options, _CONSOLE)


@plans.command("build")
def build(
    source: Annotated[Path, typer.Argument(help="A Python file with one TrainingPlan or ArrayPlan, or a recipe.toml.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder.")] = Path("plan"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="name=value, of the plan's settings.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow-import", help="A module that the sites' approval.imports have too.")
    ] = None,
) -> None:
    """Make the bundle that is submitted: manifest, sources, layout, initial weights."""
    from ..envoy.plan_scan import require_allowed, scan
    from ..utils.plan_bundle import open_bundle
    from .plan_builder import build_plan, scan_source

    with errors_in_words():
        require_allowed(scan_source(source, allow or []), source.name)  # before any of it runs
        manifest = build_plan(source, out, dict(map(_setting, set_ or [])))
        report = scan(open_bundle(out), allow or [])
    if not manifest.is_declarative:
        for line in report.lines():
            _CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)
    _CONSOLE.print(f"{out}/: plan {manifest.name}, digest {manifest.digest}", soft_wrap=True)


@bench.command("round")
def bench_round(
    mb: Annotated[float, typer.Option(help="Size of the model, in 1e6 bytes.")] = 40.0,
    envoys: Annotated[int, typer.Option(help="How many.")] = 4,
    rounds: Annotated[int, typer.Option(help="How many; the first does not count.")] = 10,
    secure: Annotated[bool, typer.Option("--secure", help="Protected rounds too, in turn with plain ones.")] = False,
    turns: Annotated[int, typer.Option(min=1, help="With --secure: how many of each; medians are told.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """One round without training: the real director, real envoys, the full path."""
    from .benchmarks.round import as_json, measure_round, measure_secure_round

    with errors_in_words():
        cost = measure_secure_round(mb, envoys, rounds, turns) if secure else measure_round(mb, envoys, rounds)
        figures = json.dumps(as_json(cost))
    typer.echo(figures)
    if json_file:
        json_file.write_text(figures + "\n", "utf-8")


@bench.command("hub")
def bench_hub(
    mb: Annotated[float, typer.Option(help="Size of the model, in 1e6 bytes.")] = 40.0,
    callers: Annotated[int, typer.Option(min=1, max=5000, help="At once, each from an address of its own.")] = 50,
    seconds: Annotated[float, typer.Option(min=0.1, help="For which each status call is repeated.")] = 10.0,
    turns: Annotated[int, typer.Option(min=1, help="Downloads by all, in turn with a bare TLS socket.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """The REST API under many callers: a real director, TLS, status calls and downloads of a model."""
    from .benchmarks.hub import as_json, as_markdown, measure_hub

    with errors_in_words():
        cost = measure_hub(mb, callers, seconds, turns)
    typer.echo(as_markdown(cost))
    if json_file:
        json_file.write_text(json.dumps(as_json(cost), indent=2) + "\n", "utf-8")


@bench.command("chain")
def bench_chain(
    mb: Annotated[float, typer.Option(help="Size of the model, in 1e6 bytes.")] = 40.0,
    envoys: Annotated[int, typer.Option(help="How many.")] = 4,
    rounds: Annotated[int, typer.Option(help="Of each run; the first does not count.")] = 6,
    turns: Annotated[int, typer.Option(help="Runs of each chain, in turn.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """What checking, clipping and noise cost a round without training."""
    from .benchmarks.chain import measure_chain

    with errors_in_words():
        figures = json.dumps([asdict(cost) for cost in measure_chain(mb, envoys, rounds, turns)], indent=2)
    typer.echo(figures)
    if json_file:
        json_file.write_text(figures + "\n", "utf-8")


@bench.command("sandbox")
def bench_sandbox(
    turns: Annotated[int, typer.Option(min=1, help="Measurements of each tier, in turn; the quickest are told.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """What the box of a plan's code costs, in each tier that works here."""
    from .benchmarks.sandbox import as_markdown, measure_sandbox

    with errors_in_words():
        costs = measure_sandbox(turns)
    for line in as_markdown(costs):
        typer.echo(line)
    if json_file:
        json_file.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n", "utf-8")


@bench.command("secagg")
def bench_secagg(
    params: Annotated[int, typer.Option(help="Numbers in the vector that is summed.")] = 10_000_000,
    envoys: Annotated[int, typer.Option(help="How many; at least 3.")] = 8,
    suite: Annotated[Suite, typer.Option(help="How shares are sealed.")] = Suite.MLKEM768_X25519,
    flower: Annotated[
        Path | None, typer.Option(help="Python of an environment with flwr 1.42, whose own functions run beside.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of each timed part; medians are told.")] = 5,
    turns: Annotated[int, typer.Option(min=1, help="Ours and Flower's, in turn.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """What a secure sum costs site and director, one thread, beside Flower's SecAgg+ functions."""
    from .benchmarks.secagg import as_json, as_markdown, measure_secagg

    with errors_in_words():
        cost = measure_secagg(params, envoys, suite=suite, flower=flower, repeats=repeats, turns=turns)
    for line in as_markdown(cost):
        typer.echo(line)
    if json_file:
        json_file.write_text(json.dumps(as_json(cost), indent=2) + "\n", "utf-8")


@bench.command("table")
def bench_table(
    floor: Annotated[Path | None, typer.Option(help="floor_round.py; by default the one beside the checkout.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """All cases of the table in workspace/benchmarks/README.md, each beside the floor. Takes several minutes."""
    from .benchmarks.table import CASES, FLOOR, as_markdown, compare

    script = floor or (FLOOR if FLOOR.exists() else None)
    if script is None:
        typer.echo("No floor_round.py was given or found: our figures alone.", err=True)
    rows = []
    with errors_in_words():
        for case in CASES:
            typer.echo(f"{case.mb:g} MB, {case.envoys} envoys ...", err=True)
            rows.append(compare(case, script))
    for line in as_markdown(rows):
        typer.echo(line)
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")


@bench.command("recovery")
def bench_recovery(
    targets: Annotated[int, typer.Option(min=1, help="X-rays, each by itself.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Of each attack, at most.")] = 1200,
) -> None:
    """From how many code numbers on an X-ray comes back exactly, beside the count of pixels."""
    from .benchmarks.code_recovery import SERIES, as_markdown, recover

    with errors_in_words():
        for line in as_markdown([*recover(SERIES, targets, iterations)]):
            typer.echo(line)


@bench.command("codec")
def bench_codec(
    out: Annotated[
        Path, typer.Option(help="Keeps plan, codecs and rows; the same folder goes on where it ended.")
    ] = Path("runs/codec"),
    arms: Annotated[str | None, typer.Option(help="Some of the arms, by semicolons; by default all.")] = None,
    seeds: Annotated[str, typer.Option(help="By commas.")] = "1,2,3",
    rounds: Annotated[str, typer.Option(help="After which a row is made, by commas.")] = "10,30",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, as a list.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the table into this page, between its marks.")] = None,
    runs: Annotated[
        bool, typer.Option("--run/--no-run", help="--no-run: the table of the rows that are there.")
    ] = True,
) -> None:
    """What a codec costs in AUC, beside top-k, low rank and random projections. Takes an hour on one core."""
    from .benchmarks.codec_bench import bench_codecs

    with errors_in_words():
        for line in bench_codecs(out, arms, seeds, rounds, json_file, page, runs=runs):
            typer.echo(line)


@bench.command("private-codec")
def bench_private(
    out: Annotated[
        Path, typer.Option(help="Keeps models, codecs and rows; the same folder goes on where it ended.")
    ] = Path("runs/private-codec"),
    data: Annotated[Path | None, typer.Option(help="The images, as the demo takes them; by default its own.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, as a list.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the table into this page, between its marks.")] = None,
) -> None:
    """What differential privacy for every image costs, with and without a codec. Takes five CPU minutes."""
    from .benchmarks.private_bench import bench_private_codec

    with errors_in_words():
        for line in bench_private_codec(out, data, json_file, page):
            typer.echo(line)


@bench.command("private-patients")
def bench_patients(
    out: Annotated[Path, typer.Option(help="Keeps the rows; the same folder goes on where it ended.")] = Path(
        "runs/private-patients"
    ),
    data: Annotated[Path | None, typer.Option(help="X-rays whose file names tell the patients: zip or folder.")] = None,
    seeds: Annotated[str, typer.Option(help="By commas.")] = "1,2,3",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, as a list.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the table into this page, between its marks.")] = None,
) -> None:
    """AUC at epsilon 1, 3 and 8 for every patient, beside no privacy. Takes seven CPU minutes."""
    from .benchmarks.private_patients_bench import bench_private_patients

    with errors_in_words():
        for line in bench_private_patients(out, data, json_file, page, [int(seed) for seed in seeds.split(",")]):
            typer.echo(line)


@bench.command("dp-audit")
def bench_dp_audit(
    canaries: Annotated[int | None, typer.Option(min=1000, help="Of each case; by default 20,000 to 60,000.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Hold the ledger's epsilon against canaries in the envoy's own training, as it is and with planted bugs.

    Exit status 1 where a bug is not seen, or the ledger is contradicted without one.
    """
    from dataclasses import replace

    from .benchmarks.dp_audit import CASES, Finding, as_lines, audit

    found: list[Finding] = []
    with errors_in_words():
        cases = [case if canaries is None else replace(case, canaries=canaries) for case in CASES]
        for line in as_lines(map(audit, cases), found.append):
            typer.echo(line)
    if json_file:
        json_file.write_text(json.dumps([one.to_json() for one in found], indent=2) + "\n", "utf-8")
    raise typer.Exit(0 if all(one.is_as_expected for one in found) else 1)


def main() -> None:
    """The console script ``fedveil``."""
    app()


def _setting(text: str) -> tuple[str, bool | int | float | str]:
    """``name=value`` as a setting; the value reads as in TOML, and as text where it is none."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--set {text!r}: expected name=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return name.strip(), parsed if isinstance(parsed, bool | int | float | str) else value


if __name__ == "__main__":
    main()
