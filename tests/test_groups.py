"""Process groups on both hosts: their life, their limits, and that nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.client import until
from support.groups import seen_by_root, supervision
from support.load import Load
from support.processes import alive

pytestmark = pytest.mark.only("nginx-group", "apache-group")

HELLO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%s"]
"""


@pytest.fixture
def server(serve):
    """Two workers with four threads each."""
    server = serve("behaviours:application", threads=4, group="processes=2")
    server.groups.serving(2)
    return server


# Deaths.


def test_a_worker_that_dies_costs_nobody_else_anything_and_says_why(server):
    victim, other = sorted(server.groups.pids())
    with Load(server, expected=b"hello") as load:
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        assert until(lambda: len(server.groups.pids()) == 2 and victim not in server.groups.pids(), 10)
        load.reach(100)
    assert len(load.failures) <= 4, "only what had begun in the killed process"
    assert other in server.groups.pids()
    record = server.expect_log("a process of the group was killed by SIGKILL")
    assert f"pid: {victim}" in record.text and 'process group: "site"' in record.text
    server.allow_log("ended while it had this request")


def test_a_request_that_had_begun_in_a_dying_worker_gets_502(serve):
    server = serve("behaviours:application", threads=2)
    assert server.get("/hello").body == b"hello"
    answers = []
    client = threading.Thread(target=lambda: answers.append(server.get("/waiting?seconds=20").status))
    client.start()
    assert until(lambda: any(worker["running"] for worker in server.groups.workers()))
    (pid,) = server.groups.pids()
    os.kill(pid, signal.SIGKILL)
    client.join(5)
    assert answers == [502]
    server.expect_log("ended while it had this request")
    record = server.expect_log("was killed by SIGKILL")
    assert "it was running: GET /waiting" in record.text
    assert until(lambda: server.get("/hello").body == b"hello", 10)


def test_a_response_that_had_begun_in_a_dying_worker_is_visibly_cut(serve):
    server = serve("behaviours:application", threads=2)
    assert server.get("/hello").body == b"hello"
    (pid,) = server.groups.pids()
    with server.connect() as connection:
        connection.request("GET", "/endless")
        connection.read_head()
        os.kill(pid, signal.SIGKILL)
        assert cut(connection)
    server.expect_log("was killed by SIGKILL")
    server.expect_log("ended while it had this request")


def cut(connection):
    """Whether the rest of a chunked response ends before its last chunk."""
    connection.socket.settimeout(5)
    data = b""
    try:
        while more := connection.socket.recv(1 << 16):
            data = (data + more)[-16:]
    except ConnectionResetError:
        return True
    return not data.endswith(b"0\r\n\r\n")


@seen_by_root
@pytest.mark.parametrize("who", ["supervisor", "minder"])
def test_a_killed_supervisor_or_minder_comes_back_and_workers_do_not_notice(server, who):
    before = server.groups.pids()
    with Load(server) as load:
        for _ in range(3):
            pid = getattr(server.groups, who)()
            os.kill(pid, signal.SIGKILL)
            assert until(lambda: not alive(pid))
            assert until(lambda: sorted(role for _, role in supervision(server.log.path)) == ["minder", "supervisor"], 10)
            assert until(lambda: server.groups.ask("status").returncode == 0, 10)
        load.reach(20)
    assert not load.failures, load.failures[:3]
    assert server.groups.pids() == before
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    assert until(lambda: len(server.groups.pids() - before) == 1, 10), "and it still does its work"
    server.expect_log("a process of the group (was killed by SIGKILL|has ended)", times=None)
    server.allow_log("ended while it had this request")


@seen_by_root
def test_supervisor_and_minder_may_die_one_after_the_other(server):
    before = server.groups.pids()
    for who in ("minder", "supervisor", "supervisor", "minder"):
        pid = getattr(server.groups, who)()
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not alive(pid))
        assert until(lambda: sorted(role for _, role in supervision(server.log.path)) == ["minder", "supervisor"], 10)
    assert until(lambda: server.groups.pids() == before, 10)
    server.reload()
    assert server.get("/hello").body == b"hello"
    assert server.groups.pids() == before


def test_nothing_of_ours_outlives_the_server(server):
    """However it ends: here its master is killed, and then what the master has left."""
    workers = server.groups.pids()
    children = [process.pid for process in server.workers()]
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(5)
    assert server.get("/hello").body == b"hello", "as long as a process of the server lives, so do the groups"
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not any(alive(pid) for pid in workers), 10)
    assert server.left_of_groups() == []
    server.stopped = True


@pytest.mark.parametrize("how", ["stop", "graceful"])
def test_exit_functions_run_when_the_server_stops(serve, how, stage, key):
    script = serve.script("app.wsgi", HELLO % "x" + f"""
import atexit, time
note = open({str(stage.root / "notes" / key)!r}, "w")
atexit.register(lambda: (time.sleep(0.3), note.write("over"), note.close()))
""")
    server = serve(str(script))
    assert until(lambda: server.get("/").body == b"x", 10)
    assert server.stop(how) == []
    assert (stage.root / "notes" / key).read_text() == "over"


def test_a_configuration_test_starts_nothing(serve):
    server = serve.prepare("behaviours:application")
    right, text = server.check()
    assert right, text
    assert supervision(server.log.path) == [] and not server.socket_prefix.exists()


@pytest.mark.only("nginx-group")
def test_a_worker_that_takes_nothing_is_given_up(serve):
    """It may still begin what it has got, so nobody else does; the other one gets all that comes."""
    # In memory, so that the bodies go through the connection.
    options = {"group": "processes=2 socket-timeout=500ms", "nginx_server": "client_body_buffer_size 128k;"}
    server = serve("behaviours:application", threads=8, **options)
    stopped, other = sorted(server.groups.serving(2))
    body = b"x" * 60_000
    answers = []
    # A link that is not there yet would get nothing to send.
    assert until(lambda: {server.get("/python").json()["pid"] for _ in range(2)} == {stopped, other}, 10)
    os.kill(stopped, signal.SIGSTOP)
    try:
        ask = lambda: answers.append(server.post("/waiting?seconds=1", body).status)
        clients = [threading.Thread(target=ask) for _ in range(12)]
        [client.start() for client in clients]
        [client.join(20) for client in clients]
        assert sorted(set(answers)) == [200, 502] and answers.count(200) >= 6, answers
        assert {server.get("/python").json()["pid"] for _ in range(4)} == {other}
    finally:
        os.kill(stopped, signal.SIGCONT)
    server.expect_log("it has taken nothing for 500ms", times=None)
    server.allow_log("HB0414")


# New code and new settings.


def test_a_reload_of_the_server_keeps_the_workers(server):
    before = server.groups.pids()
    with Load(server) as load:
        for _ in range(3):
            server.reload()
    assert server.groups.pids() == before
    assert not load.failures, load.failures[:3]


def test_highball_reload_replaces_the_workers_and_loses_nothing(server):
    before = server.groups.pids()
    with Load(server) as load:
        for _ in range(3):
            done = server.groups.ask("reload", "site")
            assert done.returncode == 0 and "new processes serve" in done.stdout, done
        load.reach(20)
    assert not load.failures, load.failures[:3]
    assert not before & server.groups.pids()
    assert until(lambda: not any(alive(pid) for pid in before), 10)
    assert server.groups.status()["generation"] == 4


def test_new_code_serves_once_it_is_ready(serve):
    script = serve.script("app.wsgi", HELLO % "one")
    server = serve(str(script), group="processes=2")
    assert until(lambda: server.get("/").body == b"one", 10)
    time.sleep(0.1)
    script.write_text(HELLO % "two")
    os.utime(script, (time.time() + 5, time.time() + 5))
    answers = set()
    assert until(lambda: answers.add(server.get("/").body) or b"two" in answers, 15)
    assert answers <= {b"one", b"two"}
    assert until(lambda: len(server.groups.pids()) == 2, 5)
    assert {server.get("/").body for _ in range(20)} == {b"two"}


def test_code_that_fails_does_not_replace_code_that_works(serve):
    script = serve.script("app.wsgi", HELLO % "works")
    server = serve(str(script), group="processes=2")
    before = server.groups.serving(2)
    script.write_text("import nothing_of_that_name\n")
    with Load(server, "/", expected=b"works") as load:
        done = server.groups.ask("reload", "site")
    assert done.returncode == 1 and "nothing_of_that_name" in done.stderr, done
    assert not load.failures, load.failures[:3]
    assert server.groups.pids() == before
    assert "nothing_of_that_name" in server.groups.status()["trouble"]
    server.expect_log("the new processes of group \"site\" do not serve, the old ones stay", times=None)
    server.allow_log("HB0303")


def test_changed_settings_start_new_workers_and_equal_ones_do_not(serve):
    server = serve("behaviours:application", group="processes=2")
    before = server.groups.serving(2)
    server.site.group = "processes=3 environ=STAGE=new"
    server.configuration.write_text(server.configure())
    with Load(server) as load:
        server.reload()
        assert until(lambda: len(server.groups.pids() - before) == 3 and not server.groups.pids() & before, 10)
        time.sleep(0.3)
    assert not load.failures, load.failures[:3]


def test_a_group_that_is_not_configured_any_more_ends(serve):
    server = serve("behaviours:application", static={"/static/": serve.script("s/a.txt", "x").parent})
    assert until(lambda: server.get("/hello").status == 200, 10)
    workers = server.groups.pids()
    server.grouped = False
    server.configuration.write_text(server.configure())
    server.reload()
    assert until(lambda: not any(alive(pid) for pid in workers), 20)
    assert server.left_of_groups() == []
    assert until(lambda: server.get("/hello").status == 200, 10)


# Limits.


def test_maximum_requests_replaces_workers_and_loses_nothing(serve):
    server = serve("behaviours:application", threads=4, group="processes=2 maximum-requests=50")
    seen = server.groups.serving(2)
    with Load(server) as load:
        assert until(lambda: seen.update(server.groups.pids()) or len(seen) > 6, 20)
    assert not load.failures, load.failures[:3]


def test_restart_interval_replaces_workers(serve):
    server = serve("behaviours:application", group="processes=2 restart-interval=1s")
    before = server.groups.serving(2)
    with Load(server) as load:
        assert until(lambda: not before & server.groups.pids(), 15)
    assert not load.failures, load.failures[:3]


def test_memory_limit_replaces_a_worker_that_leaks(serve):
    script = serve.script("app.wsgi", """
leaked = []

def application(environ, start_response):
    leaked.append(bytearray(2 << 20))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
""")
    server = serve(str(script), group="memory-limit=80m")
    assert until(lambda: server.get("/").body == b"hello", 10)
    before = server.groups.pids()
    with Load(server, "/", clients=2) as load:
        assert until(lambda: not before & server.groups.pids(), 20)
    assert not load.failures, load.failures[:3]
    assert server.expect_log(r"is replaced \(memory-limit", times=None)


def test_a_request_beyond_its_time_gets_504_and_its_stack_is_logged(serve):
    server = serve("behaviours:application", threads=4, group="request-timeout=700ms interrupt-timeout=2s")
    assert until(lambda: server.get("/hello").status == 200, 10)
    before = server.groups.pids()
    began = time.monotonic()
    with Load(server) as load:
        # In many steps, so that the exception comes through.
        response = server.get("/slow_steps?seconds=10")
    assert response.status == 504 and 0.6 < time.monotonic() - began < 2
    assert not load.failures and load.count > 5, load.failures[:3]
    record = server.expect_log("HB0411")
    assert "slow_steps" in record.text and "File " in record.text
    assert server.groups.pids() == before, "the exception ended it"
    server.allow_log("HB04")


def test_a_request_that_does_not_unwind_costs_its_process_after_the_others(serve):
    server = serve("behaviours:application", threads=4, group="request-timeout=500ms interrupt-timeout=500ms graceful-timeout=1s")
    assert until(lambda: server.get("/hello").status == 200, 10)
    before = server.groups.pids()
    with Load(server) as load:
        assert server.get("/waiting?seconds=30").status == 504
        assert until(lambda: not before & server.groups.pids(), 10)
        time.sleep(0.5)
    assert not load.failures, load.failures[:3]
    assert until(lambda: not any(alive(pid) for pid in before), 10)
    server.expect_log("HB0411", times=None)
    server.allow_log("HB04|did not end|was killed|interpreter")


def test_a_start_that_takes_too_long_is_told(serve):
    script = serve.script("app.wsgi", "import time\ntime.sleep(30)\n" + HELLO % "x")
    server = serve(str(script), group="startup-timeout=1s queue-timeout=300ms")
    record = server.expect_log("HB0308", times=None, timeout=10)
    assert "startup-timeout" in record.text and "app.wsgi" in record.text
    assert server.get("/").status == 504
    server.allow_log("did not take the request|a process of the group")


def test_a_full_queue_is_503_with_retry_after_and_a_late_one_504(serve):
    server = serve("behaviours:application", group_threads=1, group="queue-size=1 queue-timeout=1500ms")
    assert until(lambda: server.get("/hello").status == 200, 10)
    answers = []

    def ask():
        answers.append(server.get("/waiting?seconds=3"))

    clients = [threading.Thread(target=ask) for _ in range(5)]
    for client in clients:
        client.start()
        time.sleep(0.1)
    for client in clients:
        client.join(15)
    statuses = sorted(answer.status for answer in answers)
    assert statuses[0] == 200 and statuses[-1] == 504 and 503 in statuses, statuses
    (refused,) = [answer for answer in answers if answer.status == 503][:1]
    assert refused.header("Retry-After") == "1"
    server.allow_log("did not take the request|queue|HB04")


def test_headers_that_no_worker_takes_cost_nobody_else_anything(serve):
    script = serve.script("app.wsgi", """
import time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(1)
    length = int(environ["QUERY_STRING"] or 1)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X", "x" * length)])
    return [b"hello"]
""")
    server = serve(
        str(script),
        threads=4,
        nginx_server="large_client_header_buffers 4 2m;",
        apache="LimitRequestFieldSize 2000000",
    )
    assert until(lambda: server.get("/").status == 200, 10)
    before = server.groups.pids()
    slow = []
    client = threading.Thread(target=lambda: slow.append(server.get("/slow").body))
    client.start()
    assert until(lambda: any(worker["running"] for worker in server.groups.workers()))
    assert server.get("/", headers=[("X", "x" * 1_100_000)]).status == 431
    assert server.get("/?1100000").status == 500
    client.join()
    assert slow == [b"hello"] and server.get("/").body == b"hello" and server.groups.pids() == before
    server.expect_log("HB0415")
    assert "1024 KiB" in server.expect_log("HB0405").text


# Control.


def test_status_says_what_runs(server):
    client = threading.Thread(target=lambda: server.get("/waiting?seconds=1"))
    client.start()
    assert until(lambda: any(worker["running"] for worker in server.groups.workers()))
    status = server.groups.status()
    (running,) = [one for worker in status["workers"] for one in worker["running"]]
    assert running["request"] == "GET /waiting" and running["phase"] == "application" and 0 <= running["seconds"] < 2
    assert status["processes"] == 2 and all(worker["memory"] > 5 << 20 for worker in status["workers"])
    table = server.groups.ask("status").stdout
    assert "site: generation 1" in table and "GET /waiting" in table
    client.join()


def test_stacks_are_written_to_the_log(server):
    client = threading.Thread(target=lambda: server.get("/waiting?seconds=2"))
    client.start()
    assert until(lambda: any(worker["running"] for worker in server.groups.workers()))
    assert server.groups.ask("stacks", "site").returncode == 0
    assert "time.sleep" in server.expect_log("GET /waiting(.|\n)*in waiting|in waiting", times=None).text
    client.join()


def test_a_group_can_be_stopped_and_started(serve):
    server = serve("behaviours:application", group="queue-timeout=300ms")
    assert until(lambda: server.get("/hello").status == 200, 10)
    assert server.groups.ask("stop", "site").returncode == 0
    assert until(lambda: not server.groups.workers(), 10)
    assert server.get("/hello").status == 504
    assert server.groups.ask("start", "site").returncode == 0
    assert until(lambda: server.get("/hello").status == 200, 10)
    server.allow_log("did not take the request")


def test_what_is_not_there_is_refused_by_name(server):
    done = server.groups.ask("reload", "blog")
    assert done.returncode == 1 and '"blog"' in done.stderr and "site" in done.stderr


def test_applications_cannot_use_the_control_socket(serve, stage):
    script = serve.script("app.wsgi", """
import os, socket

def application(environ, start_response):
    found = []
    base = environ["HIGHBALL_SOCKETS"] if "HIGHBALL_SOCKETS" in environ else os.environ["HIGHBALL_SOCKETS"]
    # The directory is named for the minder, the parent of the supervisor.
    minder = open(f"/proc/{os.getppid()}/stat").read().rsplit(")", 1)[1].split()[1]
    pids = os.listdir(base) if os.access(base, os.R_OK) else [minder]
    for pid in pids:
        path = os.path.join(base, pid, "control.sock")
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(path)
                client.sendall(b'{"command": "stop", "group": "site"}\\n')
                found.append(client.recv(1000).decode())
            except OSError as error:
                found.append(type(error).__name__)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\\n".join(found).encode()]
""")
    server = serve.prepare(str(script))
    server.site.group = f"environ=HIGHBALL_SOCKETS={server.socket_prefix}"
    server.configuration.write_text(server.configure())
    serve.servers.append(server)
    server.start()
    server.begin()
    assert until(lambda: server.get("/").status == 200, 10)
    answer = server.get("/").body.decode()
    assert "PermissionError" in answer or '"ok":false' in answer, answer
    assert server.groups.status()["stopped"] is False


# Who and what.


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to change users")
def test_a_group_runs_as_its_own_user(serve):
    script = serve.script("app.wsgi", """
import json, os

MASK = os.umask(0)
os.umask(MASK)

def application(environ, start_response):
    facts = {"uid": os.getuid(), "groups": os.getgroups(), "cwd": os.getcwd(), "home": os.environ["HOME"], "umask": MASK}
    facts["multiprocess"] = environ["wsgi.multiprocess"]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(facts).encode()]
""")
    server = serve(str(script), group="user=nobody umask=027 home=/tmp")
    assert until(lambda: server.get("/").status == 200, 10)
    facts = server.get("/").json()
    assert facts["uid"] == 65534 and 0 not in facts["groups"]
    assert facts["cwd"] == "/tmp" and facts["umask"] == 0o27 and facts["multiprocess"] is False


def other_python():
    """The prefix of a Python of another minor version, and that version: on PATH, or one of pyenv's."""
    found = [Path(path) for minor in range(10, 16) if (path := shutil.which(f"python3.{minor}"))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += sorted(pyenv.glob("3.1*/bin/python3")) if os.access(pyenv, os.R_OK) else []
    for path in found:
        ask = "import sys; print(sys.base_prefix, '%d.%d' % sys.version_info[:2])"
        prefix, _, version = subprocess.run([path, "-c", ask], capture_output=True, text=True).stdout.strip().rpartition(" ")
        other = version and version != "%d.%d" % sys.version_info[:2] and tuple(map(int, version.split("."))) >= (3, 10)
        # All of a distribution's own would be too much to copy.
        if other and prefix not in ("/usr", "/usr/local"):
            return Path(prefix), version
    return None


@pytest.fixture(scope="session")
def staged_python(stage):
    found = other_python()
    if found is None:
        pytest.skip("no Python of another minor version is here")
    prefix, version = found
    staged = stage.root / "python"
    if not staged.exists():
        shutil.copytree(prefix, staged, symlinks=True, ignore=shutil.ignore_patterns("test", "__pycache__", "*.a", "idlelib"))
    return staged / "bin" / "python3", version


def test_groups_of_two_python_versions_serve_side_by_side(serve, staged_python):
    python, version = staged_python
    script = serve.script("app.wsgi", """
import sys

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d.%d" % sys.version_info[:2]]
""")
    server = serve.prepare(str(script), home=None)
    text = server.configure()
    declaration, use = {
        "nginx": ("wsgi_daemon_process other threads=2 python={python} environ=LD_LIBRARY_PATH={lib};", "location /other { wsgi_mount /other; wsgi_pass {script}; wsgi_process_group other; }"),
        "apache": ("WSGIDaemonProcess other threads=2 python={python} environ=LD_LIBRARY_PATH={lib}", "WSGIScriptAlias /other {script} process-group=other"),
    }[server.host]
    declaration, use = (part.replace("{python}", str(python)).replace("{script}", str(script)).replace("{lib}", str(python.parent.parent / "lib")) for part in (declaration, use))
    if server.host == "nginx":
        text = text.replace("wsgi_process_group site;", f"wsgi_process_group site; {declaration}").replace("location / {", use + "\nlocation / {")
    else:
        text = text.replace("WSGIProcessGroup site", f"WSGIProcessGroup site\n{declaration}\n{use}")
    server.configuration.write_text(text)
    serve.servers.append(server)
    server.start()
    server.begin()
    assert until(lambda: server.get("/").status == 200 and server.get("/other").status == 200, 10)
    assert server.get("/").body.decode() == "%d.%d" % sys.version_info[:2]
    assert server.get("/other").body.decode() == version


def test_a_python_that_is_not_there_is_one_clear_record(serve):
    server = serve("behaviours:application", home=None, group="python=/nowhere/python queue-timeout=300ms")
    record = server.expect_log("HB0204", times=None, timeout=10)
    assert "/nowhere/python" in record.text
    assert server.get("/hello").status == 504
    server.allow_log("did not take the request|HB0204")


# Configuration.


@pytest.mark.parametrize(
    "options, said",
    [
        ("thread=4", ["thread", "threads"]),
        ("request-timeout=60x", ["request-timeout", "60x"]),
        ("user=no-such-user", ["user", "no-such-user"]),
        ("inactivity-timeout=5", ["inactivity-timeout", "not supported"]),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(serve, options, said):
    right, text = serve.check("behaviours:application", group=options)
    assert not right
    for part in said:
        assert part in text, text


def test_a_group_that_nobody_declares_is_refused(serve):
    server = serve.prepare("behaviours:application")
    text = server.configure()
    text = text.replace("wsgi_process_group site", "wsgi_process_group sites").replace("WSGIProcessGroup site", "WSGIProcessGroup sites")
    server.configuration.write_text(text)
    right, text = server.check()
    assert not right and "sites" in text and 'did you mean "site"' in text, text


def test_output_of_an_application_reaches_the_log(serve):
    script = serve.script("app.wsgi", HELLO % "x" + """
import os, logging
os.write(2, b"from below\\n")
print("printed")
logging.warning("logged")
""")
    server = serve(str(script))
    assert until(lambda: server.get("/").body == b"x", 10)
    for text in ("from below", "printed", "logged"):
        record = server.expect_log(text, times=None)
        assert 'process group: "site"' in record.text, record
    server.allow_log("from below|printed|logged")
