"""A project around a user's own model and data: the files that the pipeline reads, and the repositories it needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from pydantic import BaseModel

from pruning.errors import ModelError, SettingsError, WorkspaceError
from pruning.io.files import replace_file
from pruning.io.huggingface import Pretrained
from secateur.inspection import Rules, Source, inspect
from secateur.packages import advice
from tasks.config import reference
from tasks.config.loop_schema import Prune
from tasks.config.schema import Run
from tasks.config.training_schema import FromScratch
from tasks.registry.dvc_repo import dvc_yaml
from tasks.workspace import DEFAULT_ROOT, Workspace
from zoo.datasets.splits import shapes_of, shown_shapes

IGNORED = (
    *("/artifacts/", "/trials/", "/frontier/", "/restored/", "/.prefect/", "/mlartifacts/", "/mlruns/", "/mlflow.db*"),
    *("/.promotion.lock", "/.venv/", "__pycache__/"),
)
"""What a run writes and Git shouldn't track, as lines of `.gitignore`; the folder of the data is added in front."""

FIRST_TARGET = 0.5
"""The share of the MACs that the first settings ask for; one of those that `inspect` predicts."""

CONFIGURED = (("core.analytics", "false"), ("core.check_update", "false"), ("core.autostage", "false"))


@dataclass(frozen=True)
class Network:
    """The model that a project is made for.

    Attributes:
        name: Import string of a function that returns a module; or a Hugging Face folder.
        weights: Of the trained model, from the project's folder or absolute; None to train.
        is_folder: Whether it is a Hugging Face folder, which has its weights.
        auto_class: The class of such a folder; None for the one that it names.
    """

    name: str
    weights: Path | None = None
    is_folder: bool = False
    auto_class: str | None = None

    def source(self, data: str) -> Source:
        """Return what builds it, and a sample for it."""
        given = Pretrained(Path(self.name), self.auto_class) if self.is_folder else None
        return Source(self.name, data, weights=self.weights, rules=Rules(pretrained=given), pretrained=given)

    def settings(self) -> str:
        """Return the lines of the section `model`."""
        if self.is_folder:
            rows = {"from_pretrained": self.name, "auto_class": self.auto_class}
            told = (
                "a Hugging Face folder with config.json and model.safetensors",
                "its class, such as AutoModelForMaskedLM; null: the one that config.json names",
            )
        else:
            rows = {"factory": self.name, "weights": None if self.weights is None else str(self.weights)}
            told = (
                "a function that returns a torch.nn.Module; input_shape and num_classes are passed if it takes them",
                "trained weights, a .safetensors or .pt file; null: the baseline is trained",
            )
        return "\n".join(
            f"  {name}: {value if name == 'factory' else json.dumps(value)}   # {text}"
            for (name, value), text in zip(rows.items(), told, strict=True)
        )


def make_project(folder: Path, network: Network, data: str, *, force: bool, say: Callable[[str], None]) -> None:
    """Inspect a model and its data, and write the pipeline's files into their repository.

    Args:
        folder: The repository; the functions are imported from here.
        network: The model.
        data: Import string of a function that returns the splits.
        force: Whether files that are there may be overwritten.
        say: Takes each line for the user.

    Raises:
        SettingsError: Something can't be imported or called, or a file is there already.
        ModelError: The model can't be run on a sample, or nothing in it can be pruned.
        WorkspaceError: Git or DVC fails.
    """
    if not folder.is_dir():
        raise SettingsError(f"there is no folder {folder}; expected the repository of the model and its data")
    with chdir(folder):
        if network.weights is not None and not network.weights.is_file():
            raise SettingsError(
                f"there is no file {network.weights} in {Path.cwd()}; expected the weights of the model"
            )
        _look(network.source(data), say)
        written = project_files(network, data)
        there = [name for name, content in written.items() if Path(name).exists() and Path(name).read_text() != content]
        if there and not force:
            raise SettingsError(
                f"{', '.join(there)} in {Path.cwd()} would be overwritten; nothing was written. Add --force to do so, "
                "or move the files away"
            )
        _begin_git(say)
        _begin_dvc(say)
        for name, content in written.items():
            replace_file(Path(name), content.encode())
            say(f"wrote       {name}")
        _ignore(say)
        where = "" if folder == Path() else f"cd {folder} && "
        say(f"\nnext: look at params.yaml, then: {where}secateur run")


def _look(source: Source, say: Callable[[str], None]) -> None:
    built, example = source.load()
    found = inspect(built, example, source.rules)
    if not found.groups:
        reasons = "; ".join(list(found.whole)[:3])
        raise ModelError(f"nothing in the model of {source.model!r} can be pruned: {reasons}. See `secateur inspect`")
    say(f"model       {found.name}, input {shown_shapes(shapes_of(example))}: {len(found.groups)} groups of channels")
    say(f"size        {found.size.macs:,} MACs, {found.size.parameters:,} parameters")
    say(f"prunable    {found.prunable_macs:.1%} of the MACs, {found.prunable_parameters:.1%} of the parameters at most")
    reached = found.predicted[FIRST_TARGET]
    if isinstance(reached, str):
        say(f"beware      {reached}; change prune.target or prune.allocation in params.yaml before you run")


def project_files(network: Network, data: str) -> dict[str, str]:
    """Return the files that `secateur init` writes in the current folder: name -> content."""
    templates = files("secateur") / "templates"
    values = {
        "model": network.settings(),
        "data": data,
        "recipe": "null" if network.weights or network.is_folder else f"{{epochs: {_default(FromScratch, 'epochs')}}}",
        "device": _default(Run, "device"),
        "target": str(FIRST_TARGET),
        "drop": _default(Prune, "max_accuracy_drop"),
        "name": json.dumps(re.sub(r"[^A-Za-z0-9.+-]+", "-", Path.cwd().name).strip("-.+")[:100] or "pruned"),
    }
    return {
        "params.yaml": Template((templates / "params.yaml").read_text(encoding="utf-8")).substitute(values),
        "params.schema.json": reference.json_schema_text(),
        "dvc.yaml": dvc_yaml("secateur run {}"),
        "prefect.yaml": (templates / "prefect.yaml").read_text(encoding="utf-8"),
    }


def _default(section: type[BaseModel], name: str) -> str:
    return str(section.model_fields[name].default)


def _begin_git(say: Callable[[str], None]) -> None:
    if _run("git", "rev-parse", "--git-dir") is not None:
        return
    if _run("git", "init", "--quiet") is None:
        raise WorkspaceError("Git isn't installed, or `git init` failed here; DVC needs it")
    say("began       a Git repository")


def _begin_dvc(say: Callable[[str], None]) -> None:
    if Path(".dvc").is_dir():
        return
    nested = (_run("git", "rev-parse", "--show-prefix") or "").strip()
    if _run(sys.executable, "-c", "import dvc") is None:
        raise WorkspaceError(f"DVC {(advice('dvc') or '').removeprefix('needs dvc, which ')}")
    dvc = (sys.executable, "-m", "dvc")
    if _run(*dvc, "init", "--quiet", *(["--subdir"] if nested else [])) is None:
        raise WorkspaceError(f"`dvc init` failed in {Path.cwd()}; run it by hand to see why")
    lines = ["[core]", *(f"    {name.partition('.')[2]} = {value}" for name, value in CONFIGURED)]
    replace_file(Path(".dvc/config"), ("\n".join(lines) + "\n").encode())
    say("began       a DVC repository")


def _run(*command: str) -> str | None:
    """Run a program and return its output; None if it failed or isn't installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _ignore(say: Callable[[str], None]) -> None:
    place = Path(".gitignore")
    before = place.read_text(encoding="utf-8") if place.exists() else ""
    data = Workspace(DEFAULT_ROOT).folder("data")
    wanted = (f"/{data.as_posix()}/", *IGNORED) if len(data.parts) == 1 else IGNORED
    if lacking := [line for line in wanted if line not in before.splitlines()]:
        gap = "" if not before or before.endswith("\n") else "\n"
        replace_file(place, f"{before}{gap}{chr(10).join(lacking)}\n".encode())
        say(f"wrote       {place}: {len(lacking)} lines")
