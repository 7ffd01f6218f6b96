"""`highball run`: an application on a port, with one command."""

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support import processes
from support.client import Connection, exchange, until
from support.stage import APACHE_MODULE, COMMAND, NGINX_MODULE, free_port

# The command starts servers of its own, without a sanitizer in them.
pytestmark = pytest.mark.no_sanitizer


class Run:
    """A running command. Its temporary directory is its own, so that what it leaves there is seen."""

    def __init__(self, stage, server, *arguments, chdir=None, environment=None):
        self.stage = stage
        self.temporary = stage.directory(f"run-{server}")
        self.temporary.chmod(0o1777)
        self.port = free_port()
        for name in (NGINX_MODULE, APACHE_MODULE):
            stage.artefact(name)
        self.stdout, self.stderr = self.temporary.parent / f"{self.temporary.name}.out", self.temporary.parent / f"{self.temporary.name}.err"
        command = [stage.artefact(COMMAND), "run", *arguments, "--server", server]
        if "--bind" not in arguments:
            command += ["--bind", f"127.0.0.1:{self.port}"]
        command += ["--chdir", str(chdir or stage.apps)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=open(self.stdout, "wb"),
            stderr=open(self.stderr, "wb"),
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(self.temporary), **(environment or {})},
            start_new_session=True,
        )

    def ready(self, timeout=15):
        """Waits for the ready line, and returns it."""
        assert until(lambda: b"serving" in self.stdout.read_bytes() or self.process.poll() is not None, timeout), self.said()
        assert self.process.poll() is None, self.said()
        return self.stdout.read_text()

    def said(self):
        return self.stdout.read_text() + self.stderr.read_text(errors="replace")

    def get(self, path="/", **options):
        return exchange(self.port, "GET", path, **options)

    def end(self, name=signal.SIGTERM, timeout=15):
        """Ends it, and returns the exit status; nothing may be left."""
        if self.process.poll() is None:
            self.process.send_signal(name)
        status = self.process.wait(timeout)
        left = until(lambda: not processes.in_session(self.process.pid), 2)
        assert left, [p.command for p in processes.in_session(self.process.pid)]
        assert not list(self.temporary.iterdir()), list(self.temporary.iterdir())
        return status

    def kill(self):
        for process in processes.in_session(self.process.pid):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)


@pytest.fixture
def run(stage, host, request):
    running = []

    def start(*arguments, **options):
        arguments = (*arguments, "--venv", str(stage.venv)) if options.pop("venv", True) else arguments
        running.append(Run(stage, host, *arguments, **options))
        return running[-1]

    yield start
    for each in running:
        each.kill()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_run_serves_until_told_to_stop_and_leaves_nothing(run, ending, host):
    it = run("flaskapp:app")
    line = it.ready()
    assert line.count("\n") == 1 and f"http://127.0.0.1:{it.port}/" in line and "flaskapp:app" in line and host in line.lower()
    assert it.get().body == b"Hello from Flask"
    began = time.monotonic()
    assert it.end(ending) == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in it.said()


def test_run_answers_what_is_in_flight_when_told_to_stop(run):
    it = run("behaviours:application")
    it.ready()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(it.get("/waiting?seconds=1.5").body)) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert it.end() == 0
    for thread in threads:
        thread.join()
    assert answers == [b"waited"] * 3


def test_run_keeps_the_graceful_limit(run):
    it = run("behaviours:application", "--graceful-timeout", "1s")
    it.ready()
    with Connection(it.port) as stream:
        stream.request("GET", "/endless")
        stream.read_head()
        began = time.monotonic()
        assert it.end(timeout=20) == 0
        assert time.monotonic() - began < 8


def test_run_takes_authorization_and_chunked_bodies_on_both_servers(run):
    from support.client import chunked

    it = run("behaviours:application")
    it.ready()
    assert it.get("/environ", headers={"Authorization": "Basic dTpw"}).json()["HTTP_AUTHORIZATION"] == "Basic dTpw"
    answer = exchange(it.port, "POST", "/echo_all", [("Transfer-Encoding", "chunked")], chunked(b"one ", b"two"))
    assert answer.body == b"one two"
    assert it.end() == 0


def test_run_mounts_at_a_prefix(run):
    it = run("flaskapp:app", "--mount", "/blog")
    assert f"http://127.0.0.1:{it.port}/blog" in it.ready()
    assert it.get("/blog/item/1").json()["url"] == "/blog/item/2"
    assert it.get("/other").status == 404
    assert it.end() == 0


def test_run_limits_bodies(run):
    it = run("behaviours:application", "--max-body", "1m")
    it.ready()
    assert exchange(it.port, "POST", "/echo", body=b"x" * 1_000_000).status == 200
    with Connection(it.port) as connection:
        connection.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
        assert connection.response().status == 413
    assert it.end() == 0


def test_run_serves_as_many_requests_at_once_as_threads(run):
    it = run("behaviours:application", "--threads", "12")
    it.ready()
    results = []
    threads = [threading.Thread(target=lambda: results.append(it.get("/meet?parties=12&key=run").body)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"met"] * 12
    assert it.end() == 0


def test_run_starts_several_processes(run):
    it = run("behaviours:application", "--processes", "3")
    it.ready()
    pids = set()
    threads = [threading.Thread(target=lambda: pids.add(it.get("/python").json()["pid"])) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids and len([p for p in processes.in_session(it.process.pid) if p.threads > 3]) >= 3
    assert it.end() == 0


@pytest.mark.parametrize("target", ["hello:make()", "hello:site.application", "SCRIPT"])
def test_run_takes_every_kind_of_target(run, stage, target):
    if target == "SCRIPT":
        target = str(stage.apps / "hello.py")
    it = run(target)
    it.ready()
    assert it.get().body == b"hello"
    assert it.end() == 0


def test_run_has_no_error_under_load_beside_a_slow_client(run):
    """2,000 requests over 50 connections while one client reads at 1 KiB/s."""
    it = run("flaskapp:app", "--threads", "16")
    it.ready()
    errors, done = [], []
    stop = threading.Event()
    slow = Connection(it.port, receive_buffer=4096)
    slow.request("GET", "/stream")

    def read_slowly():
        while not stop.wait(0.125):
            slow.read_some(128)

    def client():
        try:
            with Connection(it.port) as connection:
                for _ in range(40):
                    connection.request("GET", "/item/3")
                    response = connection.response()
                    if response.status != 200 or response.json()["number"] != 3:
                        errors.append(response)
                    done.append(1)
                    if response.header("Connection") == "close":
                        errors.append("closed")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(50)]
    reader = threading.Thread(target=read_slowly)
    reader.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    reader.join()
    slow.close()
    assert not errors, errors[:3]
    assert len(done) == 2000
    assert it.end() == 0


def test_errors_of_the_application_are_on_stderr(run):
    it = run("behaviours:application")
    it.ready()
    assert it.get("/raises").status == 500
    assert until(lambda: "HB0401" in it.stderr.read_text(errors="replace"))
    text = it.stderr.read_text(errors="replace")
    assert "Traceback (most recent call last)" in text and "raised at once" in text
    assert it.end() == 0


def test_a_killed_command_takes_its_server_along(run):
    it = run("hello:application")
    it.ready()
    it.process.kill()
    it.process.wait(5)
    assert until(lambda: not processes.in_session(it.process.pid), 8), [
        p.command for p in processes.in_session(it.process.pid)
    ]


# Wrong input


def refused(it, *parts, timeout=20):
    """It ends with 1 and one message that says what and what to do."""
    status = it.process.wait(timeout)
    text = it.stderr.read_text(errors="replace")
    assert status == 1, (status, text)
    assert text.startswith("highball: "), text
    assert text.count("highball: ") == 1, text
    assert "serving" not in it.stdout.read_text()
    for part in parts:
        assert part in text, text
    assert it.end() == 1
    return text


def test_no_such_module(run):
    refused(run("no_such_module:app"), "no_such_module", "HB0303")


def test_no_such_callable(run):
    refused(run("hello:missing"), '"missing"', "HB0306", "application")


def test_no_callable_at_all(run):
    refused(run("hello:number"), "int", "HB0307")


def test_an_import_error_is_shown_with_its_traceback(run, stage):
    directory = stage.directory("broken")
    (directory / "broken.py").write_text("import no_such_package_anywhere\n")
    refused(run("broken:app", chdir=directory), "no_such_package_anywhere", "Traceback", "broken.py")


def test_a_syntax_error_is_shown_with_its_line(run, stage):
    directory = stage.directory("broken")
    (directory / "broken.py").write_text("def f(:\n    pass\n")
    refused(run("broken:app", chdir=directory), "HB0304", "line 1", "broken.py")


@pytest.mark.parametrize("target", ["hello", "hello:", "a b:c", "relative/app.py"])
def test_a_target_that_names_nothing(run, target):
    refused(run(target), target, "module:callable")


def test_a_port_in_use_is_named(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(run("hello:application", "--bind", f"127.0.0.1:{port}"), str(port), "in use")


def test_a_directory_that_does_not_exist(run):
    refused(run("hello:application", chdir="/nonexistent/site"), "/nonexistent/site")


def test_an_environment_that_is_none(run, stage):
    plain = stage.directory("plain")
    refused(run("hello:application", "--venv", str(plain), venv=False), str(plain), "pyvenv.cfg")


def test_an_environment_of_another_python(run, stage):
    venv = stage.make_venv(f"old-venv-{time.monotonic_ns()}")
    config = venv / "pyvenv.cfg"
    lines = ["version = 3.7.2" if line.startswith("version") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines) + "\n")
    refused(run("hello:application", "--venv", str(venv), venv=False), "3.7", str(venv))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs workers of another user")
def test_a_directory_the_workers_cannot_enter_is_named(run, stage):
    closed = stage.directory("closed")
    site = closed / "deep" / "site"
    site.mkdir(parents=True)
    (site / "hello.py").write_text(Path(stage.apps / "hello.py").read_text())
    closed.chmod(0o700)
    refused(run("hello:application", chdir=site), str(closed), "chmod o+x")


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--bind", "nowhere"], ["--max-body", "much"], ["--server", "iis"]])
def test_a_wrong_option_is_refused(stage, arguments):
    done = subprocess.run(
        [stage.artefact(COMMAND), "run", "hello:application", *arguments], capture_output=True, text=True, timeout=10
    )
    assert done.returncode == 1 and arguments[0] in done.stderr


def test_module_path_names_both_modules(stage):
    for name in (NGINX_MODULE, APACHE_MODULE):
        stage.artefact(name)
    done = subprocess.run([stage.artefact(COMMAND), "module-path"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0
    assert str(stage.bin / NGINX_MODULE) in done.stdout and str(stage.bin / APACHE_MODULE) in done.stdout


@pytest.mark.parametrize("server", ["nginx", "apache"])
def test_a_process_group_serves_and_leaves_nothing(stage, server):
    stage.artefact("libhighball_worker.so")
    run = Run(stage, server, "behaviours:application", "--mode", "group", "--processes", "2", "--threads", "4", environment={"MARK": 'a "b" $c'})
    try:
        run.ready()
        pids = {run.get("/python").json()["pid"] for _ in range(8)}
        assert len(pids) == 2
        assert run.get("/environ").json()["wsgi.multiprocess"] is True
    finally:
        assert run.end() == 0, run.said()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


APPLICATION = """
from words import WORD

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [WORD]
"""


@pytest.mark.parametrize("target", ["app:application", "app.wsgi"])
@pytest.mark.parametrize("server", ["nginx", "apache"])
def test_changed_python_files_are_taken_up_once_they_can_serve(stage, server, target):
    stage.artefact("libhighball_worker.so")
    site = stage.directory(f"reload-{server}")
    words = site / "words.py"
    (site / "app.py").write_text(APPLICATION)
    (site / "app.wsgi").write_text(APPLICATION)
    words.write_text("WORD = b'one'\n")
    target = str(site / target) if target.endswith(".wsgi") else target
    run = Run(stage, server, target, "--reload", chdir=site)
    try:
        run.ready()
        assert run.get().body == b"one"
        words.write_text("WORD = b'second'\n")
        answers = set()
        assert until(lambda: answers.add(run.get().body) or b"second" in answers, 15), run.said()
        assert answers <= {b"one", b"second"}
        assert f"{words} has changed" in run.said() and until(lambda: "the new code serves" in run.said())
        words.write_text("import nothing_of_that_name\n")
        assert until(lambda: "the old code goes on serving" in run.said(), 15), run.said()
        assert "nothing_of_that_name" in run.said() and run.get().body == b"second"
        (site / "new").mkdir()
        words.write_text("from new.inner import WORD\n")
        (site / "new" / "inner.py").write_text("WORD = b'repaired'\n")
        assert until(lambda: run.get().body == b"repaired", 15), run.said()
    finally:
        assert run.end() == 0, run.said()


def test_reload_needs_a_process_group(run):
    refused(run("hello:application", "--reload", "--mode", "embedded"), "--reload", "--mode group")


@pytest.mark.parametrize("server", ["nginx", "apache"])
def test_an_application_that_a_process_group_cannot_load_is_told(stage, server):
    stage.artefact("libhighball_worker.so")
    run = Run(stage, server, "nothing_of_that_name:application", "--mode", "group")
    assert run.process.wait(20) == 1
    assert "HB0303" in run.said() and "nothing_of_that_name" in run.said()
    run.end()
