"""One server of a test: its configuration, its processes, its log. What nginx and Apache share."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support import processes
from support.client import Connection, exchange, until
from support.groups import Groups, supervision
from support.log import Log
from support.stage import free_port, worker_user


@dataclass
class Mount:
    """An application at a URL prefix, as a user would write it for either host."""

    # module:callable, module:factory() or /path/to/script[:callable].
    target: str
    at: str = "/"
    # None: as the host does by default.
    script_reloading: bool | None = None
    pass_authorization: bool | None = None
    # Extra keys of environ.
    params: dict = field(default_factory=dict)
    # Lines for nginx's location or Apache's <Location>.
    nginx: str = ""
    apache: str = ""


@dataclass
class Site:
    """What a server serves."""

    mounts: list
    threads: int = 8
    processes: int = 1
    # Says that all applications share the main interpreter.
    shared_interpreter: bool = True
    chunked: bool = True
    home: str | None = ""
    path: list | None = None
    # URL prefix -> directory of files.
    static: dict = field(default_factory=dict)
    max_body: str = "64m"
    # The limit of graceful ends, in seconds.
    graceful: int = 10
    nginx_main: str = ""
    nginx_http: str = ""
    nginx_server: str = ""
    nginx_listen: str = ""
    # TLS with HTTP/2, and client certificates accepted.
    tls: bool = False
    nginx_master: bool = True
    apache: str = ""
    apache_modules: tuple = ()
    # More options of the process group, where there is one.
    group: str = ""
    # Threads of its workers, if other than the server's.
    group_threads: int = 0


# The runtime of a sanitizer, where the modules were built with one (make sanitize).
SANITIZER = os.environ.get("HIGHBALL_SANITIZER")

# Has Python use malloc, so that a sanitizer sees its objects.
MALLOC = "HIGHBALL_TEST_MALLOC"


class ServerError(AssertionError):
    pass


class Server:
    """A running server. Subclasses know its configuration file, its command and its signals."""

    host = ""
    pattern = None
    log_class = Log
    # Applications run in a process group.
    grouped = False
    # What a user may hope of an idle server: small differences are caches and time-outs, a leak is more.
    spare_descriptors = 4

    def __init__(self, stage, site, directory, environment=None, wrapper=()):
        self.stage = stage
        self.site = site
        self.directory = directory
        self.port = free_port()
        self.url = f"{'https' if site.tls else 'http'}://127.0.0.1:{self.port}"
        self.environment = environment or {}
        self.wrapper = wrapper
        self.process = None
        self.stopped = False
        self.log = self.log_class(directory / "error.log", self.pattern)
        self.user = worker_user()
        self._http = None
        self._levels = {}
        self.known_workers = set()
        for name in ("scripts", "tmp", "run"):
            (directory / name).mkdir(exist_ok=True)
        self.reports = directory / "reports"
        if SANITIZER:
            self.reports.mkdir()
            self.reports.chmod(0o777)
            self.environment = {**self.environment, **self.sanitizer()}
        self.configuration = directory / f"{self.host}.conf"
        self.configuration.write_text(self.configure())

    def sanitizer(self):
        """AddressSanitizer in every process of the server, one file per process that it finds something in."""
        options = f"detect_leaks=0:log_path={self.reports}/asan:symbolize=1:allocator_may_return_null=1"
        symbolizer = os.environ.get("ASAN_SYMBOLIZER_PATH", "")
        return {"LD_PRELOAD": SANITIZER, "ASAN_OPTIONS": options, "ASAN_SYMBOLIZER_PATH": symbolizer, MALLOC: "1"}

    def found(self):
        """What the sanitizer has reported."""
        reports = sorted(self.reports.glob("*")) if SANITIZER else []
        return [f"{report.name}: {report.read_text(errors='replace')[:6000]}" for report in reports]

    def group_options(self):
        """The one process group of a test's server."""
        site = self.site
        for name in ("highball", "libhighball_worker.so"):
            self.stage.artefact(name)
        home = self.stage.venv if site.home == "" else site.home
        path = [self.stage.apps] if site.path is None else site.path
        options = [f"threads={site.group_threads or site.threads}", *(f"processes={site.processes}" for _ in range(site.processes > 1))]
        if home is not None:
            options.append(f"python-home={home}")
        if path:
            options.append(f"python-path={':'.join(str(entry) for entry in path)}")
        options += [f"environ={name}={value}" for name, value in self.environment.items() if name.startswith("HIGHBALL_")]
        return " ".join([*options, site.group])

    # What subclasses say.

    def configure(self):
        raise NotImplementedError

    def command(self):
        raise NotImplementedError

    def check_command(self):
        raise NotImplementedError

    def is_worker(self, process):
        raise NotImplementedError

    signals = {}

    # Life.

    def start(self):
        output = open(self.directory / "output.txt", "wb")
        self.process = subprocess.Popen(
            [*self.wrapper, *self.command()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C", **self.environment},
            cwd="/",
            # All that a server starts stays in its session: so it can be found again.
            start_new_session=True,
        )
        output.close()
        deadline = time.monotonic() + (60 if self.wrapper else 15)
        while not self.accepts():
            if self.process.poll() is not None:
                raise ServerError(f"{self.host} ended with {self.process.returncode}:\n{self.output()}\n{self.log.text()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.host} does not accept connections:\n{self.output()}\n{self.log.text()}")
            time.sleep(0.01)
        if not self.wrapper and not until(lambda: len(self.workers()) == self.worker_count):
            raise ServerError(f"{self.host} has {len(self.workers())} workers, expected {self.worker_count}")
        self.note_workers()
        return self

    def accepts(self):
        try:
            Connection(self.port, timeout=1).close()
            return True
        except OSError:
            return False

    def check(self):
        """Lets the server test its configuration: (whether it is right, what it says)."""
        done = subprocess.run(
            self.check_command(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            cwd="/",
            env={**os.environ, **self.environment},
        )
        return done.returncode == 0, done.stdout + done.stderr

    def output(self):
        path = self.directory / "output.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def signal(self, name):
        os.kill(self.process.pid, self.signals[name])

    def reload(self, wait=True, timeout=20):
        """Reloads gracefully. With `wait`, returns when new workers are there and the old ones are gone."""
        before = {process.pid for process in self.workers()}
        self.signal("reload")

        def renewed():
            now = {process.pid for process in self.workers()}
            return len(now) == self.worker_count and not now & before

        if wait:
            if not until(renewed, timeout):
                raise ServerError(f"{self.host} has not replaced its workers {before}: {self.family()}")
            self.note_workers()

    def stop(self, how="stop", timeout=15):
        """Stops the server, and complains if anything is left."""
        if self._http:
            self._http.close()
            self._http = None
        if self.process is None:
            return []
        complaints = []
        self.stopped = True
        if self.process.poll() is None:
            self.signal(how)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                complaints.append(f"{self.host} did not stop within {timeout} s of {how}: {self.family()}")
        else:
            complaints.append(f"{self.host} had ended by itself with {self.process.returncode}")
        if self.process.poll() is None or not until(lambda: not self.members(), 2):
            complaints.append(f"left behind by {self.host}: {self.family()}")
            for member in self.members():
                try:
                    os.kill(member.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.wait(5)
        if self.grouped:
            complaints += self.left_of_groups()
        return complaints + self.found()

    def left_of_groups(self):
        """What a server with process groups has left behind: nothing may remain, whatever ended it."""
        if not until(lambda: not supervision(self.log.path), 3):
            return [f"supervision was left: {supervision(self.log.path)}"]
        left = [str(path) for path in self.socket_prefix.rglob("*")] if self.socket_prefix.exists() else []
        return [f"sockets were left: {left}"] if left else []

    @property
    def groups(self):
        return Groups(self)

    @property
    def socket_prefix(self):
        """The path of a socket may not be long."""
        return self.stage.root / "s" / self.directory.name.split("-")[0]

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    # Processes.

    @property
    def worker_count(self):
        return self.site.processes

    def members(self):
        return processes.in_session(self.process.pid)

    def master(self):
        return processes.process_of(self.process.pid)

    def workers(self):
        return [p for p in self.members() if p.parent == self.process.pid and not p.zombie and self.is_worker(p)]

    def worker(self):
        (found,) = self.workers()
        return found

    def memory(self, kind):
        """KiB of all workers: `resident` or `private`."""
        return sum(getattr(worker, kind) for worker in self.workers())

    def note_workers(self):
        self.known_workers = {process.pid for process in self.workers()}
        self._levels = {}

    def family(self):
        return "; ".join(f"{p.pid} {p.state} {p.command or p.name}" for p in self.members())

    def descriptors(self):
        """Open descriptors by process."""
        return {process.pid: process.descriptors for process in [self.master(), *self.workers()] if process}

    # The gate after every test.

    def begin(self):
        """A test begins on this server."""
        self.log.begin()
        if not self._levels:
            self._levels = self.descriptors()

    def gate(self):
        """What is wrong after a test: log, processes, descriptors."""
        complaints = []
        if self._http:
            self._http.close()
            self._http = None
        if not self.alive:
            code = self.process.poll() if self.process else None
            return [f"{self.host} has ended with {code}", *self.log.unexpected()]
        until(lambda: {p.pid for p in self.workers()} == self.known_workers and not self._zombies(), 2)
        workers = {process.pid for process in self.workers()}
        if workers != self.known_workers:
            complaints.append(f"workers were {self.known_workers} and are {workers}: {self.family()}")
        if zombies := self._zombies():
            complaints.append(f"zombies: {zombies}")
        if more := until(lambda: self._leaked() or None, 0) and self._still_leaked():
            complaints.append(f"descriptors left open: {more}")
        return complaints + self.found() + self.log.unexpected()

    def _zombies(self):
        return [f"{p.pid} {p.name}" for p in self.members() if p.zombie]

    def _leaked(self):
        leaked = {}
        for pid, now in self.descriptors().items():
            before = self._levels.get(pid)
            if before is not None and len(now) > len(before) + self.spare_descriptors:
                leaked[pid] = sorted(set(now.items()) - set(before.items()))
        return leaked

    def _still_leaked(self):
        """Connections just closed by the client take the server a moment; nginx lingers 5 s over an unread body."""
        until(lambda: not self._leaked(), 8)
        return self._leaked()

    # Requests.

    def request(self, method, path, headers=(), body=b"", version="1.1", timeout=20):
        return exchange(self.port, method, path, headers, body, version, timeout)

    def get(self, path, headers=(), **options):
        return self.request("GET", path, headers, **options)

    def post(self, path, body, headers=(), **options):
        return self.request("POST", path, headers, body, **options)

    def connect(self, **options):
        return Connection(self.port, **options)

    @property
    def http(self):
        """A client with cookies, multipart and redirects."""
        if self._http is None:
            self._http = httpx.Client(base_url=self.url, timeout=20, trust_env=False)
        return self._http

    # Log.

    def expect_log(self, pattern, times=1, timeout=5):
        return self.log.expect(pattern, times, timeout)

    def allow_log(self, pattern):
        self.log.allow(pattern)


def write_script(directory, name, text):
    path = Path(directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path
