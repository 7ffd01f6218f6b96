"""What the kernel says of processes: who belongs to a server, what they hold open, how large they are."""

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    session: int
    state: str
    name: str

    @property
    def zombie(self):
        return self.state == "Z"

    @property
    def command(self):
        return _read(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip()

    @property
    def descriptors(self):
        """Descriptor -> what it is."""
        found = {}
        try:
            for name in os.listdir(f"/proc/{self.pid}/fd"):
                try:
                    found[int(name)] = os.readlink(f"/proc/{self.pid}/fd/{name}")
                except OSError:
                    pass
        except OSError:
            pass
        return found

    def _status(self, field):
        match = re.search(rf"^{field}:\s+(\d+)", _read(f"/proc/{self.pid}/status"), re.MULTILINE)
        return int(match[1]) if match else 0

    @property
    def threads(self):
        return self._status("Threads")

    @property
    def resident(self):
        """KiB."""
        return self._status("VmRSS")

    @property
    def private(self):
        """KiB of memory that is this process's own: what a leak grows."""
        return sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+)", _read(f"/proc/{self.pid}/smaps_rollup"), re.M))

    @property
    def user(self):
        return self._status("Uid")


def alive(pid):
    """Whether it runs: neither gone nor a zombie."""
    process = process_of(pid)
    return process is not None and not process.zombie


def all_processes():
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := process_of(int(entry))):
            found.append(process)
    return found


def process_of(pid):
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return Process(pid, int(rest[1]), int(rest[3]), rest[0], name)


def in_session(session):
    return [process for process in all_processes() if process.session == session]


def mentioning(text):
    """Processes, other than this one, whose command line has `text`."""
    return [p for p in all_processes() if p.pid != os.getpid() and text in p.command]


def _read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
