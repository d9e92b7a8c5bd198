"""What a deployment may be asked for, and what is refused: code, paths, tags, and values beyond bounds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pruning.errors import SettingsError, WorkspaceError
from tasks.config.overrides import SettingsFile, Trial, accept
from tasks.config.schema import load
from tasks.config.yaml_io import MOST_BYTES

Write = Callable[[Callable[[dict[str, Any]], object] | None], Path]


@pytest.fixture
def repository(write_params: Write) -> Callable[..., None]:
    """A Git repository with settings; calling it writes and adds them anew."""

    def write(change: Callable[[dict[str, Any]], object] | None = None, name: str = "params.yaml") -> None:
        write_params(change).rename(name)
        subprocess.run(["git", "add", name], check=True)

    subprocess.run(["git", "init", "-q"], cwd=write_params(None).parent, check=True)
    write()
    return write


def test_plain_run_is_the_one_that_dvc_versions(repository: Any) -> None:
    asked = accept("params.yaml", None)
    assert (asked.params, asked.workspace, asked.commit) == (Path("params.yaml"), Path("artifacts"), True)


def test_trial_runs_by_its_own_settings_in_its_own_workspace_and_leaves_dvc_and_the_model_alone(
    repository: Any,
) -> None:
    asked = accept("params.yaml", Trial(name="gentle", target=0.3, seed=7, iterations=2, max_accuracy_drop=0.05))
    assert (asked.workspace, asked.commit) == (Path("trials/gentle"), False)
    settings, before = load(asked.params), load(Path("params.yaml"))
    assert settings.run.seed == 7
    assert settings.prune.target.mac_reduction == 0.3
    assert (settings.prune.iterations, settings.prune.max_accuracy_drop) == (2, 0.05)
    assert settings.tracking.model_name == "small-trials"
    assert (settings.data, settings.model, settings.prune.recipes) == (before.data, before.model, before.prune.recipes)


def test_trial_whose_folder_is_a_link_is_refused(repository: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    Path("trials").mkdir()
    Path("trials/linked").symlink_to(elsewhere)
    with pytest.raises(WorkspaceError, match=r"trials/linked is, or lies behind, a symbolic link to .*-elsewhere"):
        accept("params.yaml", Trial(name="linked"))
    Path("trials/linked").unlink()
    Path("trials").rmdir()
    Path("trials").symlink_to(elsewhere)
    with pytest.raises(WorkspaceError, match="trials/behind is, or lies behind, a symbolic link"):
        accept("params.yaml", Trial(name="behind"))
    assert list(elsewhere.iterdir()) == []


def test_settings_that_dvc_cannot_see_are_refused_without_a_trial(repository: Any) -> None:
    repository(lambda s: s["run"].update(seed=3), "other.yaml")
    with pytest.raises(SettingsError, match=r"DVC sees params\.yaml alone.*name a trial"):
        accept("other.yaml", None)
    assert load(accept("other.yaml", Trial(name="seeded")).params).run.seed == 3


@pytest.mark.parametrize("place", ["/etc/passwd.yaml", "../params.yaml", "own/../../params.yaml"])
def test_path_outside_the_repository_is_refused(repository: Any, place: str) -> None:
    Path("../params.yaml").write_bytes(Path("params.yaml").read_bytes())
    with pytest.raises(SettingsError, match="outside the repository"):
        accept(place, Trial(name="away"))


def test_link_that_leads_out_of_the_repository_is_refused(repository: Any) -> None:
    Path("../elsewhere.yaml").write_bytes(Path("params.yaml").read_bytes())
    Path("link.yaml").symlink_to(Path("../elsewhere.yaml").resolve())
    with pytest.raises(SettingsError, match="outside the repository"):
        accept("link.yaml", Trial(name="away"))


def test_file_that_git_does_not_track_is_refused_before_it_is_read(repository: Any) -> None:
    Path("dropped.yaml").write_text("data: {factory: 'os:abort'}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="isn't in the Git repository"):
        accept("dropped.yaml", Trial(name="dropped"))


@pytest.mark.parametrize(
    "found",
    [
        "os:system",  # an import string
        "own_project:few",
        "!!python/object/apply:os.system ['true']",  # a YAML tag
        "/etc/params.yaml",
        "../params.yaml",
        "params.json",
        "a" * 300 + ".yaml",
        "params.yaml\n",
        "-C.yaml",  # an option
    ],
)
def test_settings_file_of_a_form_is_a_name(found: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SettingsFile).validate_python(found)


@pytest.mark.parametrize(
    "values",
    [
        {"target": 1.0},
        {"target": float("nan")},
        {"target": "!!python/name:os.abort"},
        {"iterations": 101},
        {"iterations": 10**400},
        {"max_attempts": 0},
        {"seed": 2**31},
        {"max_accuracy_drop": 1e308},
        {"name": "a" * 41},
        {"name": "../artifacts"},
        {"name": "os:system"},
        {"factory": "os:system"},
        {"model": {"factory": "os:system"}},
    ],
)
def test_trial_is_a_name_and_bounded_numbers(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Trial.model_validate({"name": "small", **values})


def test_share_of_what_is_no_share_is_refused(repository: Any) -> None:
    repository(lambda s: s["prune"].update(target={"size_bytes": 1000}))
    with pytest.raises(SettingsError, match="has the target size_bytes"):
        accept("params.yaml", Trial(name="half", target=0.5))


def test_tag_in_a_settings_file_of_the_repository_is_refused(repository: Any) -> None:
    with Path("params.yaml").open("a", encoding="utf-8") as stream:
        stream.write("tagged: !!python/object/apply:os.abort []\n")
    with pytest.raises(SettingsError, match="is not valid YAML"):
        accept("params.yaml", Trial(name="tagged"))


def test_oversized_settings_file_is_refused_unread(repository: Any) -> None:
    with Path("params.yaml").open("a", encoding="utf-8") as stream:
        stream.write("#" * MOST_BYTES)
    with pytest.raises(SettingsError, match="expected at most 100,000"):
        load(Path("params.yaml"))
