"""Draws the result of a bench as one SVG bar chart, without a library."""

from __future__ import annotations

from html import escape

from harness.bench.model import Result, Samples

_WIDTH, _BAR, _GAP, _TOP = 760, 22, 10, 64
_LEFT, _RIGHT = 220, 110
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.title{font-size:16px;font-weight:600}"
    ".small{font-size:11px;fill:#666}.bar{fill:#4878a8}.spread{stroke:#222;stroke-width:1}"
)


def draw(result: Result, where: str) -> str:
    """Draw the medians as bars and the spread as a line across; each unit has its own scale."""
    below = [*ratios(result), *result.notes, where]
    height = _TOP + len(result.samples) * (_BAR + _GAP) + 18 * len(below) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="16" y="26">{escape(result.title)}</text>',
        f'<text class="small" x="16" y="44">{escape(result.subject)}; medians, '
        "least to most</text>",
    ]
    for number, samples in enumerate(result.samples):
        most = max(max(other.values) for other in result.samples if other.unit == samples.unit)
        lines += _bar(samples, _TOP + number * (_BAR + _GAP), most or 1)
    at = _TOP + len(result.samples) * (_BAR + _GAP) + 12
    for number, text in enumerate(below):
        lines.append(f'<text class="small" x="16" y="{at + 18 * number}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def ratios(result: Result) -> list[str]:
    """Each ratio as a line of text."""
    lines = []
    for ratio in result.ratios:
        verdict = f" (wanted {ratio.wanted}: {'held' if ratio.held else 'not held'})"
        lines.append(f"{ratio.meaning}: {ratio.value:.3g}{verdict if ratio.wanted else ''}")
    return lines


def _bar(samples: Samples, y: int, most: float) -> list[str]:
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    length = samples.median * scale
    low, high = (_LEFT + at * scale for at in (min(samples.values), max(samples.values)))
    middle = y + _BAR / 2
    value = f"{samples.median:.3g} {samples.unit}"
    return [
        f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(samples.name)}</text>',
        f'<rect class="bar" x="{_LEFT}" y="{y}" width="{max(length, 1):.1f}" height="{_BAR}"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text x="{max(high, _LEFT + length) + 8:.1f}" y="{middle + 4}">{value}</text>',
    ]
