"""Every code block of README, docs and examples runs, or is read by the program that it is written for.

    ```python                     is executed; the blocks of a page share their names, in order
    ```python title="net.py"      is written to that file first, where the following blocks import it
    ```yaml                       is read as params.yaml
    ```sh                         `secateur`, `python -m` and `make` are parsed by their own parsers, nothing is run
    ```text                       is for people: an output, a tree

A block that cannot be checked in full has a comment before it that says why: `<!-- not run: it starts a server -->`.
Of such a block the commands of this repository are parsed nevertheless.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from dvc.utils.serialize import parse_yaml

from secateur.cli import commands
from tasks.config.schema import load
from tasks.environment import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("examples/**/*.md"))
)
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+?) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
SPAN = re.compile(r"(?<!`)`((?:secateur|python -m|make) [^`]+)`(?!`)")
LANGUAGES = ("python", "yaml", "sh", "text")
MOST_COLUMNS = 84
"""What the documentation shows of a line on a page of 1,280 pixels."""
TARGETS = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    code: str
    reason: str | None
    line: int


def blocks_of(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [
        Block(found["language"], found["title"], found["code"], found["reason"], text.count("\n", 0, found.start()) + 1)
        for found in BLOCK.finditer(text)
    ]


class Parsed(Exception):  # noqa: N818 - it is no error
    """A command line was understood."""


def command_lines(text: str) -> Iterator[list[str]]:
    """Split a shell block into commands, without comments, variables and the path of the environment."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", "&", ">")), len(words))
            redirected = words[end : end + 1] == [">"]
            command, words = words[:end], words[end + 1 + redirected :]
            while command and re.match(r"[A-Z_]+=", command[0]):
                command = command[1:]
            if command:
                yield [command[0].removeprefix(".venv/bin/"), *command[1:]]


def parse(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let a command of this repository read its arguments; say whether it is one.

    Raises:
        AssertionError: It refuses them.
    """
    match words:
        case ["secateur", name, *rest] if name not in ("--help", "--version"):
            assert name in commands.commands, f"secateur has no command {name}"
            with suppress(click.exceptions.Exit):  # it shows its help
                commands.commands[name].make_context(name, [*rest])
        case ["secateur", *_]:
            pass
        case ["python", "-m", module, *rest] if module.partition(".")[0] in ("flows", "benchmarks"):
            _parse_module(module, rest, monkeypatch)
        case ["python", script] if (REPOSITORY / script).is_file():
            pass
        case ["make", *targets]:
            assert set(targets) <= set(TARGETS), f"the Makefile has no target {targets}"
        case _:
            return False
    return True


def _parse_module(module: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        parse_args(self, *given, **named)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        patch.setattr(sys, "argv", [module, *arguments])
        patch.delitem(sys.modules, module, raising=False)
        with pytest.raises(Parsed):
            runpy.run_module(module, run_name="__main__")


def test_readme_is_read_in_one_go() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(page for page in PAGES if page.startswith("examples"))]
)
def test_links_lead_somewhere(page: str) -> None:
    """Those of `docs/` are checked by mkdocs."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (REPOSITORY / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is_written_in(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = blocks_of(page)
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), "a fence is indented, or doesn't end"
    assert {block.language for block in found} <= set(LANGUAGES)
    widest = max((line for block in found for line in block.code.splitlines()), key=len, default="")
    assert not page.startswith("docs/") or len(widest) <= MOST_COLUMNS, f"the page cuts it off: {widest}"
    prose = BLOCK.sub("", text)
    assert not re.findall(r"\n\n {4}[^\s*-].*", prose), "an indented block: put it between fences, with a language"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in ("python", "yaml") for b in blocks_of(page))]
)
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    blocks = blocks_of(page)
    for title in filter(None, (block.title for block in blocks)):
        monkeypatch.delitem(sys.modules, Path(title).stem, raising=False)  # of another page
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.reason or block.language not in ("python", "yaml"):
            continue
        try:
            if block.language == "yaml":
                _read_settings(block.code)
                continue
            if block.title:
                Path(block.title).write_text(block.code, encoding="utf-8")
            exec(compile(block.code, f"{page}, line {block.line}", "exec"), names)
        except Exception as error:
            raise AssertionError(f"{page}, line {block.line}: {type(error).__name__}: {error}") from error


def _read_settings(text: str) -> None:
    """Read settings as the pipeline does; sections alone are read with the shipped ones beside them."""
    parse_yaml(text, "params.yaml")  # DVC reads the file too, and takes less
    given = yaml.safe_load(text)
    if not given.keys() >= {"data", "model", "prune"}:
        given = {**yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8")), **given}
    if weights := given["model"].get("weights"):
        Path(weights).touch()
    Path("params.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    load(Path("params.yaml"))


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    shell = [block for block in blocks_of(page) if block.language == "sh"]
    spans = [Block("sh", None, span, "", 0) for span in SPAN.findall(BLOCK.sub("", text))]
    for block in (*shell, *spans):
        for words in command_lines(block.code):
            try:
                known = parse(words, monkeypatch)
            except (click.UsageError, SystemExit) as error:
                raise AssertionError(f"{page}, line {block.line}: {shlex.join(words)}: {error}") from error
            assert known or block.reason is not None, f"{page}, line {block.line}: {words[0]} is not run: say why"
