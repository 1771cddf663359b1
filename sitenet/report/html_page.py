"""Self-contained HTML pages of text, tables and interactive figures; figures need plotly.

A page contains everything it needs, plotly's JavaScript included, and its content security policy
forbids it to load anything. It opens offline, and names in it are text, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sitenet
from sitenet.report.packages import plotly
from sitenet.report.plots import BLUE, FAINT, GREY
from sitenet.system.files import write_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLE = f"""
:root {{ font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c2228; }}
body {{ max-width: 72rem; margin: 0 auto; padding: 1.5rem; }}
h1 {{ font-size: 1.7rem; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 2.4rem 0 0.3rem; border-bottom: 1px solid {FAINT}; }}
p {{ max-width: 48rem; margin: 0.5rem 0; }}
p, footer, caption {{ color: {GREY}; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 0.7rem; margin: 1.2rem 0; }}
.card {{ border: 1px solid {FAINT}; border-radius: 6px; padding: 0.5rem 1rem; }}
.card b {{ display: block; font-size: 1.35rem; color: {BLUE}; font-weight: 600; }}
.figure {{ width: 100%; }}
.table {{ overflow: auto; max-height: 26rem; margin: 0.6rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding-bottom: 0.3rem; }}
th, td {{ padding: 0.15rem 0.8rem; text-align: left; white-space: nowrap; }}
td.number, th.number {{ text-align: right; }}
th {{ position: sticky; top: 0; background: white; border-bottom: 1px solid {GREY}; }}
tr:nth-child(even) td {{ background: #f5f7f9; }}
summary {{ cursor: pointer; color: {GREY}; }}
pre {{ background: #f5f7f9; padding: 0.8rem; overflow: auto; font-size: 0.85rem; }}
footer {{ margin-top: 3rem; font-size: 0.85rem; }}
"""

# Allow only the page's own scripts and styles.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


class Page:
    """An HTML page; parts are added from top to bottom.

    Args:
        title: the heading.
        subtitle: a line below.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(subtitle)}</p>"]
        self._figures = 0

    def cards(self, values: Mapping[str, str]) -> None:
        """Add a row of large values with their names below."""
        cards = "".join(
            f'<div class="card"><b>{escape(value)}</b>{escape(name)}</div>'
            for name, value in values.items()
        )
        self._parts.append(f'<div class="cards">{cards}</div>')

    def section(self, heading: str, *paragraphs: str) -> None:
        """Begin a section with paragraphs of text."""
        self._parts.append(f"<h2>{escape(heading)}</h2>")
        for paragraph in paragraphs:
            self.text(paragraph)

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(paragraph)}</p>")

    def table(self, columns: Mapping[str, Sequence[Any] | np.ndarray], caption: str = "") -> None:
        """Add a table of columns by name; floats have 4 digits, NaN is left empty."""
        numeric = {n: np.asarray(c).dtype.kind in "iuf" for n, c in columns.items()}
        kind = {name: ' class="number"' if is_one else "" for name, is_one in numeric.items()}
        head = "".join(f"<th{kind[name]}>{escape(name)}</th>" for name in columns)
        rows = (
            "".join(
                f"<td{kind[name]}>{escape(_text(value))}</td>"
                for name, value in zip(columns, row, strict=True)
            )
            for row in zip(*columns.values(), strict=True)
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        self._parts.append(
            f'<div class="table"><table><caption>{escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def preformatted(self, summary: str, text: str) -> None:
        """Add text in a fixed width, folded away under a summary."""
        self._parts.append(
            f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
        )

    def figure(self, figure: Figure) -> None:
        """Add a plotly figure. Plotly takes its texts for markup: ``escape`` those from files."""
        self._figures += 1
        figure.update_layout(
            template="none",
            font={"family": "system-ui, DejaVu Sans, sans-serif", "size": 12, "color": "#1c2228"},
            hoverlabel={"bgcolor": "white", "font": {"size": 12}},
        )
        figure.update_xaxes(gridcolor=FAINT, linecolor=GREY, zeroline=False)
        figure.update_yaxes(gridcolor=FAINT, linecolor=GREY, zeroline=False)
        html = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=f"figure{self._figures}",
            default_height=f"{figure.layout.height or 450}px",
            config={"displaylogo": False, "responsive": True},
        )
        self._parts.append(f'<div class="figure">{html}</div>')

    def write(self, path: str | Path) -> None:
        """Write the page, under a temporary name first."""
        script = f"<script>{plotly('offline').get_plotlyjs()}</script>" if self._figures else ""
        parts = "\n".join(self._parts)
        text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(self._title)}</title>
<style>{_STYLE}</style>
{script}
</head>
<body>
{parts}
<footer>sitenet {escape(sitenet.__version__)}</footer>
</body>
</html>
"""
        write_text(path, text)


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if np.isfinite(value) else ""
    return str(value)
