"""What `secateur launch` writes is what clusters take: options of sbatch, fields of Kubernetes, Prefect's template."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from pruning.errors import SettingsError
from secateur.cli import commands
from secateur.cli.launch import launch
from tasks.clusters import KINDS, Job, as_slurm, as_train_job, as_work_pool, check_settings

Write = Callable[[Callable[[dict[str, Any]], object] | None], Path]

SBATCH = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "output", "open-mode"),
    *("partition", "account", "requeue"),
}
"""Long options of `sbatch`, by its manual of Slurm 25.05, that a script may use."""

FIELDS = json.loads((Path(__file__).parent / "kubernetes_fields.json").read_text(encoding="utf-8"))
"""Fields of the objects that are written, by kind: name -> type, or the kind of object that it holds."""

BIG = Job(
    nodes=2,
    ranks=8,
    gpus=8,
    cpus=32,
    memory=256,
    image="registry.example/secateur:1",
    folder=PurePosixPath("/shared/my project"),
    environment={"NCCL_DEBUG": "INFO", "GREETING": "it's here"},
    partition="gpu",
    account="vision",
)
SMALL = Job(image="registry.example/secateur:1")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["launch", *arguments])


def check_fields(value: Any, kind: str, where: str) -> None:
    """See that a value is of a kind: every field is known and of its type, every needed one is there."""
    if kind.startswith("[]"):
        assert isinstance(value, list), where
        for number, one in enumerate(value):
            check_fields(one, kind[2:], f"{where}[{number}]")
    elif kind.startswith("{}"):
        assert isinstance(value, Mapping), where
        for key, one in value.items():
            check_fields(one, kind[2:], f"{where}[{key!r}]")
    elif kind in ("string", "integer"):
        assert type(value) is {"string": str, "integer": int}[kind], f"{where}: {value!r}"
    else:
        fields = FIELDS[kind]
        assert isinstance(value, Mapping), where
        assert value.keys() <= fields.keys() - {"needed"}, f"{where}: {value.keys() - fields.keys()}"
        assert set(fields.get("needed", ())) <= value.keys(), where
        for key, one in value.items():
            check_fields(one, fields[key], f"{where}.{key}")


@pytest.mark.parametrize("job", [SMALL, BIG, Job(), Job(ranks=2)])
def test_the_script_is_one_of_bash_and_its_options_are_those_of_sbatch(job: Job) -> None:
    text = as_slurm(job)
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = text.splitlines()
    assert first == "#!/bin/bash"
    given = [line.removeprefix("#SBATCH --").partition("=")[::2] for line in others if line.startswith("#SBATCH")]
    assert {name for name, _ in given} <= SBATCH
    asked = dict(given)
    assert asked["nodes"] == str(job.nodes)
    assert asked["mem"] == f"{job.memory}G"
    assert asked.get("gpus-per-node") == (str(job.gpus) if job.gpus else None)
    assert text.startswith("#!/bin/bash\n#SBATCH")  # sbatch stops to read options at the first command


def test_the_script_starts_as_many_processes_as_were_asked_for(tmp_path: Path) -> None:
    """Run it, with stand-ins for Slurm's commands and torchrun that say how they were called."""
    (tmp_path / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/bash\nprintf 'node7\\nnode8\\n'\n")
    (tmp_path / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"; printf "%s" "$GREETING"\n')
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    folder = tmp_path / "a project"
    folder.mkdir()
    text = as_slurm(Job(nodes=2, ranks=2, folder=PurePosixPath(folder), environment={"GREETING": "it's $HOME"}))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42"}
    done = subprocess.run(["/bin/bash"], input=text, text=True, capture_output=True, check=True, env=environment)
    assert done.stdout.splitlines() == [
        *("--nnodes=2", "--nproc-per-node=2", "--max-restarts=0", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=node7:29500", "--rdzv-id=42", "-m", "secateur", "run"),
        *("--params", "params.yaml", "--workspace", "artifacts", "it's $HOME"),
    ]


@pytest.mark.parametrize("job", [SMALL, BIG])
def test_the_manifest_has_the_fields_of_a_train_job(job: Job) -> None:
    found = yaml.safe_load(as_train_job(job))
    check_fields(found, "TrainJob", "manifest")
    trainer = found["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (job.nodes, job.ranks)
    gpus = {"nvidia.com/gpu": str(job.gpus)} if job.gpus else {}
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": str(job.cpus), "memory": f"{job.memory}Gi", **gpus}
    assert ("torchrun" in trainer["args"][0]) == (job.nodes * job.ranks > 1)
    assert {one["name"]: one["value"] for one in trainer["env"]} == job.variables


def test_a_field_that_no_train_job_has_is_found() -> None:
    found = yaml.safe_load(as_train_job(BIG))
    found["spec"]["podTemplateOverrides"] = []
    with pytest.raises(AssertionError, match="podTemplateOverrides"):
        check_fields(found, "TrainJob", "manifest")


def test_prefect_takes_the_work_pools_template_and_makes_a_job_of_it() -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.utilities.templating import apply_values

    template = json.loads(as_work_pool(Job(gpus=1, image="registry.example/secateur:1", environment={"A": "b"})))
    pool = WorkPoolCreate(name="secateur", type="kubernetes", base_job_template=template)  # checks the placeholders
    defaults = {name: one["default"] for name, one in template["variables"]["properties"].items() if "default" in one}
    configuration = apply_values(pool.base_job_template["job_configuration"], defaults, remove_notset=True)
    check_fields(configuration["job_manifest"], "Job", "job_manifest")
    container = configuration["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["env"] == {"OMP_NUM_THREADS": "1", "A": "b"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "Big Job"}, "lower-case letters"),
        ({"environment": {"A B": "c"}}, "NAME=VALUE"),
        ({"folder": PurePosixPath("here")}, "absolute path"),
        ({"workspace": Path("/elsewhere")}, "outside of /workspace"),
        ({"partition": "gpu; rm -rf"}, "no spaces"),
        ({"gpus": 2, "ranks": 4}, "GPU of its own"),
        ({"ranks": 8, "cpus": 4}, "share --cpus 4"),
    ],
)
def test_what_no_cluster_takes_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Job(**wrong)


def test_kubernetes_needs_an_image_and_a_flow_run_is_one_pod() -> None:
    with pytest.raises(SettingsError, match="give --image"):
        as_train_job(Job())
    with pytest.raises(SettingsError, match="one pod"):
        as_work_pool(Job(nodes=2, image="one"))


def test_a_job_has_to_suit_the_settings(write_params: Write) -> None:
    params = write_params(None)
    check_settings(Job(), params)
    with pytest.raises(SettingsError, match="set it to cuda"):
        check_settings(Job(gpus=1), params)
    with pytest.raises(SettingsError, match=r"2 processes, and run\.shards is 1"):
        check_settings(Job(nodes=2), params)


def test_the_command_prints_or_writes_and_refuses_in_one_line(write_params: Write, tmp_path: Path) -> None:
    write_params(None)
    printed = call("slurm", "--cpus", "8", "--env", "A=b")
    assert printed.exit_code == 0
    assert f"cd {tmp_path}" in printed.stdout
    written = call("kubernetes", "--image", "one", "--output", "job.yaml")
    assert (written.exit_code, written.stdout) == (0, "")
    assert yaml.safe_load(Path("job.yaml").read_text())["kind"] == "TrainJob"
    for arguments in (
        ("kubernetes", "--image", "one", "--output", "job.yaml"),
        ("kubernetes",),
        ("slurm", "--env", "A"),
        ("slurm", "--gpus", "1"),
        ("slurm", "--nodes", "0"),
        ("nomad",),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 2, arguments
        assert "Traceback" not in refused.output


def test_the_command_offers_what_can_be_written() -> None:
    kind = next(one for one in launch.params if one.name == "kind")
    assert tuple(getattr(kind.type, "choices", ())) == tuple(KINDS)
