"""The flows that a user's `prefect.yaml` deploys, named by their module: `secateur.deployed.compress`.

The project's own `flows/` and `tasks/`, if it has any, stay out of the way.
"""

# ruff: noqa: E402  # the packages are looked for as the next line says
from secateur.packages import find_own_packages_first

find_own_packages_first()

from flows.deployments import cleanup, compress, promote, restore, rollback

__all__ = ["cleanup", "compress", "promote", "restore", "rollback"]
