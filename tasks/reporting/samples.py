"""A few samples with what both models answer: images with classes, boxes or masks, tokens, values; as parts of a page.

Shown are samples spread over the validation set, and those whose outputs pruning changed most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches
from pruning.containers import find_tensors, main_output
from pruning.detection import Detection, unpack_boxes
from pruning.embedding import Embedding
from pruning.evaluation import device_of, restored_modes, whole_pass
from pruning.streams import spread_over
from pruning.task import (
    CausalLM,
    Classification,
    ImageToImage,
    MultiLabel,
    Regression,
    Segmentation,
    Task,
    TokenClassification,
)
from tasks.reporting.pictures import COLOURS, picture_of, rgb, scaled

_SPREAD, _CHANGED = 4, 4
_MOST_SCANNED = 256
_MOST_TOKENS = 32
_MOST_BOXES = 12
_LEAST_SCORE = 0.3  # of a box that is drawn
_GROUNDS = {"background", "ground", "void", "other", "unlabelled", "unlabeled", "none", "bg"}


Parts = list[tuple[str, str]]
"""What stands side by side: heading and HTML."""


@dataclass(frozen=True)
class Sample:
    """What is shown of one.

    Attributes:
        number: In the validation set.
        changed: Whether it is one of those whose outputs changed most.
        parts: The sample, and what each model answers.
        legend: Numbers of the classes whose colours occur.
    """

    number: int
    changed: bool
    parts: Parts
    legend: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Given:
    """One sample, and what both models gave for it: each with the sample alone on axis 0; target None: not labelled."""

    inputs: Any
    target: Any
    outputs: Mapping[str, Any]
    task: Task
    classes: Sequence[str]
    texts: Sequence[str]  # of the token ids

    def name(self, label: int) -> str:
        """Return the name of a class."""
        return _name(self.classes, label)

    @property
    def image(self) -> Tensor | None:
        """The sample as an image [C, H, W] with values in [0, 1]; None where it is none."""
        for tensor in find_tensors(self.inputs):
            if tensor.is_floating_point() and tensor.ndim == 4 and tensor.shape[1] in (1, 2, 3, 4):
                return scaled(tensor[0])
        return None

    @property
    def tokens(self) -> list[str]:
        """The first tokens of the sample, by their texts or numbers; none where it is no sequence of these.

        Of several inputs, token ids are the one with the most different values: masks and kinds of tokens have few.
        """
        found = [tensor for tensor in find_tensors(self.inputs) if tensor.ndim == 2 and not tensor.is_floating_point()]
        if not found:
            return []
        ids = max(found, key=lambda tensor: len(set(tensor.flatten().tolist())))
        texts = self.texts or (self.classes if isinstance(self.task, CausalLM) else ())
        return [_name(texts, int(token)) for token in ids[0, :_MOST_TOKENS]]

    @property
    def shown(self) -> str:
        """The sample, as HTML."""
        if (image := self.image) is not None:
            return picture_of(image)
        if tokens := self.tokens:
            return f"<p>{escape(' '.join(tokens))} …</p>"
        return f"<p>{_values(find_tensors(self.inputs)[0][0])}</p>"


def choose_samples(
    models: Mapping[str, nn.Module],
    samples: Batches,
    task: Task,
    classes: Sequence[str],
    *,
    labelled: bool = True,
    texts: Sequence[str] = (),
    batch_size: int = 256,
) -> list[Sample]:
    """Run both models on samples spread over a set, and return what is shown of some.

    Args:
        models: Name -> model; of the two, the baseline first.
        samples: Those of the validation set, with targets.
        task: What the outputs mean.
        classes: Names, in the order of the targets.
        labelled: Whether the targets are given, and not the baseline's answers.
        texts: Of the token ids, where inputs are such; () for their numbers.
        batch_size: Samples per pass.

    Returns:
        The samples; none where it isn't known how to show what the task answers.
    """
    show = next((shows for kind, shows in _SHOWS if isinstance(task, kind)), None)
    if show is None:
        return []
    numbers = spread_over(len(samples), _MOST_SCANNED)
    passes = _run(models, samples.take(numbers), batch_size)
    changes = torch.cat([_changes(list(found.values())) for _, found in passes])
    spread = set(numbers[spread_over(len(numbers), _SPREAD)].tolist())
    ranked = [int(numbers[index]) for index in changes.argsort(descending=True, stable=True) if changes[index] > 0]
    most = [number for number in ranked if number not in spread][:_CHANGED]
    chosen = torch.tensor([*sorted(spread), *most])
    shown = []
    for number, (batch, outputs) in zip(chosen.tolist(), _run(models, samples.take(chosen), 1), strict=True):
        given = _Given(batch.inputs, batch.targets if labelled else None, outputs, task, classes, texts)
        parts, legend = show(given)
        if parts:
            shown.append(Sample(number, number in most, parts, legend))
    return shown


@torch.no_grad()
def _run(models: Mapping[str, nn.Module], samples: Batches, size: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Yield each batch, and the outputs of each model."""
    for batch in samples.ordered(size):
        outputs = {}
        for name, model in models.items():
            with restored_modes(model):
                outputs[name] = whole_pass(model.eval(), 0, batch.to(device_of(model)).inputs)
        yield batch, outputs


def _changes(outputs: Sequence[Any]) -> Tensor:
    """Return by how much the outputs of each sample changed, [N]: the most of any tensor, relative to its largest."""
    first, second = (find_tensors(one) for one in outputs)
    changes = [torch.zeros(len(first[0]))]
    for one, other in zip(first, second, strict=True):
        if one.shape == other.shape and one.is_floating_point() and one.shape[:1] == changes[0].shape:
            change = (one - other).abs().reshape(len(one), -1).amax(1) / (float(one.abs().max()) or 1.0)
            changes.append(change.cpu())
    return torch.stack(changes).amax(0)


def render_samples(samples: Sequence[Sample], classes: Sequence[str]) -> str:
    """Return them as HTML, with the colours of their classes."""
    seen = sorted(frozenset().union(*(sample.legend for sample in samples)))
    swatches = "".join(f"<span>{_swatch(label)}{escape(_name(classes, label))}</span>" for label in seen)
    legend = f'<p class="legend">{swatches}</p>' if seen else ""
    return f'{legend}<div class="samples">{"".join(map(_figure, samples))}</div>'


def _figure(sample: Sample) -> str:
    caption = f"validation sample {sample.number:,}{', changed most' if sample.changed else ''}"
    parts = "".join(f"<div><b>{escape(heading)}</b>{html}</div>" for heading, html in sample.parts)
    return f'<figure class="sample"><div class="parts">{parts}</div><figcaption>{caption}</figcaption></figure>'


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)


def _swatch(label: int) -> str:
    return f'<i class="swatch" style="background:{COLOURS[label % len(COLOURS)]}"></i>'


def _classified(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Show the classes with the highest probabilities."""
    logits = {name: main_output(outputs)[0].float() for name, outputs in given.outputs.items()}
    if any(one.ndim != 1 for one in logits.values()):
        return [], frozenset()
    target = None if given.target is None else int(given.target)
    parts = [("input" if target is None else f"target: {given.name(target)}", given.shown)]
    for name, found in logits.items():
        best = found.softmax(0).topk(min(3, len(found)))
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        shades = ["" if target is None else "better" if int(best.indices[0]) == target else "worse", "", ""]
        parts.append(
            (name, "".join(_bar(given.name(i), p, shade) for (p, i), shade in zip(rows, shades, strict=False)))
        )
    return parts, frozenset()


def _labelled(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Show the labels that are predicted, or the likeliest three."""
    shares = {name: main_output(outputs)[0].float().sigmoid() for name, outputs in given.outputs.items()}
    if any(one.ndim != 1 for one in shares.values()):
        return [], frozenset()
    there = set() if given.target is None else set((given.target[0] > 0.5).nonzero().flatten().tolist())
    names = ", ".join(map(given.name, sorted(there))) or "none"
    parts = [("input" if given.target is None else f"target: {names}", given.shown)]
    for name, found in shares.items():
        best = found.topk(min(max(3, int((found > 0.5).sum())), len(found), _MOST_BOXES))
        rows = []
        for share, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            right = (share > 0.5) == (label in there)
            rows.append(_bar(given.name(label), share, "" if given.target is None else "better" if right else "worse"))
        parts.append((name, "".join(rows)))
    return parts, frozenset()


def _bar(name: str, share: float, shade: str) -> str:
    return (
        f'<div class="bar"><span class="{shade}">{escape(name)}</span><span>{share:.1%}</span>'
        f'<i style="width:{100 * share:.1f}%"></i></div>'
    )


def _masked(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Lay the class of each pixel over the image, in its colour."""
    image = given.image
    if image is None:
        return [], frozenset()
    masks = {name: given.task.predict(outputs)[0].cpu() for name, outputs in given.outputs.items()}
    if given.target is not None:
        masks = {"target": given.target[0], **masks}
    if any(mask.shape != image.shape[1:] for mask in masks.values()):
        return [], frozenset()
    grounds = {label for label in (0,) if given.name(label).strip("_ ").lower() in _GROUNDS}
    seen = {int(label) for mask in masks.values() for label in mask.unique()} - grounds
    legend = frozenset(label for label in seen if label >= 0 and label != getattr(given.task, "ignore_index", None))
    parts = [("input", picture_of(image))]
    for name, mask in masks.items():
        picture = image.mean(0).expand(3, -1, -1).clone()
        for label in seen:
            here = mask == label
            colour = rgb(COLOURS[label % len(COLOURS)]) if label in legend else torch.full((3,), 0.5)
            picture[:, here] = 0.35 * picture[:, here] + 0.65 * colour[:, None]
        parts.append((name, picture_of(picture)))
    return parts, legend


def _boxed(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Draw boxes over the image."""
    image = given.image
    if image is None:
        return [], frozenset()
    found = {name: given.task.predict(outputs)[0] for name, outputs in given.outputs.items()}
    if given.target is not None:
        found = {"target": unpack_boxes(given.target)[0], **found}
    parts, seen = [], set[int]()
    for name, one in found.items():
        boxes = list(zip(one["boxes"].tolist(), one["labels"].tolist(), _scores(one), strict=True))
        boxes = [box for box in boxes if box[2] is None or box[2] >= _LEAST_SCORE]
        shown = sorted(boxes, key=lambda box: -(box[2] or 0))[:_MOST_BOXES]
        seen |= {label for _, label, _ in shown}
        texts = [
            f"<span>{_swatch(label)}{escape(given.name(label))}{'' if score is None else f' {score:.0%}'}</span>"
            for _, label, score in shown
        ]
        texts += [f"<span>{len(boxes) - len(shown)} more</span>"] if len(boxes) > len(shown) else []
        names = "".join(texts) or "<span>no box</span>"
        parts.append((name, f'{picture_of(image, shown)}<div class="names">{names}</div>'))
    return parts, frozenset(seen)


def _scores(found: Mapping[str, Tensor]) -> list[float | None]:
    return found["scores"].tolist() if "scores" in found else [None] * len(found["labels"])


def _restored(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Show images for images; values where they are none."""
    found = {name: main_output(outputs)[0].float().cpu() for name, outputs in given.outputs.items()}
    if given.target is not None:
        found = {"target": given.target[0].float(), **found}
    parts = [("input", given.shown)]
    images = all(one.ndim == 3 and one.shape[0] in (1, 2, 3, 4) and min(one.shape[1:]) >= 8 for one in found.values())
    low, high = (float(change([float(change(one)) for one in found.values()])) for change in (_min, _max))
    if images:
        parts += [(name, picture_of(scaled(one, low, high))) for name, one in found.items()]
    else:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{_values(one)}</dd>" for name, one in found.items())
        parts.append(("output", f"<dl>{rows}</dl>"))
    return parts, frozenset()


def _min(values: Any) -> Any:
    return values.min() if isinstance(values, Tensor) else min(values)


def _max(values: Any) -> Any:
    return values.max() if isinstance(values, Tensor) else max(values)


def _embedded(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Say how close the pruned model's embeddings are to the baseline's."""
    found = [main_output(outputs)[0].float() for outputs in given.outputs.values()]
    if found[0].shape != found[1].shape:
        return [], frozenset()
    similar = torch.cosine_similarity(found[0], found[1], dim=-1).flatten()
    text = f"{float(similar.mean()):.4f}" + (f", at least {float(similar.min()):.4f}" if len(similar) > 1 else "")
    return [("input", given.shown), ("cosine similarity of the two models", f"<p>{text}</p>")], frozenset()


def _in_text(given: _Given) -> tuple[Parts, frozenset[int]]:
    """Put what is answered at each token below it."""
    tokens = given.tokens
    answers = {name: given.task.answers(outputs)[0].tolist() for name, outputs in given.outputs.items()}
    if not tokens or any(not isinstance(one, list) or len(one) < len(tokens) - 1 for one in answers.values()):
        return [], frozenset()
    if isinstance(given.task, CausalLM):  # the token before says which comes next
        rows = {"token": tokens}
        rows |= {name: ["–", *map(given.name, one)][: len(tokens)] for name, one in answers.items()}
        right = rows["token"]
    else:
        rows, right = {"token": tokens}, []
        if given.target is not None:
            wanted = given.target[0, : len(tokens)].tolist()
            rows["target"] = right = [given.name(label) if label >= 0 else "–" for label in wanted]
        rows |= {name: [given.name(label) for label in one[: len(tokens)]] for name, one in answers.items()}
        for name in answers:  # what isn't counted isn't shown
            rows[name] = [one if at >= len(right) or right[at] != "–" else "–" for at, one in enumerate(rows[name])]
    lines = []
    for name, row in rows.items():
        cells = (_cell(one, right[at : at + 1], name in answers) for at, one in enumerate(row))
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return [("", f'<div class="tokens"><table>{"".join(lines)}</table></div>')], frozenset()


def _cell(text: str, wanted: Sequence[str], is_answer: bool) -> str:
    wrong = is_answer and text != "–" and bool(wanted) and wanted[0] not in (text, "–")
    return f"<td{' class=worse' if wrong else ''}>{escape(text)}</td>"


def _values(values: Tensor) -> str:
    flat = values.flatten()
    return ", ".join(f"{value:.4g}" for value in flat[:6].tolist()) + (
        f" … ({len(flat):,} values)" if len(flat) > 6 else ""
    )


_SHOWS: tuple[tuple[type[Task], Callable[[_Given], tuple[Parts, frozenset[int]]]], ...] = (
    (Detection, _boxed),
    (Segmentation, _masked),
    (Embedding, _embedded),
    (TokenClassification, _in_text),  # and causal language models
    (Classification, _classified),
    (MultiLabel, _labelled),
    (ImageToImage, _restored),
    (Regression, _restored),
)
