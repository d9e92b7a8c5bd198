"""Parts over processes, Ray, Dask and a Prefect work pool: the same bytes; and what happens when one is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.fan_out import fan_out
from pruning.errors import SecateurError, SettingsError, WorkspaceError
from tasks.config.schema import Settings, load
from tasks.environment import REPOSITORY
from tasks.fan_out import Part, compute
from tasks.workspace import Workspace
from tests.live import prefect_server, started, wait_until

LONGEST_S = 1500  # on a machine that others use
PLACE = Path("artifacts", "parts")
WORKSPACE = Workspace(Path("artifacts"))
RAY = {
    "factory": "prefect_ray:RayTaskRunner",
    "arguments": {"init_kwargs": {"num_cpus": 2, "include_dashboard": False}},
}
DASK = {
    "factory": "prefect_dask:DaskTaskRunner",
    "arguments": {"cluster_kwargs": {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}},
}
needs_ray = pytest.mark.skipif(find_spec("prefect_ray") is None, reason='needs pip install "secateur[ray]"')
needs_dask = pytest.mark.skipif(find_spec("prefect_dask") is None, reason='needs pip install "secateur[dask]"')

ASKING = """
from pathlib import Path
from flows.fan_out import fan_out
from tasks.config.schema import load
from tasks.fan_out import Part, compute
from tasks.workspace import Workspace

settings, place = load(Path("params.yaml")), Path("artifacts", "parts")
with fan_out(settings) as elsewhere:
    parts = [
        Part(name, "tests.parts:write", {"text": name, "seconds": 600.0}, (place / f"{name}.txt",)) for name in "abc"
    ]
    compute(parts, elsewhere, settings, Workspace(Path("artifacts")), "prepare", place)
"""


def settings_with(write_params: Callable[..., Path], **machine: Any) -> Settings:
    return load(write_params(lambda given: given.update(machine={"processes": 2, **machine})))


def part(name: str, work: str = "write", **arguments: Any) -> Part:
    given = {"text": name, **arguments} if work == "write" else arguments
    return Part(name, f"tests.parts:{work}", given, (PLACE / f"{name}.txt",))


def run(parts: list[Part], settings: Settings) -> None:
    with fan_out(settings) as elsewhere:
        assert elsewhere is not None
        compute(parts, elsewhere, settings, WORKSPACE, "prepare", PLACE)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in process.children(recursive=True) if "tasks.part_worker" in " ".join(one.cmdline())]


def test_nothing_is_divided_by_default(write_params: Callable[..., Path]) -> None:
    with fan_out(load(write_params(None))) as elsewhere:
        assert elsewhere is None


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"work_pool": "gpus", "processes": 1}, "nothing would be divided into parts; set processes"),
        ({"work_pool": "gpus", "task_runner": RAY}, "both given"),
        ({"task_runner": {"factory": "prefect_ray"}}, "no import string"),
        ({"task_runner": {"factory": "nowhere_at_all:Runner"}}, "no module 'nowhere_at_all'"),
        ({"patience_minutes": 0}, "patience_minutes"),
    ],
    ids=["one process", "two places", "no import string", "no module", "no patience"],
)
def test_settings_that_make_no_sense_are_refused(
    write_params: Callable[..., Path], machine: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        settings_with(write_params, **machine)


@pytest.mark.parametrize(("runner", "extra"), [(RAY, "ray"), (DASK, "dask")], ids=["ray", "dask"])
def test_a_missing_extra_is_named_with_its_pip_line(
    write_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, runner: dict[str, Any], extra: str
) -> None:
    monkeypatch.setattr("tasks.config.types.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=rf'isn.t installed; run `pip install "secateur\[{extra}\]"`'):
        settings_with(write_params, task_runner=runner)


@pytest.mark.thorough
def test_the_product_imports_neither_ray_nor_dask() -> None:
    code = (
        "import sys, secateur.cli, flows.fan_out, flows.part; print({'ray', 'dask', 'distributed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.thorough
def test_a_process_that_is_killed_costs_its_part_and_leaves_none_behind(
    write_params: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_with(write_params)
    run([part("one", "die_first", asker=os.getpid()), part("two")], settings)
    assert (PLACE / "one.txt").read_text() == "after all 0 artifacts"
    assert (PLACE / "two.txt").read_text() == "two 0 artifacts"
    assert "one wasn't delivered: its process was killed by signal 9" in caplog.text
    assert not workers_of(psutil.Process())


@pytest.mark.thorough
def test_a_fault_is_raised_as_it_is_and_ends_the_other_processes(write_params: Callable[..., Path]) -> None:
    begin = time.monotonic()
    with pytest.raises(SecateurError, match="the loss is not finite"):
        run([part("one", "fail"), part("two", seconds=300.0)], settings_with(write_params))
    assert time.monotonic() - begin < 200
    assert not workers_of(psutil.Process())


@pytest.mark.slow
def test_processes_end_when_the_one_that_asked_for_them_is_killed(write_params: Callable[..., Path]) -> None:
    settings_with(write_params)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    asking = subprocess.Popen([sys.executable, "-c", ASKING], env=environment)
    begun, until = [PLACE / "a.alive", PLACE / "b.alive"], time.monotonic() + 120
    while not all(path.exists() for path in begun) and time.monotonic() < until:
        time.sleep(0.5)
    workers = workers_of(psutil.Process(asking.pid))
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(workers) == 2
    assert not alive


@needs_dask
@pytest.mark.slow
def test_a_dask_cluster_that_is_not_there_is_one_clear_message(write_params: Callable[..., Path]) -> None:
    runner = {
        "factory": DASK["factory"],
        "arguments": {"address": "tcp://127.0.0.1:1", "client_kwargs": {"timeout": 2}},
    }
    with pytest.raises(
        WorkspaceError, match=r"DaskTaskRunner with .*127\.0\.0\.1:1.* can't be used .*start the cluster"
    ):
        run([part("one")], settings_with(write_params, task_runner=runner))


@needs_ray
@pytest.mark.slow
def test_a_ray_cluster_that_is_not_there_is_one_clear_message(write_params: Callable[..., Path]) -> None:
    runner = {"factory": RAY["factory"], "arguments": {"address": "127.0.0.1:1"}}
    with pytest.raises(WorkspaceError, match=r"RayTaskRunner with .*0\.1:1.* can't be used .*start the cluster"):
        run([part("one")], settings_with(write_params, task_runner=runner))


def test_a_work_pool_without_a_server_is_one_clear_message(
    write_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.offline._address", lambda: None)
    with pytest.raises(WorkspaceError, match=r"machine\.work_pool needs a Prefect server .*set PREFECT_API_URL"):
        run([part("one")], settings_with(write_params, work_pool="gpus"))
    monkeypatch.setattr("flows.offline._address", lambda: "http://127.0.0.1:1/api")
    with pytest.raises(WorkspaceError, match=r"http://127\.0\.0\.1:1/api doesn't answer; start it"):
        run([part("one")], settings_with(write_params, work_pool="gpus"))


PROGRAM = """
import json, os, sys
os.environ["DVC_STAGE"] = "tests"  # stages are plain calls; the cluster alone is Prefect's
import flows.prefect_adapter
del os.environ["DVC_STAGE"]
from pathlib import Path
from flows.fan_out import fan_out
from tasks.config.schema import load
from tasks.fingerprint import fingerprint
from tasks.stage_table import STAGES, body_of
from tasks.workspace import Workspace, seal

settings, workspace = load(Path("params.yaml")), Workspace(Path("artifacts"))
with fan_out(settings) as parts:
    for stage in STAGES[: [stage.name for stage in STAGES].index("prune") + 1]:
        if stage.name in ("prepare", "baseline") and workspace.folder(stage.folder).exists():
            continue
        more = {"fan_out": parts} if stage.name in ("analyze", "prune") else {}
        body_of(stage.name)(settings, workspace, **more)
        seal(workspace.folder(stage.folder), fingerprint(stage, settings, workspace))
"""


class Project:
    """A project whose analysis and loop are run again and again, each time by another cluster."""

    def __init__(self, root: Path, writer: Callable[..., Path]) -> None:
        self.root, self._writer = root, writer

    def run(self, machine: dict[str, Any], **environment: str) -> str:
        """Run both stages in a process of their own; return what it said."""
        process = self.start(machine, **environment)
        said, _ = process.communicate(timeout=LONGEST_S)
        assert process.returncode == 0, said[-4000:]
        return said

    def start(self, machine: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
        for name in ("analysis", "iterations", "measurements", ".analysis.unfinished", ".training.unfinished"):
            shutil.rmtree(self.root / "artifacts" / name, ignore_errors=True)
        self._writer(self.root, lambda given: self._change(given, machine))
        return subprocess.Popen(
            [sys.executable, "-c", f"import logging; logging.basicConfig(level=logging.INFO)\n{PROGRAM}"],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def _change(given: dict[str, Any], machine: dict[str, Any]) -> None:
        given["analyze"]["for_report"] = True
        given["prune"].update(iterations=1, allocation={"strategy": "trial"})
        if machine:
            given["machine"] = machine

    def hashes(self) -> dict[str, str]:
        """Return what both stages wrote."""
        folders = (self.root / "artifacts" / name for name in ("analysis", "iterations"))
        return {
            str(path.relative_to(self.root)): sha256(path.read_bytes()).hexdigest()
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="module")
def serial(
    tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]
) -> tuple[Project, dict[str, str]]:
    """The project, and the bytes that one process writes."""
    project = Project(tmp_path_factory.mktemp("project"), project_writer)
    project.run({})
    return project, project.hashes()


@pytest.mark.timeout(2 * LONGEST_S)
@pytest.mark.slow
@pytest.mark.parametrize(
    "runner",
    [
        pytest.param(None, id="processes"),
        pytest.param(RAY, id="ray", marks=needs_ray),
        pytest.param(DASK, id="dask", marks=needs_dask),
    ],
)
def test_analysis_allocations_and_recipes_give_the_same_bytes_everywhere(
    serial: tuple[Project, dict[str, str]], runner: dict[str, Any] | None
) -> None:
    project, expected = serial
    said = project.run({"processes": 2} if runner is None else {"processes": 2, "task_runner": runner})
    assert project.hashes() == expected
    assert len(expected) > 8
    assert "computed here" not in said


@pytest.mark.timeout(2 * LONGEST_S)
@pytest.mark.slow
def test_a_work_pool_gives_the_same_bytes_also_when_a_run_is_killed(
    serial: tuple[Project, dict[str, str]], tmp_path: Path
) -> None:
    """Prefect's own process worker serves the pool. Before it is there, both that and the pool are asked for."""
    project, expected = serial
    tools = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    machine = {"processes": 2, "work_pool": "parts"}
    with prefect_server(tmp_path, environment, tmp_path / "server.log") as api:
        there = {"PREFECT_API_URL": api, "PREFECT_HOME": environment["PREFECT_HOME"]}
        asking = project.start(machine, **there)
        assert "isn't known to Prefect's server" in asking.communicate(timeout=300)[0]
        prefect = [f"{tools}/prefect"]
        environment |= there
        subprocess.run([*prefect, "work-pool", "create", "parts", "--type", "process"], env=environment, check=True)
        asking = project.start(machine, **there)
        assert "has no worker at work; start one by `prefect worker start --pool parts`" in asking.communicate()[0]
        command = [*prefect, "worker", "start", "--pool", "parts", "--limit", "2"]
        log = tmp_path / "worker.log"
        with started(command, tmp_path, environment, log):
            wait_until("the worker", lambda: "started" in log.read_text(errors="replace"), log)
            time.sleep(3)
            assert "computed here" not in project.run(machine, **there)
            assert project.hashes() == expected
            asking = project.start(machine, **there)
            parts = project.root / "artifacts/.analysis.unfinished"
            wait_until("a part", lambda: bool(list(parts.glob("*/parts/*.alive"))), log)
            killed = [one for one in psutil.process_iter() if one.pid != asking.pid and is_part(one, project.root)]
            killed[0].kill()
            said, _ = asking.communicate(timeout=LONGEST_S)
            assert asking.returncode == 0, said[-3000:]
            assert project.hashes() == expected


def is_part(process: psutil.Process, root: Path) -> bool:
    """Say whether a process is a flow run that computes parts of the project."""
    try:
        return Path(process.cwd()) == root and "prefect" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.timeout(2 * LONGEST_S)
@pytest.mark.slow
@pytest.mark.parametrize(
    "runner", [pytest.param(RAY, id="ray", marks=needs_ray), pytest.param(DASK, id="dask", marks=needs_dask)]
)
def test_a_worker_of_a_cluster_that_is_killed_costs_nothing_but_time(
    serial: tuple[Project, dict[str, str]], runner: dict[str, Any]
) -> None:
    project, expected = serial
    asking = project.start({"processes": 2, "task_runner": runner})
    parts, until = project.root / "artifacts/.analysis.unfinished", time.monotonic() + 300
    while not list(parts.glob("*/parts/*.alive")) and time.monotonic() < until:
        time.sleep(0.1)
    found = psutil.process_iter()
    workers = [one for one in found if "tasks.part_worker" in " ".join(_cmdline(one)) and _cwd(one) == project.root]
    parent = workers[0].parent()
    assert parent is not None
    parent.kill()
    said, _ = asking.communicate(timeout=LONGEST_S)
    assert asking.returncode == 0, said[-4000:]
    assert project.hashes() == expected


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _cwd(process: psutil.Process) -> Path | None:
    try:
        return Path(process.cwd())
    except psutil.Error:
        return None


IN_A_FLOW = """
import json, sys
from pathlib import Path
from flows.prefect_adapter import flow, run_id, use_prefect
from flows.fan_out import fan_out
from tasks.config.schema import load
from tasks.fan_out import Part, compute
from tasks.workspace import Workspace

@flow(name="asking")
def asking():
    settings, place = load(Path("params.yaml")), Path("artifacts", "parts")
    with fan_out(settings) as elsewhere:
        parts = [Part(name, "tests.parts:write", {"text": name}, (place / f"{name}.txt",)) for name in "abc"]
        compute(parts, elsewhere, settings, Workspace(Path("artifacts")), "prepare", place)
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        print(json.dumps(sorted(run.name for run in client.read_task_runs())))

use_prefect()
asking()
"""


@pytest.mark.slow
def test_processes_of_a_flow_are_tasks_on_its_page(write_params: Callable[..., Path], tmp_path: Path) -> None:
    settings_with(write_params)
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", IN_A_FLOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["a", "b", "c"]
