"""What serves process groups beside a server: supervisor, minder and workers, found and asked."""

import json
import os
import subprocess

import pytest

from support.client import until
from support.processes import all_processes
from support.stage import COMMAND


# For tests that tell them from those of other servers.
seen_by_root = pytest.mark.skipif(os.geteuid() != 0, reason="supervisor and minder show what they hold open to root only")


def supervision(log):
    """Pids of supervisors and minders that write to this log: a list of (pid, role)."""
    found = []
    for process in all_processes():
        role = process.command.partition("supervise --")[2]
        if role and str(log) in process.descriptors.values():
            found.append((process.pid, role.removeprefix("next-")))
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

    def pids(self, state="serving", name="site"):
        return {worker["pid"] for worker in self.workers(name) if worker["state"] == state}

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
