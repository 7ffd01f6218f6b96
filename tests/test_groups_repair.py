"""What went wrong is put right by whoever repairs it, and by nothing else: code, settings, supervisors."""

import os
import signal
import subprocess
import time

import pytest

from support.client import until
from support.groups import seen_by_root
from support.load import Load
from support.processes import alive

pytestmark = pytest.mark.only("nginx-group", "apache-group")

ANSWERS = """
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [("%s " + os.environ.get("STAGE", "")).strip().encode()]
"""


def write(script, text):
    """As somebody who saves it later than the last time."""
    written = script.stat().st_mtime if script.exists() else time.time()
    script.write_text(text)
    os.utime(script, (written + 2, written + 2))


def served(server, body, timeout=15):
    assert until(lambda: server.get("/").body == body, timeout), server.log.text()[-2000:]


def test_a_script_that_was_broken_is_taken_up_once_it_is_repaired(serve):
    script = serve.script("app.wsgi", ANSWERS % "one")
    server = serve(str(script), group="processes=2")
    server.groups.serving(2)
    for text in ("two", "three"):
        write(script, "import nothing_of_that_name\n")
        assert until(lambda: server.get("/").body and server.groups.status()["trouble"], 15)
        assert server.get("/").body in (b"one", b"two")
        write(script, ANSWERS % text)
        served(server, text.encode())
        assert until(lambda: not server.groups.status()["trouble"])
    server.expect_log("do not serve, the old ones stay", times=None)
    # The test writes while a process may read.
    server.allow_log("HB030")


def change(server, options):
    server.site.group = options
    server.configuration.write_text(server.configure())
    server.reload()


def test_reload_makes_what_is_wanted_and_not_what_was(serve):
    """The settings of a reload whose code was broken are those that serve once it is repaired."""
    script = serve.script("app.wsgi", ANSWERS % "hello")
    server = serve(str(script), group="processes=1")
    served(server, b"hello")
    script.write_text("import nothing_of_that_name\n")
    change(server, "processes=1 environ=STAGE=new")
    assert until(lambda: server.groups.status()["trouble"], 10)
    script.write_text(ANSWERS % "hello")
    assert server.groups.ask("reload", "site").returncode == 0
    served(server, b"hello new")
    server.expect_log("do not serve, the old ones stay", times=None)
    server.allow_log("HB0303")


@seen_by_root
@pytest.mark.parametrize("coming", ["broken", "slow"])
def test_a_supervisor_that_is_killed_while_new_settings_do_not_serve_costs_nothing(serve, coming):
    script = serve.script("app.wsgi", ANSWERS % "hello")
    server = serve(str(script), group="processes=2")
    before = server.groups.serving(2)
    text = "import nothing_of_that_name\n" if coming == "broken" else "import time\ntime.sleep(2)\n" + ANSWERS % "hello"
    script.write_text(text)
    change(server, "processes=2 environ=STAGE=new")
    if coming == "broken":
        assert until(lambda: server.groups.status()["trouble"], 10)
    with Load(server, "/", expected=b"hello" if coming == "broken" else None) as load:
        load.reach(20)
        supervisor = server.groups.supervisor()
        os.kill(supervisor, signal.SIGKILL)
        assert until(lambda: not alive(supervisor))
        assert until(lambda: server.groups.ask("status").returncode == 0)
        load.reach(load.count + 200)
        if coming == "slow":
            served(server, b"hello new")
    assert not load.failures, load.failures[:3]
    if coming == "broken":
        assert server.groups.pids() == before
    server.allow_log("HB0303|do not serve, the old ones stay|ended")


@seen_by_root
def test_an_application_that_closes_what_is_not_its_own_is_replaced(serve):
    script = serve.script("app.wsgi", """
import os, socket

def application(environ, start_response):
    if environ["PATH_INFO"] == "/close":
        socket.socket(fileno=os.dup(4)).shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
""")
    server = serve(str(script))
    served(server, b"hello")
    (before,) = server.groups.pids()
    assert server.get("/close").status == 200
    assert until(lambda: server.groups.pids() and before not in server.groups.pids(), 10)
    assert until(lambda: not alive(before), 15), "and it ends"
    supervisor = server.groups.supervisor()
    ticks = lambda: sum(map(int, open(f"/proc/{supervisor}/stat").read().rsplit(")", 1)[1].split()[11:13]))
    began = ticks()
    time.sleep(1)
    assert ticks() - began < 20, "the supervisor does not turn round and round"
    server.allow_log("Bad file descriptor|a process of the group")


def test_a_reload_that_nobody_wants_any_more_is_answered(serve):
    script = serve.script("app.wsgi", ANSWERS % "hello")
    server = serve(str(script), group="queue-timeout=300ms")
    served(server, b"hello")
    script.write_text("import time\ntime.sleep(20)\n")
    prefix = ["--socket-prefix", server.socket_prefix]
    asked = subprocess.Popen([server.groups.command, "reload", "site", *prefix], stderr=subprocess.PIPE, text=True)
    assert until(lambda: len(server.groups.workers()) == 2)
    assert server.groups.ask("stop", "site").returncode == 0
    assert "stopped" in asked.communicate(timeout=10)[1] and asked.returncode == 1
    server.allow_log("a process of the group|did not take")


@seen_by_root
def test_workers_whose_supervisor_and_minder_died_together_end_once_others_serve(serve):
    server = serve("behaviours:application", group="processes=2")
    before = server.groups.serving(2)
    supervisor, minder = server.groups.supervisor(), server.groups.minder()
    os.kill(minder, signal.SIGSTOP)
    for pid in (supervisor, minder):
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not alive(supervisor) and not alive(minder))
    assert server.get("/hello").body == b"hello", "they serve on"
    server.reload()
    assert until(lambda: len(server.groups.pids()) == 2 and not server.groups.pids() & before, 15)
    assert until(lambda: not any(map(alive, before)), 15)
    assert server.get("/hello").body == b"hello"


def test_another_application_is_waited_for_while_new_processes_import_it(serve):
    """After the reload server processes ask for what the old workers do not have."""
    one = serve.script("one.wsgi", ANSWERS % "one")
    two = serve.script("two.wsgi", "import time\ntime.sleep(1.5)\n" + ANSWERS % "two")
    server = serve(str(one), threads=8, group="processes=2")
    server.groups.serving(2)
    with Load(server, "/", expected=None) as load:
        load.reach(20)
        server.site.mounts[0].target = str(two)
        server.configuration.write_text(server.configure())
        server.reload()
        served(server, b"two")
        load.reach(load.count + 50)
    assert not load.failures, load.failures[:3]


def test_an_application_that_never_comes_is_told_after_queue_timeout(serve):
    one = serve.script("one.wsgi", ANSWERS % "one")
    two = serve.script("two.wsgi", "import nothing_of_that_name\n")
    server = serve(str(one), threads=8, group="queue-timeout=1s")
    served(server, b"one")
    server.site.mounts[0].target = str(two)
    server.configuration.write_text(server.configure())
    server.reload()
    answered = server.get("/")
    # New processes cannot replace the old ones, which do not have it: unless they were asked once they were gone.
    assert answered.status == 500
    server.allow_log("HB0310|HB0303|do not serve, the old ones stay|a process of the group")
