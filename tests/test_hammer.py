"""Process groups under 16 clients while everything that can be replaced is replaced, again and again: nothing is lost.

HAMMER_SECONDS= (10) for each part; `make hammer` takes a minute. Each part runs with a connection for each request, and with
clients that keep theirs.
"""

import os
import signal
import time

import pytest

from support.client import until
from support.groups import supervision
from support.load import Load

SECONDS = float(os.environ.get("HAMMER_SECONDS", 10))

pytestmark = [
    pytest.mark.only("nginx-group", "apache-group"), pytest.mark.slow, pytest.mark.no_sanitizer, pytest.mark.timeout(60 + 3 * SECONDS),
]  # fmt: skip

SCRIPT = """
leaked = []
LEAK = %d

def application(environ, start_response):
    leaked.append(bytearray(LEAK))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""


@pytest.fixture
def hammered(serve):
    """A server with two workers, whatever more options there are, and its script."""

    def start(options="", leak=0):
        script = serve.script("app.wsgi", SCRIPT % leak)
        server = serve(str(script), threads=16, group_threads=4, group=f"processes=2 {options}")
        assert until(lambda: len(server.groups.pids()) == 2, 15)
        return server, script

    return start


def repeat(act, pause):
    """Does it until the time is over; how often."""
    count, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        act()
        count += 1
        time.sleep(pause)
    return count


@pytest.fixture(params=[False, True], ids=["connection-each", "keep-alive"])
def keep(request):
    return request.param


def told(server, load, count, what):
    kind = f"keep-alive, {load.retried} sent again" if load.keep else "a connection each"
    print(f"{server.host}, {kind}: {what} {count} times, {load.count} requests, {len(load.failures)} failed")


def judged(server, load, count, what):
    told(server, load, count, what)
    assert load.count > 20 * SECONDS and count > 1
    assert not load.failures, load.failures[:5]
    assert until(lambda: len(server.groups.pids()) == 2, 15)


def test_reloads_of_the_server(hammered, keep):
    server, _ = hammered()
    with Load(server, "/", clients=16, keep=keep) as load:
        count = repeat(server.reload, SECONDS / 20)
    judged(server, load, count, "reloaded")


def test_reloads_of_the_group_with_new_code(hammered, keep):
    server, script = hammered()
    numbers = iter(range(1_000_000))

    def renew():
        script.write_text(SCRIPT % 0 + f"# {next(numbers)}\n")
        assert server.groups.ask("reload", "site").returncode == 0

    with Load(server, "/", clients=16, keep=keep) as load:
        count = repeat(renew, SECONDS / 20)
    judged(server, load, count, "renewed")


def test_workers_that_are_killed(hammered, keep):
    """Only what had begun in the killed process may fail, and visibly."""
    server, _ = hammered()

    def kill():
        pids = server.groups.pids()
        if len(pids) == 2:
            os.kill(min(pids), signal.SIGKILL)

    with Load(server, "/", clients=16, keep=keep) as load:
        count = repeat(kill, 1)
    told(server, load, count, "killed")
    assert load.count > 20 * SECONDS
    assert all(failure.startswith("502") for failure in load.failures), load.failures[:5]
    assert len(load.failures) <= count * 4, "no more than the killed process's threads ran"
    assert until(lambda: len(server.groups.pids()) == 2, 15)
    server.allow_log("ended while it had this request|was killed by SIGKILL")


def test_maximum_requests(hammered, keep):
    server, _ = hammered("maximum-requests=50")
    seen = set()
    with Load(server, "/", clients=16, keep=keep) as load:
        repeat(lambda: seen.update(server.groups.pids()), 0.05)
    judged(server, load, len(seen), "replaced")


def test_a_worker_that_leaks(hammered, keep):
    server, _ = hammered("memory-limit=100m", leak=100_000)
    seen = set()
    with Load(server, "/", clients=16, keep=keep) as load:
        repeat(lambda: seen.update(server.groups.pids()), 0.1)
    judged(server, load, len(seen), "replaced")


def test_supervisors_that_are_killed(hammered, keep):
    server, _ = hammered()
    before = server.groups.pids()

    def kill():
        for pid, role in supervision(server.log.path):
            if role == "supervisor":
                os.kill(pid, signal.SIGKILL)

    with Load(server, "/", clients=16, keep=keep) as load:
        count = repeat(kill, 1)
    judged(server, load, count, "killed")
    assert server.groups.pids() == before
