"""The chart: CPU time of a request, a panel for each workload, as SVG by hand."""

from html import escape

from report import label, median, valid
from workloads import OURS, WORKLOADS

# The others are near one of these: hello-1 and environ to hello, flask to django, file to big.
SHOWN = ("hello", "django", "stream", "big", "post", "sleep")
WIDTH, COLUMNS, GAP = 880, 2, 20
BAR, STEP, HEADING = 13, 19, 34
NAMES, FIGURES = 186, 52
COLOURS = {"ours": "#2f6fb5", "peer": "#a3a9b1", "control": "#d6d9dd"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.h{font-weight:600;font-size:13px}.n{text-anchor:end}"
    "@media(prefers-color-scheme:dark){text{fill:#d5dae0}}"
)


def draw(raw, path):
    """Writes the chart; says whether there was anything to draw."""
    panels = []
    for workload in WORKLOADS:
        cells = raw["workloads"].get(workload.name, {}).get("cells", {}) if workload.name in SHOWN else {}
        column = "rate" if workload.rate else "cpu"
        bars = [(name, median(cells[name], column)) for name in cells if valid(cells[name])]
        if bars:
            panels.append((workload, sorted(bars, key=lambda bar: bar[1], reverse=workload.rate)))
    if not panels:
        return False
    width = (WIDTH - GAP * (COLUMNS + 1)) / COLUMNS
    parts, height = [], 40
    for row in (panels[first : first + COLUMNS] for first in range(0, len(panels), COLUMNS)):
        for column, (workload, bars) in enumerate(row):
            parts.append(panel(workload, bars, GAP + column * (width + GAP), height, width))
        height += HEADING + STEP * max(len(bars) for _, bars in row) + GAP
    text = "".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">\n'
        f"<style>{STYLE}</style>\n{legend()}{text}</svg>\n"
    )
    return True


def panel(workload, bars, left, top, width):
    unit = "requests/s, more is better" if workload.rate else "µs of CPU a request, less is better"
    parts = [f'<text class="h" x="{left:.0f}" y="{top + 14:.0f}">{escape(workload.name)}: {unit}</text>\n']
    scale = (width - NAMES - FIGURES) / max(value for _, value in bars)
    for index, (name, value) in enumerate(bars):
        y = top + HEADING - 8 + index * STEP
        length = max(value * scale, 1)
        start = left + NAMES
        parts.append(
            f'<text class="n" x="{start - 6:.0f}" y="{y + 11:.0f}">{escape(label(name))}</text>'
            f'<rect x="{start:.0f}" y="{y:.0f}" width="{length:.1f}" height="{BAR}" rx="2" fill="{COLOURS[kind(name)]}"/>'
            f'<text x="{start + length + 5:.0f}" y="{y + 11:.0f}">{number(value)}</text>\n'
        )
    return "".join(parts)


def legend():
    words = (("ours", "Highball"), ("peer", "others"), ("control", "without Python"))
    parts = []
    for index, (colour, word) in enumerate(words):
        x = GAP + index * 110
        parts.append(f'<rect x="{x}" y="14" width="12" height="12" rx="2" fill="{COLOURS[colour]}"/><text x="{x + 18}" y="24">{word}</text>')
    return "".join(parts) + "\n"


def kind(name):
    return "ours" if name in OURS else "control" if name.split()[-1] in ("return", "static") else "peer"


def number(value):
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
