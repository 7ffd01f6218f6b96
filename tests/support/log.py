"""Reads the servers' error logs as records, so that a test can say which it expects."""

import re
import time
from dataclasses import dataclass

import pytest

NGINX = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(?P<level>\w+)\] (?P<pid>\d+)#\d+: (?:\*\d+ )?(?P<text>.*)$")
APACHE = re.compile(
    r"^\[[^\]]+\] \[(?P<module>\w*):(?P<level>\w+)\] \[pid (?P<pid>\d+)(?::tid (?P<tid>\w+))?\] "
    r"(?:\[(?:client|remote) [^\]]+\] )?(?P<text>.*)$"
)
QUIET = {"notice", "info", "debug"} | {f"trace{number}" for number in range(1, 9)}


@dataclass
class Record:
    level: str
    pid: int
    text: str
    thread: str = ""

    @property
    def alarming(self):
        return self.level not in QUIET

    def __str__(self):
        return f"[{self.level}] {self.pid}: {self.text}"


def parse(text, pattern):
    """Lines to records. An indented line belongs to the record above it; anything else is a stray, which no test wants."""
    records = []
    latest = {}
    for line in text.split("\n"):
        match = pattern.match(line)
        if match is None:
            if line[:1] in (" ", "\t") and records:
                records[-1].text += "\n" + line
            elif line:
                records.append(Record("stray", 0, line))
            continue
        thread = match.groupdict().get("tid") or ""
        message, writer = match["text"], (int(match["pid"]), thread)
        # Lines of other processes may stand in between; what a thread writes is in order.
        if message.startswith("    ") and writer in latest:
            latest[writer].text += "\n" + message
        else:
            latest[writer] = Record(match["level"], int(match["pid"]), message, thread)
            records.append(latest[writer])
    return records


# Said at warn and above by servers that do what they are configured for.
ROUTINE = re.compile(
    r"a client request body is buffered to a temporary file|an upstream response is buffered"
    r"|AH00(?:161|484): server reached MaxRequestWorkers"
    # A connection that becomes idle while httpd's process is taking itself down.
    r"|AH03093: process_socket: apr_pollset_add failure for keep alive"
)


class Log:
    """An error log from a position on, and what the running test expects in it."""

    def __init__(self, path, pattern):
        self.path = path
        self.pattern = pattern
        self.position = 0
        self.expected = []

    def begin(self):
        # From a line's beginning: a record may be half written just now.
        self.position = self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0
        self.expected = []

    def text(self):
        """What was written since the test began."""
        if not self.path.exists():
            return ""
        with open(self.path, "rb") as file:
            file.seek(self.position)
            written = file.read()
        return written[: written.rfind(b"\n") + 1].decode("utf-8", "backslashreplace")

    def records(self):
        return parse(self.text(), self.pattern)

    def matching(self, pattern):
        return [record for record in self.records() if re.search(pattern, record.text, re.DOTALL)]

    def expect(self, pattern, times=1, timeout=5):
        """Waits for a record that matches, and declares it expected: exactly `times`, or any number if None.

        Returns the first such record.
        """
        self.expected.append((pattern, times))
        deadline = time.monotonic() + timeout
        while len(found := self.matching(pattern)) < (times or 1):
            if time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} is not in the log {times or 1} times:\n{self.text() or '(empty)'}")
            time.sleep(0.01)
        return found[0]

    def allow(self, pattern):
        """Declares records that may or may not come."""
        self.expected.append((pattern, ...))

    def unexpected(self):
        """Complaints: records at warn or above that nobody expected, and expected ones in the wrong number."""
        complaints = []
        for record in self.records():
            if record.alarming and not ROUTINE.search(record.text) and not any(re.search(p, record.text, re.DOTALL) for p, _ in self.expected):
                complaints.append(f"unexpected log record: {record}")
        for pattern, times in self.expected:
            if isinstance(times, int) and (found := len(self.matching(pattern))) != times:
                complaints.append(f"{pattern!r} is in the log {found} times, expected {times}")
        return complaints


class Unjudged(Log):
    """The log of another module: its words are its own, and nothing is concluded from them."""

    def expect(self, pattern, times=1, timeout=5):
        pytest.skip("asks for a record of Highball's")

    def unexpected(self):
        return []
