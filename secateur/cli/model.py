"""Commands about the user's own model: `inspect` says what could be pruned, `init` makes a project around it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secateur.cli.terminal import debug_option, execute, params_option, say, watch_signals, workspace_option

if TYPE_CHECKING:
    from secateur.inspection import Inspection, Size

_MOST_NAMES = 4


@click.command(short_help="Say what could be pruned in your model.")
@click.option("--model", metavar="MODULE:NAME", help="A function that returns the model, instead of params.yaml's.")
@click.option("--data", metavar="MODULE:NAME", help="With --model: a function that returns the data.")
@click.option("--input", "shape", metavar="SHAPE", help="With --model: shape of a random sample, 3,224,224.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="With --model: weights to load.")
@click.option("--all", "everything", is_flag=True, help="List every group, and every parameter that stays whole.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@params_option
@workspace_option
@debug_option
def inspect(
    model: str | None,
    data: str | None,
    shape: str | None,
    weights: Path | None,
    everything: bool,
    as_json: bool,
    params: Path,
    workspace: Path,
    debug: bool,
) -> None:
    """Say what could be pruned in the model of params.yaml.

    Groups of channels, the share of MACs and parameters that can go, what stays whole and why, and what is left at 30,
    50 and 70 % fewer MACs. One sample is enough, and nothing is trained: it takes seconds.
    """
    if model is None and (data or shape or weights):
        raise click.UsageError("--data, --input and --weights go with --model")

    def action() -> None:
        from secateur.inspection import Source
        from secateur.inspection import inspect as look
        from tasks.config.schema import load
        from tasks.workspace import Workspace

        if model is None:
            source = Source.of(load(params))
        else:
            source = Source(model, data, weights=weights, shape=_as_shape(shape))
        found = look(*source.load(Workspace(workspace) if model is None else None), source.rules)
        if as_json:
            shares = {"prunable_macs": found.prunable_macs, "prunable_parameters": found.prunable_parameters}
            say(json.dumps({**asdict(found), **shares}, indent=2))
        else:
            _show(found, everything)

    execute("inspect", action, debug=debug, workspace=workspace)


def _as_shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is not a shape; expected numbers such as 3,224,224", param_hint="--input")
    return tuple(int(part) for part in parts)


def summary(found: Inspection) -> str:
    """Say in one line what a model is and how much of it can go."""
    return (
        f"{found.name}: {len(found.groups)} groups with {sum(found.groups.values()):,} channels; at most "
        f"{found.prunable_macs:.1%} of the MACs and {found.prunable_parameters:.1%} of the parameters can go"
    )


def _show(found: Inspection, everything: bool) -> None:
    from secateur.cli.terminal import print_lines, print_table

    print_lines([summary(found), ""])
    rows = [("as it is", *_cells(found.size, found.size))]
    unmet: dict[str, list[str]] = {}
    for share, size in found.predicted.items():
        if isinstance(size, str):
            unmet.setdefault(size.partition("can't be met: ")[2] or size, []).append(f"{share:.0%}")
        else:
            rows.append((f"{share:.0%} fewer MACs", *_cells(size, found.size)))
    print_table(("predicted", "MACs", "parameters", "bytes"), rows, numbers=("MACs", "parameters", "bytes"))
    print_lines([line for why, shares in unmet.items() for line in ("", f"{', '.join(shares)} fewer MACs: {why}")])
    if everything:
        print_lines([""])
        print_table(("group", "channels"), [(n, f"{s:,}") for n, s in found.groups.items()], numbers=("channels",))
    if found.whole:
        print_lines(["", "stays whole:"])
        for reason, names in found.whole.items():
            shown = names if everything else names[:_MOST_NAMES]
            more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
            print_lines([f"  {', '.join(shown)}{more}: {reason}"])


def _cells(size: Size, whole: Size) -> tuple[str, str, str]:
    pairs = ((size.macs, whole.macs), (size.parameters, whole.parameters), (size.size_bytes, whole.size_bytes))
    return tuple(f"{part:,}" if part == all_ else f"{part:,} (−{1 - part / all_:.0%})" for part, all_ in pairs)  # type: ignore[return-value]


@click.command(short_help="Make a project around your own model and data.")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@click.option("--model", metavar="MODULE:NAME", help="A function that returns a torch.nn.Module.")
@click.option(
    "--from-pretrained", "place", metavar="FOLDER", help="A Hugging Face folder, in place of --model and --weights."
)
@click.option(
    "--auto-class", metavar="NAME", help="Its class, AutoModelForMaskedLM; by default the one that config.json names."
)
@click.option("--data", metavar="MODULE:NAME", help="A function that returns the splits train, validation and test.")
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Trained weights, .safetensors or .pt."
)
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@debug_option
def init(
    folder: Path,
    model: str | None,
    place: str | None,
    auto_class: str | None,
    data: str | None,
    weights: Path | None,
    yes: bool,
    force: bool,
    debug: bool,
) -> None:
    """Make a project in DIR, a repository of your own.

    Runs the model on one sample, then writes params.yaml, dvc.yaml and prefect.yaml. The functions are named as Python
    imports them from DIR: `net:make_model` is make_model in net.py. Existing files are only overwritten with --force.
    """
    if place is not None and (model is not None or weights is not None):
        raise click.UsageError("--from-pretrained takes the place of --model and --weights; give one of both")
    if auto_class is not None and place is None:
        raise click.UsageError("--auto-class goes with --from-pretrained")
    if not yes:
        watch_signals("init")
        try:
            model = model or place or click.prompt("Function that returns the model (module:name)")
            data = data or click.prompt("Function that returns the data (module:name)")
            if weights is None and place is None:
                asked = "File with trained weights (empty: train from scratch)"
                weights = Path(given) if (given := click.prompt(asked, default="", show_default=False)) else None
        except click.Abort:
            click.echo(err=True)  # ends the line of the question
            raise click.UsageError("the input ended before all was answered; give --model, --data and --yes") from None
    named = model or place
    if named is None or data is None:
        raise click.UsageError(
            "with --yes nothing is asked, so --model and --data have to be given, or --from-pretrained and --data"
        )
    loads = data

    def action() -> None:
        from secateur.project import Network, make_project

        network = Network(named, weights, is_folder=place is not None, auto_class=auto_class)
        make_project(folder, network, loads, force=force, say=say)

    execute("init", action, debug=debug, workspace=folder)
