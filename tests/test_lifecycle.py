"""Start, reload and stop: nothing is lost, nothing is left."""

import threading
import time

import pytest

from support.client import Connection, until
from support.load import Load
from support.server import Mount


@pytest.fixture
def static(serve):
    return {"/static/": serve.script("static/file.txt", "static").parent}


def test_a_slow_import_delays_no_static_request(serve, static):
    server = serve("slow_import:application", static=static)
    began = time.monotonic()
    answer = []
    waiting = threading.Thread(target=lambda: answer.append(server.get("/").body))
    waiting.start()
    slowest = 0
    while time.monotonic() - began < 2.5:
        before = time.monotonic()
        assert server.get("/static/file.txt").body == b"static"
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.02)
    waiting.join()
    assert slowest < 0.3
    assert answer == [b"at last"], "a request for an application that loads waits for it"


def test_a_slow_import_delays_no_static_request_during_a_reload(serve, static):
    server = serve("slow_import:application", static=static)
    assert server.get("/").body == b"at last"
    with Load(server, "/static/file.txt", 2, b"static") as load:
        server.reload(timeout=30)
        assert server.get("/").body == b"at last"
    # httpd makes new children within its second of maintenance; with one process nobody accepts meanwhile.
    assert not load.failures and load.slowest < (0.5 if server.host == "nginx" else 1.5), (load.failures[:3], load.slowest)


@pytest.mark.parametrize("processes", [1, 2])
def test_reloads_under_load_fail_no_request(serve, processes):
    server = serve("behaviours:application", processes=processes)
    with Load(server, "/echo_all") as load:
        load.expected = b""
        for _ in range(3):
            time.sleep(0.3)
            server.reload()
        load.reach(50)
    assert not load.failures, load.failures[:5]


def test_requests_in_flight_are_answered_over_a_reload(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(server.get("/waiting?seconds=1.5").body)) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    server.reload()
    for thread in threads:
        thread.join()
    assert answers == [b"waited"] * 5


def test_a_graceful_stop_answers_what_is_in_flight(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(server.get("/waiting?seconds=1.2").body)) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    began = time.monotonic()
    assert not server.stop("graceful")
    assert time.monotonic() - began < 5
    for thread in threads:
        thread.join()
    assert answers == [b"waited"] * 5
    assert server.process.returncode == 0


def test_a_graceful_stop_under_load_cuts_no_response(serve):
    """Clients that connect later are refused; nobody gets half a response."""
    server = serve("behaviours:application")
    with Load(server, "/generated", expected=b"one two three") as load:
        load.reach(20)
        complaints = server.stop("graceful")
    assert not complaints
    cut = [f for f in load.failures if "refused" not in f.lower() and "after b''" not in f and "Reset" not in f]
    assert not cut, cut[:5]


def test_an_idle_server_stops_at_once(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    began = time.monotonic()
    assert not server.stop("graceful")
    assert time.monotonic() - began < 3.5


def test_an_endless_stream_keeps_no_old_process_over_ten_reloads(serve):
    server = serve("behaviours:application", graceful=2, processes=1)
    streams = []
    seen = set()
    for number in range(10):
        stream = server.connect()
        stream.request("GET", f"/endless?key=stream{number}")
        assert stream.read_head().status == 200
        streams.append(stream)
        before = {worker.pid for worker in server.workers()}
        seen |= before
        server.signal("reload")
        assert until(lambda: {worker.pid for worker in server.workers()} - seen, 15)
    server.allow_log("HB0410")
    assert until(lambda: not seen & {member.pid for member in server.members()}, 20), server.family()
    server.note_workers()
    for stream in streams:
        assert stream.wait_end(), "the client is told"
        stream.close()
    assert server.get("/hello").body == b"hello"
    record = server.expect_log("HB0410", times=None)
    assert "GET /endless" in "".join(found.text for found in server.log.matching("HB0410")), record.text


def level_over(server, count):
    """Reloads, and what grew meanwhile: (descriptors, KiB) of the master."""
    for _ in range(4):
        server.reload()
        assert server.get("/hello").body == b"hello"
    descriptors, memory = len(server.master().descriptors), server.master().private
    for _ in range(count):
        server.reload()
        assert server.get("/hello").body == b"hello"
    worker = server.workers()[0]
    assert len(worker.descriptors) < 60
    return len(server.master().descriptors) - descriptors, server.master().private - memory


@pytest.mark.no_sanitizer
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fifty_reloads_leave_memory_and_descriptors_level(serve):
    descriptors, memory = level_over(serve("behaviours:application"), 50)
    assert descriptors <= 0
    assert memory < 1500, f"{memory} KiB in fifty reloads"


def test_reloads_in_quick_succession_do_no_harm(serve):
    server = serve("behaviours:application")
    first = {worker.pid for worker in server.workers()}
    with Load(server) as load:
        for _ in range(6):
            server.signal("reload")
            time.sleep(0.05)
        assert until(lambda: server.workers() and not first & {worker.pid for worker in server.workers()}, 10)
        time.sleep(1)
    until(lambda: len(server.workers()) == server.worker_count, 10)
    time.sleep(0.5)
    server.note_workers()
    assert not load.failures, load.failures[:5]
    assert len(server.workers()) == server.worker_count


def test_a_killed_worker_is_replaced(serve):
    import os
    import signal

    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    os.kill(server.worker().pid, signal.SIGKILL)
    assert until(lambda: [w for w in server.workers() if w.pid not in server.known_workers], 10)
    assert until(lambda: _answers(server), 10)
    server.note_workers()
    server.allow_log("exited on signal 9|AH00051|AH00052|exit signal Killed")


def _answers(server):
    try:
        return server.get("/hello", timeout=2).body == b"hello"
    except Exception:
        return False


def test_a_changed_configuration_takes_effect_on_reload(serve):
    server = serve(Mount("behaviours:application", params={"GENERATION": "one"}))
    assert server.get("/environ").json()["GENERATION"] == "one"
    server.configuration.write_text(server.configuration.read_text().replace('GENERATION "one"', 'GENERATION "two"'))
    server.reload()
    assert server.get("/environ").json()["GENERATION"] == "two"


def test_an_application_can_be_added_and_taken_away_by_reload(serve, static):
    server = serve("behaviours:application", static=static)
    text = server.configuration.read_text()
    assert server.get("/hello").body == b"hello"
    without = "\n".join(
        line for line in text.splitlines() if not line.lower().startswith(("wsgi_pass ", "wsgiscriptalias "))
    )
    server.configuration.write_text(without)
    server.reload()
    assert server.get("/hello").status == 404
    assert server.get("/static/file.txt").body == b"static"
    server.configuration.write_text(text)
    server.reload()
    assert server.get("/hello").body == b"hello"
    server.allow_log("No such file|AH00128|open\\(\\)")


def test_a_wrong_configuration_at_reload_leaves_the_server_as_it_is(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    if server.host == "apache":
        pytest.skip("httpd ends when a restart finds a wrong configuration; apachectl tests it first")
    server.configuration.write_text(server.configuration.read_text().replace("wsgi_threads 8", "wsgi_threads many"))
    server.signal("reload")
    server.expect_log("wsgi_threads")
    assert server.get("/hello").body == b"hello"


def test_two_servers_run_side_by_side(serve):
    one, two = serve("hello:application"), serve("behaviours:application")
    assert one.get("/").body == two.get("/hello").body == b"hello"
    assert not one.stop("graceful")
    assert two.get("/hello").body == b"hello"


def test_connections_kept_idle_do_not_hold_up_a_stop(serve):
    server = serve("behaviours:application")
    idle = [Connection(server.port) for _ in range(5)]
    for connection in idle:
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello"
    began = time.monotonic()
    assert not server.stop("graceful")
    assert time.monotonic() - began < 8
    for connection in idle:
        connection.close()
