"""What Slurm, Kubernetes and Prefect's Kubernetes workers need to run a project: a script, a manifest, a template.

The same command runs everywhere, `secateur run`; where several processes train together, `torchrun` starts it on every
node: rank 0 runs the pipeline, the others take part in its training. All nodes see one folder, the project's.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pruning.errors import SettingsError
from tasks.config.schema import load
from tasks.config.yaml_io import as_yaml

PORT = 29500
"""Where the processes of a job find each other, as torch has it."""

RUNTIME = "torch-distributed"
"""The ClusterTrainingRuntime that Kubeflow Trainer installs for PyTorch."""

FOLDER = PurePosixPath("/workspace")
"""Where containers see the project."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """A run on a cluster.

    Attributes:
        name: Of the job: lower-case letters, digits, dashes; 63 characters at most.
        nodes: How many machines.
        ranks: Processes on each that train together.
        cpus: Cores of each node.
        gpus: GPUs of each node.
        memory: GiB of each node.
        hours: After which the cluster ends it.
        folder: The project's, by its path on the nodes; all see the same.
        params: The settings file, from there.
        workspace: Of the run, from there.
        image: The container's.
        environment: Variables of the run.
        partition: Of Slurm; its default if None.
        account: Of Slurm; the user's if None.
        namespace: Of Kubernetes.
        claim: The PersistentVolumeClaim that holds the folder, on Kubernetes.

    Raises:
        SettingsError: A value is none that the cluster takes.
    """

    name: str = "secateur"
    nodes: int = 1
    ranks: int = 1
    cpus: int = 4
    gpus: int = 0
    memory: int = 16
    hours: int = 24
    folder: PurePosixPath = FOLDER
    params: Path = Path("params.yaml")
    workspace: Path = Path("artifacts")
    image: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    partition: str | None = None
    account: str | None = None
    namespace: str = "default"
    claim: str = "secateur"

    def __post_init__(self) -> None:
        for what, one in (("--name", self.name), ("--namespace", self.namespace), ("--claim", self.claim)):
            if not _NAME.fullmatch(one):
                raise SettingsError(f"{what} {one!r}: expected lower-case letters, digits and dashes, 63 at most")
        for key in self.environment:
            if not _VARIABLE.fullmatch(key):
                raise SettingsError(f"--env {key!r}: expected NAME=VALUE, the name of letters, digits and underscores")
        if not self.folder.is_absolute():
            raise SettingsError(f"--folder {str(self.folder)!r}: expected the absolute path that all nodes see")
        for what, path in (("--params", self.params), ("--workspace", self.workspace)):
            if path.is_absolute() and not PurePosixPath(path).is_relative_to(self.folder):
                raise SettingsError(
                    f"{what} {path} lies outside of {self.folder}, which the nodes see; give a path below it"
                )
        for what, text in (("--partition", self.partition), ("--account", self.account), ("--image", self.image)):
            if text is not None and not re.fullmatch(r"[\w./:@#,+-]+", text):
                raise SettingsError(f"{what} {text!r}: expected no spaces and no quotes")
        if self.gpus and self.ranks > self.gpus:
            raise SettingsError(
                f"--ranks {self.ranks} processes on each node share --gpus {self.gpus}; give each rank a GPU of its own"
            )
        if self.ranks > self.cpus:
            raise SettingsError(f"--ranks {self.ranks} processes on each node share --cpus {self.cpus}; ask for more")

    @property
    def is_together(self) -> bool:
        """Whether several processes train together."""
        return self.nodes * self.ranks > 1

    @property
    def run(self) -> list[str]:
        """The command of the pipeline, as arguments."""
        return ["secateur", "run", "--params", str(self.params), "--workspace", str(self.workspace)]

    @property
    def variables(self) -> dict[str, str]:
        """What the run finds in its environment: torch's threads are set by `run.threads`."""
        return {"OMP_NUM_THREADS": "1", **self.environment}


def check_settings(job: Job, params: Path) -> None:
    """See that the project's settings suit a job.

    Args:
        job: That runs them.
        params: The settings file, here.

    Raises:
        SettingsError: They are wrong, or ask for another device, or for fewer processes.
    """
    settings = load(params)
    on_gpu, ranks = settings.run.device.startswith("cuda"), job.nodes * job.ranks
    if on_gpu and not job.gpus:
        raise SettingsError(f"run.device is {settings.run.device!r}, but the job asks for no GPU: add --gpus")
    if job.gpus and not on_gpu:
        raise SettingsError(f"--gpus {job.gpus}, but run.device is {settings.run.device!r}: set it to cuda")
    shards: int = getattr(settings.run, "shards", 1)
    if ranks > shards:
        raise SettingsError(
            f"{job.nodes} nodes with {job.ranks} ranks each are {ranks} processes, and run.shards is {shards}: a batch "
            f"is divided into no more. Set run.shards to {ranks} or more, or ask for fewer"
        )


def as_slurm(job: Job) -> str:
    """Return a script for `sbatch`, to be submitted anywhere."""
    asked: dict[str, object | None] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or None,
        "mem": f"{job.memory}G",
        "time": f"{job.hours}:00:00",
        "output": f"{job.name}-%j.log",
        "open-mode": "append",
        "partition": job.partition,
        "account": job.account,
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None)]
    lines += ["#SBATCH --requeue", "", "# A run that was ended goes on where it was: submit the same script again."]
    lines += ["set -euo pipefail", f"cd {shlex.quote(str(job.folder))}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.variables.items()]
    start = "srun"
    if job.image is not None:
        lines.append("# --container-image is an option of the plugin pyxis.")
        start += f" --container-image={job.image} --container-mounts={shlex.quote(f'{job.folder}:{job.folder}')}"
        start += f" --container-workdir={shlex.quote(str(job.folder))}"
    if not job.is_together:
        return "\n".join([*lines, f"{start} {shlex.join(job.run)}", ""])
    lines.append("""first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)""")
    torchrun = [
        f"{start} torchrun --nnodes={job.nodes} --nproc-per-node={job.ranks} --max-restarts=0",
        f'--rdzv-backend=c10d --rdzv-endpoint="$first:{PORT}" --rdzv-id="$SLURM_JOB_ID"',
        f"-m {shlex.join(job.run)}",
    ]
    return "\n".join([*lines, " \\\n  ".join(torchrun), ""])


def as_train_job(job: Job) -> str:
    """Return the manifest of a TrainJob of Kubeflow Trainer v2 (2.2 or later), which sets what `torchrun` reads.

    Raises:
        SettingsError: There is no image.
    """
    start = ["torchrun", "--max-restarts=0", "-m", *job.run] if job.is_together else job.run
    amounts = _amounts(job)
    pod = {
        "volumes": [{"name": "project", "persistentVolumeClaim": {"claimName": job.claim}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "project", "mountPath": str(job.folder)}]}],
    }
    patched = {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}
    manifest = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.name, "namespace": job.namespace},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "activeDeadlineSeconds": job.hours * 3600,
            "trainer": {
                "image": _image(job),
                "numNodes": job.nodes,
                "numProcPerNode": job.ranks,
                "command": ["bash", "-c"],
                "args": [f"cd {shlex.quote(str(job.folder))} && exec {shlex.join(start)}"],
                "env": [{"name": name, "value": value} for name, value in job.variables.items()],
                "resourcesPerNode": {"requests": amounts, "limits": amounts},
            },
            "runtimePatches": [
                {"manager": "secateur.launch/manager", "trainingRuntimeSpec": {"template": {"spec": patched}}}
            ],
        },
    }
    return as_yaml(manifest)


def as_work_pool(job: Job) -> str:
    """Return the base job template of a Prefect work pool of type kubernetes, as JSON.

    Raises:
        SettingsError: There is no image, or several processes are to train together, which a flow run can't begin.
    """
    if job.nodes > 1:
        raise SettingsError(
            "a flow run of Prefect is one pod: expected --nodes 1. Several nodes train together by `secateur launch "
            "kubernetes` or `slurm`"
        )
    variables = {
        "name": {"type": "string", "title": "Name", "default": job.name},
        "namespace": {"type": "string", "title": "Namespace", "default": job.namespace},
        "image": {"type": "string", "title": "Image", "default": _image(job)},
        "command": {"type": "string", "title": "Command", "description": "Left out: Prefect's own."},
        "env": _mapping("Environment", dict(job.variables)),
        "labels": _mapping("Labels", {}),
        "cpu": {"type": "string", "title": "Cores", "default": str(job.cpus)},
        "memory": {"type": "string", "title": "Memory", "default": f"{job.memory}Gi"},
        "gpus": {"type": "string", "title": "GPUs", "default": str(job.gpus)},
        "seconds": {"type": "integer", "title": "Seconds until it is ended", "default": job.hours * 3600},
        "finished_job_ttl": {"type": "integer", "title": "Seconds that a finished job is kept", "default": 3600},
    }
    amounts = {"cpu": "{{ cpu }}", "memory": "{{ memory }}", **({"nvidia.com/gpu": "{{ gpus }}"} if job.gpus else {})}
    container = {
        "name": "prefect-job",
        "env": "{{ env }}",
        "image": "{{ image }}",
        "args": "{{ command }}",
        "workingDir": str(job.folder),
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": "project", "mountPath": str(job.folder)}],
    }
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "project", "persistentVolumeClaim": {"claimName": job.claim}}],
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "{{ name }}-", "namespace": "{{ namespace }}", "labels": "{{ labels }}"},
        "spec": {
            "backoffLimit": 0,
            "parallelism": 1,
            "completions": 1,
            "activeDeadlineSeconds": "{{ seconds }}",
            "ttlSecondsAfterFinished": "{{ finished_job_ttl }}",
            "template": {"spec": pod},
        },
    }
    configuration = {
        "command": "{{ command }}",
        "env": "{{ env }}",
        "labels": "{{ labels }}",
        "name": "{{ name }}",
        "namespace": "{{ namespace }}",
        "job_manifest": manifest,
        "stream_output": True,
    }
    template = {"job_configuration": configuration, "variables": {"type": "object", "properties": variables}}
    return json.dumps(template, indent=2) + "\n"


def _mapping(title: str, default: Mapping[str, str]) -> dict[str, Any]:
    return {"type": "object", "title": title, "additionalProperties": {"type": "string"}, "default": dict(default)}


def _amounts(job: Job) -> dict[str, str]:
    """Return what a node needs, in the units of Kubernetes."""
    gpus = {"nvidia.com/gpu": str(job.gpus)} if job.gpus else {}
    return {"cpu": str(job.cpus), "memory": f"{job.memory}Gi", **gpus}


def _image(job: Job) -> str:
    if job.image is None:
        raise SettingsError("Kubernetes runs containers: give --image, in which `secateur` and your code are installed")
    return job.image


KINDS: dict[str, Callable[[Job], str]] = {"slurm": as_slurm, "kubernetes": as_train_job, "prefect": as_work_pool}
"""What a job is written as, by the name that `secateur launch` knows."""
