"""The command `secateur launch`: what a cluster needs to run this project."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import click

from secateur.cli.terminal import debug_option, execute, params_option, say, workspace_option

POSITIVE = click.IntRange(min=1, max=1_000_000)


@click.command(short_help="Write what a cluster needs to run this project.")
@click.argument("kind", type=click.Choice(("slurm", "kubernetes", "prefect")))
@click.option("--name", default="secateur", show_default=True, help="The job's name.")
@click.option("--nodes", type=POSITIVE, default=1, show_default=True, help="Machines.")
@click.option(
    "--ranks", type=POSITIVE, default=1, show_default=True, help="Processes on each node that train together."
)
@click.option("--cpus", type=POSITIVE, default=4, show_default=True, help="Cores of each node.")
@click.option("--gpus", type=click.IntRange(0, 64), default=0, show_default=True, help="GPUs of each node.")
@click.option("--memory", type=POSITIVE, default=16, show_default=True, metavar="GIB", help="Memory of each node.")
@click.option("--hours", type=POSITIVE, default=24, show_default=True, help="After these the cluster ends the job.")
@click.option("--image", help="The container's image; needed on Kubernetes, on Slurm with the plugin pyxis alone.")
@click.option(
    "--folder",
    type=click.Path(path_type=PurePosixPath),
    metavar="DIR",
    help="The project, by the path under which all nodes see it.  [default: this folder; on Kubernetes /workspace]",
)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="For the run; may be repeated.")
@click.option("--partition", help="Of Slurm.")
@click.option("--account", help="Of Slurm.")
@click.option("--namespace", default="default", show_default=True, help="Of Kubernetes.")
@click.option(
    "--claim",
    default="secateur",
    show_default=True,
    help="Of Kubernetes: the PersistentVolumeClaim that holds the project.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it there, not out."
)
@params_option
@workspace_option
@debug_option
def launch(
    kind: str,
    folder: PurePosixPath | None,
    variables: tuple[str, ...],
    output: Path | None,
    params: Path,
    workspace: Path,
    debug: bool,
    **asked: str | int | None,
) -> None:
    """Write what a cluster needs to run this project: KIND is slurm, kubernetes or prefect.

    \b
    slurm       a script:  secateur launch slurm --output job.sh && sbatch job.sh
    kubernetes  a TrainJob of Kubeflow Trainer:  ... | kubectl create -f -
    prefect     the template of a work pool of type kubernetes:
                prefect work-pool create NAME --type kubernetes
                                         --base-job-template FILE

    Nothing is submitted. The settings are read first: device and number of processes have to suit them.
    """  # noqa: D301  # a backspace tells Click to keep the lines

    def action() -> None:
        from pruning.errors import SettingsError
        from tasks.clusters import FOLDER, KINDS, Job, check_settings

        pairs = [one.partition("=") for one in variables]
        if wrong := [one for one, (_, equals, _) in zip(variables, pairs, strict=True) if not equals]:
            raise SettingsError(f"--env {wrong[0]!r}: expected NAME=VALUE")
        here = PurePosixPath(Path.cwd()) if kind == "slurm" else FOLDER
        job = Job(
            folder=here if folder is None else folder,
            params=params,
            workspace=workspace,
            environment={name: value for name, _, value in pairs},
            **asked,  # type: ignore[arg-type]
        )
        check_settings(job, params)
        text = KINDS[kind](job)
        if output is None:
            say(text.rstrip("\n"))
            return
        if output.exists():
            raise SettingsError(f"--output {output} is there already; remove it, or name another file")
        output.write_text(text, encoding="utf-8")

    execute("launch", action, debug=debug)
