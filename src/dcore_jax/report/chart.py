"""Charts as inline SVG: lines over steps, distributions. Colours come from the page's style sheet, so they follow dark mode.

Only ticks and axis labels are text of the SVG; titles and the names of series, which may hold a user's words in any script,
are HTML beside it.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

WIDTH, HEIGHT = 420, 250  # of the drawing; a phone's screen shows it nearly at its own size
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 8, 38
_MOST_POINTS = 300  # of a line; of more, the lowest and highest of each stretch are drawn
_LABEL = 40  # characters of an axis label that have room
_MOST_DOTS = 100  # of a series of points; a longer one is a line
_LOG_RATIO = 30.0  # of large to small values, from which on a logarithmic axis helps

SMOOTHED = "Thin: each step. Thick: the mean of the last 5 % of the steps."  # a note below such charts
Style = Literal["line", "smoothed", "points", "dashed"]


@dataclass(frozen=True)
class Series:
    """One line of a chart. Points that are not finite leave a gap."""

    name: str
    x: Sequence[int | float]
    y: Sequence[int | float]
    style: Literal["line", "smoothed", "points", "dashed"] = (
        "line"  # smoothed: the values and their moving average
    )

    @property
    def live(self) -> bool:
        """Whether any value is finite and not zero."""
        return any(math.isfinite(value) and value != 0 for value in self.y)


class Curve(NamedTuple):
    """A metric of a run's rows, and how its chart is drawn."""

    key: str
    title: str
    label: str  # of the y axis, with the unit
    smoothed: bool = True
    log: Literal["auto", "yes", "no"] = "auto"


@dataclass(frozen=True)
class Chart:
    """A drawn chart: the SVG, and what stands beside it as HTML."""

    title: str
    svg: str
    legend: tuple[tuple[int, str], ...]  # (colour, name) of each series
    note: str = ""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x: str = "step",
    y: str,
    note: str = "",
    log: Literal["auto", "yes", "no"] = "auto",
    bottom: int | float | None = None,
) -> Chart:
    """Lines over a common axis.

    Args:
      x, y: labels of the axes, with their unit.
      log: a logarithmic y axis; auto: where every value is positive and large ones are over 30 times the small ones.
      bottom: the lowest value of the y axis, where the values do not decide it.
    """
    drawn = [_finite(one) for one in series]
    values = np.concatenate([found[1] for found in drawn] or [np.zeros(0)])
    values, places = values[~np.isnan(values)], np.concatenate([found[0] for found in drawn] or [np.zeros(0)])
    if not len(values):
        values, places = np.zeros(1), np.zeros(1)
    positive = bool((values > 0).all())
    usual = np.quantile(values, [0.02, 0.98])  # single outliers do not decide the axis
    wide = bool(usual[1] > _LOG_RATIO * usual[0])
    logarithmic = positive and (log == "yes" or (log == "auto" and wide))
    axes = _Axes(places, values if bottom is None else np.append(values, bottom), logarithmic)
    shapes = [
        _line(axes, one.style, found, i % 8)
        for i, (one, found) in enumerate(zip(series, drawn))
        if len(found[0])
    ]
    label = f"{y[: _LABEL - 13]}, logarithmic" if logarithmic else y
    svg = _svg(title, axes.frame(x, label) + "".join(shapes))
    return Chart(title, svg, tuple((i, one.name) for i, one in enumerate(series)), note)


def density_chart(
    title: str, groups: Mapping[str, Sequence[int | float] | np.ndarray], *, x: str, y: str, bins: int = 25
) -> Chart:
    """How values are distributed, one outline a group: shares of the group's values in equal bins."""
    arrays = {name: np.asarray(values, float) for name, values in groups.items() if len(values)}
    highest = max((float(values.max()) for values in arrays.values()), default=0.0) or 1.0
    edges = np.linspace(0, highest, bins + 1)
    series = []
    for name, values in arrays.items():
        shares = np.histogram(values, edges)[0] / len(values)
        series.append(Series(name, np.repeat(edges, 2)[1:-1].tolist(), np.repeat(shares, 2).tolist()))
    return line_chart(title, series, x=x, y=y, log="no", bottom=0.0)


def moving_average(values: Sequence[int | float], share: float = 0.05) -> list[float]:
    """Mean over the last `share` of the series at each point (at least five points where there are as many)."""
    window = max(5, round(share * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return [float((sums[i] - sums[max(0, i - window)]) / min(i, window)) for i in range(1, len(values) + 1)]


class _Axes:
    """Places of values in the drawing."""

    def __init__(self, x: np.ndarray, y: np.ndarray, logarithmic: bool):
        self.log = logarithmic
        self.x_ticks, (self.left, self.right) = _ticks(float(x.min()), float(x.max()), whole=True)
        if logarithmic:
            self.y_ticks, (self.low, self.high) = _log_ticks(float(y.min()), float(y.max()))
        else:
            self.y_ticks, (self.low, self.high) = _ticks(float(y.min()), float(y.max()), outside=True)

    def place_x(self, value: float) -> float:
        return _LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - _LEFT - _RIGHT)

    def place_y(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def frame(self, x: str, y: str) -> str:
        """Grid, axes, ticks and labels."""
        floor, right, found = HEIGHT - _BOTTOM, WIDTH - _RIGHT, []
        for value in self.y_ticks:
            at = self.place_y(value)
            found.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            found.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        for value in self.x_ticks:
            at = self.place_x(value)
            found.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            found.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{_number(value)}</text>')
        found.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>')
        middle, centre = (_LEFT + right) / 2, (floor + _TOP) / 2
        found.append(
            f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{_text(x[:_LABEL])}</text>'
        )
        turned = f'transform="rotate(-90 11 {centre:.0f})"'
        found.append(
            f'<text class="label" x="11" y="{centre:.0f}" text-anchor="middle" {turned}>{_text(y[:_LABEL])}</text>'
        )
        return "".join(found)


def _line(axes: _Axes, style: str, found: tuple[np.ndarray, np.ndarray], colour: int) -> str:
    x, y = found
    if len(x) == 1 or (style == "points" and len(x) <= _MOST_DOTS):
        dots = [
            f'<circle class="c{colour}" cx="{axes.place_x(a):.1f}" cy="{axes.place_y(b):.1f}" r="3"/>'
            for a, b in zip(x, y)
            if not math.isnan(b)
        ]
        return (_path(axes, x, y, f"line c{colour}") if len(x) > 1 else "") + "".join(dots)
    if style == "smoothed":
        smooth = _smoothed(y)
        return _path(axes, x, y, f"raw c{colour}") + _path(axes, x, smooth, f"line c{colour}")
    return _path(axes, x, y, f"line c{colour}" + (" dashed" if style == "dashed" else ""))


def _path(axes: _Axes, x: np.ndarray, y: np.ndarray, kind: str) -> str:
    words, lifted = [], True
    for a, b in zip(*_thinned(x, y)):
        if math.isnan(b):
            lifted = True
            continue
        words.append(f"{'M' if lifted else 'L'}{axes.place_x(a):.1f} {axes.place_y(b):.1f}")
        lifted = False
    return f'<path class="{kind}" style="fill:none" d="{"".join(words)}"/>'


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """A series' places and values; what is not finite is NaN."""
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    return x, np.where(np.isfinite(y), y, np.nan)


def _smoothed(y: np.ndarray) -> np.ndarray:
    finite = ~np.isnan(y)
    smooth = np.full(len(y), np.nan)
    smooth[finite] = moving_average(y[finite].tolist())
    return smooth


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most _MOST_POINTS points: of each stretch its lowest and its highest, in their order."""
    if len(x) <= _MOST_POINTS:
        return x, y
    kept = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), _MOST_POINTS // 2):
        inside = y[stretch]
        if np.isnan(inside).all():
            kept.add(int(stretch[0]))
        else:
            kept |= {int(stretch[np.nanargmin(inside)]), int(stretch[np.nanargmax(inside)])}
    order = sorted(kept)
    return x[order], y[order]


def _ticks(
    low: float, high: float, *, whole: bool = False, outside: bool = False
) -> tuple[list[float], tuple[float, float]]:
    """Round numbers about four steps apart, and the ends of the axis; `outside`: the ends are ticks beyond the values."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    if whole and high - low >= 1:
        step = max(1.0, float(round(step)))
    first = math.floor(low / step + 1e-9) if outside else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if outside else math.floor(high / step + 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return ticks, (ticks[0], ticks[-1]) if outside else (low, high)


def _log_ticks(low: float, high: float) -> tuple[list[float], tuple[float, float]]:
    """Powers of ten, with 2 and 5 between them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    within = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    ends = (
        max(value for value in within if value <= low * 1.0001),
        min(v for v in within if v >= high * 0.9999),
    )
    decades = [
        10.0**e for e in range(first, last + 1) if ends[0] <= 10.0**e * 1.0001 and 10.0**e <= ends[1] * 1.0001
    ]
    between = [value for value in within if ends[0] <= value <= ends[1]]
    every = math.ceil(len(decades) / 6)
    return (decades[::every] if len(decades) > 3 else between), ends


def _number(value: float) -> str:
    """A tick's label: 12k, 0.05, 2e-5."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{round(value, 10):g}"


def _svg(title: str, inside: str) -> str:
    named = _text(title)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{named}">'
        f"<title>{named}</title>{inside}</svg>"
    )


def _text(text: str) -> str:
    return html.escape(text)
