"""The command `secateur`: help at once, exit codes, and the same code as `python -m flows.<name>`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import secateur
from flows.stages import FLOWS
from secateur.cli import commands
from secateur.cli.terminal import STAGES
from secateur.packages import EXTRAS, HOME, PACKAGES
from tasks.config import reference
from tasks.environment import REPOSITORY
from tasks.registry.restore import PARTS
from tasks.stage_table import NAMES

Write = Callable[[Callable[[dict[str, Any]], object] | None], Path]
HEAVY = ("torch", "numpy", "pydantic", "prefect", "mlflow", "dvc", "onnx", "rich", "yaml")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(commands, [*arguments])


def test_help_imports_nothing_heavy_whatever_the_command() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from secateur.cli import commands\n"
        "done = [CliRunner().invoke(commands, [*name, '--help']) for name in [[], *([n] for n in commands.commands)]]\n"
        f"print([d.exit_code for d in done], [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    codes, heavy = done.stdout.rstrip().split("] ")
    assert set(codes.strip("[").split(", ")) == {"0"}
    assert heavy == "[]"


def test_help_fits_into_80_columns_and_says_the_exit_codes() -> None:
    for name in ((), *((name,) for name in commands.commands)):
        printed = call(*name, "--help").output
        assert all(len(line) <= 80 for line in printed.splitlines()), name
        assert "..." not in printed.partition("Commands:")[2]
    assert "Exit codes: 0 done; 1" in call("--help").output
    assert call("--version").output.split()[-1] == secateur.__version__


def test_what_the_command_line_says_by_itself_is_what_the_pipeline_says() -> None:
    assert STAGES == NAMES
    restore = next(option for option in commands.commands["restore"].params if option.name == "without")
    assert tuple(getattr(restore.type, "choices", ())) == PARTS


def test_shells_are_told_how_to_complete() -> None:
    assert "_SECATEUR_COMPLETE=bash_complete" in call("completion", "bash").output
    environment = {
        **os.environ,
        "COMP_WORDS": "secateur run p",
        "COMP_CWORD": "2",
        "_SECATEUR_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [sys.executable, "-m", "secateur"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["plain,prepare", "plain,profile", "plain,prune"]
    assert [call("completion", shell).exit_code for shell in ("bash", "zsh", "fish")] == [0, 0, 0]


@pytest.mark.parametrize("arguments", [("params", "--all"), ("params", "--json-schema")])
def test_a_reader_that_has_enough_ends_the_command_as_the_signal_would(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "secateur", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_help_that_cannot_be_written_is_one_message() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "secateur", "--help"]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "secateur: the output can't be written: No space left on device"
    assert "Traceback" not in done.stderr


def test_wrong_stage_names_the_nearest_one() -> None:
    done = call("run", "prun")
    assert done.exit_code == 2
    assert "did you mean 'prune'" in done.output


def test_every_setting_has_a_meaning_and_a_first_run_needs_eight() -> None:
    found = reference.rows()
    assert not [row.path for row in found if not row.meaning]
    assert len(reference.first_rows()) == len(reference.FIRST) == 8
    printed = call("params", "--all").output
    assert all(row.path in printed for row in found)
    assert "prune.backoff: number, > 0, < 1; default 0.5" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    paths = [row.path for row in found]
    assert [paths.count(name) for name in ("prune.kind", "prune.target", "prune.criterion")] == [1, 1, 2]
    [ridge] = [row for row in found if row.path == "prune.recover.ridge"]
    assert ridge.kinds == ("structured",)
    assert "prune.gates.ramp: number, > 0, ≤ 1; default 0.5; of kind dynamic" in printed
    assert "did you mean 'prune.target'" in call("params", "prune.targt").output


def test_an_old_settings_file_is_rewritten_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((REPOSITORY / "tests/tasks/config/old_params/before_the_names.yaml").read_bytes())
    first, second = call("params", "--migrate", str(path)), call("params", "--migrate", str(path))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "tidy is cleanup now" in first.output
    assert second.output == f"{path} has the names of today; it was left as it is\n"
    path.write_text("tody: {}\n", encoding="utf-8")
    assert call("params", "--migrate", str(path)).exit_code == 2


def test_schema_for_editors_takes_the_shipped_file() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(call("params", "--json-schema").output)
    shipped = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(shipped, schema)
    sparse = {"kind": "unstructured", "target": {"weight_sparsity": 0.9}}
    for prune in ({"target": {"mac_reduction": 0.5}}, sparse):
        jsonschema.validate({**shipped, "prune": prune}, schema)
    for wrong in ({**shipped["prune"], "creterion": "x"}, {**shipped["prune"], "gates": {}}, {**sparse, "recover": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**shipped, "prune": wrong}, schema)


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote",),
        ("rollback",),
        ("restore", "--version", "1", "--into", "x"),
        ("cleanup",),
        ("frontier",),
        ("ui",),
        ("serve",),
    ],
)
def test_faults_are_signed_with_the_command_that_was_called(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"secateur {arguments[0]}: there is no settings file params.yaml")


def test_status_and_explain_say_how_stages_stand_and_why(write_params: Write) -> None:
    write_params(None)
    done = call("status", "--json")
    assert done.exit_code == 1
    assert json.loads(done.output)["stages"][0] == {
        "stage": "prepare",
        "state": "not run",
        "reasons": ["it hasn't run"],
    }
    assert not Path("artifacts").exists()

    FLOWS["prepare"]("params.yaml", "artifacts", False)
    assert call("explain", "prepare").output == "prepare: current\n"
    assert call("explain", "prepare").exit_code == 0
    assert call("explain", "baseline").exit_code == 1

    write_params(lambda s: s["run"].update(seed=1))
    done = call("explain", "prepare")
    assert done.exit_code == 1
    assert done.output == "prepare: changed\n  run.seed 0 → 1\n"
    write_params(None)
    with Path("own_project.py").open("a") as file:
        file.write("\nCHANGED = 1\n")
    assert "module own_project was edited" in call("explain", "prepare").output
    assert call("status").output.splitlines()[1].split()[:3] == ["prepare", "changed", "module"]


def test_a_setting_for_once_makes_a_trial_beside(write_params: Write) -> None:
    write_params(None)
    before = Path("params.yaml").read_bytes()
    done = call("run", "prepare", "--set", "prune.target.mac_reduction=0.4", "--set", "prune.recipes.0.epochs=1")
    assert done.exit_code == 0, done.output
    workspace = Path("trials/mac_reduction-0.4_epochs-1")
    trial = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    assert trial["prune"]["target"] == {"mac_reduction": 0.4}
    assert trial["prune"]["recipes"][0]["epochs"] == 1
    assert trial["tracking"]["model_name"] == "small-trials"
    assert (workspace / "data" / "stage.json").exists()
    assert Path("params.yaml").read_bytes() == before
    assert not Path("artifacts").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prune.target.mac_reducton=0.4", "did you mean 'mac_reduction'"),
        ("prune.iterations=many", "prune.iterations: found 'many'"),
        ("prune.recipes.7.epochs=1", "prune.recipes is a list of 2, which has no '7'"),
        ("prune.iterations", "is no PATH=VALUE"),
        ("prune.ignore=[fc", "is not valid YAML"),
    ],
)
def test_wrong_setting_for_once_is_one_message(write_params: Write, change: str, message: str) -> None:
    write_params(None)
    done = call("run", "--set", change)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("trials").exists()


def test_trial_takes_over_what_it_does_not_shape(write_params: Write) -> None:
    write_params(None)
    FLOWS["prepare"]("params.yaml", "artifacts", False)
    assert call("run", "prepare", "--set", "prune.target.mac_reduction=0.4", "--workspace", "other").exit_code == 0
    assert Path("other/data/train.safetensors").samefile("data/train.safetensors")
    assert "needs a workspace of its own" in call("run", "--set", "run.seed=1", "--workspace", "artifacts").stderr


def test_missing_extra_is_named_with_its_line(tmp_path: Path) -> None:
    """In an empty folder: where a run has nothing to do, as perhaps in this repository, it needs no extra."""
    code = (
        "import sys; sys.modules['prefect'] = sys.modules['onnxruntime'] = sys.modules['onnx'] = None\n"
        "sys.argv[1:] = ['run']\n"
        "from secateur.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("install it with: pip install 'secateur[pipeline]'")
    assert done.stderr.startswith("secateur run needs ")


def test_own_packages_win_over_folders_of_the_same_names(tmp_path: Path) -> None:
    for name in ("flows", "tasks", "zoo", "pruning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('of the user')\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(HOME)])}
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "status"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "secateur status: there is no settings file params.yaml" in done.stderr
    assert set(PACKAGES) == {path.parent.name for path in HOME.glob("*/__init__.py")} - {"benchmarks"}


def test_facade_is_lazy_and_gives_the_library_names() -> None:
    code = "import sys, secateur; print('torch' in sys.modules, 'pruning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    wanted = "find_groups make_plan narrow apply_masks reconstruct calibrate evaluate finetune recalibrate profile"
    wanted += " export_onnx save_checkpoint load_checkpoint errors count_macs"
    assert set(wanted.split()) <= set(secateur.__all__)
    assert all(getattr(secateur, name) is not None for name in secateur.__all__)
    assert dir(secateur) == sorted(secateur.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        secateur.prun  # noqa: B018


def test_extras_name_what_the_project_file_lists() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])
