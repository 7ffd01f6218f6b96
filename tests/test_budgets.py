"""How many instructions of ours a request takes may not grow unseen: counted by callgrind, so that it is the same on a busy
machine, and against budgets.json. What libpython, libc and the servers take does not count: an update of theirs must not
fail us.

HIGHBALL_BUDGETS=write accepts what is counted now: the file is written anew. Names of functions show where a figure comes from
in a build with CARGO_PROFILE_RELEASE_STRIP=none: callgrind_annotate of the files that a failing test names.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from support.client import until
from support.stage import TESTS

FILE = TESTS / "budgets.json"
BUDGETS = json.loads(FILE.read_text())
# Of a budget.
TOLERANCE = 0.05
WARM, REQUESTS, ROUNDS = 50, 200, 2000
WRITE = os.environ.get("HIGHBALL_BUDGETS") == "write"

valgrind = shutil.which("valgrind")

pytestmark = [
    pytest.mark.no_sanitizer,
    pytest.mark.skipif(not valgrind, reason="valgrind is not installed: make test installs it"),
    pytest.mark.skipif("HIGHBALL_REFERENCE" in os.environ, reason="counts instructions of Highball"),
]


def counted(path):
    """The instructions of each object by itself, from a file of callgrind's (its manual, "Callgrind Format Specification")."""
    cost, names, here, called = Counter(), {}, "", False
    for line in path.read_text().splitlines():
        if name := re.match(r"(c?ob)=\((\d+)\)(?: (.*))?$", line):
            kind, number, text = name.groups()
            if text:
                names[number] = text
            here = names[number] if kind == "ob" else here
        elif line.startswith("calls="):
            # The next line has the cost of what was called.
            called = True
        elif re.match(r"[-+*\d]", line):
            if not called:
                cost[Path(here).name] += int(line.split()[-1])
            called = False
    return cost


def callgrind(directory):
    return [valgrind, "-q", "--tool=callgrind", f"--callgrind-out-file={directory}/%p"]


def dumped(pid, directory):
    """Lets a process write what it has counted since the last time."""
    before = set(directory.glob(f"{pid}.*"))
    command = [shutil.which("callgrind_control"), "--dump", str(pid)]
    # The name of its pipe has what LOGNAME and HOST say, and the server has neither.
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]})
    written = lambda: {path for path in set(directory.glob(f"{pid}.*")) - before if "totals:" in path.read_text()}
    assert until(written, 20), f"callgrind wrote nothing: {run.stdout} {run.stderr}"
    return written().pop()


def judge(name, figure, where):
    figure = round(figure)
    if WRITE:
        BUDGETS[name] = figure
        FILE.write_text(json.dumps(dict(sorted(BUDGETS.items())), indent=1) + "\n")
    budget = BUDGETS.get(name)
    assert budget, f"{name} has no budget: it takes {figure} instructions (HIGHBALL_BUDGETS=write)"
    print(f"{name}: {figure} instructions, budget {budget} ({100 * (figure - budget) / budget:+.1f} %)")
    assert figure <= budget * (1 + TOLERANCE), (
        f"{name} takes {figure} instructions of ours, {100 * (figure - budget) / budget:.1f} % over its budget of {budget} ({where})"
    )


def ask(server, times):
    with server.connect(timeout=60) as connection:
        for _ in range(times):
            connection.request("GET", "/hello")
            assert connection.response().body == b"hello"


def end(server, how):
    """Here, as under valgrind neither its descriptors nor its times are those of others."""
    server.process.send_signal(how)
    server.process.wait(60)
    server.stopped = True


def begin(serve, *options):
    directory = serve.scripts / "callgrind"
    directory.mkdir()
    directory.chmod(0o777)
    wrapper = (*callgrind(directory), *options)
    server = serve.prepare("behaviours:application", nginx_master=False, threads=1, wrapper=wrapper)
    command = [part if part != "-DFOREGROUND" else "-X" for part in server.command()]
    server.command = lambda: command
    serve.servers.append(server)
    server.start()
    server.begin()
    server.log.position = 0
    # Made before the server changed its user.
    for path in directory.iterdir():
        path.chmod(0o666)
    return server, directory


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.only("nginx", "nginx-group")
def test_a_request_of_nginx_stays_within_its_budget(serve, host):
    server, directory = begin(serve)
    ask(server, WARM)
    dumped(server.process.pid, directory)
    ask(server, REQUESTS)
    path = dumped(server.process.pid, directory)
    end(server, signal.SIGQUIT)
    judge(host, counted(path)["libngx_http_highball_module.so"] / REQUESTS, path)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.only("apache", "apache-group")
def test_a_request_of_apache_stays_within_its_budget(serve, host):
    # A process that has changed its user takes no orders of callgrind_control: all is counted, in the handler only.
    server, directory = begin(serve, "--toggle-collect=ap_invoke_handler")
    ask(server, WARM + REQUESTS)
    server.allow_log("AH00")
    # httpd with -X falls over its own feet where a connection still lingers at its exit.
    time.sleep(4)
    end(server, signal.SIGTERM)
    path = directory / str(server.process.pid)
    judge(host, counted(path)["libmod_highball.so"] / (WARM + REQUESTS), path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.only("nginx")
@pytest.mark.parametrize("name", ["request", "head", "relay", "frames"])
def test_a_path_stays_within_its_budget(host, paths, name, tmp_path):
    def run(rounds):
        output = tmp_path / str(rounds)
        command = [valgrind, "-q", "--tool=callgrind", f"--callgrind-out-file={output}", paths, name, str(rounds)]
        subprocess.run(command, check=True, timeout=100)
        return counted(output)[paths.name]

    judge(f"path: {name}", (run(ROUNDS) - run(0)) / ROUNDS, f"benches/paths.rs, {tmp_path}")


@pytest.fixture(scope="module")
def paths():
    """The program, built if it is not there."""
    command = ["cargo", "bench", "--workspace", "--locked", "--bench", "paths", "--no-run", "--message-format=json"]
    run = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    made = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return Path(next(one["executable"] for one in made if one.get("executable") and one["target"]["name"] == "paths"))
