"""A run that pruned nothing registers nothing, ends with exit code 1, and says so first, on the report too."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import command
from flows.compress import compress
from tasks.registry import mlflow_client, mlflow_models
from tests.shop import Shop
from tests.tasks.test_pipeline import WILD

pytestmark = pytest.mark.thorough


def test_where_every_recipe_diverges_nothing_is_registered(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow_client.open_store(shop.settings.tracking.uri)
    before = client.get_model_version_by_alias("small", mlflow_models.CANDIDATE).version
    shop.change(lambda settings: settings["prune"].update(recipes=[WILD], max_attempts=2))
    shop.run()
    for _ in range(2):  # the second time too
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main("compress", compress, "", ["--no-commit"])
        assert ended.value.code == command.REFUSED == 1
        shown = capsys.readouterr()
        first = " ".join(shown.out.partition("\n\n")[0].splitlines())
        said = "othing was pruned: none of 2 attempts was accepted (attempts used up), and the result is the baseline"
        assert first == f"N{said}."
        assert "registered  " not in shown.out
        assert shown.err.splitlines()[-1] == f"compress: n{said}; nothing is registered"
    assert client.get_model_version_by_alias("small", mlflow_models.CANDIDATE).version == before
    assert len(client.search_model_versions("name = 'small'")) == 1
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    page = Path("artifacts/report/report.html").read_text(encoding="utf-8")
    assert '<h1 class="worse">Nothing was pruned</h1>' in page
    assert '<p class="lead">None of 2 attempts was accepted' in page
    assert '<span class="worse">training failed</span>' in page
    assert "wild: " in page
    for change in ("+0.00 points", "+0.0%"):
        assert f'<b class="same">{change}</b>' in page
