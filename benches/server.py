"""One server while it is measured: started, asked once whether it answers rightly, stopped."""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from pathlib import Path

import measure


class Failed(Exception):
    """A server that does not start or does not give the answer: what it says and its log."""


class Server:
    def __init__(self, name, place, port, path, workload):
        self.name = name
        self.place = place
        self.port = port
        # As this server is asked; a static file has its name.
        self.path = path
        self.workload = workload
        self.commands = []
        self.running = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}{self.path}"

    def add(self, command, stop=signal.SIGTERM, environment=None):
        self.commands.append(([str(part) for part in command], stop, environment))

    def start(self):
        for command, stop, environment in self.commands:
            with open(self.place / "output.log", "ab") as output:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                    cwd=self.place, env={**os.environ, **(environment or {})},
                )  # fmt: skip
            self.running.append((process, stop))
        deadline = time.monotonic() + 20
        while trouble := self.trouble():
            for process, _ in self.running:
                if process.poll() is not None:
                    raise Failed(f"{self.name} ended with status {process.returncode}\n{self.log()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} does not answer as it has to: {trouble}\n{self.log()}")
            time.sleep(0.05)

    def trouble(self):
        """What is wrong with its answer to the request of the workload; nothing if it is the whole right one."""
        workload = self.workload
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            method = "POST" if workload.body else "GET"
            connection.request(method, self.path, workload.body or None, dict(workload.headers))
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        finally:
            connection.close()
        if answer.status != 200:
            return f"status {answer.status}"
        if body != workload.answer:
            return f"{len(body)} bytes, which are not the {len(workload.answer)} expected"
        return None

    def log(self):
        lines = []
        for path in (self.place / "output.log", self.place / "error.log"):
            if path.exists():
                lines += path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(f"    {line}" for line in lines)

    def pids(self):
        """All its processes: those started here, those that left them (a supervisor is no child of its server), and
        the children of both."""
        return measure.tree({process.pid for process, _ in self.running} | self.apart())

    def apart(self):
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    program = os.readlink(entry / "exe")
                except OSError:
                    continue
                if program.startswith(f"{self.place}/"):
                    found.add(int(entry.name))
        return found

    def stop(self):
        left = self.pids()
        for process, how in self.running:
            if process.poll() is None:
                process.send_signal(how)
        for process, _ in self.running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        deadline = time.monotonic() + 10
        while left := {pid for pid in left if measure.alive(pid)}:
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        self.running = []
