"""What serves process groups beside a server: supervisor, minder and workers, found and asked."""

import json
import os
import subprocess

from support.client import until
from support.stage import COMMAND


def supervision(log):
    """Pids of supervisors and minders that write to this log: a list of (pid, role)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
            if b"supervise" not in command:
                continue
            files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if str(log) in files:
            role = command[command.index(b"supervise") + 1].decode().removeprefix("--")
            found.append((int(pid), "minder" if role == "next-minder" else role))
    return found


class Groups:
    """`highball` speaking to the supervisor of one server."""

    def __init__(self, server):
        self.server = server
        self.command = server.stage.artefact(COMMAND)

    def ask(self, *arguments, timeout=30):
        prefix = ["--socket-prefix", self.server.socket_prefix]
        return subprocess.run([self.command, *arguments, *prefix], capture_output=True, text=True, timeout=timeout)

    def status(self, name="site"):
        """One group, as `highball status --json` tells it."""
        done = self.ask("status", name, "--json")
        assert done.returncode == 0, done.stderr
        (group,) = json.loads(done.stdout)
        return group

    def workers(self, name="site"):
        return self.status(name)["workers"]

    def pids(self, state="serving"):
        return {worker["pid"] for worker in self.workers() if worker["state"] == state}

    def serving(self, count, timeout=10):
        """Pids of the workers once so many serve. The first request may be answered when the first of them does."""
        assert until(lambda: len(self.pids()) == count, timeout), self.workers()
        return self.pids()

    def supervisor(self):
        (pid,) = [pid for pid, role in supervision(self.server.log.path) if role == "supervisor"]
        return pid

    def minder(self):
        (pid,) = [pid for pid, role in supervision(self.server.log.path) if role == "minder"]
        return pid
