"""A worker of a process group, driven over its descriptors: docs/process-groups-protocol.md, sections 5, 7, 8 and 9."""

import fcntl
import json
import os
import shutil
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

from support import worker as wire
from support.client import until
from support.worker import BODY, BODY_FAILED, BODY_FILE, END, GOAWAY, GONE, TAKEN, VERSION, WELCOME, Worker

APPS = Path(__file__).parent / "apps"
TARGET = "worker_app:application"
# Every minor version that is here.
PYTHONS = ["/usr/bin/python3"]
for minor in range(10, 15):
    PYTHONS += [str(path) for path in Path("~/.pyenv/versions").expanduser().glob(f"3.{minor}.*/bin/python3")][:1]


@pytest.fixture
def start(tmp_path):
    """Starts workers with tests/apps/worker_app.py; they are ended after the test."""
    workers = []
    shutil.copy(APPS / "worker_app.py", tmp_path)

    def start(applications=(TARGET,), **options):
        (tmp_path / "worker.sock").unlink(missing_ok=True)
        worker = Worker(tmp_path, applications, **options)
        worker.target = applications[0] if applications else TARGET
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.kill()


def errors(records):
    return [text for level, text in records if level in ("crit", "error", "warn") and "printed while" not in text]


def text(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("python", PYTHONS)
def test_one_extension_serves_every_python(start, python):
    worker = start(python=python)
    hello = worker.packets[0]
    assert hello["say"] == "hello" and hello["pid"] == worker.pid and hello["version"] == 1
    assert hello["python"] in python or python == "/usr/bin/python3"
    connection = worker.connect()
    assert connection.get("/hello").body == b"hello"
    assert connection.get("/echo", method="POST", body=b"x" * 60_000).body == b"x" * 60_000
    assert len(connection.get("/stream").body) == 400_000
    assert connection.get("/large").files == 1
    assert connection.get("/fails").outcome == wire.FAILED
    worker.say(do="drain", within=5000)
    assert connection.frame()[0] == GOAWAY
    connection.close()
    worker.wait("drained")
    assert worker.end() == 0
    assert (worker.directory / "exited").exists(), "exit functions run"
    assert worker.output.read_text() == ""


def test_a_connection_is_welcomed_with_the_page(start):
    worker = start()
    connection = worker.connect()
    assert (connection.first, connection.version, connection.window) == (WELCOME, 1, 65536)
    assert (connection.incarnation, connection.slots >= 8) == (77, True)
    assert fcntl.fcntl(connection.page, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    assert os.pread(connection.page, 16, 0) == b"HBPG" + struct.pack("<III", 1, 4, 16368)
    other = worker.connect()
    assert other.slot >= connection.slot + connection.slots, "each connection has slots of its own"


def test_a_stranger_is_not_welcomed(start):
    worker = start()
    assert worker.connect(key=bytes(32)).closed
    assert worker.connect(version=9).first == VERSION
    silent = worker.connect(hello=False)
    silent.send(1, wire.REQUEST, b"")
    assert silent.frame() == (None, b"")
    assert len(errors(worker.log())) == 2
    assert worker.connect().get("/hello").body == b"hello"


def test_environ_says_what_the_group_is(start):
    worker = start(threads=1, processes=1)
    shown = json.loads(worker.connect().get("/environ", headers=[("X-Some", "1")]).body)
    assert (shown["wsgi.multithread"], shown["wsgi.multiprocess"], shown["wsgi.run_once"]) == (False, False, False)
    assert (shown["HTTP_X_SOME"], shown["SERVER_SOFTWARE"], shown["PATH_INFO"]) == ("1", "Test/1.0", "/environ")


def test_many_processes_or_threads_are_told(start):
    shown = json.loads(start(threads=2, processes_given=True).connect().get("/environ").body)
    assert (shown["wsgi.multithread"], shown["wsgi.multiprocess"]) == (True, True)


def test_requests_of_one_write_are_all_answered(start):
    connection = start().connect()
    streams = [connection.request("/hello", slot=number % 8) for number in range(500)]
    assert all(connection.answer(stream).body == b"hello" for stream in streams)


def test_a_sleeping_request_keeps_nobody_waiting(start):
    connection = start().connect()
    began = time.monotonic()
    slow = [connection.request("/sleep", slot=number) for number in range(3)]
    quick = [connection.request("/hello", slot=3 + number) for number in range(5)]
    for stream in quick:
        assert connection.answer(stream).body == b"hello"
    assert time.monotonic() - began < 0.9
    assert [connection.answer(stream).body for stream in slow] == [b"slept"] * 3
    assert time.monotonic() - began < 2.5, "side by side"


@pytest.mark.parametrize("threads", [1, 2])
def test_an_answer_does_not_wait_for_the_request_behind_it(start, threads):
    connection = start(threads=threads).connect()
    quick, slow = connection.request("/hello"), connection.request("/sleep", slot=1)
    began = time.monotonic()
    connection.answer(quick)
    assert time.monotonic() - began < 0.9
    assert connection.answer(slow).body == b"slept"


def test_a_large_body_goes_as_a_file_and_waits_for_nobody(start):
    worker = start(threads=1)
    connection = worker.connect()
    connection.take = False
    answer = connection.get("/large")
    assert (answer.body, answer.files, answer.outcome) == (b"x" * 1_000_000, 1, wire.COMPLETE)
    assert answer.headers["Content-Length"] == "1000000"
    assert connection.get("/hello").body == b"hello"


def test_blocks_wait_for_credit(start):
    worker = start()
    connection = worker.connect()
    connection.take = False
    stream = connection.request("/stream")
    answer = connection.answers[stream]
    while len(answer.body) < 65536:
        connection.frame(2)
    with pytest.raises(TimeoutError):
        connection.frame(0.2)
    assert len(answer.body) == 65536
    assert 3 in [worker.thread(number)[0] for number in range(4)], "the page says that it is sending"
    connection.send(stream, TAKEN, struct.pack("<I", 1000))
    while len(answer.body) < 66536:
        connection.frame(2)
    assert len(answer.body) == 66536
    connection.take = True
    connection.send(stream, TAKEN, struct.pack("<I", 65536))
    assert connection.answer(stream).outcome == wire.COMPLETE
    assert answer.body == b"".join(bytes([number]) * 10_000 for number in range(40))


def test_a_slow_client_does_not_hold_up_others(start):
    worker = start(threads=2)
    connection = worker.connect()
    connection.take = False
    slow = connection.request("/stream")
    while len(connection.answers[slow].body) < 65536:
        connection.frame()
    assert connection.get("/hello").body == b"hello"
    connection.send(slow, GONE)
    assert connection.answer(slow).outcome == wire.CLIENT_GONE


def test_a_server_that_does_not_read_makes_no_thread_wait(start):
    """Its answers are kept, and leave when there is room again."""
    worker = start(threads=1)
    connection = worker.connect()
    other = worker.connect()
    streams = [connection.request("/environ", slot=number % 8, headers=[("X-Long", "x" * 2000)]) for number in range(300)]
    assert other.get("/hello").body == b"hello"
    for stream in streams:
        assert b"x" * 2000 in connection.answer(stream).body


def test_a_body_is_read_with_credit(start):
    connection = start().connect()
    body = bytes(range(256)) * 4096
    stream = connection.request("/echo", method="POST", body=b"", length=len(body))
    answer = connection.answers[stream]
    sent = 0
    while sent < len(body):
        room = 65536 + answer.granted - sent
        if room <= 0:
            connection.frame()
            continue
        piece = body[sent : sent + min(room, 60_000)]
        sent += len(piece)
        connection.send(stream, BODY, piece, END if sent == len(body) else 0)
    assert connection.answer(stream).body == body


def test_a_body_beyond_its_credit_ends_the_connection(start):
    worker = start()
    connection = worker.connect()
    stream = connection.request("/wait", method="POST", body=b"", length=1 << 20)
    connection.send(stream, BODY, b"x" * 60_000)
    connection.send(stream, BODY, b"x" * 60_000)
    assert connection.frame() == (None, b"")
    assert "Unexpected" in errors(worker.log())[0] or "may come" in errors(worker.log())[0]
    worker.connect().get("/release")


def test_a_body_in_a_file_is_read_from_the_file(start, tmp_path):
    connection = start().connect()
    path = tmp_path / "body"
    path.write_bytes(b"--" + b"in a file" * 100_000 + b"--")
    stream = connection.request("/echo", method="POST", body=b"", length=-1)
    connection.send(stream, BODY, b"in memory ")
    with path.open("rb") as file:
        connection.send(stream, BODY_FILE, struct.pack("<QQ", 2, 900_000), END, [file.fileno()])
    assert connection.answer(stream).body == b"in memory " + b"in a file" * 100_000


def test_a_body_that_fails_raises(start):
    connection = start().connect()
    stream = connection.request("/echo", method="POST", body=b"", length=100)
    connection.send(stream, BODY, b"x")
    connection.send(stream, BODY_FAILED, b"\1", END)
    answer = connection.answer(stream)
    assert answer.outcome == wire.CLIENT_GONE
    assert answer.logs[0][0] == "info" and "HB0501" in answer.logs[0][1]


def test_a_descriptor_without_its_frame_ends_the_connection(start):
    worker = start()
    connection = worker.connect()
    with open("/dev/null", "rb") as file:
        connection.send(connection.request("/wait", method="POST", body=b""), BODY, b"x", 0, [file.fileno()])
    assert connection.frame() == (None, b"")
    worker.connect().get("/release")


def test_a_file_of_the_application_goes_as_its_descriptor(start):
    connection = start().connect()
    answer = connection.get("/file")
    assert (answer.files, answer.outcome) == (1, wire.COMPLETE)
    assert answer.body == (APPS / "worker_app.py").read_bytes()


def test_a_client_that_leaves_is_noticed_at_once(start):
    worker = start()
    connection = worker.connect()
    connection.take = False
    stream = connection.request("/stream")
    while len(connection.answers[stream].body) < 65536:
        connection.frame()
    connection.send(stream, GONE)
    answer = connection.answer(stream)
    assert answer.outcome == wire.CLIENT_GONE and "HB0501" in answer.logs[-1][1]
    assert until(lambda: (worker.directory / "closed").exists(), 5), "close() runs"


def test_a_reader_is_woken_when_the_connection_ends(start):
    worker = start(threads=1)
    connection = worker.connect()
    connection.request("/echo", method="POST", body=b"", length=100)
    assert until(lambda: worker.thread(0)[0] == 4, 5)
    connection.close()
    assert worker.connect().get("/hello").body == b"hello"
    assert errors(worker.log()) == []


def test_what_is_queued_for_a_client_that_left_is_not_run(start):
    worker = start(threads=1)
    connection = worker.connect()
    slow = connection.request("/sleep")
    gone = connection.request("/fails", slot=1)
    connection.send(gone, GONE)
    assert connection.answer(gone).outcome == wire.CLIENT_GONE
    assert connection.answer(slow).body == b"slept"
    assert connection.answers[gone].logs == [] and worker.begun(connection.slot + 1) == 0


def test_the_page_says_what_was_begun_and_what_runs(start):
    worker = start(threads=1)
    connection = worker.connect()
    running = connection.request("/wait", slot=2)
    waiting = connection.request("/hello", slot=3)
    assert until(lambda: worker.begun(connection.slot + 2) == running, 5)
    time.sleep(0.1)
    assert worker.begun(connection.slot + 3) == 0, "not begun while it is queued"
    assert worker.thread(0) == (2, "GET /wait")
    assert worker.counts() == (1, 0)
    worker.say(do="stacks")
    stacks = worker.wait("stacks")["text"]
    assert "GET /wait" in stacks and "released.wait" in stacks and "in wait" in stacks
    assert connection.answers[waiting].outcome is None


def test_slots_outside_the_connection_s_range_are_not_marked(start):
    worker = start()
    one, other = worker.connect(), worker.connect()
    one.request("/hello", slot=other.slot - one.slot)
    one.answer(1)
    assert worker.begun(other.slot) == 0


def test_records_go_with_their_request(start):
    worker = start()
    answer = worker.connect().get("/log")
    assert ("error", "printed\n") in answer.logs and ("error", "written\n") in answer.logs
    assert ("error", "unfinished") in answer.logs
    assert ("warn", "warned") in answer.logs and ("error", "logged") in answer.logs
    assert ("crit", "very much") in answer.logs
    assert any("UserWarning: a warning" in text for _, text in answer.logs)
    assert ("error", "printed while it was imported\n") in worker.log()
    assert worker.output.read_text() == ""


def test_what_is_not_of_the_group_is_refused(start, tmp_path):
    (tmp_path / "scripts").mkdir()
    inside, outside = tmp_path / "scripts/in.wsgi", tmp_path / "out.wsgi"
    for script in (inside, outside):
        script.write_text("def application(e, s):\n    s('200 OK', [])\n    return [b'script']\n")
    connection = start(scripts=[str(tmp_path / "scripts")]).connect()
    assert connection.get("/x", script=str(inside)).body == b"script"
    assert connection.get("/x", target="other:application").outcome == wire.NOT_HERE
    for options in ({"script": str(outside)}, {"script": f"{tmp_path}/scripts/../out.wsgi"}):
        answer = connection.get("/x", **options)
        assert answer.outcome == wire.FAILED and "HB0310" in answer.logs[0][1], options


@pytest.mark.parametrize("what", ["kind", "flags", "backwards", "garbage", "unknown stream", "worker's frame", "too long"])
def test_what_is_not_of_the_protocol_ends_the_connection_alone(start, what):
    worker = start()
    connection = worker.connect()
    connection.get("/hello")
    if what == "kind":
        connection.send(2, 99)
    elif what == "flags":
        connection.send(2, GONE, flags=8)
    elif what == "backwards":
        connection.last = 0
        connection.request("/hello")
    elif what == "garbage":
        connection.request("/hello", extra=b"more")
    elif what == "unknown stream":
        connection.send(7, BODY, b"x")
    elif what == "worker's frame":
        connection.send(1, wire.HEAD, b"x")
    else:
        try:
            connection.request("/hello", headers=[("X-Long", "x" * 60_000)] * 20)
        except (BrokenPipeError, ConnectionResetError):
            pass
    while not connection.closed:
        connection.frame()
    assert "a connection of a server process was closed" in "".join(errors(worker.log()))
    assert worker.connect().get("/hello").body == b"hello"


def test_a_request_in_several_frames_is_put_together(start):
    body = start().connect().get("/environ", headers=[(f"X-Long-{n}", "x" * 30_000) for n in range(10)]).body
    assert all(f"HTTP_X_LONG_{n}".encode() in body for n in range(10)) and len(body) > 300_000


def test_a_request_that_takes_too_long_is_given_up(start):
    worker = start(request_timeout=600, interrupt_timeout=3000, threads=4)
    connection = worker.connect()
    began = time.monotonic()
    slow, beside = connection.request("/loop"), connection.request("/hello", slot=1)
    assert connection.answer(beside).body == b"hello"
    answer = connection.answer(slow)
    took = time.monotonic() - began
    assert answer.outcome == wire.TIMED_OUT and 0.55 < took < 1.5, took
    assert until(lambda: text(worker.directory / "interrupted") == "RequestTimeout", 3)
    assert until(lambda: any("HB0411 GET /loop was given up" in text for text in errors(worker.log())), 3)
    record = next(text for text in errors(worker.log()) if "HB0411" in text)
    assert "time.sleep(0.01)" in record and "in loop" in record and "0.6 s" in record
    assert connection.get("/hello").body == b"hello"
    assert not [packet for packet in worker.packets if packet["say"] == "retire"], "it has unwound"


def test_a_response_that_takes_too_long_is_cut(start):
    worker = start(request_timeout=500)
    answer = worker.connect().get("/loop_late")
    assert (answer.body, answer.outcome) == (b"begun", wire.TRUNCATED)


def test_deadlines_are_each_request_s_own(start):
    worker = start(request_timeout=700, threads=8)
    connection = worker.connect()
    began = {}
    took = {}
    for number in range(5):
        began[connection.request("/loop", slot=number)] = time.monotonic()
        time.sleep(0.15)
    for stream in began:
        assert connection.answer(stream).outcome == wire.TIMED_OUT
        took[stream] = time.monotonic() - began[stream]
    assert all(0.65 < seconds < 1.5 for seconds in took.values()), took


def test_a_request_that_does_not_unwind_retires_its_process(start):
    worker = start(request_timeout=300, interrupt_timeout=300, threads=2)
    connection = worker.connect()
    began = time.monotonic()
    stuck = connection.request("/deaf")
    assert connection.answer(stuck).outcome == wire.TIMED_OUT
    assert "GET /deaf" in worker.wait("retire")["reason"]
    assert 0.55 < time.monotonic() - began < 2.5
    assert connection.get("/hello").body == b"hello", "its other requests are answered"
    worker.say(do="drain", within=300)
    while not connection.goaway:
        connection.frame()
    connection.close()
    assert worker.end() == 0
    assert (worker.directory / "exited").exists(), "exit functions run with a thread that is stuck"


def test_an_interruption_that_comes_late_hits_no_other_request(start):
    """The request ends without another instruction of Python's, so that the exception has not come through."""
    worker = start(request_timeout=300, threads=1)
    connection = worker.connect()
    assert connection.get("/late").outcome == wire.TIMED_OUT
    assert until(lambda: worker.thread(0)[0] == 0, 5)
    assert any("GET /late was given up" in text for text in errors(worker.log()))
    for _ in range(3):
        assert connection.get("/hello").body == b"hello"


def test_a_request_that_waits_too_long_for_a_thread_is_given_up(start):
    worker = start(queue_timeout=300, threads=1)
    connection = worker.connect()
    connection.request("/sleep")
    began = time.monotonic()
    answer = connection.get("/hello", slot=1)
    assert answer.outcome == wire.TIMED_OUT and "queue-timeout" in answer.logs[0][1]
    assert 0.25 < time.monotonic() - began < 0.9
    assert worker.begun(connection.slot + 1) == 0


def test_an_interpreter_that_is_held_is_noticed(start):
    worker = start(deadlock_timeout=800, threads=2)
    connection = worker.connect()
    held = connection.request("/hold", headers=[("Seconds", "5")])
    time.sleep(0.2)
    worker.say(do="stacks")
    assert worker.wait("retire")["reason"] == "deadlock-timeout"
    record = next(text for text in errors(worker.log()) if "HB0412" in text)
    assert "GET /hold" in record
    assert "GET /hold" in worker.wait("stacks")["text"]
    assert connection.answer(held).body == b"hello"


def test_a_worker_whose_interpreter_is_held_ends_nevertheless(start):
    worker = start(threads=2)
    connection = worker.connect()
    connection.request("/hold", headers=[("Seconds", "30")])
    time.sleep(0.3)
    worker.say(do="drain", within=200)
    worker.end(10)


def test_maximum_requests_asks_for_a_successor(start):
    worker = start(maximum_requests=3)
    connection = worker.connect()
    for _ in range(5):
        assert connection.get("/hello").body == b"hello"
    assert worker.wait("retire")["reason"] == "maximum-requests"
    assert worker.counts() == (5, 5)


def test_a_changed_script_asks_for_a_successor(start, tmp_path):
    script = tmp_path / "app.wsgi"
    text = "def application(e, s):\n    s('200 OK', [])\n    return [b'%s']\n"
    script.write_text(text % "old")
    target = f"{script}:application"
    worker = start([target])
    connection = worker.connect()
    assert connection.get("/").body == b"old"
    script.write_text(text % "quite new")
    time.sleep(1.1)  # It is looked at once a second.
    assert connection.get("/").body == b"old", "the old code answers in the old process"
    assert "has changed" in worker.wait("retire")["reason"]


def test_an_application_that_failed_is_tried_again_when_it_changes(start, tmp_path):
    script = tmp_path / "app.wsgi"
    script.write_text("raise ValueError('not yet')\n")
    target = f"{script}:application"
    worker = start([target, TARGET], serve=False)
    failed = worker.wait("ready")["failed"]
    assert failed[0][0] == str(script) and "not yet" in failed[0][1]
    worker.say(do="serve")
    connection = worker.connect()
    assert connection.get("/").outcome == wire.FAILED
    assert connection.get("/hello", target=TARGET).body == b"hello"
    script.write_text("def application(e, s):\n    s('200 OK', [])\n    return [b'now']\n")
    time.sleep(1.1)  # It is looked at once a second.
    assert connection.get("/").body == b"now"
    assert not [packet for packet in worker.packets if packet["say"] == "retire"]


def test_an_import_that_does_not_end_can_be_looked_at(start, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(2)\nfrom worker_app import application\n")
    worker = start(["slow:application"], serve=False)
    worker.wait("hello")
    time.sleep(0.5)
    worker.say(do="stacks")
    assert "time.sleep(2)" in worker.wait("stacks", 1.4)["text"]
    assert worker.thread(0) == (1, "slow:application")
    worker.say(do="hello")
    assert worker.wait("hello", 1)["state"] == "starting"
    assert worker.wait("ready")["failed"] == []


def test_the_locale_is_set(start):
    assert b"C.UTF-8" in start(locale="C.UTF-8").connect().get("/locale").body
    worker = start(locale="xx_NO")
    assert "locale=xx_NO: unsupported locale setting" in worker.output.read_text()


def drained(worker, connection):
    while not connection.goaway:
        connection.frame()


def test_a_drain_answers_everything_and_ends_with_the_last_connection(start):
    worker = start(threads=1)
    connection, idle = worker.connect(), worker.connect()
    running, queued = connection.request("/sleep"), connection.request("/hello", slot=1)
    time.sleep(0.1)
    worker.say(do="drain", within=5000)
    drained(worker, connection)
    drained(worker, idle)
    crossing = connection.request("/hello", slot=2)
    assert connection.answer(running).body == b"slept"
    assert connection.answer(queued).body == b"hello"
    assert connection.answer(crossing).body == b"hello", "it had left before goaway arrived"
    idle.close()
    assert not worker.ended()
    connection.close()
    worker.wait("drained")
    assert worker.end() == 0


def test_who_connects_to_a_worker_that_drains_is_told_to_go(start):
    worker = start()
    first = worker.connect()
    worker.say(do="drain", within=5000)
    drained(worker, first)
    late = worker.connect()
    drained(worker, late)
    first.close()
    late.close()
    assert worker.end() == 0


@pytest.mark.parametrize("how", ["signal", "life pipe", "interrupt"])
def test_other_ends_drain_too(start, how):
    worker = start()
    connection = worker.connect()
    running = connection.request("/sleep")
    time.sleep(0.1)
    if how == "life pipe":
        os.close(worker.life)
    else:
        os.kill(worker.pid, signal.SIGTERM if how == "signal" else signal.SIGINT)
    drained(worker, connection)
    assert connection.answer(running).body == b"slept"
    connection.close()
    assert worker.end() == 0
    assert (worker.directory / "exited").exists()


def test_a_drain_gives_up_what_does_not_end(start):
    worker = start(threads=2)
    connection = worker.connect()
    running = connection.request("/loop")
    time.sleep(0.2)
    began = time.monotonic()
    worker.say(do="drain", within=500)
    drained(worker, connection)
    assert connection.answer(running).outcome == wire.FAILED
    assert until(lambda: text(worker.directory / "interrupted") == "Retired", 3)
    connection.close()
    assert worker.end() == 0 and 0.45 < time.monotonic() - began < 6
    assert any("HB0410 GET /loop was given up" in text for text in errors(worker.log()))


def test_a_drain_gives_up_what_waits_for_a_slow_client(start):
    worker = start(threads=1)
    connection = worker.connect()
    connection.take = False
    slow = connection.request("/stream")
    while len(connection.answers[slow].body) < 65536:
        connection.frame()
    worker.say(do="drain", within=300)
    assert connection.answer(slow).outcome == wire.TRUNCATED
    assert until(lambda: text(worker.directory / "closed") == "yes", 1), "it cleans up undisturbed"
    connection.close()
    assert worker.end() == 0


def test_a_worker_without_supervisor_serves_until_its_socket_is_another_s(start):
    worker = start()
    connection = worker.connect()
    worker.control.close()
    time.sleep(1.5)
    assert worker.connect().get("/hello").body == b"hello"
    assert not connection.goaway
    other = worker.directory / "other"
    other.write_text("")
    other.rename(worker.socket_path)
    drained(worker, connection)
    for each in worker.connections:
        each.close()
    assert worker.end() == 0


def test_a_new_supervisor_is_told_who_it_is(start):
    worker = start()
    worker.say(do="hello")
    hello = worker.wait("hello")
    assert (hello["pid"], hello["state"]) == (worker.pid, "serving")


def test_a_forked_child_keeps_nothing_of_the_worker(start):
    worker = start()
    connection = worker.connect()
    answer = connection.get("/fork", headers=[("Seconds", "20")])
    child = int(answer.body)
    try:
        assert until(lambda: "a child's own record" in worker.output.read_text(), 5)
        assert "a child's own line" in worker.output.read_text()
        assert connection.get("/hello").body == b"hello"
        os.kill(worker.pid, signal.SIGKILL)
        began = time.monotonic()
        assert connection.frame(5) == (None, b"") and time.monotonic() - began < 2
        worker.end()
        with pytest.raises(ConnectionRefusedError):
            worker.connect(hello=False)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_returns_answers_nobody(start):
    connection = start().connect()
    for _ in range(5):
        answer = connection.get("/fork_and_return")
        assert answer.outcome == wire.COMPLETE and int(answer.body) > 0
    assert connection.get("/hello").body == b"hello"
    time.sleep(0.2)
    assert connection.worker.counts() == (6, 6)


def inheritable(file):
    try:
        return os.get_inheritable(file)
    except OSError:
        return False


def test_children_get_neither_descriptors_nor_a_signal_mask(start):
    out = start().connect().get("/child").body.decode()
    mask, files = out.split("] [")
    # Those of this test that any child of it would get, and that of the listing.
    own = [file for file in os.listdir("/proc/self/fd") if int(file) > 2 and inheritable(int(file))]
    assert mask == "[" and len(files.split(",")) <= 4 + len(own), out


def test_a_crash_leaves_a_trace_and_closes_its_connections(start):
    worker = start()
    connection = worker.connect()
    connection.request("/crash", slot=5)
    assert connection.frame() == (None, b"")
    assert worker.end() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in worker.output.read_text()
    assert worker.begun(connection.slot + 5) == 1
    assert (2, "GET /crash") in [worker.thread(number) for number in range(4)]


def test_the_title_names_group_and_application(start):
    assert start().connect().get("/title").body == b"(wsgi:test) worker_app:application"
    assert start(display_name="mine %{GROUP}").connect().get("/title").body == b"mine (wsgi:test)"


def test_an_extension_that_cannot_be_loaded_says_what_to_do(start, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "BUILD", tmp_path)
    worker = start(serve=False)
    report = worker.wait("failed")["report"]
    assert report.startswith("HB0204 Python 3.") and "libhighball_worker.so" in report
    assert worker.end() == 1


@pytest.mark.parametrize("python", [str(path) for path in Path("~/.pyenv/versions").expanduser().glob("3.[6-9].*/bin/python3")])
def test_a_python_that_is_too_old_is_refused(start, python):
    worker = start(serve=False, python=python)
    report = worker.wait("failed")["report"]
    assert report.startswith("HB0204 Python 3.") and "3.10 or newer" in report
    assert worker.end() == 1


def test_settings_of_another_version_say_what_to_do(start):
    worker = start(serve=False, version=2)
    assert worker.end() == 1
    assert "restart the server" in worker.output.read_text()


def test_large_blocks_are_given_back_while_a_thread_stays_busy(start):
    """One thread whose queue is never empty."""
    worker = start(threads=1)
    connection = worker.connect()
    open_ = []
    for number in range(600):
        open_.append(connection.request("/large", slot=number % 16))
        if len(open_) == 16:
            assert connection.answer(open_.pop(0)).outcome == wire.COMPLETE
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    assert peak < 120_000, "kB"


def test_many_connections_at_once_lose_nothing(start):
    """As Apache's threads connect: one request at a time on each."""
    worker = start(threads=8)
    wrong = []

    def client():
        connection = worker.connect()
        for number in range(100):
            answer = connection.get("/hello" if number % 3 else "/large")
            if answer.outcome != wire.COMPLETE:
                wrong.append(answer.__dict__)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    files = Path(f"/proc/{worker.pid}/fd")
    assert until(lambda: not any("socket" in os.readlink(file) for file in files.iterdir() if int(file.name) > 12), 5)
