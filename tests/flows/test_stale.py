"""What is called current was made by the settings, the code and the versions of now; why it isn't is said."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import stage_runner, stages
from flows.compress import compress
from flows.stages import FLOWS, code
from pruning.errors import WorkspaceError
from tasks.config.schema import Settings, load
from tasks.file_cache import holding
from tasks.fingerprint import fingerprint
from tasks.stage_table import body_of, find_stage
from tasks.workspace import Workspace, is_current
from tests.clone import Clone
from tests.shop import Shop

Write = Callable[..., Path]
WORKSPACE = Workspace(Path("artifacts"))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, path
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _with_parts(root: Path) -> None:
    """Let the project's own code import a package of its own."""
    (root / "own_parts").mkdir()
    (root / "own_parts" / "__init__.py").write_text("", encoding="utf-8")
    (root / "own_parts" / "shift.py").write_text('"""A shift."""\n\nSHIFT = 4  # of the step\n', encoding="utf-8")
    _edit(root / "own_project.py", "import torch\n", "import torch\nfrom own_parts.shift import SHIFT\n")
    _edit(root / "own_project.py", "def few(step=4,", "def few(step=SHIFT,")


def _prepare(**more: object) -> None:
    FLOWS["prepare"]("params.yaml", "artifacts", False)


def _run() -> stage_runner.Run:
    return stage_runner.Run.begin("params.yaml", "artifacts", False)


def _current(settings: Settings) -> bool:
    return is_current(WORKSPACE.folder("data"), fingerprint(find_stage("prepare"), settings, WORKSPACE))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("own_project.py", "torch.arange(0,", "torch.arange(1,", "module own_project was edited"),
        ("own_parts/shift.py", "SHIFT = 4", "SHIFT = 2 * 2", "module own_parts.shift was edited"),
        ("params.yaml", "seed: 0", "seed: 1", "run.seed 0 → 1"),
        ("params.yaml", "kwargs: {}", "kwargs: {step: 3}", "data.kwargs.step null → 3"),
        ("own_parts/shift.py", "# of the step", "# of every step", None),
        ("own_parts/shift.py", '"""A shift."""', '"""Another."""', None),
        ("params.yaml", "opset: 20", "opset: 21", None),
    ],
)
def test_a_stage_runs_again_for_what_shapes_it_and_says_why(
    write_params: Write, caplog: pytest.LogCaptureFixture, file: str, old: str, new: str, why: str | None
) -> None:
    write_params(None)
    _with_parts(Path())
    _prepare()
    before = WORKSPACE.folder("data").stat().st_ino
    _edit(Path(file), old, new)
    caplog.set_level("INFO", logger="secateur")
    caplog.clear()
    code("params.yaml", "artifacts", False)
    _prepare()
    if why is None:
        assert caplog.messages == ["prepare: is current"]
        assert WORKSPACE.folder("data").stat().st_ino == before
    else:
        said = f"prepare: runs again: {why}"
        assert caplog.messages[:2] == [said, said], "through both entrances"
        assert WORKSPACE.folder("data").stat().st_ino != before


def test_settings_are_read_once_and_given_to_every_stage(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Settings] = []
    given: list[Settings] = []

    def reading(path: Path) -> Settings:
        read.append(load(path))
        return read[-1]

    def noting(name: str) -> Callable[[Settings, Workspace], None]:
        def body(settings: Settings, workspace: Workspace) -> None:
            given.append(settings)
            body_of(name)(settings, workspace)

        return body

    monkeypatch.setattr(stage_runner, "load", reading)
    monkeypatch.setattr(stages, "body_of", noting)
    for folder in ("latency", "report"):
        (shop.workspace.folder(folder) / "stage.json").unlink()
    compress("params.yaml", "artifacts", False)
    assert len(read) == 1
    assert [settings is read[0] for settings in given] == [True, True]


def test_settings_edited_in_mid_run_shape_the_next_one(write_params: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(None)
    settings = load(Path("params.yaml"))

    def body(given: Settings, workspace: Workspace) -> None:
        _edit(Path("params.yaml"), "seed: 0", "seed: 1")
        assert given == settings, "read once"
        (workspace.folder("data")).mkdir()

    with holding():
        stage_runner.run_stage(_run(), "prepare", body)
        assert _current(settings), "by the settings that were used"
    assert not _current(load(Path("params.yaml")))

    shutil.rmtree("data")
    _edit(Path("params.yaml"), "seed: 1", "seed: 0")
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(WorkspaceError, match=r"params.yaml was edited while prepare ran"):
        stage_runner.run_stage(_run(), "prepare", body)


def test_own_code_that_was_executed_and_that_no_statement_leads_to_is_named(
    write_params: Write, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(None)
    Path("own_plugin.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))

    def body(settings: Settings, workspace: Workspace) -> None:
        importlib.import_module("own_plugin")  # as an installed package does that is given a name
        (workspace.folder("data")).mkdir()

    stage_runner.run_stage(_run(), "prepare", body)
    monkeypatch.delitem(sys.modules, "own_plugin")
    (said,) = [message for message in caplog.messages if "own_plugin" in message]
    assert said.startswith("prepare: executed own_plugin.py, which no import statement leads to")


def test_code_edited_in_mid_run_makes_a_result_that_is_not_taken(write_params: Write) -> None:
    write_params(None)

    def body(settings: Settings, workspace: Workspace) -> None:
        (workspace.folder("data")).mkdir(exist_ok=True)
        _edit(Path("own_project.py"), "torch.arange(0,", "torch.arange(1,")

    with pytest.raises(WorkspaceError, match="while prepare ran, module own_project was edited"):
        stage_runner.run_stage(_run(), "prepare", body)
    assert not (WORKSPACE.folder("data") / "stage.json").exists()


def test_stage_of_a_run_of_dvcs_that_executes_what_dvc_was_not_told_is_refused(
    write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(None)
    code("params.yaml", "artifacts", False)
    _edit(Path("own_project.py"), "torch.arange(0,", "torch.arange(1,")
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(WorkspaceError, match="since DVC's run began, module own_project was edited"):
        _prepare()
    assert not WORKSPACE.folder("data").exists()


def test_wrong_weights_and_their_file_make_the_baseline_run_again(write_params: Write) -> None:
    write_params(lambda settings: settings["model"].update(weights="w.pt"))
    Path("w.pt").write_bytes(b"1")
    settings = load(Path("params.yaml"))
    _prepare()
    before = fingerprint(find_stage("baseline"), settings, WORKSPACE)
    Path("w.pt").write_bytes(b"2")
    assert fingerprint(find_stage("baseline"), settings, WORKSPACE) != before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, code: Path, project_writer: Write, home: Path) -> Clone:
    """A repository in which the pipeline has finished, to be copied."""

    def write(root: Path) -> Path:
        written = project_writer(root, lambda settings: settings["prune"].update(iterations=1))
        _with_parts(root)
        return written

    clone = Clone(tmp_path_factory.mktemp("finished") / "here", code, write, home)
    clone.flow()
    return clone


NEWER = "newer/torch-99.0.dist-info/METADATA"


@pytest.mark.slow
@pytest.mark.parametrize("entrance", ["flow", "repro"])
@pytest.mark.parametrize(
    ("file", "old", "new", "only", "ran", "why"),
    [
        ("own_parts/shift.py", "SHIFT = 4", "SHIFT = 2 * 2", "prepare", ["prepare"], "own_parts.shift was edited"),
        ("own_project.py", "2 * width", "width * 2", "baseline", ["prepare", "baseline"], "own_project was edited"),
        ("own_project.py", '"""Two conv', '"""Some conv', "", [], ""),
        ("tasks/stages/prepare.py", "    begin(settings)\n", "    begin(settings)  # first\n\n", "", [], ""),
        ("pruning/errors.py", '"""', '"""Of all kinds. ', "", [], ""),
        (
            "tasks/reporting/html.py",
            "annotations\n",
            "annotations\n\nSOME = 1\n",
            "",
            ["report"],
            "tasks.reporting.html was edited",
        ),
        (NEWER, "", "Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n", "prepare", ["prepare"], "→ 99.0"),
    ],
)
def test_exactly_what_depends_on_an_edit_is_stale_through_both_entrances(
    finished: Clone, tmp_path: Path, entrance: str, file: str, old: str, new: str, only: str, ran: list[str], why: str
) -> None:
    clone = finished.copy(tmp_path / "here")
    if old:
        _edit(clone.root / file, old, new)
    else:
        (clone.root / file).parent.mkdir(parents=True)
        (clone.root / file).write_text(new, encoding="utf-8")
        clone.environment["PYTHONPATH"] = str((clone.root / file).parent.parent)
    if entrance == "flow":
        printed = clone.flow(only or "compress")
        assert re.findall(r"^(\w+): runs again", printed, re.MULTILINE) == ran[-1:]
    else:
        printed = clone.run("dvc", "repro", *([only] if only else []))
        assert re.findall(r"Running stage '(\w+)'", printed) == ["code", *ran]
    assert why in printed
    if not only:
        assert clone.status() == "up to date"
        assert "every stage is current" in clone.flow()
        assert clone.run("git", "status", "--porcelain", "--", "dvc.lock", "artifacts", "data").split() == [
            "??",
            "dvc.lock",
        ]
