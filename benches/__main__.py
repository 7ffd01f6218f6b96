"""CPU time per request: Highball in nginx and in Apache, in the server's own processes and in process groups, beside what
these servers do without Python and beside the servers people use instead.

The servers of one workload run together and are measured in turn, round after round, each alone under load; then they
are stopped. CPU is user and system time of all processes of a server, over the requests that wrk counted. What is printed
are medians of rounds, and ratios within rounds, which the load of the machine disturbs least.

ONLY=hello,django and PEERS=uwsgi,mod_wsgi (or PEERS=none) make a shorter run; BENCH_ROUNDS (5), BENCH_SECONDS (1, of each
run) and BENCH_IDLE (1000 connections) change it. Raw figures go to BENCH_JSON (target/bench.json), the chart to
BENCH_CHART (target/bench.svg). With names of such files as arguments their figures are reported together, and nothing is
measured. The status is 1 if a figure is invalid: an answer other than the expected one, or an error of a connection.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import chart
import measure
import report
import targets
from server import Failed
from stage import ROOT, Stage
from workloads import MEMORY, PEERS, WORKLOADS

ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 5)
SECONDS = int(os.environ.get("BENCH_SECONDS") or 1)
IDLE = int(os.environ.get("BENCH_IDLE") or 1000)
JSON = Path(os.environ.get("BENCH_JSON") or ROOT / "target" / "bench.json")
CHART = Path(os.environ.get("BENCH_CHART") or ROOT / "target" / "bench.svg")


def main():
    names = chosen("ONLY", [workload.name for workload in (*WORKLOADS, MEMORY)])
    peers = chosen("PEERS", list(PEERS))
    begun = time.monotonic()
    # For the idle connections; the servers inherit it.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if most != resource.RLIM_INFINITY and most < 8192 else 8192, most))
    directory = Path(tempfile.mkdtemp(prefix="highball-bench-"))
    try:
        raw = run(names, Stage(directory, peers))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    JSON.write_text(json.dumps(raw, indent=1) + "\n")
    status = finish(raw)
    print(f"Raw figures: {JSON}. It took {(time.monotonic() - begun) / 60:.1f} minutes.")
    return status


def chosen(variable, known):
    text = os.environ.get(variable, "").strip()
    wanted = [word for word in text.replace(",", " ").split() if word != "none"]
    if unknown := [word for word in wanted if word not in known]:
        sys.exit(f"{variable}={text}: there is no {unknown[0]}; there are {', '.join(known)}, and none")
    return [name for name in known if name in wanted] if text else known


def run(names, stage):
    workloads = [workload for workload in WORKLOADS if workload.name in names]
    cells = sum(len(targets.names(workload, stage.peers)) for workload in workloads)
    length = cells * (ROUNDS * SECONDS + 1.5) + 5 * len(targets.names(MEMORY, stage.peers)) * (MEMORY.name in names)
    raw = {
        "rounds": ROUNDS,
        "seconds": SECONDS,
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": stage.versions,
        "left out": stage.left_out,
        "workloads": {},
        "memory": {},
    }
    print(", ".join(f"{name} {version}" for name, version in stage.versions.items()))
    for line in stage.left_out:
        print(line)
    print(f"{ROUNDS} rounds of {SECONDS} s, on {raw['processors']} processors; load before: {raw['load']:.1f}.", end=" ")
    print(f"Some {length / 60:.1f} minutes.", flush=True)
    for workload in workloads:
        raw["workloads"][workload.name] = measured(workload, stage)
        report.figures(workload, raw["workloads"][workload.name]["cells"])
    if MEMORY.name in names:
        raw["memory"] = remembered(stage)
        report.memory(raw["memory"])
    return raw


def measured(workload, stage):
    """All servers of a workload, in turn, round after round."""
    load = os.getloadavg()[0]
    print(f"\n{workload.name}: starting, load before: {load:.1f}", flush=True)
    cells, running = {}, []
    try:
        for name in targets.names(workload, stage.peers):
            cells[name] = []
            server = targets.target(name, workload, stage)
            running.append(server)
            try:
                server.start()
                measure.load(server, 1)
            except Failed as error:
                print(f"  {error}", flush=True)
                cells[name].append({"requests": 0, "trouble": str(error).splitlines()[0]})
                running.remove(server)
                server.stop()
        for number in range(1, ROUNDS + 1):
            print(f"  round {number} of {ROUNDS}: ", end="", flush=True)
            for server in running:
                time.sleep(0.05)
                cells[server.name].append(measure.load(server, SECONDS))
                print("!" if cells[server.name][-1]["trouble"] else ".", end="", flush=True)
            print(flush=True)
    finally:
        for server in running:
            server.stop()
        shutil.rmtree(stage.directory / workload.name, ignore_errors=True)
    return {"load": load, "connections": workload.connections, "cells": cells}


def remembered(stage):
    """Memory, of one server after the other, as shared pages are divided by those who have them."""
    print("\nmemory: ", end="", flush=True)
    cells = {}
    for name in targets.names(MEMORY, stage.peers):
        server = targets.target(name, MEMORY, stage)
        connections = None
        try:
            server.start()
            trouble = measure.load(server, 1)["trouble"]
            loaded = measure.memory(server)
            connections = measure.IdleConnections(server, IDLE)
            time.sleep(0.5)
            full = measure.memory(server)
            kept = connections.open()
            if not kept:
                trouble = trouble or "it keeps no idle connection"
            each = (full - loaded) / max(kept, 1)
            cells[name] = {"loaded": loaded, "connection": each, "open": kept, "asked": IDLE, "trouble": trouble}
        except Failed as error:
            cells[name] = {"trouble": str(error)}
        finally:
            if connections:
                connections.close()
            server.stop()
            print("!" if name not in cells or cells[name]["trouble"] else ".", end="", flush=True)
    shutil.rmtree(stage.directory / MEMORY.name, ignore_errors=True)
    print(flush=True)
    return cells


def reported(paths):
    """The figures of several runs, as one."""
    raw = {"workloads": {}, "memory": {}, "left out": []}
    for path in paths:
        one = json.loads(Path(path).read_text())
        raw["workloads"].update(one["workloads"])
        raw["memory"].update(one["memory"])
        raw["left out"] += one["left out"]
    for workload in WORKLOADS:
        if workload.name in raw["workloads"]:
            report.figures(workload, raw["workloads"][workload.name]["cells"])
    if raw["memory"]:
        report.memory(raw["memory"])
    return finish(raw)


def finish(raw):
    report.ratios(raw)
    if chart.draw(raw, CHART):
        print(f"\nChart: {CHART}")
    for line in dict.fromkeys(raw["left out"]):
        print(line)
    cells = [rounds for workload in raw["workloads"].values() for rounds in workload["cells"].values()]
    invalid = sum(not report.valid(rounds) for rounds in cells) + sum(bool(cell["trouble"]) for cell in raw["memory"].values())
    if invalid:
        print(f"INVALID: {invalid} of the cells above; see there why.")
    return bool(invalid)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(reported(sys.argv[1:]) if sys.argv[1:] else main())
