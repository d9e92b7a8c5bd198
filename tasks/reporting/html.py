"""The report as one self-contained HTML page: the verdict first, the evidence below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from pruning.allocation.selection import Tried
from pruning.metrics import ACCURACY, Measure
from tasks.loop.ledger import Row
from tasks.reporting.quantized import QuantizedPart
from tasks.reporting.tables import Line, as_bytes, as_sentence
from tasks.reporting.verdict import Verdict, mark

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --quiet: #5f6b78; --line: #d9dfe6; --good: #1a7456; --bad: #b93a0a;
        --before: #cfd8e3; --paper: #ffffff; --card: #f7f9fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --quiet: #9aa7b4; --line: #36414c; --good: #4fc08d; --bad: #ff8a5c; --before: #4a5866;
          --paper: #14191f; --card: #1b222a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.2rem 4rem; max-width: 66rem; color: var(--ink); background: var(--paper);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
       overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .4rem 0; } .quiet, dt { color: var(--quiet); } .lead { font-size: 1.1rem; }
.checks { list-style: none; padding: 0; margin: 1.2rem 0; }
.checks li { padding: .5rem 0 .5rem 1.7rem; text-indent: -1.7rem; border-top: 1px solid var(--line); }
.checks li:last-child { border-bottom: 1px solid var(--line); } .checks i { font-style: normal; display: inline-block;
  width: 1.7rem; text-indent: 0; font-weight: 700; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14.5rem), 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; background: var(--card); }
.card b { display: block; font-size: 1.4rem; } .card small { display: block; color: var(--quiet); }
.cards + p { margin-top: .8rem; } .cards + h3 { margin-top: 1.4rem; } .card, td { font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .5rem .7rem .5rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--quiet); font-size: .88rem; }
th, td { overflow-wrap: break-word; } td span { display: block; }
.better { color: var(--good); } .worse, .warning { color: var(--bad); }
.card .better::after, .card .worse::after { font-size: .6em; font-weight: 400; }
.card .better::after { content: " better"; } .card .worse::after { content: " worse"; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem 1.5rem;
         align-items: start; margin-top: 1.2rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); } figure { margin: 0; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .35rem 1.2rem; margin: .6rem 0; }
dd { margin: 0; } summary { cursor: pointer; margin: .8rem 0; } td summary { margin: 0; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: .8rem;
           margin-top: .8rem; }
.sample { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; background: var(--card); min-width: 0; }
.sample figcaption { color: var(--quiet); font-size: .88rem; margin-top: .5rem; }
.parts { display: grid; grid-template-columns: repeat(auto-fit, minmax(5.6rem, 1fr)); gap: .7rem; }
.parts > div { min-width: 0; font-size: .88rem; }
.parts b { display: block; font-weight: 600; margin-bottom: .3rem; }
.parts svg { max-width: 16rem; border-radius: .2rem; }
.bar { display: grid; grid-template-columns: 1fr auto; gap: 0 .5rem; margin-bottom: .35rem; }
.bar i { grid-column: 1 / 3; height: .25rem; background: var(--quiet); border-radius: .2rem; min-width: 1px; }
.names, .legend { display: flex; flex-wrap: wrap; gap: .1rem .8rem; margin: .4rem 0 0; }
.legend { margin-bottom: .7rem; }
.parts dl { grid-template-columns: auto 1fr; gap: .15rem .8rem; margin: 0; }
.parts dd { margin: 0; text-align: left; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: .15em; margin-right: .35em; }
.tokens { overflow-x: auto; } .tokens table { width: auto; } .tokens tr { display: table-row; border: 0; }
.tokens td, .tokens th { display: table-cell; padding: .15rem .5rem .15rem 0; white-space: nowrap; border: 0; }
.tokens td::before { content: none; } .parts > div:has(.tokens) { grid-column: 1 / -1; }
@media (min-width: 60rem) { .attempts td:nth-child(4), .attempts td:nth-child(5) { min-width: 11rem; } }
@media (max-width: 40rem) {
  body { padding-top: 1.4rem; } h1 { font-size: 1.45rem; }
  thead { display: none; } tr { display: block; border-bottom: 1px solid var(--line); padding: .6rem 0; }
  td { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: .6rem; border: 0; padding: .15rem 0; }
  td::before { content: attr(data-label); color: var(--quiet); font-size: .88rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
}
"""

WORDS = {
    "baseline": "the model before pruning",
    "pruned model": "the result: the removed channels are really gone, so its layers are narrower (other "
    "files call it dense); with single weights or gates the shapes stay the same",
    "set to zero": "a channel's values are zero, but the shapes are kept (masked); the pruned model has to compute "
    "exactly the same",
    "aimed at": "the reduction against the baseline that an attempt should reach (its goal)",
    "floor": "the worst score on the validation set that is accepted",
    "recipe": "one way of training after pruning; each is tried, and the best on the validation set goes on",
    "promotion gates": "the limits that `promote` checks before a model goes into production",
    "MACs": "multiply-accumulate operations of one sample; FLOPs are twice as many",
    "95 % interval": "contains the true value with 95 % confidence, given this many test samples; for a change, both "
    "models are compared sample by sample",
    "quartiles": "a quarter of the measured times lies below the first, a quarter above the second",
}


_LEGEND = (
    "Green is better, red is worse; what has no colour is unchanged, or within chance or the noise of the clock. "
    "In brackets: the 95 % interval of a score, the quartiles of a time."
)


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        subject: What was pruned.
        verdict: Whether the model may be shipped.
        lines: Baseline against pruned model.
        rows: The attempts.
        pictures: Heading -> SVG.
        notes: Remarks on the figures.
        tried: How the loop went, in a sentence.
        origin: What the result was made from: name and value.
        settings: Those that differ from their default: path and value.
        measure: What the score is.
        per_class: Name of a class -> score of baseline and pruned model on its test samples.
        samples: A few of the validation set with what both models answer, as HTML.
        quantized: The quantised file against the float one; None where there is none.
    """

    subject: str
    verdict: Verdict
    lines: Sequence[Line]
    rows: Sequence[Row] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tried: str = ""
    origin: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, str]] = ()
    measure: Measure = ACCURACY
    per_class: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: str = ""
    quantized: QuantizedPart | None = None


def render(report: Report) -> str:
    """Render the page."""
    head, _, rest = report.verdict.sentence.partition(": ")
    shade = "better" if report.verdict.passed else "worse"
    checks = "".join(
        f'<li><i class="{"better" if check.passed else "worse"}">{mark(check.passed)}</i>'
        f"<b>{escape(check.name)}</b>: {escape(check.detail)}</li>"
        for check in report.verdict.checks
    )
    attempts = [_attempt_cells(row, report.measure) for row in report.rows]
    parts = [
        f'<h1 class="{shade}">{escape(head)}</h1>',
        *([f'<p class="lead">{escape(as_sentence(rest))}.</p>'] if rest else ()),
        f'<p class="quiet">{escape(report.subject)}</p>',
        *([f'<ul class="checks">{checks}</ul>'] if checks else ()),
        "<h2>Gained and lost</h2>",
        f'<div class="cards">{"".join(_card(line) for line in report.lines)}</div>',
        f'<p class="quiet">{_LEGEND}</p>',
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        *_by_class(report),
        *_quantized(report.quantized),
        *(["<h2>Samples</h2>", f'<p class="quiet">{_SAMPLES}</p>', report.samples] if report.samples else ()),
        "<h2>What was tried</h2>",
        *([f"<p>{escape(report.tried)}</p>"] if report.tried else ()),
        f'<div class="attempts">{_table(_attempt_head(report.measure), attempts)}</div>',
        *(["<h2>Plots</h2>", plots(report.pictures)] if report.pictures else ()),
        "<h2>Where it comes from</h2>",
        _list(report.origin),
        *(
            [f"<details><summary>Settings that differ from their default</summary>{_list(report.settings)}</details>"]
            if report.settings
            else ()
        ),
        f"<details><summary>Words on this page</summary>{_list(list(WORDS.items()))}</details>",
    ]
    return document(f"{report.subject}: {head}", parts)


_SAMPLES = (
    "Some samples of the validation set, spread over it, and those whose outputs pruning changed most: what the "
    "baseline and the pruned model answer."
)
_MOST_CLASSES = 20


def _by_class(report: Report) -> list[str]:
    """Return the table of classes: all, or those that changed most."""
    measure, changed = report.measure, report.per_class.items()
    if len(changed) < 2:
        return []
    rows = [
        [name, measure.show(before), measure.show(after), measure.show_change(after - before)]
        for name, (before, after) in sorted(changed, key=lambda one: -abs(one[1][1] - one[1][0]))[:_MOST_CLASSES]
    ]
    which = f"The {len(rows)} of {len(changed)} classes that changed most. " if len(rows) < len(changed) else ""
    note = f"{which}A class has fewer samples than the whole, so chance moves its score further."
    return ["<h2>By class</h2>", table(("class", "baseline", "pruned", "change"), rows), f'<p class="quiet">{note}</p>']


def _quantized(part: QuantizedPart | None) -> list[str]:
    """Return the section of the quantised file."""
    if part is None:
        return []
    shade = "better" if part.passed else "worse"
    head, *rows = part.tried
    left = list(part.left.items()) or [("none", "every layer is quantised")]
    return [
        "<h2>Quantised</h2>",
        f'<p class="lead {shade}">{mark(part.passed)} {escape(part.sentence)}.</p>',
        f"<p>{escape(part.about)}</p>",
        f'<div class="cards">{"".join(_card(line) for line in part.lines)}</div>',
        f"<h3>Layers that stay in float</h3>{_list(left)}",
        f"<details><summary>Files that were tried</summary>{table(head, rows)}</details>",
    ]


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole page of parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def plots(pictures: Mapping[str, str]) -> str:
    """Return pictures, heading -> SVG, side by side where the page is wide enough."""
    return f'<div class="plots">{"".join(map(_plot, pictures.items()))}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts; on a narrow page each row stands as a list."""
    return _table(head, [[escape(cell) for cell in row] for row in rows])


def _plot(named: tuple[str, str]) -> str:
    heading, svg = named
    return f"<figure><h3>{escape(heading)}</h3>{_labelled(heading, svg)}</figure>"


def _labelled(name: str, svg: str) -> str:
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)


def _card(line: Line) -> str:
    name, *spreads = line.spread or ("", "", "", "")
    before, after, change = (f" {_glued(spread)}" if spread else "" for spread in spreads)
    small = [f"{_glued(line.baseline)}{before} → {_glued(line.pruned)}{after}"] if line.baseline else []
    small += [f"{name} of the change{change}"] if change else []
    small += [line.remark] if line.remark else []
    details = "".join(f"<small>{escape(text)}</small>" for text in small)
    return f'<div class="card"><b class="{line.trend}">{escape(line.change)}</b>{escape(line.quantity)}{details}</div>'


def _attempt_head(measure: Measure) -> tuple[str, ...]:
    return "attempt", "aimed at", "reached", f"validation {measure.name} by recipe", "model", "outcome"


_SHADES = {"accepted": "better", "rejected": "worse", "training failed": "worse", "no plan": "worse"}


def _attempt_cells(row: Row, measure: Measure) -> list[str]:
    found = row.measured
    recipes = [
        f"{name} {measure.show(score)}{' (chosen)' if name == row.recipe and len(row.recipes) > 1 else ''}"
        for name, score in sorted(row.recipes.items(), key=lambda one: -measure.gain(0.0, one[1]))
    ]
    costs = (
        (f"{found.macs:,} MACs", f"{found.parameters:,} parameters", as_bytes(found.size_bytes)) if found else ("–",)
    )
    undone = [
        f"{name}: {f'epochs after {epoch} were undone' if epoch else 'all epochs were undone'}, as the model was worse"
        for name, epoch in row.kept_epochs.items()
    ]
    reasons = [
        *undone,
        *([row.refused] if row.refused else ()),
        *(f"{name}: {why}" for name, why in row.failed.items()),
    ]
    if row.relaxed is not None:
        reasons.append(f"out of reach within the first limits; planned within {row.relaxed}")
    if row.streams:
        reasons.append(f"residual streams lost channels: {', '.join(row.streams)}")
    reasons += [f"allocation {_of_trial(one)}" for one in row.tried]
    if row.blocks:
        reasons.append(f"blocks went whole: {', '.join(row.blocks)}")
    verdict = f'<span class="{_SHADES[row.verdict]}">{row.verdict}</span>'
    return [
        str(row.attempt + 1),
        f"{row.goal:.1%}",
        f"{row.reached:.1%}" if found else "–",
        _spans(recipes or ["–"]),
        _spans(costs),
        f"<div>{verdict}{''.join(map(_folded, reasons))}</div>",
    ]


def _folded(reason: str) -> str:
    """Show the first sentence of a reason, and the rest where the reader asks for it."""
    first, stop, rest = reason.partition(". ")
    if not stop:
        return f"<span>{escape(reason)}</span>"
    return f"<details><summary>{escape(first)}.</summary>{escape(rest)}</details>"


_MEASURES = {"loss": "loss", "divergence": "divergence from the baseline's outputs"}


def _of_trial(one: Tried) -> str:
    """Say what came of an allocation that was tried."""
    found = []
    if one.loss is not None:
        samples = f"{one.num_samples} validation samples, round {one.rounds}"
        found.append(f"{_MEASURES[one.measure]} before training {one.loss:.4f} ({samples})")
    if one.fault is not None:
        found.append(one.fault)
    if one.same_as is not None:
        found = [f"the same plan as {one.same_as}"]
    elif one.worse_by is not None:
        found.append("above the lowest by {:+.4f} to {:+.4f}".format(*one.worse_by))
    return f"{one.name}{' (taken)' if one.chosen else ''}: {', '.join(found) or 'the only plan'}"


def _spans(texts: Sequence[str]) -> str:
    return f"<div>{''.join(f'<span>{escape(text)}</span>' for text in texts)}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(head, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _list(named: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in named)}</dl>"


def _glued(value: str) -> str:
    """Keep a value with its unit on one line."""
    return value.replace(" ", "\N{NO-BREAK SPACE}")
