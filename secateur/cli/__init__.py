"""The command `secateur`: its options, help and completion. What a command does is imported when it is called."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.shell_completion import get_completion_class

from secateur import __version__
from secateur.cli.commands import cleanup, explain, frontier, params, promote, restore, rollback, run, serve, status, ui
from secateur.cli.launch import launch
from secateur.cli.model import init, inspect
from secateur.cli.terminal import FAULT
from secateur.packages import advice, find_own_packages_first

EPILOG = (
    "Exit codes: 0 done; 1 the answer is no (a stage isn't current, a candidate is refused, no attempt was "
    "accepted); 2 a fault, told in one message; 128 + n ended by signal n."
)


class _Commands(click.Group):
    """Lists commands in the order in which they are needed, and names the extra that a command lacks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (text := advice(error.name)) is None:
                raise
            sys.stderr.write(f"secateur {ctx.invoked_subcommand} {text}\n")
            sys.exit(FAULT)


@click.group(
    cls=_Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="secateur")
def commands() -> None:
    """Prune a trained PyTorch model into a smaller dense one, as a pipeline that can be repeated and audited."""


@click.command(short_help="Print what a shell needs to complete commands.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    bash  add to ~/.bashrc: eval "$(secateur completion bash)"
    zsh   add to ~/.zshrc: eval "$(secateur completion zsh)"
    fish  secateur completion fish > ~/.config/fish/completions/secateur.fish
    """  # noqa: D301  # a backspace tells Click to keep the lines
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "secateur", "_SECATEUR_COMPLETE").source())


for _command in (
    *(init, inspect, run, status, explain, params, frontier),
    *(promote, rollback, restore, cleanup, launch, ui, serve, completion),
):
    commands.add_command(_command)


def main() -> None:
    """Run the command line of this process."""
    find_own_packages_first()
    try:
        commands(prog_name="secateur")
    except OSError as error:  # of the help; a command tells its own faults
        if error.filename is not None:
            raise
        sys.stderr.write(f"secateur: the output can't be written: {error.strerror or error}\n")
        sys.exit(FAULT)
