"""CPU time and memory of processes, from /proc; the load, by wrk; idle connections."""

import os
import re
import select
import socket
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def stats():
    """Of each process its parent, user and system ticks with those of its children that have ended, and theirs alone."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            user, system, ended_user, ended_system = (int(field) for field in fields[11:15])
            ended = ended_user + ended_system
            found[int(entry.name)] = (int(fields[1]), user + ended_user, system + ended_system, ended)
    return found


def tree(roots, processes=None):
    processes = processes or stats()
    members, found = {root for root in roots if root in processes}, True
    while found:
        found = {pid for pid, (parent, *_) in processes.items() if parent in members} - members
        members |= found
    return members


def alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu(server):
    """CPU seconds of all its processes, and the user's and the system's share, which are known to a tick only."""
    processes = stats()
    pids = [pid for pid in server.pids() if pid in processes]
    user, system, ended = (sum(processes[pid][column] for pid in pids) / TICKS for column in (1, 2, 3))
    return ended + sum(clock(pid) for pid in pids), user, system


def clock(pid):
    """The CPU time of a process, threads that have ended included, to the nanosecond."""
    try:
        # clock_getcpuclockid() of another process; Python has it for threads only.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0


def memory(server):
    """Proportional set size of all its processes, in KiB."""
    total = 0
    for pid in server.pids():
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError):
            continue
    return total


def load(server, seconds):
    """One run of wrk: the CPU seconds it took, over the requests it counted."""
    workload = server.workload
    command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout", "10s"]
    for name, value in workload.headers:
        command += ["-H", f"{name}: {value}"]
    if workload.body:
        script = server.place / "body.lua"
        script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {len(workload.body)})\n')
        command += ["-s", script]
    before = cpu(server)
    run = subprocess.run([*command, server.url], capture_output=True, text=True, timeout=seconds + 60)
    after = cpu(server)
    counted = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h)\b", run.stdout)
    requests = int(counted[1]) if counted else 0
    if not requests:
        return {"requests": 0, "trouble": "no request was answered"}
    trouble = re.findall(r"Non-2xx.*|Socket errors.*", run.stdout)
    total, user, system = ((now - then) * 1e6 / requests for then, now in zip(before, after))
    return {
        "requests": requests,
        "cpu": total,
        "user": user,
        "system": system,
        "rate": requests / (float(counted[2]) * UNITS[counted[3]]),
        "trouble": "; ".join(" ".join(line.split()) for line in trouble) or None,
    }


class IdleConnections:
    """Connections that have had one answer each, and wait."""

    def __init__(self, server, number):
        request = f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self.sockets = []
        for _ in range(number):
            try:
                opened = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                self.sockets.append(opened)
                opened.sendall(request)
                answer = b""
                while not answer.endswith(server.workload.answer):
                    block = opened.recv(4096)
                    if not block:
                        break
                    answer += block
            except OSError:
                continue

    def open(self):
        """How many the server has not closed; whatever is readable now has been."""
        poll = select.poll()
        for opened in self.sockets:
            poll.register(opened, select.POLLIN)
        return len(self.sockets) - len(poll.poll(0))

    def close(self):
        for opened in self.sockets:
            opened.close()
