"""``fedveil codec``: fit a codec on public data, look into one, and ask whether it fits a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError

if TYPE_CHECKING:
    from ..gradient_leakage.vae.codec import Basis

codec = typer.Typer(help="Codecs: updates as a few numbers that can be summed.", no_args_is_help=True)

_FILE = Path("codec.safetensors")


@codec.command("fit")
def fit(
    plan: Annotated[Path, typer.Option(help="The plan's bundle.")],
    ratio: Annotated[float, typer.Option(help="How many times smaller an upload is to be, at least.")] = 100.0,
    images: Annotated[
        Path | None, typer.Option(help="PUBLIC images (or a table), as `envoy data add` reads them; never a site's.")
    ] = None,
    basis: Annotated[
        str, typer.Option(help="learned (of public data), history (of released models) or seeded (random).")
    ] = "learned",
    models: Annotated[
        list[Path] | None, typer.Option(help="A released model, safetensors; oldest first, for the basis history.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="The released model that rehearsals begin with; by default the plan's first.")
    ] = None,
    sites: Annotated[int, typer.Option(help="Virtual sites of a rehearsal.")] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds of a rehearsal.")] = 10,
    repeats: Annotated[int, typer.Option(help="Rehearsals; one more is held out to measure what is kept.")] = 6,
    examples: Annotated[
        int | None, typer.Option(help="A virtual site's examples a round, drawn with replacement; as real sites have.")
    ] = None,
    one_block: Annotated[
        bool, typer.Option("--one-block", help="Principal components of the whole update, not tensor by tensor.")
    ] = False,
    two_sided: Annotated[
        bool, typer.Option("--two-sided", help="Code large tensors on both sides: fewer parameters, a slower start.")
    ] = False,
    seeded_share: Annotated[
        float, typer.Option(help="Share of the code for directions that are drawn anew each round.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same codec, on one machine.")] = 0,
    out: Annotated[Path, typer.Option(help="The codec's file.")] = _FILE,
) -> None:
    """Fit a codec on public data or released models, and print what experiment.toml needs of it."""
    from .codec_fitting import Rehearsal
    from .codec_making import Wanted, make_codec

    with errors_in_words():
        rehearsal = Rehearsal(sites, rounds, repeats, examples, seed)
        wanted = Wanted(
            plan,
            ratio,
            _basis(basis),
            images,
            tuple(models or ()),
            start,
            rehearsal,
            one_block,
            two_sided,
            seeded_share,
        )
        for line in make_codec(wanted, out):
            typer.echo(line)


@codec.command("show")
def show(file: Annotated[Path, typer.Argument(help="A codec's file.")]) -> None:
    """What is in a codec: its basis, its blocks, what passes uncoded, its digest."""
    from .codec_making import codec_lines, opened

    with errors_in_words():
        for line in codec_lines(opened(file)):
            typer.echo(line)


@codec.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A codec's file.")],
    plan: Annotated[Path, typer.Option(help="The plan's bundle.")],
) -> None:
    """Whether a codec is sound and codes the updates of this plan; exit status 1 with the reason if not."""
    from .codec_making import check_fits, opened

    with errors_in_words():
        typer.echo(check_fits(opened(file), plan))


def _basis(word: str) -> Basis:
    from ..gradient_leakage.vae.codec import Basis  # numpy is loaded when it is needed

    try:
        return Basis(word)
    except ValueError as error:
        raise ConfigError(f"basis {word!r}: expected {', '.join(one.value for one in Basis)}") from error
