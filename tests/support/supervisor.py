"""A supervisor of process groups with this test in the place of a server's master."""

import array
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from support import processes
from support.client import until
from support.worker import BUILD, GROUP, Connection

HIGHBALL = BUILD / "highball"
SECRET = "ab" * 32
APPS = Path(__file__).parent.parent / "apps"


def key(name):
    return hashlib.sha256(SECRET.encode() + b" " + name.encode()).digest()


class Supervised:
    """A master with its supervisor. `groups`: name -> options of the group; `app` is a target in the directory."""

    def __init__(self, uid=None, prefix=None):
        self.directory = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
        self.directory.chmod(0o755)
        shutil.copy(APPS / "worker_app.py", self.directory)
        self.uid = os.geteuid() if uid is None else uid
        self.prefix = prefix or self.directory / "s"
        self.log_path = self.directory / "error.log"
        self.log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.level = "debug"
        self.format = "nginx"
        self.groups = {}
        self.sockets = None
        self.expected = []
        self.connections = []
        self.start()

    def start(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        life, self.life = os.pipe()
        given = {3: theirs.fileno(), 4: life}
        null = os.open("/dev/null", os.O_RDWR)
        given |= {0: null, 1: null, 2: null}
        high = {number: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 100) for number, file in given.items()}
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in high.items()]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        arguments = ["highball", "supervise", "--minder"]
        self.first_minder = os.posix_spawn(HIGHBALL, arguments, environment, file_actions=actions, setsid=True)
        self.orders = ours
        self.orders.settimeout(10)
        for file in [*high.values(), life, null]:
            os.close(file)
        theirs.close()

    def group(self, name="site", applications=("worker_app:application",), reloading=True, **options):
        """Sets what a group is to be from the next order on."""
        listed = [{"target": target, "script_reloading": reloading} for target in applications]
        self.groups[name] = {**GROUP, "python_path": [str(self.directory)], "applications": listed, **options}

    def state(self):
        return {
            "server_software": "Test/1.0",
            "log": {"format": self.format, "level": self.level, "path": str(self.log_path)},
            "server_uid": self.uid,
            "server_gid": self.uid,
            "socket_prefix": str(self.prefix),
            "secret": SECRET,
            "extension": str(BUILD / "libhighball_worker.so"),
            "groups": self.groups,
        }

    def order(self, **options):
        """Sends the state; the answer."""
        if options or not self.groups:
            self.group(**options)
        return self.send_state(self.state())

    def send_state(self, state, version=1):
        text = json.dumps(state).encode()
        memory = os.memfd_create("state")
        os.write(memory, text)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory, self.log]))
        self.orders.sendmsg([f"highball {version} state {len(text)}".encode()], [rights])
        os.close(memory)
        answer = self.orders.recv(4096).decode()
        if answer.startswith("highball 1 ok "):
            self.sockets = Path(answer.removeprefix("highball 1 ok "))
        return answer

    def run(self, **options):
        """Orders a group and waits until all its workers serve."""
        answer = self.order(**options)
        assert answer.startswith("highball 1 ok /"), answer
        name = options.get("name", "site")
        self.wait_serving(name)
        return self

    def wait_serving(self, name="site", timeout=20):
        count = self.groups[name]["processes"]

        def serve():
            serving = [w for w in self.workers(name) if w["state"] == "serving"]
            return len(serving) == count and len(self.workers(name)) == count

        assert until(serve, timeout), f"{self.workers(name)}\n{self.text()}"

    def status(self, name="site"):
        """Of a group; None where nobody answers, or where there is no such group."""
        out = self.command("status", "--json", check=False)
        groups = json.loads(out.stdout) if out.returncode == 0 else []
        return next((group for group in groups if group["group"] == name), None)

    def workers(self, name="site"):
        status = self.status(name)
        return status["workers"] if status else []

    def pids(self, name="site"):
        """Slot -> pid of the worker that has it."""
        return {worker["slot"]: worker["pid"] for worker in self.workers(name) if worker["state"] != "draining"}

    def command(self, *arguments, check=True):
        arguments = [HIGHBALL, *arguments, "--socket-prefix", str(self.prefix)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=check)

    @property
    def supervisor(self):
        return next((p.pid for p in self.own() if p.command.endswith("supervise --supervisor")), None)

    @property
    def minder(self):
        return next((p.pid for p in self.own() if p.command.endswith("minder")), None)

    def own(self):
        """Minders, supervisors and workers: those that have this master's life pipe."""
        inode = os.readlink(f"/proc/self/fd/{self.life}") if self.life else self.pipe
        found = []
        for process in processes.all_processes():
            if process.pid != os.getpid() and not process.zombie and inode in process.descriptors.values():
                found.append(process)
        return found

    def connect(self, slot=0, name="site", timeout=10):
        """A connection to the worker of a slot, as a server process makes it."""
        end = time.monotonic() + timeout
        while True:
            endpoint = Endpoint(self.sockets / f"{name}.{slot}.sock")
            try:
                connection = Connection(endpoint, key(name), 1, True)
                self.connections.append(connection)
                return connection
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def get(self, path="/hello", slot=0, name="site", **options):
        connection = self.connect(slot, name)
        answer = connection.get(path, **options)
        connection.close()
        return answer

    def text(self):
        return self.log_path.read_text()

    def records(self, levels="crit|error|warn"):
        """Records of these levels, each whole."""
        start = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(\w+)\] ", re.M)
        text = self.text()
        marks = [match.start() for match in start.finditer(text)] + [len(text)]
        found = [text[a:b] for a, b in zip(marks, marks[1:])]
        return [record for record in found if re.match(rf"\S+ \S+ \[({levels})\]", record)]

    def wait_log(self, text, timeout=10):
        assert until(lambda: text in self.text(), timeout), f"no {text!r} in:\n{self.text()[-3000:]}"

    def bye(self, timeout=15):
        """Says good-bye; waits for the end of everything."""
        for connection in self.connections:
            connection.close()
        self.orders.settimeout(timeout)
        try:
            self.orders.send(b"highball 1 bye")
            while self.orders.recv(4096):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass

    def vanish(self):
        """As a server's death: nobody has the descriptors any more."""
        self.pipe = os.readlink(f"/proc/self/fd/{self.life}")
        for connection in self.connections:
            connection.close()
        self.orders.close()
        os.close(self.life)
        self.life = None

    def end(self):
        """Whatever a test has left."""
        self.vanish() if self.life else None
        if not until(lambda: not self.own(), 10):
            for process in self.own():
                os.kill(process.pid, signal.SIGKILL)
        try:
            os.waitpid(self.first_minder, 0)
        except ChildProcessError:
            pass
        os.close(self.log)
        shutil.rmtree(self.directory)


class Endpoint:
    """What a connection has to know of its worker."""

    target = "worker_app:application"
    reloading = True

    def __init__(self, path):
        self.socket_path = path

    def worker_target(self):
        return self.target
