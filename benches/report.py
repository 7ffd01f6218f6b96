"""Tables of the figures, and the ratios with what they may be at most and what is aimed at."""

import statistics
from dataclasses import dataclass

from workloads import OURS, PEERS, WORKLOADS

LABELS = {
    "nginx return": "nginx: return 200",
    "nginx static": "nginx: static file",
    "Apache static": "Apache: static file",
    "nginx pool": "Highball: nginx, pool",
    "nginx group": "Highball: nginx, group",
    "Apache embedded": "Highball: Apache, embedded",
    "Apache group": "Highball: Apache, group",
    "uWSGI": "nginx -> uWSGI",
    "gunicorn": "nginx -> gunicorn",
    "mod_wsgi": "Apache: mod_wsgi, embedded",
    "mod_wsgi daemon": "Apache: mod_wsgi, daemon",
}
BEST_PEER = "the best peer"


@dataclass(frozen=True)
class Ratio:
    workload: str
    ours: str
    theirs: str
    # CPU: at most this. Requests in a second: at least this, and the aim is a figure of its own.
    limit: float | None = None
    aim: float | None = None


RATIOS = (
    Ratio("hello", "nginx pool", "nginx return", 1.45, 1.25),
    Ratio("hello", "nginx pool", "uWSGI", 0.3),
    Ratio("hello", "nginx pool", "bjoern", None, 1.1),
    Ratio("environ", "nginx pool", "nginx return", 1.6, 1.4),
    Ratio("django", "nginx pool", "uWSGI", 0.6, 0.5),
    Ratio("django", "nginx pool", "gunicorn", 0.2),
    Ratio("stream", "nginx pool", "uWSGI", 0.9, 0.7),
    Ratio("big", "nginx pool", "nginx static", 3, 2),
    Ratio("file", "nginx pool", "nginx static", 1.5, 1.15),
    Ratio("post", "nginx pool", "uWSGI", 0.6, 0.4),
    Ratio("hello", "nginx group", "uWSGI", 0.4, 0.3),
    Ratio("hello-1", "nginx group", "uWSGI", 0.65, 0.5),
    Ratio("hello", "Apache embedded", "mod_wsgi", 0.6, 0.45),
    Ratio("hello", "Apache group", "mod_wsgi daemon", 0.35, 0.25),
    Ratio("hello", "Apache group", "mod_wsgi"),
    Ratio("hello", "Apache embedded", "Apache static"),
    *(Ratio("sleep", ours, BEST_PEER, 0.97, 0.95 * 6400) for ours in OURS),
)


def label(name):
    return LABELS.get(name, name)


def valid(rounds):
    return bool(rounds) and not any(cell["trouble"] for cell in rounds)


def median(rounds, column):
    return statistics.median(cell[column] for cell in rounds)


def spread(values, digits):
    return f"[{min(values):.{digits}f}-{max(values):.{digits}f}]"


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def figures(workload, cells):
    """The table of one workload."""
    print(f"\n{workload.name}: {workload.text}; {workload.connections} connection{'s' * (workload.connections > 1)}")
    rows = [("", "µs CPU/request", "[min-max]", "user", "system", "requests/s", "[min-max]")]
    troubles = []
    for name, rounds in cells.items():
        if not valid(rounds):
            rows.append((label(name), "invalid", *[""] * 5))
            seen = dict.fromkeys(cell["trouble"] for cell in rounds if cell["trouble"])
            troubles += [f"  {label(name)}: {trouble}" for trouble in seen or ["not measured"]]
            continue
        totals, rates = ([cell[column] for cell in rounds] for column in ("cpu", "rate"))
        numbers = [f"{median(rounds, column):.1f}" for column in ("cpu", "user", "system")]
        rate = f"{median(rounds, 'rate'):.0f}"
        rows.append((label(name), numbers[0], spread(totals, 1), *numbers[1:], rate, spread(rates, 0)))
    table(rows)
    for line in troubles:
        print(line)
    for name, reason in workload.without:
        print(f"  {label(name)} is not asked: {reason}")


def memory(cells):
    print("\nmemory: proportional set size of all processes after a second of hello; and of an idle keep-alive\nconnection, the kernel's share of it not counted")
    rows = [("", "MiB", "KiB/connection", "kept open")]
    for name, cell in cells.items():
        if cell["trouble"]:
            rows.append((label(name), "invalid", "", cell["trouble"].splitlines()[0]))
        else:
            kept = f"{cell['open']} of {cell['asked']}"
            rows.append((label(name), f"{cell['loaded'] / 1024:.1f}", f"{cell['connection']:.2f}", kept))
    table(rows)


def ratios(raw):
    """One row for each ratio whose workload was run."""
    rows = [("ratio, median of those within rounds", "", "[min-max]", "limit", "", "aim", "")]
    for ratio in RATIOS:
        cells = raw["workloads"].get(ratio.workload, {}).get("cells")
        if cells:
            rate = next(workload.rate for workload in WORKLOADS if workload.name == ratio.workload)
            rows.append(rate_row(ratio, cells) if rate else cpu_row(ratio, cells))
    if len(rows) > 1:
        print()
        table(rows)


def cpu_row(ratio, cells):
    name = f"{ratio.workload}: {label(ratio.ours)} / {label(ratio.theirs)}"
    limit, aim = (f"{bound:g}" if bound else "" for bound in (ratio.limit, ratio.aim))
    if missing := lacking(cells, (ratio.ours, ratio.theirs)):
        return (name, missing, "", limit, "", aim, "")
    values = [ours["cpu"] / theirs["cpu"] for ours, theirs in zip(cells[ratio.ours], cells[ratio.theirs])]
    middle = statistics.median(values)
    first, second = (verdict(bound, bound and middle <= bound) for bound in (ratio.limit, ratio.aim))
    return (name, f"{middle:.2f}", spread(values, 2), limit, first, aim, second)


def rate_row(ratio, cells):
    peers = [peer for names in PEERS.values() for peer in names if valid(cells.get(peer))]
    name = f"{ratio.workload}, requests/s: {label(ratio.ours)} / {ratio.theirs}"
    limit, aim = f">= {ratio.limit:g}", f">= {ratio.aim:.0f}/s"
    if missing := lacking(cells, (ratio.ours,)):
        return (name, missing, "", limit, "", aim, "")
    reached = verdict(ratio.aim, median(cells[ratio.ours], "rate") >= ratio.aim)
    if not peers:
        return (name, "not measured", "", limit, "", aim, reached)
    best = [max(cells[peer][number]["rate"] for peer in peers) for number in range(len(cells[ratio.ours]))]
    values = [ours["rate"] / other for ours, other in zip(cells[ratio.ours], best)]
    middle = statistics.median(values)
    return (name, f"{middle:.2f}", spread(values, 2), limit, verdict(ratio.limit, middle >= ratio.limit), aim, reached)


def lacking(cells, names):
    if not all(name in cells for name in names):
        return "not measured"
    return None if all(valid(cells[name]) for name in names) else "invalid"


def verdict(bound, holds):
    return "" if bound is None else "met" if holds else "not met"
