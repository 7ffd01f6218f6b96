#!/usr/bin/env python3
"""The same load on process groups of Highball, on mod_wsgi's daemon mode and on nginx with gunicorn behind it, while the
server, the code and the workers are replaced or killed: how many requests fail.

    benches/hammer.py SERVER...      nginx, apache: Highball in either; mod_wsgi; gunicorn

16 clients ask for a page of five bytes, one request after the other: on a connection for each request, then on one they
keep, where a request on a connection that the server closes before it has answered anything is sent once more. Each has two
worker processes with four threads. HAMMER_SECONDS (20) is the length of each part.

- reload: the server reloads gracefully, every 3 s (mod_wsgi: apachectl graceful; gunicorn stays as it is behind nginx).
- new code: every 3 s; the script is touched, gunicorn gets a HUP.
- kill: a random worker process is killed with SIGKILL, every second.
- limit: a worker is replaced after 50 requests (gunicorn: with a jitter of 10).

*times*: how often that was done. *processes*: how many have imported the application meanwhile.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import processes
from support.apache import Apache, ApacheGroup
from support.client import until
from support.load import Load
from support.log import Unjudged
from support.nginx import Nginx, NginxGroup
from support.server import Mount, Site, write_script
from support.stage import Stage

SECONDS = float(os.environ.get("HAMMER_SECONDS", 20))
GUNICORN = ROOT / "target" / "gunicorn" / "bin" / "gunicorn"

# Each process that imports it leaves a line.
SCRIPT = """
import os

with open({notes!r}, "a") as notes:
    notes.write(f"{{os.getpid()}}\\n")

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""


class HighballNginx(NginxGroup):
    title = "nginx: Highball"
    options = "processes=2"

    def pids(self):
        return self.groups.pids()

    def renew(self):
        os.utime(self.scripts / "app.wsgi")


class HighballApache(ApacheGroup):
    title = "Apache: Highball"
    options, pids, renew = HighballNginx.options, HighballNginx.pids, HighballNginx.renew


class ModWsgi(Apache):
    title = "Apache: mod_wsgi"
    module = os.environ.get("MOD_WSGI")
    log_class = Unjudged
    options = "processes=2"
    renew = HighballNginx.renew

    def configure(self):
        group = f"WSGIDaemonProcess site threads=4 display-name=%{{GROUP}} {self.site.group}"
        where = f"WSGIProcessGroup site\nWSGIApplicationGroup %{{GLOBAL}}\nWSGISocketPrefix {self.directory}/run/s"
        return f"{super().configure()}{group}\n{where}\n"

    def is_worker(self, process):
        return not process.command.startswith("(wsgi:")

    def pids(self):
        return {process.pid for process in self.members() if process.command.startswith("(wsgi:") and not process.zombie}


class Gunicorn(Nginx):
    """nginx as gunicorn's documentation has it."""

    title = "nginx, gunicorn"
    log_class = Unjudged
    options = ""

    def location(self, mount):
        yield "location / { proxy_pass http://app; proxy_set_header Host $http_host; proxy_redirect off; }"

    def embedded(self):
        yield f"upstream app {{ server unix:{self.directory}/run/app.sock fail_timeout=0; }}"

    def configure(self):
        text = super().configure().splitlines()
        return "\n".join(line for line in text if not line.startswith(("load_module", "wsgi_"))) + "\n"

    def start(self):
        command = [GUNICORN, "--bind", f"unix:{self.directory}/run/app.sock", "--workers", "2", "--worker-class", "gthread"]
        command += ["--threads", "4", "--log-level", "warning", "--no-control-socket", *self.site.group.split(), "app:application"]
        output = open(self.directory / "gunicorn.log", "wb")
        self.gunicorn = subprocess.Popen(command, cwd=self.scripts, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        output.close()
        assert until(lambda: len(self.pids()) == 2, 15), (self.directory / "gunicorn.log").read_text()
        return super().start()

    def pids(self):
        found = processes.in_session(self.gunicorn.pid)
        return {process.pid for process in found if process.parent == self.gunicorn.pid and not process.zombie}

    def renew(self):
        os.kill(self.gunicorn.pid, signal.SIGHUP)

    def stop(self, *arguments):
        complaints = super().stop(*arguments)
        self.gunicorn.terminate()
        self.gunicorn.wait(40)
        return complaints


SERVERS = {"nginx": HighballNginx, "apache": HighballApache, "mod_wsgi": ModWsgi, "gunicorn": Gunicorn}

LIMIT = {"gunicorn": "--max-requests 50 --max-requests-jitter 10"}


def kill(server):
    pids = sorted(server.pids())
    if pids:
        os.kill(random.choice(pids), signal.SIGKILL)
    return bool(pids)


# What is done, and whether it was; how often.
PARTS = {
    "reload": (lambda server: server.signal("reload") or True, 3),
    "new code": (lambda server: server.renew() or True, 3),
    "kill": (kill, 1),
    "limit": (lambda server: False, 1),
}


def hammer(stage, name, part, keep):
    kind = SERVERS[name]
    act, pause = PARTS[part]
    directory = stage.directory(f"{kind.host}-{name}"[:60])
    scripts = directory / "code"
    scripts.mkdir()
    notes = write_script(directory, "notes", "")
    notes.chmod(0o666)
    target = write_script(scripts, "app.py" if name == "gunicorn" else "app.wsgi", SCRIPT.format(notes=str(notes)))
    options = f"{kind.options} {LIMIT.get(name, 'maximum-requests=50') if part == 'limit' else ''}".strip()
    kind.scripts = scripts
    site = Site([Mount(str(target))], threads=16, group_threads=4, group=options, shared_interpreter=False)
    server = kind(stage, site, directory)
    server.start()
    try:
        assert until(lambda: server.get("/").body == b"hello" and len(server.pids()) == 2, 20), server.log.text()
        count, processes_before = 0, len(notes.read_text().split())
        with Load(server, "/", clients=16, keep=keep) as load:
            began, next_act = time.monotonic(), pause
            while (passed := time.monotonic() - began) < SECONDS:
                if passed >= next_act:
                    count, next_act = count + act(server), next_act + pause
                time.sleep(0.02)
            begun = len(notes.read_text().split()) - processes_before
        report(server, part, keep, count, begun, load)
    finally:
        server.stop()


def report(server, part, keep, count, begun, load):
    # A status and the body's beginning, or an exception.
    names = [failure.split("(")[0].split(" ")[0] for failure in load.failures]
    failures = collections.Counter("200 with another body" if name == "200" else name for name in names)
    what = ", ".join(f"{number} × {name}" for name, number in failures.most_common())
    clients = f"kept, {load.retried} sent again" if keep else "one each"
    facts = [server.title, part, clients, count, begun, load.count, len(load.failures), what, f"{load.slowest:.2f} s"]
    print("|", " | ".join(str(fact) for fact in facts), "|", flush=True)


def main():
    names = sys.argv[1:] or list(SERVERS)
    if unknown := [name for name in names if name not in SERVERS]:
        sys.exit(f"no such server: {' '.join(unknown)}; there are {', '.join(SERVERS)}")
    print("| server | part | connections | times | processes | requests | failed | how | slowest |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    stage = Stage()
    try:
        for name in names:
            for part in PARTS:
                for keep in (False, True):
                    hammer(stage, name, part, keep)
    finally:
        stage.remove()


if __name__ == "__main__":
    main()
