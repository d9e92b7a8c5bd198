"""What `prefect.yaml` deploys: the pipeline, asked for by a schedule or by the form on Prefect's page.

The parameters' types make the form; the server checks them, and so does the flow. `tasks.requests` says what may be
asked.
"""

from __future__ import annotations

from flows.compress import nothing_to_run, run_stages
from flows.engine import flow
from tasks.requests import SettingsFile, Trial, accept


@flow(name="compress", typed=True)
def compress(params: SettingsFile = "params.yaml", trial: Trial | None = None) -> None:
    """Run what has changed, from the data to the report; where nothing has, end in seconds.

    Args:
        params: A settings file that Git tracks. DVC versions what params.yaml asks for; any other needs a trial.
        trial: Other settings for once, in a workspace of its own.
    """
    asked = accept(params, trial)
    arguments = (str(asked.params), str(asked.workspace), asked.commit)
    if not nothing_to_run(*arguments):
        run_stages(*arguments)
