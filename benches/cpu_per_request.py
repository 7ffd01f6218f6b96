#!/usr/bin/env python3
"""CPU time per request: Highball in nginx and in Apache, in the server's own processes and in a process group, beside
what these servers do without Python, nginx with uWSGI behind it, and mod_wsgi in both of its modes.

Each server runs alone while it is measured, all of them in turn, round after round. CPU is user and system time of all
processes of a server, from /proc, over the requests that wrk counted. Prints a table of medians, and ratios within
rounds, which the load of the machine disturbs least.

BENCH_ROUNDS (5), BENCH_SECONDS (3, of each run), BENCH_CONNECTIONS (32), BENCH_APP_THREADS (16, of
nginx) and BENCH_APACHE_THREADS (twice the connections) change the run.
HIGHBALL_BUILD_DIR is where the modules are; MOD_WSGI is mod_wsgi's .so, without which it is left out, as uWSGI is where
it is not installed.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
SECONDS = int(os.environ.get("BENCH_SECONDS", 3))
CONNECTIONS = int(os.environ.get("BENCH_CONNECTIONS", 32))
APP_THREADS = int(os.environ.get("BENCH_APP_THREADS", 16))
# At least as many as connections: with fewer the event MPM closes idle connections, and reconnects are what is measured.
APACHE_THREADS = int(os.environ.get("BENCH_APACHE_THREADS", 2 * CONNECTIONS))
BUILD = Path(os.environ.get("HIGHBALL_BUILD_DIR", Path(__file__).parent.parent / "target" / "release")).resolve()
MOD_WSGI = os.environ.get("MOD_WSGI")
APACHE_MODULES = Path("/usr/lib/apache2/modules")

HELLO = """def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world\\n"]
"""

NGINX = """daemon off;
{user}
worker_processes 1;
error_log {directory}/error.log warn;
pid {directory}/pid;
{main}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type text/plain;
    {http}
    server {{
        listen 127.0.0.1:{port};
        location / {{ {location} }}
    }}
}}
"""

APACHE = """ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/pid
ErrorLog {directory}/error.log
LogLevel warn
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
{user}
ServerName localhost
Listen 127.0.0.1:{port}
StartServers 1
ServerLimit 1
ThreadsPerChild {threads}
ThreadLimit {threads}
MaxRequestWorkers {threads}
MinSpareThreads 1
MaxSpareThreads {threads}
MaxKeepAliveRequests 0
KeepAliveTimeout 15
DocumentRoot {applications}
<Directory {applications}>
    AllowOverride None
    Require all granted
</Directory>
{extra}
"""

WSGI = """LoadModule wsgi_module {module}
WSGIScriptAlias / {applications}/hello.wsgi process-group=%{{GLOBAL}} application-group=%{{GLOBAL}}
"""


GROUP = """LoadModule wsgi_module {module}
WSGISocketPrefix {directory}/s
WSGIDaemonProcess {group} threads=16 python-path={applications} display-name=%{{GROUP}}
WSGIScriptAlias / {applications}/hello.wsgi process-group={group} application-group=%{{GLOBAL}}
"""

UWSGI = """uwsgi_pass unix:{socket};
uwsgi_param QUERY_STRING $query_string; uwsgi_param REQUEST_METHOD $request_method;
uwsgi_param CONTENT_TYPE $content_type; uwsgi_param CONTENT_LENGTH $content_length;
uwsgi_param REQUEST_URI $request_uri; uwsgi_param PATH_INFO $document_uri;
uwsgi_param DOCUMENT_ROOT $document_root; uwsgi_param SERVER_PROTOCOL $server_protocol;
uwsgi_param REMOTE_ADDR $remote_addr; uwsgi_param REMOTE_PORT $remote_port;
uwsgi_param SERVER_PORT $server_port; uwsgi_param SERVER_NAME $server_name;"""


class Target:
    def __init__(self, name, command, port, path="/", beside=None, group=None):
        self.name = name
        # A second service, and the name of a process group: what they need counts as well.
        self.beside = beside
        self.group = group
        self.command = command
        self.url = f"http://127.0.0.1:{port}{path}"
        self.port = port
        self.rounds = []

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, start_new_session=True)
        self.service = subprocess.Popen(self.beside, stdin=subprocess.DEVNULL, start_new_session=True) if self.beside else None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended with status {self.process.returncode}; its log is above or in its directory")
            try:
                with urllib.request.urlopen(self.url, timeout=1) as answer:
                    if answer.read() == b"Hello, world\n":
                        return
            except OSError:
                pass
            time.sleep(0.05)
        sys.exit(f"{self.name} did not answer within 20 s")

    def stop(self):
        for process, how in ((self.process, signal.SIGTERM), (self.service, signal.SIGINT)):
            if process is not None and process.poll() is None:
                process.send_signal(how)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def cpu(self):
        roots = {self.process.pid} | ({self.service.pid} if self.service else set())
        return cpu(roots | (processes_of(self.group) if self.group else set()))

    def measure(self, seconds, keep=True):
        before = self.cpu()
        output = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", self.url],
            capture_output=True, text=True, check=True, timeout=seconds + 60,
        ).stdout
        after = self.cpu()
        if trouble := re.search(r"Non-2xx.*|Socket errors.*", output):
            print(f"  {self.name}: {trouble[0]}", flush=True)
        requests, elapsed = re.search(r"(\d+) requests in ([\d.]+)s", output).groups()
        user, system = ((then - now) / os.sysconf("SC_CLK_TCK") * 1e6 / int(requests) for then, now in zip(after, before))
        if keep:
            self.rounds.append((user + system, user, system, int(requests) / float(elapsed)))

    def median(self, column):
        return statistics.median(round[column] for round in self.rounds)


def processes_of(group):
    """The workers of a process group, and whatever supervises one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"(wsgi:{group})".encode() in command or b"supervise" in command.split(b"\0"):
                found.add(int(entry.name))
    return found


def cpu(pids):
    """User and system ticks of processes, their children, and theirs; of those that have ended too."""
    parents, times = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            own = [int(field) for field in fields[11:15]]
            times[int(entry.name)] = (own[0] + own[2], own[1] + own[3])
    members, found = set(pids), True
    while found:
        found = {child for child, parent in parents.items() if parent in members} - members
        members |= found
    return [sum(times[member][column] for member in members if member in times) for column in (0, 1)]


def worker_user():
    if os.geteuid() != 0:
        return None
    for name in ("www-data", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    sys.exit("there is neither a user www-data nor a user nobody for the servers' workers")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def targets(stage):
    user = worker_user()
    applications = stage / "applications"
    applications.mkdir()
    for name in ("hello.py", "hello.wsgi"):
        (applications / name).write_text(HELLO)
    (applications / "hello.txt").write_text("Hello, world\n")
    for module in ("libngx_http_highball_module.so", "libmod_highball.so", "libhighball_worker.so", "highball"):
        if not (BUILD / module).exists():
            sys.exit(f"{BUILD / module} is not built: make build")
        shutil.copy2(BUILD / module, stage)
    search = os.environ.get("PATH", "") + ":/usr/sbin"
    nginx_program = shutil.which("nginx", path=search)
    apache_program = shutil.which("apache2", path=search) or shutil.which("httpd", path=search)

    def directory(name):
        path = stage / re.sub(r"\W+", "-", name)
        path.mkdir()
        return path

    def nginx(name, location, main="", http="", **options):
        place, port = directory(name), free_port()
        line = f"user {user.pw_name};" if user else ""
        values = dict(directory=place, port=port, user=line, location=location, main=main, http=http)
        (place / "nginx.conf").write_text(NGINX.format(**values))
        command = [nginx_program, "-e", place / "error.log", "-p", place, "-c", place / "nginx.conf"]
        return Target(name, command, port, **options)

    def apache(name, module=None, path="/", group=None):
        place, port = directory(name), free_port()
        line = f"User {user.pw_name}\nGroup #{user.pw_gid}" if user else ""
        text = GROUP if group else WSGI
        extra = text.format(module=module, applications=applications, group=group, directory=place) if module else ""
        values = dict(directory=place, port=port, user=line, modules=APACHE_MODULES, threads=APACHE_THREADS)
        (place / "httpd.conf").write_text(APACHE.format(applications=applications, extra=extra, **values))
        return Target(name, [apache_program, "-d", place, "-f", place / "httpd.conf", "-DFOREGROUND"], port, path, group=group)

    found = {
        "nginx return": nginx("nginx: return 200", 'return 200 "Hello, world\\n";'),
        "nginx": nginx(
            "nginx: Highball",
            "wsgi_pass hello:application;",
            main=f"load_module {stage}/libngx_http_highball_module.so;",
            http=f"wsgi_python_path {applications}; wsgi_threads {APP_THREADS};",
        ),
        "nginx group": nginx(
            "nginx: Highball, process group",
            "wsgi_pass hello:application; wsgi_process_group bench-nginx;",
            main=f"load_module {stage}/libngx_http_highball_module.so;",
            http=f"wsgi_daemon_process bench-nginx threads={APP_THREADS} python-path={applications}; wsgi_socket_prefix {stage}/s;",
            group="bench-nginx",
        ),
        "apache static": apache("Apache: static file", path="/hello.txt"),
        "apache": apache("Apache: Highball", stage / "libmod_highball.so"),
        "apache group": apache(
            "Apache: Highball, process group", stage / "libmod_highball.so", group="bench-apache",
        ),
    }
    uwsgi = shutil.which("uwsgi-core", path=search) or shutil.which("uwsgi", path=search)
    if uwsgi:
        # Where nginx's worker may connect.
        place = stage / "uwsgi"
        place.mkdir()
        service = [uwsgi, "--plugin", "python3", "--socket", place / "s", "--chmod-socket=666", "--master", "--processes=1"]
        service += ["--wsgi-file", applications / "hello.wsgi", "--disable-logging", "--listen", "100", "--die-on-term"]
        if user:
            place.chmod(0o777)
            service += ["--uid", user.pw_name, "--gid", str(user.pw_gid)]
        found["uwsgi"] = nginx("nginx: uWSGI behind it", UWSGI.format(socket=place / "s"), beside=service)
    if MOD_WSGI:
        name = f"Apache: mod_wsgi {os.environ.get('MOD_WSGI_VERSION', '')}".strip()
        found["mod_wsgi"] = apache(name, MOD_WSGI)
        found["mod_wsgi daemon"] = apache(f"{name} daemon", MOD_WSGI, group="bench-mod-wsgi")
    return found


def report(found):
    rows = [("", "µs CPU/request", "[min-max]", "user", "system", "requests/s")]
    for target in found.values():
        totals = [round[0] for round in target.rounds]
        spread = f"[{min(totals):.1f}-{max(totals):.1f}]"
        figures = [f"{target.median(column):.1f}" for column in (0, 1, 2)] + [f"{target.median(3):.0f}"]
        rows.append((target.name, figures[0], spread, figures[1], figures[2], figures[3]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells))
    print()
    pairs = (
        ("nginx", "nginx return"), ("nginx", "uwsgi"), ("nginx group", "uwsgi"),
        ("apache", "apache static"), ("apache", "mod_wsgi"), ("apache group", "mod_wsgi daemon"),
    )  # fmt: skip
    for ours, theirs in pairs:
        if theirs in found:
            ratios = [our[0] / their[0] for our, their in zip(found[ours].rounds, found[theirs].rounds)]
            name = f"{found[ours].name} / {found[theirs].name}"
            print(f"{name:<44} {statistics.median(ratios):.2f}  [{min(ratios):.2f}-{max(ratios):.2f}]")


def main():
    stage = Path(tempfile.mkdtemp(prefix="highball-bench-"))
    stage.chmod(0o755)
    found, started = {}, []
    try:
        found = targets(stage)
        for target in found.values():
            target.start()
            started.append(target)
        print(f"hello, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS} s each, one server process of each kind;")
        print(f"{APP_THREADS} application threads in nginx, {APACHE_THREADS} threads in Apache. Load before: {os.getloadavg()[0]:.1f}")
        for target in started:
            target.measure(1, keep=False)
        for number in range(1, ROUNDS + 1):
            print(f"round {number} of {ROUNDS}", flush=True)
            for target in started:
                target.measure(SECONDS)
        report(found)
    finally:
        for target in started:
            target.stop()
        shutil.rmtree(stage, ignore_errors=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
main()
