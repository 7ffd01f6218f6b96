"""The supervisor of process groups, with this test as its server's master: docs/process-groups-protocol.md, 1 to 6."""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import threading
import time

import pytest

from support import processes
from support.client import until
from support.groups import seen_by_root
from support.supervisor import HIGHBALL, Supervised
from support.worker import GOAWAY

SLOW = "import time\ntime.sleep({})\nfrom worker_app import application\n"


@pytest.fixture
def supervised():
    """Starts supervisors; afterwards nothing of them is there, and their logs hold what the test expects, no more."""
    started = []

    def start(**options):
        started.append(Supervised(**options))
        return started[-1]

    yield start
    for one in started:
        try:
            if one.life:
                one.bye()
                one.vanish()
            assert until(lambda: not one.own(), 10), f"{one.own()} are left\n{one.text()[-3000:]}"
            assert not one.sockets or not one.sockets.exists(), list(one.sockets.iterdir())
            unexpected = [r for r in one.records() if not any(e in r for e in [*one.expected, "printed while"])]
            assert not unexpected, "\n".join(unexpected)
        finally:
            one.end()


def kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)


def gone(pid):
    return not processes.alive(pid)


def begin(one, path="/sleep", slot=0):
    """A request that runs: its connection and stream."""
    connection = one.connect(slot)
    stream = connection.request(path)
    assert until(lambda: any(worker["busy"] for worker in one.workers())), one.text()
    return connection, stream


# -- start and end


def test_a_group_starts_serves_and_ends(supervised):
    one = supervised()
    (one.directory / "slow.py").write_text(SLOW.format(2))
    began = time.monotonic()
    assert one.order(processes=2, applications=["slow:application"]).startswith("highball 1 ok /")
    assert time.monotonic() - began < 1.5, "the answer waits for no import"
    one.wait_serving()
    for slot in range(2):
        assert one.get("/hello", slot=slot, target="slow:application").body == b"hello"
    worker = one.workers()[0]
    assert (worker["state"], worker["threads"], worker["slot"]) == ("serving", 4, 0)
    one.bye()
    assert (one.directory / "exited").exists(), "exit functions run"


def test_sockets_are_for_the_server_alone(supervised):
    one = supervised().run()
    mode = lambda name: (one.sockets / name).stat().st_mode & 0o777
    assert (mode("site.0.sock"), mode("control.sock"), mode("")) == (0o600, 0o600, 0o700)
    assert sorted(path.name for path in one.sockets.iterdir()) == ["control.sock", "site.0.sock"]


@seen_by_root
@pytest.mark.parametrize("phase", ["starting", "serving", "busy"])
def test_the_end_of_the_server_is_the_end_of_everything(supervised, phase):
    one = supervised()
    (one.directory / "slow.py").write_text(SLOW.format(30))
    if phase == "starting":
        one.order(processes=2, applications=["slow:application"])
        assert until(lambda: len(one.workers()) == 2)
    else:
        one.run(processes=2, shutdown_timeout=1000)
    if phase == "busy":
        begin(one, "/deaf")
        one.expected += ["HB0410", "ended", "SIGKILL"]
    pids = [process.pid for process in one.own()]
    assert len(pids) == 4, "minder, supervisor, two workers"
    one.vanish()
    assert until(lambda: all(map(gone, pids)), 8)
    assert not one.sockets.exists()


def test_the_end_waits_for_what_runs(supervised):
    one = supervised().run()
    connection, stream = begin(one)
    one.connections.remove(connection)
    leave = threading.Thread(target=one.bye)
    leave.start()
    assert connection.answer(stream).body == b"slept"
    assert connection.goaway
    connection.close()
    leave.join()


def test_what_runs_at_the_end_is_given_up_and_unwinds(supervised):
    one = supervised().run(shutdown_timeout=500)
    one.expected += ["HB0410"]
    connection, stream = begin(one, "/loop")
    one.connections.remove(connection)
    leave = threading.Thread(target=one.bye)
    began = time.monotonic()
    leave.start()
    connection.answer(stream)
    connection.close()
    leave.join()
    assert time.monotonic() - began < 2.5, "shutdown-timeout and two seconds are what a server waits"
    assert until((one.directory / "interrupted").exists, 1), "the request unwinds"
    assert (one.directory / "exited").exists(), "and exit functions run"


# -- what is killed


def test_a_dead_worker_is_followed_by_another_on_the_same_socket(supervised):
    one = supervised().run()
    one.expected += ["SIGKILL"]
    before, inode = one.pids()[0], (one.sockets / "site.0.sock").stat().st_ino
    begin(one)
    kill(before)
    assert one.get("/hello").body == b"hello"
    one.wait_serving()
    assert one.pids()[0] != before
    assert (one.sockets / "site.0.sock").stat().st_ino == inode
    (record,) = [record for record in one.records() if "SIGKILL" in record]
    assert "GET /sleep" in record and f"{before}#" in record


def test_a_crash_is_told_with_its_signal_and_its_stack(supervised):
    one = supervised().run()
    one.expected += ["SIGSEGV", "Segmentation fault"]
    one.connect().request("/crash")
    one.wait_log("SIGSEGV")
    (record,) = [record for record in one.records("crit|error|warn|notice") if "Fatal Python error" in record]
    assert "in crash" in record and "Current thread" in record, "what faulthandler writes is one record"
    one.wait_serving()


def test_an_exit_is_told_with_its_code(supervised):
    one = supervised()
    one.expected += ["status 3"]
    (one.directory / "app.py").write_text(
        "import os, threading\nfrom worker_app import application\nthreading.Timer(0.5, lambda: os._exit(3)).start()"
    )
    one.run(applications=["app:application"])
    one.wait_log("exit status 3")
    one.wait_serving()


@pytest.mark.parametrize("ready", [False])
def test_a_worker_that_dies_again_and_again_is_started_more_and_more_seldom(supervised, ready):
    one = supervised()
    one.expected += ["status 3", "app"]
    (one.directory / "app.py").write_text(
        "import os, threading\n"
        f"open({str(one.directory / 'starts')!r}, 'a').write('x')\n"
        "from worker_app import application\n"
        + ("threading.Timer(0.02, lambda: os._exit(3)).start()" if ready else "os._exit(3)")
    )
    one.order(applications=["app:application"])
    time.sleep(3)
    starts = len((one.directory / "starts").read_text())
    assert 3 <= starts <= 9, "0.1 s, 0.2 s, 0.4 s and so on"
    one.order(threads=2)
    one.wait_serving()


@seen_by_root
@pytest.mark.parametrize("phase", ["starting", "serving", "changing", "draining"])
def test_a_killed_supervisor_is_followed_by_another(supervised, phase):
    one = supervised()
    one.expected += ["supervisor"]
    (one.directory / "slow.py").write_text(SLOW.format(1))
    connection = None
    if phase == "starting":
        one.order(processes=2, applications=["slow:application"])
        assert until(lambda: len(one.workers()) == 2)
    else:
        one.run(processes=2)
    before, supervisor = one.pids(), one.supervisor
    if phase == "changing":
        one.order(processes=2, applications=["slow:application"])
        assert until(lambda: len(one.workers()) == 4)
    elif phase == "draining":
        connection, stream = begin(one)
        one.order(processes=2, threads=5)
        assert until(lambda: [w for w in one.workers() if w["state"] == "draining"])
    kill(supervisor)
    assert until(lambda: one.supervisor not in (None, supervisor), 5)
    assert until(lambda: one.status())
    if connection:
        assert connection.answer(stream).body == b"slept", "requests notice nothing"
        connection.close()
    one.wait_serving()
    if phase == "serving":
        assert one.pids() == before, "workers are not disturbed"
    wanted = one.groups["site"]
    assert one.workers()[0]["threads"] == wanted["threads"]
    assert one.get("/hello", target=wanted["applications"][0]["target"]).body == b"hello"
    assert one.send_state(one.state()).startswith("highball 1 ok"), "orders are still taken"


@seen_by_root
def test_requests_notice_nothing_of_killed_supervisors(supervised):
    one = supervised().run(processes=2)
    one.expected += ["supervisor", "minder"]
    connections = [one.connect(slot) for slot in range(2)]
    stop, wrong, count = threading.Event(), [], [0]

    def ask(connection):
        while not stop.is_set():
            answer = connection.get("/hello")
            count[0] += 1
            if answer.body != b"hello":
                wrong.append(answer)
                return

    threads = [threading.Thread(target=ask, args=[connection]) for connection in connections]
    [thread.start() for thread in threads]
    before = one.pids()
    for _ in range(4):
        old = one.supervisor
        kill(old)
        assert until(lambda: one.supervisor not in (None, old))
        old = one.minder
        kill(old)
        assert until(lambda: one.minder not in (None, old))
        assert until(lambda: one.status())
    stop.set()
    [thread.join() for thread in threads]
    assert not wrong and count[0] > 100
    assert one.pids() == before


@seen_by_root
def test_a_worker_that_dies_with_its_supervisor_is_replaced_and_told_of(supervised):
    one = supervised().run(processes=2)
    one.expected += ["supervisor", "SIGKILL"]
    before, supervisor = one.pids(), one.supervisor
    inode = (one.sockets / "site.0.sock").stat().st_ino
    kill(supervisor, signal.SIGSTOP)
    kill(before[0])
    kill(supervisor)
    assert until(lambda: one.pids().get(0) not in (None, before[0]))
    one.wait_serving()
    assert one.pids()[1] == before[1]
    assert (one.sockets / "site.0.sock").stat().st_ino == inode, "who had connected waits there"
    one.wait_log("SIGKILL")


@seen_by_root
def test_a_worker_of_a_killed_supervisor_is_still_watched(supervised):
    one = supervised().run()
    one.expected += ["supervisor", "SIGKILL"]
    before, supervisor = one.pids(), one.supervisor
    kill(supervisor)
    assert until(lambda: one.supervisor not in (None, supervisor))
    assert until(lambda: one.pids())
    kill(before[0])
    assert until(lambda: one.pids().get(0) not in (None, before[0]))
    one.wait_serving()
    one.wait_log("SIGKILL")


@seen_by_root
def test_a_killed_minder_is_followed_by_another(supervised):
    one = supervised().run()
    one.expected += ["supervisor", "minder", "process of the group"]
    before, supervisor, minder = one.pids(), one.supervisor, one.minder
    kill(minder)
    assert until(lambda: one.minder not in (None, minder))
    assert one.supervisor == supervisor and one.get("/hello").body == b"hello"
    kill(supervisor)
    assert until(lambda: one.supervisor not in (None, supervisor))
    assert until(lambda: one.pids() == before), one.workers()
    kill(before[0])
    assert until(lambda: one.pids().get(0) not in (None, before[0]))
    one.wait_serving()


@seen_by_root
def test_workers_without_supervisor_and_minder_serve_and_end_with_the_server(supervised):
    one = supervised().run(processes=2)
    workers, supervisor, minder = one.pids(), one.supervisor, one.minder
    kill(minder, signal.SIGSTOP)
    kill(supervisor)
    kill(minder)
    assert until(lambda: gone(supervisor) and gone(minder))
    os.waitpid(one.first_minder, 0)
    assert one.get("/hello").body == b"hello"
    one.vanish()
    assert until(lambda: all(map(gone, workers.values())), 10)
    assert one.sockets.exists(), "nobody is there to remove it"
    other = supervised(prefix=one.prefix).run()
    assert not one.sockets.exists() and other.sockets.exists(), "the next start does"


@seen_by_root
def test_the_sockets_of_another_server_are_left_alone(supervised):
    one = supervised().run()
    one.expected += ["supervisor", "minder"]
    for name in ["supervisor", "minder"] * 2:
        old = getattr(one, name)
        kill(old)
        assert until(lambda: getattr(one, name) not in (None, old))
        assert until(lambda: one.status())
    supervised(prefix=one.prefix).run(name="other")
    assert one.get("/hello").body == b"hello"
    assert one.status()["workers"], "both are shown"


# -- orders


def test_equal_groups_keep_their_workers(supervised):
    one = supervised()
    one.group("other")
    one.run(processes=2)
    before, other = one.pids(), one.pids("other")
    one.group("new")
    del one.groups["other"]
    assert one.send_state(one.state()).startswith("highball 1 ok")
    one.wait_serving("new")
    assert until(lambda: not one.workers("other"))
    assert one.pids() == before and all(map(gone, other.values()))
    assert sorted(path.name for path in one.sockets.glob("*.sock")) == [
        "control.sock", "new.0.sock", "site.0.sock", "site.1.sock",
    ]  # fmt: skip


@seen_by_root
def test_no_groups_are_no_supervisor(supervised):
    one = supervised().run()
    pids = [process.pid for process in one.own()]
    one.groups = {}
    assert one.send_state(one.state()).startswith("highball 1 ok")
    assert until(lambda: all(map(gone, pids)), 5)
    assert not one.sockets.exists()


def test_groups_that_come_back_before_the_last_has_gone_are_there(supervised):
    one = supervised().run()
    connection, stream = begin(one)
    groups, one.groups = one.groups, {}
    one.send_state(one.state())
    assert connection.frame()[0] == GOAWAY
    one.groups = groups
    one.send_state(one.state())
    assert connection.answer(stream).body == b"slept"
    connection.close()
    one.wait_serving()
    assert one.get("/hello").body == b"hello"
    pids = [process.pid for process in one.own()]
    one.vanish()
    assert until(lambda: all(map(gone, pids)), 8), "and they end with the server"


def test_orders_of_another_version_are_answered_so(supervised):
    one = supervised().run()
    assert one.send_state(one.state(), version=2) == "highball 1 no version"
    assert one.send_state({"groups": 7}).startswith("highball 1 no ")
    assert one.get("/hello").body == b"hello"


def test_only_the_master_gives_orders(supervised):
    one = supervised().run()
    before = one.pids()
    child = os.fork()
    if child == 0:
        one.orders.send(b"highball 1 bye")
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.3)
    assert one.pids() == before
    assert one.get("/hello").body == b"hello"


def test_names_that_lead_elsewhere_are_refused(supervised):
    one = supervised().run()
    for name in ["../up", "a/b", ""]:
        one.group(name)
        assert one.send_state(one.state()).startswith("highball 1 no "), name
        del one.groups[name]
    assert one.send_state(one.state()).startswith("highball 1 ok")


def test_a_log_that_was_rotated_is_followed(supervised):
    one = supervised().run()
    one.expected += ["SIGKILL"]
    one.log_path.rename(one.directory / "old.log")
    one.log_path.write_text("")
    time.sleep(1.2)
    kill(one.pids()[0])
    one.wait_log("SIGKILL")
    one.wait_serving()


# -- generations


def test_changed_settings_start_new_workers_first(supervised):
    one = supervised().run(processes=2)
    before = one.pids()
    connection, stream = begin(one)
    one.order(processes=3, threads=2)
    one.wait_log("new processes serve")
    assert connection.answer(stream).body == b"slept" and connection.goaway
    connection.close()
    one.wait_serving()
    assert len(one.pids()) == 3 and not set(one.pids().values()) & set(before.values())
    one.order(processes=1)
    assert until(lambda: len(one.workers()) == 1)
    assert sorted(path.name for path in one.sockets.glob("*")) == ["control.sock", "site.0.sock"]


def test_the_old_workers_stay_when_new_ones_cannot_take_over(supervised):
    one = supervised().run(processes=2)
    one.expected += ["old ones stay", "HB0305", "HB0303", "not there", "before it was ready", "SIGKILL", "HB0308", "missing"]
    before = one.pids()
    (one.directory / "broken.py").write_text("raise ValueError('not there')")
    (one.directory / "slow.py").write_text(SLOW.format(30))
    options = [
        {"applications": ["worker_app:application"], "python": "/nowhere/python"},
        {"applications": ["slow:application"], "startup_timeout": 500},
    ]
    for wrong in options:
        count = one.text().count("old ones stay")
        one.order(processes=2, **wrong)
        assert until(lambda: one.text().count("old ones stay") > count), one.text()
        assert until(lambda: len(one.workers()) == 2), one.workers()
        assert one.pids() == before and one.status()["trouble"]
    one.order(processes=2, threads=6)
    assert until(lambda: {w["threads"] for w in one.workers()} == {6}), "the next change is made"
    one.wait_serving()
    assert not one.status()["trouble"]


# -- recycling


def test_maximum_requests_replaces_workers_without_losing_one(supervised):
    one = supervised().run(maximum_requests=50, processes=2)
    seen = set()
    end = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < end:
        connection = one.connect()
        for _ in range(10):
            assert connection.get("/hello").body == b"hello"
        connection.close()
        seen.add(one.pids()[0])
    assert len(seen) >= 4
    assert "maximum-requests" in one.text()
    one.wait_serving()


def test_restart_interval_replaces_one_at_a_time(supervised):
    one = supervised().run(restart_interval=1000, processes=3)
    most, seen = 0, set()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        workers = one.workers()
        assert sum(worker["state"] == "serving" for worker in workers) >= 3, "none is missed"
        most = max(most, sum(worker["state"] in ("starting", "ready") for worker in workers))
        seen |= {worker["pid"] for worker in workers}
    assert most == 1 and len(seen) >= 6
    assert "restart-interval" in one.text()


def test_memory_limit_replaces_a_worker_and_its_hard_limit_kills(supervised):
    one = supervised()
    (one.directory / "app.py").write_text(
        "import worker_app\nkept = []\n"
        "def application(environ, start_response):\n"
        "    kept.append(b'x' * (int(environ['HTTP_MIB']) << 20))\n"
        "    return worker_app.hello(environ, start_response)\n"
    )
    target = "app:application"
    one.run(applications=[target], memory_limit=60 << 20, memory_limit_hard=200 << 20)
    before = one.pids()[0]
    assert one.get("/", target=target, headers=[("Mib", "80")]).body == b"hello"
    assert until(lambda: one.pids().get(0) not in (None, before), 5)
    one.wait_serving()
    assert "memory-limit" in one.text() and "SIGKILL" not in one.text()
    before = one.pids()[0]
    one.expected += ["memory-limit", "SIGKILL"]
    one.connect().request("/", target=target, headers=[("Mib", "300")])
    assert until(lambda: one.pids().get(0) not in (None, before), 5)
    one.wait_serving()


def test_a_worker_that_nobody_gets_the_interpreter_of_is_replaced(supervised):
    one = supervised().run(deadlock_timeout=500, shutdown_timeout=500, graceful_timeout=1000)
    one.expected += ["HB0412", "holds Python's interpreter", "HB0410", "process of the group", "ended"]
    before = one.pids()[0]
    connection = one.connect()
    connection.request("/hold", headers=[("Seconds", "60")])
    assert until(lambda: [w for w in one.workers() if w["state"] == "serving" and w["pid"] != before], 10)
    assert one.get("/hello").body == b"hello"
    connection.close()
    assert until(lambda: gone(before), 10)


def test_an_import_that_does_not_end_is_ended(supervised):
    one = supervised()
    one.expected += ["HB0308", "SIGKILL"]
    (one.directory / "slow.py").write_text(SLOW.format(30))
    one.order(applications=["slow:application"], startup_timeout=400)
    one.wait_log("HB0308")
    (record, *_) = [record for record in one.records() if "HB0308" in record]
    assert "slow" in record


# -- whom workers run as


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user takes root")
def test_a_group_of_another_user_is_that_user_and_reaches_nobody_else(supervised):
    one = supervised()
    other = pwd.getpwnam("nobody")
    (one.directory / "app.py").write_text(
        "import os, json, socket\n"
        "def application(environ, start_response):\n"
        "    found = {}\n"
        "    for path in environ['HTTP_PATHS'].split():\n"
        "        try:\n"
        "            socket.socket(socket.AF_UNIX).connect(path)\n"
        "            found[path] = 'connected'\n"
        "        except OSError as error:\n"
        "            found[path] = error.strerror\n"
        "    start_response('200 OK', [])\n"
        "    me = [os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.getcwd(), os.umask(0o22), os.environ['STAGE']]\n"
        "    return [json.dumps([me, found]).encode()]\n"
    )
    one.run(
        applications=["app:application"],
        user={"name": "nobody", "uid": other.pw_uid, "gid": other.pw_gid},
        supplementary_groups=[4242],
        umask=0o27,
        home=str(one.directory),
        environ={"STAGE": "test"},
    )
    one.group("second")
    one.send_state(one.state())
    one.wait_serving("second")
    paths = [str(path) for path in one.sockets.glob("*.sock")]
    answer = one.get("/", target="app:application", headers=[("Paths", " ".join(paths))])
    me, found = json.loads(answer.body)
    assert me == [other.pw_uid, other.pw_uid, other.pw_gid, [4242], str(one.directory), 0o27, "test"]
    assert len(found) == 3 and set(found.values()) == {"Permission denied"}


def test_a_home_that_is_not_there_is_told(supervised):
    one = supervised()
    one.expected += ["/nowhere"]
    one.order(home="/nowhere")
    one.wait_log("/nowhere")
    one.order(home=None)
    one.wait_serving()


# -- commands


def test_status_shows_what_runs(supervised):
    one = supervised().run()
    begin(one)
    out = one.command("status").stdout
    assert "site" in out and "GET /sleep" in out and str(one.pids()[0]) in out
    worker = one.workers()[0]
    (running,) = worker["running"]
    assert running["request"] == "GET /sleep" and worker["busy"] == 1 and worker["memory"] > 1 << 20
    out = one.command("status", "nothing", check=False)
    assert out.returncode == 1 and "nothing" in out.stderr


def test_applications_may_change_nothing(supervised):
    one = supervised()
    (one.directory / "app.py").write_text(
        "import subprocess\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    command = environ['HTTP_COMMAND']\n"
        "    out = subprocess.run(command, shell=True, capture_output=True, text=True, start_new_session=True)\n"
        "    return [f'{out.returncode} {out.stdout} {out.stderr}'.encode()]\n"
    )
    target = "app:application"
    one.run(applications=[target])
    before = one.pids()
    for action in ["reload", "stop", "start", "stacks"]:
        command = f"{HIGHBALL} {action} site --socket-prefix {one.prefix}"
        answer = one.get("/", target=target, headers=[("Command", command)]).body.decode()
        assert answer.startswith("1 ") and "application" in answer, answer
        # Nor by a process that has left its parents.
        out = one.directory / "out"
        detached = f"(setsid sh -c '{command}; echo $? >{out}' >/dev/null 2>&1 &) ; true"
        one.get("/", target=target, headers=[("Command", detached)])
        assert until(lambda: out.exists() and out.read_text().strip(), 5)
        assert out.read_text().strip() == "1", action
        out.unlink()
    assert one.pids() == before and one.workers()[0]["state"] == "serving"


def test_what_a_killed_server_has_left_disturbs_no_command(supervised):
    one = supervised().run()
    stale = one.prefix / "1"
    stale.mkdir(mode=0o700)
    socket.socket(socket.AF_UNIX).bind(str(stale / "control.sock"))
    assert one.status() and one.command("reload", "site").returncode == 0
    one.wait_serving()
    shutil.rmtree(stale)


# -- output


def test_a_python_that_is_too_old_or_missing_is_told_in_one_record(supervised):
    one = supervised()
    one.expected += ["/nowhere/python", "HB"]
    one.order(python="/nowhere/python")
    one.wait_log("/nowhere/python")
    record = [record for record in one.records() if "/nowhere/python" in record][0]
    assert re.search(r"HB02\d\d", record)
    one.order(python=None)
    one.wait_serving()
    assert one.get("/hello").body == b"hello"
