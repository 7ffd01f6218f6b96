"""One process after another is killed while its server starts, reloads and stops: the server goes on by itself, or nothing
of ours outlives it."""

import os
import signal
import time

import pytest

from support.client import ConnectionEnded, until
from support.groups import seen_by_root, supervision
from support.processes import alive, all_processes

pytestmark = pytest.mark.only("nginx-group", "apache-group")

# Long enough to be hit while it is imported.
SCRIPT = """
import time
time.sleep(0.25)

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%s"]
"""

EVERYTHING = "."


def supervising(server, role):
    return [pid for pid, found in supervision(server.log.path) if found == role]


def workers(server):
    """Of the group, starting and serving ones, from their parent: the supervisor may not be there to be asked."""
    parents = {pid for pid, _ in supervision(server.log.path)}
    return [process.pid for process in all_processes() if process.parent in parents and process.pid not in parents and not process.zombie]


VICTIMS = {
    "master": lambda server: [server.process.pid],
    "child": lambda server: [process.pid for process in server.workers()],
    "supervisor": lambda server: supervising(server, "supervisor"),
    "minder": lambda server: supervising(server, "minder"),
    "worker": workers,
}


def kill_one(server, victim):
    """Kills the first that is there within a moment; whether there was any."""
    found = until(lambda: VICTIMS[victim](server), 2)
    try:
        os.kill(found[0], signal.SIGKILL)
    except (TypeError, IndexError, ProcessLookupError):
        return False
    return until(lambda: not alive(found[0]), 5)


def kill_all(server):
    """The server's processes, those that become its while the others go as well."""

    def killed():
        for member in server.members():
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not [member for member in server.members() if not member.zombie]

    assert until(killed, 5), server.family()
    server.process.wait(5)


@pytest.fixture
def killed(serve):
    """A server whose processes are killed: its log is not judged."""
    script = serve.script("app.wsgi", SCRIPT % "old")
    server = serve(str(script), threads=2, processes=1, group="processes=2 shutdown-timeout=2s graceful-timeout=2s")
    server.allow_log(EVERYTHING)
    yield server, script
    # What the fixture of servers would look at is looked at here.
    server.stopped = True
    if server.process.poll() is None:
        kill_all(server)
    assert server.left_of_groups() == []


def goes_on(server, expected):
    """Nobody helps: it answers, first here and there, then with every process."""
    assert until(lambda: answer(server) in expected, 20), server.log.text()[-3000:]
    assert until(lambda: [answer(server) for _ in range(8)] == [expected[-1]] * 8, 20), server.log.text()[-3000:]


def answer(server):
    try:
        return server.get("/").body
    except (OSError, ConnectionEnded):
        return None


@seen_by_root
@pytest.mark.parametrize("pause", [0, 0.05, 0.3])
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("phase", ["start", "reload", "stop"])
def test_whoever_is_killed(killed, phase, victim, pause):
    server, script = killed
    expected = [b"old"]
    if phase != "start":
        assert until(lambda: answer(server) == b"old", 10)
    if phase == "reload":
        script.write_text(SCRIPT % "new")
        os.utime(script, (time.time() + 5, time.time() + 5))
        server.site.group += " environ=STAGE=new"
        server.configuration.write_text(server.configure())
        server.signal("reload")
        expected = [b"old", b"new"]
    if phase == "stop":
        server.signal("stop")
    time.sleep(pause)
    was_there = kill_one(server, victim)
    if phase != "stop":
        assert was_there
        if victim == "master":
            kill_all(server)
        else:
            goes_on(server, expected)
            server.signal("stop")
    if server.process.poll() is None:
        server.process.wait(15)
    # What a dead master has left would go on serving; whoever ends it ends ours with it.
    kill_all(server)
    assert server.left_of_groups() == []
