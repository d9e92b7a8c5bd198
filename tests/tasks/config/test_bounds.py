"""Every number has bounds, and no settings file takes long to be refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from pruning.errors import SettingsError
from tasks.config.errors import describe
from tasks.config.loop_schema import Prune
from tasks.config.prune_schema import MODELS
from tasks.config.schema import Settings, load
from tasks.config.yaml_io import read_mapping, write_mapping

Write = Callable[[Callable[[dict[str, Any]], object] | None], Path]
Keys = tuple[str | int, ...]

LONGEST_S = 2.0
WRONG = (10**14, -(10**14), float("inf"), float("nan"), True, 10**400)


def _numbers(annotation: Any, keys: Keys = (), kind: str = "structured") -> Iterator[tuple[Keys, str]]:
    """Walk through the schema: every number's path and a kind that has it; the first entry stands for a sequence."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if issubclass(annotation, Prune):
            [kind] = [name for name, model in MODELS.items() if model is annotation]
        for name, field in annotation.model_fields.items():
            yield from _numbers(field.annotation, (*keys, name), kind)
    elif annotation in (int, float):
        yield keys, kind
    elif get_origin(annotation) is tuple:
        yield from _numbers(get_args(annotation)[0], (*keys, 0), kind)
    elif get_origin(annotation) is not dict:
        for part in get_args(annotation):
            yield from _numbers(part, keys, kind)


KIND_OF = dict(reversed([*_numbers(Settings)]))
NUMBERS = sorted(KIND_OF, key=str)


def _put(settings: dict[str, Any], keys: Keys, value: Any) -> None:
    where: Any = settings
    for key, following in pairwise(keys):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(key, int):
            if not where:
                where.append(empty)
        elif where.get(key) is None:
            where[key] = empty
        where = where[key]
    if isinstance(keys[-1], int):
        where[:] = [value]
    else:
        where[keys[-1]] = value


def test_the_walk_finds_numbers_of_every_kind() -> None:
    assert {("run", "threads"), ("prune", "recipes", 0, "learning_rate"), ("frontier", "targets", 0, "latency_ms")} <= {
        *NUMBERS
    }
    assert len(NUMBERS) > 70


@pytest.mark.parametrize("keys", NUMBERS, ids=lambda keys: ".".join(map(str, keys)))
def test_every_number_is_finite_bounded_and_no_truth_value(write_params: Write, keys: Keys) -> None:
    settings = read_mapping(write_params(lambda settings: _put(settings, keys, 0)))
    settings["prune"]["kind"] = KIND_OF[keys]
    name = ".".join(str(key) for key in keys if isinstance(key, str))
    for value in WRONG:
        _put(settings, keys, value)
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate(settings)
        text = "\n".join(describe(caught.value, Settings))
        assert name in text.replace("[0]", ""), f"{name} = {value!r}: {text}"
        assert len(text) < 2000


def load_mapping(settings: dict[str, Any], path: Path) -> None:
    write_mapping(path, settings)
    load(path)


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


SLOW: list[tuple[str, str, str]] = [
    ("alias bomb", _bomb(9), "with what aliases repeat, it holds more than 10,000 values"),
    ("alias bomb of keys", "a: &a {b: 1, c: 2}\n" + _bomb(8), "more than 10,000 values"),
    ("alias in itself", "data: &a {factory: *a}", "an alias of what it is part of"),
    ("deep flow", "a: " + "[" * 90_000, "nested deeper than 40"),
    ("deep block", "\n".join(" " * n + "a:" for n in range(400)), "nested deeper than 40"),
    ("list as key", "? [a, b]\n: c", "line 1: a key is a list; expected a name"),
    ("mapping as key", "{a: b}: c", "line 1: a key is a mapping; expected a name"),
    ("date that is none", "run: {seed: 2001-99-99}", "line 1: '2001-99-99' can't be read"),
    ("long number", "run: {seed: " + "9" * 5000 + "}", "a value has 5,000 characters; expected at most 2,000"),
    ("long sexagesimal", "run: {seed: 1" + ":1" * 40_000 + "}", "characters; expected at most 2,000"),
    ("many values", "a: [" + "1," * 45_000 + "]", "more than 10,000 values"),
    ("many keys", "\n".join(f"k{n}: 1" for n in range(9_000)), "more than 10,000 values"),
    ("long comment", "#" + "x" * 99_000, "is empty"),
    ("too long", "#" * 2_000_000, "has 2,000,000 bytes; expected at most 100,000"),
    ("key that is a number", "1: 2", "the key 1 is no text; expected a name"),
    ("NUL", "run: {seed: 0}\0", "is not valid YAML"),
    ("arguments with a date", "data: {factory: 'zoo.datasets:digits', kwargs: {a: 2020-01-01}}", "data.kwargs"),
    ("arguments with nan", "data: {factory: 'zoo.datasets:digits', kwargs: {a: [.nan]}}", "data.kwargs"),
    ("arguments with bytes", "data: {factory: 'zoo.datasets:digits', kwargs: {a: !!binary 9g==}}", "data.kwargs"),
    ("arguments with other keys", "data: {factory: 'zoo.datasets:digits', kwargs: {a: {1: 2}}}", "data.kwargs"),
]


@pytest.mark.parametrize(("content", "text"), [case[1:] for case in SLOW], ids=[case[0] for case in SLOW])
def test_file_that_blows_up_is_refused_at_once(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 5000
    assert time.process_time() - start < LONGEST_S


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_never_opened(write_params: Write, kind: str) -> None:
    path = write_params(None)
    place = {"device": Path("/dev/zero"), "pipe": Path("pipe"), "folder": Path("folder")}[kind]
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    with pytest.raises(SettingsError, match=f"{place} is no file"):
        load(place)
    for section, name in (("model", "weights"), ("profile", "path")):
        settings = read_mapping(path)
        settings.setdefault(section, {})[name] = str(place)
        with pytest.raises(SettingsError, match=f"{section}.{name}: .*{place} is no file"):
            load_mapping(settings, path)
        settings[section].pop(name)


def test_numbers_with_an_exponent_are_numbers_and_texts_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 5e-4\nb: 1E3\nc: '1e3'\nd: 2e\n", encoding="utf-8")
    found = read_mapping(path)
    assert found == {"a": 0.0005, "b": 1000.0, "c": "1e3", "d": "2e"}
    write_mapping(path, found)
    assert read_mapping(path) == found
