"""Bar charts of a condition and curves of growth, as SVG."""

from __future__ import annotations

from html import escape

from phantom_tun.analysis.svg_plot import Axis, Line, line_plot
from phantom_tun.lab.bench.model import FIGURES, GROWTH_FIGURES, ConditionResult, GrowthResult
from phantom_tun.lab.bench.report import cell
from phantom_tun.lab.bench.spreads import Spread, spread

PLOTTED = (
    "down_1", "up_1", "down_8", "down_1_cpu", "connect", "connects", "echo", "echo_loaded", "udp",
    "memory_relay",
)  # fmt: skip
GROWTH_PLOTTED = ("down_1", "down_1_cpu", "connect", "echo", "memory_relay", "start")

_COLUMNS = 2
_PANEL_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH = 500, 150, 150
_BAR, _GAP, _HEAD, _MARGIN = 16, 6, 30, 12
_OURS, _PEER, _WHISKER = "#2a7d4f", "#8a94a6", "#222"
_STYLE = "text{font:12px sans-serif;fill:#222}.h{font-weight:bold}.v{font-size:11px}"


def chart(result: ConditionResult) -> str:
    """A panel for each figure, a bar for each system: the median, and a line from the lowest to
    the highest repetition."""
    panels = []
    for figure in FIGURES:
        values = [spread(system.samples.get(figure.key, ())) for system in result.systems]
        if figure.key in PLOTTED and any(value is not None for value in values):
            panels.append((figure, values))
    height = _HEAD + len(result.systems) * (_BAR + _GAP) + _MARGIN
    rows = -(-len(panels) // _COLUMNS)
    width = _COLUMNS * _PANEL_WIDTH + _MARGIN
    body = [f'<text class="h" x="{_MARGIN}" y="18">{escape(result.condition.title)}</text>']
    for index, (figure, values) in enumerate(panels):
        x = _MARGIN + index % _COLUMNS * _PANEL_WIDTH
        y = _HEAD + index // _COLUMNS * height
        title = f"{figure.title}, {figure.unit} ({figure.better} is better)"
        body.append(f'<text class="h" x="{x}" y="{y + 14}">{escape(title)}</text>')
        top = max(value.highest for value in values if value is not None)
        for number, (system, value) in enumerate(zip(result.systems, values, strict=True)):
            at = y + _HEAD - 6 + number * (_BAR + _GAP)
            color = _OURS if system.key.startswith("ours") else _PEER
            body.append(f'<text x="{x}" y="{at + 12}">{escape(system.title)}</text>')
            text = cell(value, figure.digits)
            body += _bar(x + _LABEL_WIDTH, at, value, color, top=top, text=text)
    total = _HEAD + rows * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
        f'viewBox="0 0 {width} {total}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def curves(result: GrowthResult) -> dict[str, str]:
    """A plot for each figure that was measured at two sizes or more, by figure."""
    found = {}
    for figure in GROWTH_FIGURES:
        values = [(p.x, spread(p.samples.get(figure.key, ()))) for p in result.points]
        points = [(x, value.median) for x, value in values if value is not None]
        if figure.key in GROWTH_PLOTTED and len(points) > 1:
            found[figure.key] = line_plot(
                f"{figure.title} ({figure.better} is better)",
                Axis(result.x_title),
                Axis(figure.unit),
                [Line("phantom-tun", points)],
            )
    return found


def _bar(
    x: float, y: float, value: Spread | None, color: str, *, top: float, text: str
) -> list[str]:
    label = f'<text class="v" x="{{:.1f}}" y="{y + 12}">{escape(text)}</text>'
    if value is None or top <= 0:
        return [label.format(x)]
    scale = (_PANEL_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH) / top
    middle = y + _BAR / 2
    return [
        f'<rect x="{x}" y="{y}" width="{value.median * scale:.1f}" height="{_BAR}" '
        f'fill="{color}"/>',
        f'<line x1="{x + value.lowest * scale:.1f}" x2="{x + value.highest * scale:.1f}" '
        f'y1="{middle}" y2="{middle}" stroke="{_WHISKER}"/>',
        label.format(x + value.highest * scale + 5),
    ]
