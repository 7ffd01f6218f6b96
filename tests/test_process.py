"""The application's Python: its environment, its threads, its child processes."""

import os
import threading
import time
from urllib.parse import quote

import pytest

from support.client import until
from support.server import Mount
from test_response import events


def python(server):
    return server.get("/python").json()


def test_python_runs_in_the_virtual_environment(site, stage):
    info = python(site)
    assert info["prefix"] == str(stage.venv)
    assert info["base_prefix"] != info["prefix"]
    assert info["executable"].startswith(str(stage.venv / "bin" / "python"))
    assert info["path"][0] == str(stage.apps)
    assert any(entry.startswith(str(stage.venv)) and entry.endswith("site-packages") for entry in info["path"])
    assert "" not in info["path"] and "." not in info["path"], "never the current directory"


def test_python_speaks_utf_8(site):
    info = python(site)
    assert info["utf8"] == 1 and info["filesystem"] == "utf-8" and info["preferred"].lower() == "utf-8"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs workers of another user")
def test_python_runs_as_the_unprivileged_user(site):
    info = python(site)
    assert info["uid"] != 0
    assert site.grouped or info["pid"] in {worker.pid for worker in site.workers()}


def test_python_path_reads_pth_files(serve):
    extra = serve.script("extra/extra.pth", str(serve.scripts / "further") + "\n").parent
    serve.script("further/far_module.py", "VALUE = b'far'\n")
    script = serve.script(
        "app.wsgi",
        "import far_module\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [far_module.VALUE]\n",
    )
    assert serve(Mount(str(script)), path=[extra], shared_interpreter=False).get("/").body == b"far"


def test_python_path_keeps_its_order_in_front_of_packages(serve, stage):
    one = serve.script("one/flask.py", "WHERE = b'one'\n").parent
    two = serve.script("two/flask.py", "WHERE = b'two'\n").parent
    script = serve.script(
        "app.wsgi",
        "import flask\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [flask.WHERE]\n",
    )
    assert serve(Mount(str(script)), path=[one, two], shared_interpreter=False).get("/").body == b"one"


def test_without_a_home_the_python_of_the_build_is_used(serve, stage):
    info = python(serve("behaviours:application", home=None))
    assert info["prefix"] == info["base_prefix"] and "venv" not in info["prefix"]


def test_extension_modules_of_the_standard_library_load(site):
    assert b"OpenSSL" in site.get("/imports").body


def test_child_processes_end_as_they_say(site):
    """Servers reap children and block signals in their own ways; an application's children are its own."""
    info = site.get("/subprocesses", timeout=40).json()
    assert info["false"] == 1 and info["true"] == 0 and info["seven"] == 7 and info["system"] == 3
    assert info["output"] == "hello\n"
    assert info["terminated"] == -15, "a child dies of terminate()"
    assert info["interrupted"] == -2, "and of SIGINT"
    assert info["itself"] == -15
    assert info["blocked"] == [], "no signal of the server's stays blocked in children"


def test_child_processes_at_the_same_time_end_as_they_say(site):
    results = []
    threads = [threading.Thread(target=lambda: results.append(site.get("/subprocesses", timeout=40).json())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((info["false"], info["terminated"], info["seven"]) == (1, -15, 7) for info in results), results


def test_background_threads_go_on_after_the_response(site, key):
    began = time.monotonic()
    assert site.get(f"/background?key={key}").body == b"started"
    assert time.monotonic() - began < 0.8
    assert until(lambda: events(site, key)) == ["worked"]


def test_print_goes_to_the_error_log(site):
    assert site.get("/printed").body == b"printed"
    site.expect_log("printed to stdout", times=None)
    site.expect_log("printed to stderr", times=None)


def test_logging_and_warnings_go_to_the_error_log(site, key):
    assert site.get(f"/logged?text={key}").body == b"logged"
    site.expect_log(f"through logging: {key}", times=None)
    site.allow_log("through warnings|warnings.warn")


def test_an_application_s_signal_handler_harms_nothing(site):
    assert site.get("/signal_handler").status == 200
    assert site.get("/hello").body == b"hello"
    assert site.alive


def test_requests_run_side_by_side(site, key):
    """As many as there are threads, all inside the application at once."""
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(site.get(f"/meet?parties=8&key={key}").body)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"met"] * 8


def test_a_thread_s_state_is_kept_between_requests(site):
    counts = [int(site.get("/thread_local").body) for _ in range(30)]
    assert max(counts) > 1, "thread-local data never survived a request"


def test_a_busy_request_does_not_stop_others(site):
    thread = threading.Thread(target=site.get, args=("/busy?seconds=1.5",))
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    assert site.get("/hello").body == b"hello"
    assert time.monotonic() - began < 1
    thread.join()


def test_more_requests_than_threads_wait_their_turn(serve):
    server = serve("behaviours:application", threads=3)
    results = []

    def wait():
        results.append(server.get("/waiting?seconds=0.2").body)

    threads = [threading.Thread(target=wait) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"waited"] * 12


def test_exit_hooks_run_when_the_server_stops(serve):
    directory = serve.scripts / "ended"
    directory.mkdir()
    directory.chmod(0o777)
    server = serve("exit_hook:application")
    pid = server.get("/?path=" + quote(str(directory))).body.decode()
    assert not server.stop("graceful")
    assert (directory / pid).exists(), "atexit did not run"


def test_exit_hooks_run_when_workers_are_replaced(serve):
    directory = serve.scripts / "ended"
    directory.mkdir()
    directory.chmod(0o777)
    server = serve("exit_hook:application")
    pid = server.get("/?path=" + quote(str(directory))).body.decode()
    server.reload()
    assert until(lambda: (directory / pid).exists())


def test_no_python_runs_in_the_master(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    assert server.master().threads == 1
    mapped = open(f"/proc/{server.master().pid}/maps").read()
    assert "lib-dynload" not in mapped and "_json." not in mapped


def test_several_processes_serve(serve):
    server = serve("behaviours:application", processes=3, nginx_listen=" reuseport")
    pids = set()
    barrier = threading.Barrier(24)

    def ask():
        barrier.wait()
        # More at once than one process has threads.
        pids.add(server.get("/python?seconds=0.3").json()["pid"])

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) > 1 and pids <= {worker.pid for worker in server.workers()}
    assert server.get("/environ").json()["wsgi.multiprocess"] is True
