"""What holds for the repository as a whole."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.environment import DEFAULTS, REPOSITORY

PACKAGES = ("secateur", "pruning", "zoo", "tasks", "flows")
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def test_prefect_server_can_be_imported_with_the_pinned_fastapi() -> None:
    import prefect.server.api.server

    assert callable(prefect.server.api.server.create_app)
    assert pins()["sqlalchemy"].startswith("2.0."), "with 2.1 the server's scheduler inserts no runs"
    assert (0, 139) <= tuple(int(part) for part in pins()["fastapi"].split(".")[:2]) < (0, 151)


def test_every_dependency_is_pinned_and_no_pin_names_a_place() -> None:
    found = pins()
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["pipeline"], *extras["dev"]]
    names = {re.split(r"[<>=!~\[ ]", entry, maxsplit=1)[0].lower() for entry in wanted} - {"secateur"}
    assert names <= set(found), names - set(found)
    assert found["torch"] == "2.13.0"
    assert "://" not in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")


def test_pins_are_compared_with_known_vulnerabilities() -> None:
    checker = runpy.run_path(str(REPOSITORY / ".ci/advisories.py"))
    known = tomllib.loads((REPOSITORY / ".ci/advisories.toml").read_text(encoding="utf-8"))
    later = tomllib.loads((REPOSITORY / ".ci/later-advisories.toml").read_text(encoding="utf-8"))
    accepted = tomllib.loads((REPOSITORY / ".ci/accepted-advisories.toml").read_text(encoding="utf-8"))
    affecting = checker["affecting"]
    assert {**affecting(pins(), known), **affecting(pins(), later)}.keys() == accepted.keys()
    assert affecting({"aiohttp": "3.7.3"}, known).keys() >= {"PYSEC-2021-76", "PYSEC-2023-120"}
    assert affecting({"mlflow": "3.10.0"}, later).keys() == {"PYSEC-2026-93"}
    events = [{"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "2.0"}, {"last_affected": "2.1"}]
    found = checker["ranges_of"]({"ranges": [{"type": "ECOSYSTEM", "events": events}]})
    assert found == [">=0,<1.2", ">=2.0,<=2.1"]


@pytest.mark.parametrize(
    ("tool", "owners"),
    [
        (
            "mlflow",
            {
                "mlflow_client.py",
                "mlflow_runs.py",
                "mlflow_models.py",
                "register.py",
                "cleanup.py",
            },
        ),
        ("dvc", {"dvc_repo.py"}),
        ("yaml", {"yaml_io.py", "migration.py"}),
    ],
)
def test_few_files_know_a_tool(tool: str, owners: set[str]) -> None:
    pattern = re.compile(rf"^\s*(import|from) {tool}\b", re.MULTILINE)
    found = {path.name for path in sources(*PACKAGES) if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == owners


def test_prefect_is_known_to_the_engine_its_servers_and_what_goes_on_without_it() -> None:
    pattern = re.compile(r"^\s*(import|from) prefect\b", re.MULTILINE)
    found = {path.name for path in sources(*PACKAGES) if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == {"prefect_adapter.py", "offline.py", "fan_out.py", "temporary_server.py", "serve.py", "worker.py"}


def test_no_code_of_the_product_unpickles() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in forbidden:
                assert node.attr.endswith("Error"), f"{path}:{node.lineno} calls {node.value.id}.{node.attr}"
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not {name.name for name in node.names} & (forbidden - {"pickle"}), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call):
                called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                if called == "torch.load":
                    assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
                assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
    assert DEFAULTS["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_telemetry_is_off_before_any_tool_is_imported() -> None:
    code = "import os, tasks; print(*(os.environ[name] for name in ('DO_NOT_TRACK', 'MLFLOW_DISABLE_TELEMETRY')))"
    bare = {key: value for key, value in os.environ.items() if key not in DEFAULTS}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=bare, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["true", "true"]
    config = (REPOSITORY / ".dvc" / "config").read_text(encoding="utf-8")
    for line in ("analytics = false", "check_update = false", "autostage = false"):
        assert line in config


def test_variable_that_is_set_already_stays() -> None:
    code = "import os, tasks; print(os.environ['PREFECT_HOME'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PREFECT_HOME": "mine"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "mine"


def test_make_lists_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    printed = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for target in phony[1].split():
        assert re.search(rf"make {target}\s+\S", printed), target
    wanted = {"install", "run", "test", "test-thorough", "test-all", "check", "repro", "wheel", "ui", "serve", "clean"}
    assert wanted <= set(phony[1].split())


def test_every_page_is_in_the_navigation_and_every_decision_has_a_number_of_its_own() -> None:
    pages = {path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").rglob("*.md")}
    listed = re.findall(r": (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)
    numbers = [Path(page).name[:4] for page in pages if page.startswith("decisions/")]
    assert len(numbers) == len(set(numbers))


def test_git_ignores_everything_that_a_run_writes() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [next(iter(out)) if isinstance(out, dict) else out for stage in stages.values() for out in stage["outs"]]
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()
    for out in outs:
        assert f"/{out.split('/')[0]}/" in ignored, out
    for place in ("/.prefect/", "/mlartifacts/", "/mlflow.db*", "/.venv/"):
        assert place in ignored


def test_every_package_is_under_the_import_contracts() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert packages == {*PACKAGES, "benchmarks"} == set(PROJECT["tool"]["importlinter"]["root_packages"])


def test_modules_are_short_and_named_for_a_subject() -> None:
    for path in sources(*PACKAGES):
        assert path.stem not in {"utils", "helpers", "common", "base", "misc"}, path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_public_functions_take_at_most_eight_parameters() -> None:
    many = []
    for path in sources(*PACKAGES):
        if path.parent.name == "cli":  # a command's parameters are its options
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > 8:
                    many.append(f"{path.relative_to(REPOSITORY)}: {node.name}")
    assert not many


@pytest.mark.parametrize(
    ("sign", "place"),
    [
        (r"_schema\.arguments\b.*\n\s*\}", "pruning/graph/rules/call.py"),  # an operator's arguments by name
        (r"named_buffers\(remove_duplicate=False\)", "pruning/graph/dispatch.py"),  # a model's state by name
        (r"int\.from_bytes\(digest", "pruning/statistics/collect.py"),  # a generator of a group's or layer's own
        (r"^\w*(TOLERANCE|DIFFERENCE) = 1e-4$", "pruning/plan/verification.py"),  # what counts as the same function
        (r"'\s?\|\s?'\.join", "tasks/reporting/tables.py"),  # a table in Markdown
        (r"\(module, module\.training\)", "pruning/evaluation.py"),  # training modes, saved and restored
        (r"_ASIDE = ", "pruning/io/files.py"),  # a folder in another's place
    ],
)
def test_one_thing_is_done_in_one_place(sign: str, place: str) -> None:
    found = [path for path in sources(*PACKAGES) if re.search(sign, path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert [path.relative_to(REPOSITORY).as_posix() for path in found] == [place]
