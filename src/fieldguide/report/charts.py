"""Small SVG drawings for the pages. Colours are CSS classes, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fieldguide.report.intervals import Interval
from fieldguide.report.reliability import Calibration

LETTER = 7.2  # pixels: a wide mean of the page's font at the charts' size


@dataclass(frozen=True)
class Bar:
    """One line of the comparison chart."""

    name: str
    value: float
    interval: Interval
    ours: bool = False


def comparison_chart(bars: Sequence[Bar], width: int = 520) -> Markup:
    """Accuracies from 0 to 100% as bars, each with its 95% interval as a whisker."""
    left = 20 + round(LETTER * max(len(bar.name) for bar in bars))
    right, row, top = 58, 34, 6
    span, height = width - left - right, top + row * len(bars) + 26
    parts = [_open(width, height, "Accuracy of the guide and of the baselines")]
    for tick in (0, 25, 50, 75, 100):
        x = left + span * tick / 100
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 22}"/>')
        parts.append(_tick(x, height - 6, f"{tick}%"))
    for index, bar in enumerate(bars):
        y, kind = top + row * index + 6, "bar ours" if bar.ours else "bar"
        middle = y + 11
        low, high = left + span * bar.interval.low, left + span * bar.interval.high
        parts.append(f'<text x="{left - 10}" y="{middle + 4}" text-anchor="end">{escape(bar.name)}</text>')
        parts.append(
            f'<rect class="{kind}" x="{left}" y="{y}" width="{span * bar.value:.1f}" height="22" rx="3"/>'
        )
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10'
            f'M{high:.1f} {middle - 5}v10"/>'
        )
        parts.append(f'<text class="value" x="{width - right + 10}" y="{middle + 4}">{bar.value:.1%}</text>')
    return Markup("".join([*parts, "</svg>"]))


def reliability_chart(calibration: Calibration, size: int = 340) -> Markup:
    """Stated probability against the share that was right; below it, how many answers each bar holds."""
    left, bottom, top, counts = 52, 44, 8, 52
    span = size - left - 12
    floor = top + span
    base = floor + 26 + counts  # where the small bars of the counts stand
    height = base + bottom
    parts = [_open(size, height, "Stated probability against the share that was right")]
    for tick in (0, 0.5, 1):
        x, y = left + span * tick, floor - span * tick
        parts.append(f'<line class="grid" x1="{left}" x2="{left + span}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_tick(left - 6, y + 4, f"{tick:.0%}", "end"))
        parts.append(_tick(x, base + 16, f"{tick:.0%}", "end" if tick == 1 else "middle"))
    largest = max(b.count for b in calibration.bins)
    for b in calibration.bins:
        if not b.count:
            continue
        x, wide = left + span * b.low + 1, span * (b.high - b.low) - 2
        tall, number = span * b.accuracy, max(1.0, counts * b.count / largest)
        parts.append(
            f"<g><title>stated {b.confidence:.0%}, right {b.accuracy:.0%}, {b.count} answers</title>"
            f"{_rect('bar ours', x, floor - tall, wide, tall)}"
            f"{_rect('bar', x, base - number, wide, number)}</g>"
        )
        parts.append(_tick(x + wide / 2, base - number - 4, str(b.count)))
    parts.append(f'<line class="ideal" x1="{left}" y1="{floor}" x2="{left + span}" y2="{top}"/>')
    parts.append(_tick(left - 6, base, "count", "end"))
    parts.append(_tick(left + span / 2, height - 8, "probability the guide stated"))
    return Markup("".join([*parts, "</svg>"]))


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str) -> Markup:
    """Up to three lines over a shared axis, from 0 up.

    Args:
        series: {name: ((x, y), …)}.
    """
    width, height, left, bottom, top, right = 640, 240, 52, 40, 12, 110
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    peak = max(max(y for _, y in points), 1e-9) * 1.05
    across, up = width - left - right, height - top - bottom
    parts = [_open(width, height, f"{y_name} by {x_name}")]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + across * ((x - low) / (high - low) if high > low else 0.5), top + up * (1 - y / peak)

    for share in (0, 0.5, 1):
        _, y = place(low, peak * share)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + across}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_tick(left - 6, y + 4, f"{peak * share:.2g}", "end"))
    for x_value in sorted({low, high}):
        parts.append(_tick(place(x_value, 0)[0], height - bottom + 16, f"{x_value:g}"))
    taken: list[float] = []
    for number, (name, line) in enumerate(series.items()):
        if not line:
            continue
        spots = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline class="line l{number}" points="{path}"/>')
        if len(spots) <= 30:
            parts.extend(f'<circle class="dot l{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in spots)
        x, at = spots[-1]
        while any(abs(at - other) < 14 for other in taken):  # two names must not lie on each other
            at -= 14
        taken.append(at)
        parts.append(f'<text class="l{number}" x="{x + 8:.1f}" y="{at + 4:.1f}">{escape(name)}</text>')
    parts.append(_tick(left + across / 2, height - 6, x_name))
    return Markup("".join([*parts, "</svg>"]))


def _open(width: int, height: int, name: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'


def _tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
