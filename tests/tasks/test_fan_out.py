"""Parts of a stage's work: who computes them doesn't matter, and nobody is waited for in vain."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from pruning.errors import ModelError, WorkspaceError
from pruning.io.files import replace_file
from tasks import fan_out as subject
from tasks import part_worker
from tasks.config.schema import Settings, load
from tasks.fan_out import Part, Poll, Request, WrongWorkerError, compute, do, read_request
from tasks.workspace import Workspace

WORKSPACE = Workspace(Path("artifacts"))
PLACE = Path("artifacts", "parts")


class Elsewhere:
    """A fan-out whose workers are this process, at once or never."""

    loads_once = True

    def __init__(self, serve: Callable[[Path], str | None]) -> None:
        self.serve, self.asked = serve, list[str]()

    def submit(self, request: Path) -> Poll:
        self.asked.append(request.stem)
        found = self.serve(request)
        return lambda: found


def served(request: Path) -> str:
    do(request)
    return ""


def part(name: str, work: str = "write", **arguments: Any) -> Part:
    given = {"text": name, **arguments} if work == "write" else arguments
    return Part(name, f"tests.parts:{work}", given, (PLACE / f"{name}.txt",))


@pytest.fixture
def settings(write_params: Callable[..., Path]) -> Settings:
    return load(write_params(lambda given: given.update(machine={"processes": 2, "patience_minutes": 0.002})))


def run(parts: list[Part], fan_out: Elsewhere, settings: Settings) -> None:
    compute(parts, fan_out, settings, WORKSPACE, "prepare", PLACE)


def test_parts_are_computed_elsewhere_and_one_that_is_there_is_not_computed_again(settings: Settings) -> None:
    replace_file(PLACE / "old.txt", b"kept")
    fan_out, shown = Elsewhere(served), list[tuple[int, int]]()
    compute(
        [part("old"), part("new")], fan_out, settings, WORKSPACE, "prepare", PLACE, lambda *done: shown.append(done)
    )
    assert fan_out.asked == ["new"]
    assert (PLACE / "old.txt").read_text() == "kept"
    assert (PLACE / "new.txt").read_text() == "new 0 artifacts"
    assert shown == [(1, 2), (2, 2)]


def test_a_part_that_a_worker_fails_to_deliver_is_computed_here(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "secateur")
    run(
        [part("one"), part("two")],
        Elsewhere(lambda path: "it was killed" if path.stem == "one" else served(path)),
        settings,
    )
    assert (PLACE / "one.txt").read_text() == "one 0 artifacts"
    assert "one wasn't delivered: it was killed; it is computed here" in caplog.text


@pytest.mark.parametrize("beats", [False, True])
def test_a_part_that_nobody_delivers_in_time_is_computed_here(
    settings: Settings, caplog: pytest.LogCaptureFixture, beats: bool
) -> None:
    def silent(request: Path) -> None:
        if beats:
            request.with_suffix(".alive").write_text("1")

    run([part("one")], Elsewhere(silent), settings)
    assert (PLACE / "one.txt").exists()
    expected = "its worker has fallen silent" if beats else "no worker has begun with it"
    assert f"{expected} for 0.002 minutes (machine.patience_minutes)" in caplog.text


def test_what_a_part_raises_is_raised_here_as_it_is(settings: Settings) -> None:
    def failing(request: Path) -> str:
        with pytest.raises(ModelError):
            do(request)
        return "failed"

    with pytest.raises(ModelError, match="the loss is not finite"):
        run([part("one", "fail")], Elsewhere(failing), settings)


def test_what_workers_log_is_shown_in_the_order_of_the_parts(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "secateur")
    late: list[Path] = []

    class Backwards(Elsewhere):
        def submit(self, request: Path) -> Poll:
            late.append(request)
            if len(late) == 3:
                for one in reversed(late):
                    do(one)
            return lambda: "" if len(late) == 3 else None

    run([part(name) for name in ("a", "b", "c")], Backwards(served), settings)
    assert [record.getMessage() for record in caplog.records] == ["wrote a", "wrote b", "wrote c"]


@pytest.fixture
def request_file(settings: Settings) -> Path:
    """The request of a part that nobody has computed."""
    kept: list[Path] = []

    def keep(request: Path) -> str:
        kept.append(request)
        return served(request)

    run([part("one")], Elsewhere(keep), settings)
    (PLACE / "one.txt").unlink()
    return kept[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda known: known["versions"].update(torch="2.12.0"), "torch 2.12.0 →"),
        (lambda known: known["modules"].update({"own_project": "0" * 64}), "module own_project was edited"),
    ],
    ids=["another version of torch", "another version of the user's code"],
)
def test_a_worker_with_other_code_or_versions_refuses_and_the_run_ends_with_its_message(
    settings: Settings, request_file: Path, change: Callable[[Any], object], said: str
) -> None:
    asked = json.loads(request_file.read_text())
    assert asked["executed"]["modules"]["own_project"]
    change(asked["executed"])
    request_file.write_text(json.dumps(asked))
    with pytest.raises(WrongWorkerError, match="Install the same versions there"):
        do(request_file)
    assert said in part_worker.answer(request_file)
    assert not (PLACE / "one.txt").exists()

    def refusing(request: Path) -> None:
        request.with_suffix(".refused").write_text(f"a worker has other code: {said}")

    with pytest.raises(WorkspaceError, match="a worker has other code"):
        run([part("one")], Elsewhere(refusing), settings)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    assert "has to see the project's folder" in part_worker.in_child(str(tmp_path / "none.json"))
    with pytest.raises(WorkspaceError, match="has to see the project's folder"):
        read_request(tmp_path / "none.json")


@pytest.mark.parametrize(
    "prune",
    [
        {"kind": "n_m", "target": {"pattern": "2:4"}, "criterion": "l1_norm"},
        {"kind": "unstructured", "target": {"weight_sparsity": 0.5}, "criterion": "l1_norm"},
        {"kind": "dynamic", "target": {"mac_reduction": 0.5}},
        {"target": {"mac_reduction": 0.5}, "round_to": "auto", "allocation": {"strategy": "trial"}},
    ],
    ids=["n_m", "unstructured", "dynamic", "structured"],
)
def test_settings_come_to_a_worker_as_they_are(write_params: Callable[..., Path], prune: dict[str, Any]) -> None:
    path = write_params(lambda given: given.update(prune=prune, machine={"processes": 3}))
    settings = load(path)
    again = Settings.model_validate(json.loads(json.dumps(subject._portable(settings))))
    assert again.model_copy(update={"machine": settings.machine}) == settings
    assert again.machine.processes == 1, "a part isn't divided once more"


def gpu_request(folder: Path, device: str) -> Path:
    made = Request(
        name="one",
        work="tests.parts:write",
        arguments={},
        files=[],
        project=str(folder),
        workspace="artifacts",
        stage="prepare",
        settings={"run": {"device": device}},
        executed={},
    )
    (folder / "one.json").write_text(made.model_dump_json())
    return folder / "one.json"


def test_each_worker_of_a_machine_sees_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_worker.tempfile, "gettempdir", lambda: str(tmp_path))  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(part_worker, "_gpu", [])
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delitem(os.environ, "CUDA_VISIBLE_DEVICES")
    folder = tmp_path / f"secateur-gpus-{os.getuid()}"
    folder.mkdir()
    with FileLock(folder / "0.lock"):  # as another worker holds it
        part_worker.take_gpu(gpu_request(tmp_path, "cpu"))
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        part_worker.take_gpu(gpu_request(tmp_path, "cuda:1"))
        assert "CUDA_VISIBLE_DEVICES" not in os.environ, "the settings say which"
        part_worker.take_gpu(gpu_request(tmp_path, "cuda"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        with pytest.raises(TimeoutError):
            FileLock(folder / "1.lock", timeout=0).acquire()


def test_a_worker_chooses_among_the_gpus_that_its_cluster_lets_it_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_worker.tempfile, "gettempdir", lambda: str(tmp_path))  # type: ignore[attr-defined]
    monkeypatch.setattr(part_worker, "_gpu", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    part_worker.take_gpu(gpu_request(tmp_path, "cuda"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
