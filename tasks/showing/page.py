"""The report as one page that needs nothing beside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from tasks.loop.ledger import Row
from tasks.showing.comparison import HEAD, Line, as_bytes

_STYLE = """
:root { --ink: #1f2933; --quiet: #6b7785; --line: #e3e8ee; --good: #1f7a5c; --bad: #c2410c; --paper: #ffffff; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 60rem; color: var(--ink); background: var(--paper);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 3rem 0 .6rem; }
p { margin: .3rem 0; } .quiet { color: var(--quiet); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.8rem 0; }
.figure { flex: 1 1 9rem; border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.figure b { display: block; font-size: 1.45rem; white-space: nowrap; }
.figure small { display: block; color: var(--quiet); font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--quiet); font-size: .88rem; }
.better { color: var(--good); } .worse, .warning { color: var(--bad); } .warning { font-weight: 600; }
img { width: 100%; height: auto; } .scroll { overflow-x: auto; }
"""


def render(
    model: str,
    lines: Sequence[Line],
    rows: Sequence[Row],
    pictures: Mapping[str, bytes],
    remarks: Sequence[str],
    warning: str | None = None,
) -> str:
    """Render the page.

    Args:
        model: What was pruned.
        lines: Baseline against dense model.
        rows: The attempts.
        pictures: Heading -> PNG.
        remarks: Sentences below the headline.
        warning: What is wrong with the result, without its full stop; None where nothing is.
    """
    figures = "".join(_card(line) for line in lines)
    title = f"{model}, {'not pruned' if warning else 'pruned'}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *([f'<p class="warning">{escape(warning[0].upper() + warning[1:])}.</p>'] if warning else ()),
        *(f'<p class="quiet">{escape(remark)}</p>' for remark in remarks),
        f'<div class="figures">{figures}</div>',
        "<h2>Baseline and dense model</h2>",
        table(
            HEAD.cells,
            [(name, _glued(one), _glued(two), change) for name, one, two, change in (line.cells for line in lines)],
        ),
        "<h2>Attempts</h2>",
        table(_ATTEMPT_HEAD, [_attempt_cells(row) for row in rows]),
    ]
    parts += [picture(heading, png) for heading, png in pictures.items()]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole page of parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def picture(heading: str, png: bytes) -> str:
    """Return a picture under its heading."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<h2>{escape(heading)}</h2><img alt="{escape(heading)}" src="{source}">'


def _glued(value: str) -> str:
    """Keep a value with its unit on one line."""
    return value.replace(" ", "\N{NO-BREAK SPACE}")


def _card(line: Line) -> str:
    small = (f"{_glued(line.baseline)} → {_glued(line.dense)}", *([line.remark] if line.remark else ()))
    details = "".join(f"<small>{escape(text)}</small>" for text in small)
    return (
        f'<div class="figure"><b class="{line.trend}">{escape(line.change)}</b>{escape(line.quantity)}{details}</div>'
    )


_ATTEMPT_HEAD = ("attempt", "goal", "reached", "accuracy", "size", "MACs", "parameters", "recipe", "verdict")


def _attempt_cells(row: Row) -> tuple[str, ...]:
    found = row.measured
    return (
        str(row.attempt + 1),
        f"{row.goal:.1%}",
        f"{row.reached:.1%}" if found else "–",
        f"{found.accuracy:.2%}" if found else "–",
        as_bytes(found.size_bytes) if found else "–",
        f"{found.macs:,}" if found else "–",
        f"{found.parameters:,}" if found else "–",
        row.recipe or "–",
        row.verdict,
    )


_SHADES = {"accepted": "better", "rejected": "worse", "training failed": "worse", "no plan": "worse"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    shade = f' class="{_SHADES[text]}"' if text in _SHADES else ""
    return f"<td{shade}>{escape(text)}</td>"
