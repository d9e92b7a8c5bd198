from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from pruning.errors import CheckpointError, WorkspaceError
from tasks.workspace import Workspace, contents, is_current, locked, seal, write_json, writing


def test_data_of_the_default_workspace_lie_beside_it_and_others_inside() -> None:
    assert Workspace(Path("artifacts")).folder("data") == Path("data")
    assert Workspace(Path("elsewhere")).folder("data") == Path("elsewhere/data")


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), writing(place) as folder:
        (folder / "half").write_text(str(1 / 0), encoding="utf-8")
    assert list(tmp_path.iterdir()) == []
    with writing(place) as folder:
        (folder / "whole").write_text("1", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), writing(place):
        raise ZeroDivisionError
    assert (place / "whole").read_text(encoding="utf-8") == "1"
    with writing(place) as folder:
        (folder / "other").write_text("2", encoding="utf-8")
    assert [path.name for path in place.iterdir()] == ["other"]


def test_sealed_folder_is_current_for_its_fingerprint_alone(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    assert not is_current(folder, "a")
    folder.mkdir()
    write_json(folder / "result.json", {"x": 1})
    assert not is_current(folder, "a")
    seal(folder, "a")
    assert is_current(folder, "a")
    assert not is_current(folder, "b")
    assert set(contents(folder, "stage")) == {"result.json"}


def test_folder_that_was_changed_after_it_was_sealed_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    write_json(folder / "result.json", {"x": 1})
    seal(folder, "a")
    write_json(folder / "result.json", {"x": 2})
    with pytest.raises(CheckpointError, match=r"result\.json changed after the stage wrote it"):
        is_current(folder, "a")


def test_workspace_where_a_file_lies_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="can't be written"):
        Workspace(tmp_path / "taken").open()


def test_workspace_on_a_read_only_place_is_one_message() -> None:
    with pytest.raises(WorkspaceError, match="can't be written"):
        Workspace(Path("/proc/secateur")).open()


def test_unfinished_stage_names_the_command_that_finishes_it(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"secateur run baseline"):
        contents(tmp_path / "baseline", "baseline")


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"summary\.json is damaged"):
        Workspace(tmp_path).read_json("report", "summary.json", "report", dict[str, object])


def test_second_run_is_kept_out_of_a_workspace(tmp_path: Path) -> None:
    message = "in use by another run"
    with FileLock(tmp_path / ".lock"), pytest.raises(WorkspaceError, match=message), locked(Workspace(tmp_path)):
        pytest.fail("two runs in one workspace")


def test_folders_lost_between_two_renames_are_back_once_the_workspace_is_held(tmp_path: Path) -> None:
    for name in ("baseline", "data"):
        (tmp_path / f".{name}.replaced").mkdir()
        (tmp_path / f".{name}.replaced" / "whole").write_text("", encoding="utf-8")
    with locked(Workspace(tmp_path)):
        assert [(tmp_path / name / "whole").exists() for name in ("baseline", "data")] == [True, True]


def test_same_process_may_take_its_workspace_again(tmp_path: Path) -> None:
    with locked(Workspace(tmp_path)), locked(Workspace(tmp_path)):
        pass
    with FileLock(tmp_path / ".lock", timeout=1):
        pass


def test_folder_of_the_users_own_data_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    data.mkdir()
    assert Workspace(Path("artifacts")).folder("data") == data
    (data / "scans.csv").touch()
    assert Workspace(Path("artifacts")).folder("data") == Path("artifacts/data")
    for name in ("meta.json", "example.safetensors"):  # as `prepare` writes them, not sealed yet
        (data / name).touch()
    assert Workspace(Path("artifacts")).folder("data") == data
