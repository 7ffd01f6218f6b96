"""Raw requests, right and wrong (tests/requests): the answers, and that no application sees one that is not there."""

import json
import socket

import pytest

from support import corpus, strict
from support.client import Connection, ConnectionEnded, until

# What the servers say of requests that are none.
SAID = "client sent|client intended to send too large|client closed connection|invalid header|unknown transfer coding|AH[0-9]+"
AFTER = b"GET /after HTTP/1.1\r\nHost: after\r\n\r\n"


@pytest.mark.parametrize("group", corpus.groups())
def test_raw_requests_are_answered_as_written(recorder, host, group):
    complaints = []
    for case in corpus.read(group):
        expected = case.expected(host)
        for pieces in ways(case.sent):
            talk = Talk(recorder, case.sent, pieces).hear(expected)
            found = [*talk.compare(expected), *talk.smuggled(case)]
            if found:
                complaints.append(f"{case.name} ({len(pieces)} pieces): {'; '.join(found)}\n  got {talk}")
    recorder.allow_log(SAID)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("group", corpus.groups())
def test_bodies_an_application_leaves_are_no_requests(recorder, host, group):
    """The applications that read nothing, or a byte, or do not mind a broken body."""
    complaints = []
    for case in corpus.read(group):
        if b" /read" not in case.sent:
            continue
        for how in (b"unread", b"some", b"careless"):
            sent = case.sent.replace(b" /read", b" /" + how, 1)
            talk = Talk(recorder, sent, [sent]).hear_all(strict.parse(sent, case.allowed).end)
            if found := list(talk.smuggled(case)):
                complaints.append(f"{case.name} ({how.decode()}): {'; '.join(found)}\n  got {talk}")
    recorder.allow_log(SAID)
    assert not complaints, "\n".join(complaints)


def test_each_leniency_has_a_case():
    named = {name for group in corpus.groups() for case in corpus.read(group) for name in case.allowed}
    assert named == strict.LENIENCIES


def ways(sent):
    """At once; and byte by byte, unless that takes long."""
    return [[sent]] if len(sent) > 1500 else [[sent], [sent[place : place + 1] for place in range(len(sent))]]


class Talk:
    """One connection: what was sent, what came back, what the application saw meanwhile."""

    def __init__(self, server, sent, pieces):
        self.server = server
        self.sent = sent
        self.statuses = []
        self.ending = ""
        self.extra = b""
        self.after = False
        self.connection = Connection(server.port, timeout=5)
        self.notes = server.stage.root / "notes" / f"connection-{self.connection.socket.getsockname()[1]}"
        self.notes.unlink(missing_ok=True)
        try:
            for piece in pieces:
                self.connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def __str__(self):
        seen = "".join(f"\n    {record['REQUEST_METHOD']} {record['REQUEST_URI']} body={record['body']!r}" for record in self.seen())
        return f"=> {', '.join(self.statuses)} {self.ending}{seen}"

    def hear(self, expected):
        """As many responses as are expected, and how the connection goes on."""
        with self.connection:
            for status in expected.statuses:
                if not self.response(status == "0.9"):
                    return self
            if expected.ending == "waits":
                # A server may also take its time to answer: it must not have until the client has gone.
                self.ending = "waits" if self.connection.silent(0.15) else "answers"
            elif expected.ending == "kept":
                self.go_on()
            else:
                self.end()
        if any(call.body is None for call in expected.calls):
            until(lambda: len(self.seen()) == len(expected.calls), 3)
        return self

    def hear_all(self, end):
        """Whatever comes, where the requests end like this."""
        with self.connection:
            if end == "incomplete":
                # Taken before the client closes, which would be a reset otherwise: nginx then keeps the connection for
                # keepalive_timeout, with its own responses too.
                self.ending = "waits" if self.connection.silent(0.05) or not self.response() else "answers"
            elif self.response() and end == "open" and not self.connection.ended:
                self.go_on()
            else:
                self.end()
        return self

    def response(self, headless=False):
        if headless:
            self.statuses.append("0.9")
            self.connection.rest()
            self.connection.buffer = b""
            self.ending = "closed"
            return True
        try:
            response = self.connection.read_head()
            method = self.sent.split(b" ", 1)[0].decode("latin-1")
            if response.status >= 200:
                self.connection.read_body(response, method)
        except TimeoutError:
            self.ending = "waits"
            return False
        except ConnectionEnded as ended:
            self.ending = "closed"
            self.extra = ended.received
            return False
        except ValueError:
            self.ending = "closed"
            self.extra = self.connection.buffer
            return False
        self.statuses.append(str(response.status))
        return True

    def go_on(self):
        """The next request of this connection is answered, and nothing else is before it."""
        try:
            self.connection.send(AFTER)
        except (BrokenPipeError, ConnectionResetError):
            self.ending = "closed"
            return
        before = self.statuses
        self.statuses = []
        while self.response():
            if any(record["REQUEST_URI"] == "/after" for record in self.all_seen()):
                self.ending = "kept"
                self.after = True
                # The last one is that of /after.
                self.statuses.pop()
                break
        self.statuses = before + self.statuses

    def end(self):
        """Nothing more is answered, whatever is sent, and the server closes the connection."""
        try:
            self.connection.send(AFTER)
            self.connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.extra = self.connection.rest()
        self.ending = "closed" if self.connection.ended else "kept"

    def all_seen(self):
        lines = self.notes.read_bytes().split(b"\n") if self.notes.exists() else [b""]
        return [json.loads(line) for line in lines[:-1]]

    def seen(self):
        return [record for record in self.all_seen() if not (self.after and record["REQUEST_URI"] == "/after")]

    def compare(self, expected):
        if self.statuses != expected.statuses or self.ending != expected.ending or self.extra:
            yield f"expected {', '.join(expected.statuses)} {expected.ending}" + (f", extra {self.extra[:200]!r}" if self.extra else "")
        seen = self.seen()
        if len(seen) != len(expected.calls):
            yield f"the application was called {len(seen)} times, expected {len(expected.calls)}"
        for record, call in zip(seen, expected.calls, strict=False):
            wanted = {"REQUEST_METHOD": call.method, "REQUEST_URI": call.target, **call.keys}
            wanted["body"] = False if call.body is None else call.body
            for key, value in wanted.items():
                if record.get(key) != value:
                    yield f"{key} is {record.get(key)!r}, expected {value!r}"
            for key in call.absent:
                if key in record:
                    yield f"{key} is there: {record[key]!r}"

    def smuggled(self, case):
        """What the application saw and a strict parser does not."""
        parsed = strict.parse(self.sent, case.allowed)
        seen = self.seen()
        if len(seen) > len(parsed.requests):
            # One that breaks off within its body may have been called, and knows.
            broken = seen[len(parsed.requests) :]
            if len(broken) > 1 or broken[0]["body"] not in (False, None):
                yield f"{len(seen)} requests were seen where {len(parsed.requests)} are: {parsed.end}"
        for record, request in zip(seen, parsed.requests, strict=False):
            for key, value in environ_of(request, self.server.host).items():
                if record.get(key) != value and not (request.authority and record[key].lower() == value.lower()):
                    yield f"{key} was seen as {record.get(key)!r}, and is {value!r}"
            if record["body"] not in (None, False, request.body):
                yield f"the body was seen as {record['body']!r}, and is {request.body!r}"
            more = {key for key in record if key.startswith("HTTP_")} - set(environ_of(request, self.server.host))
            if more:
                yield f"{more} were seen, and are not there"
        if parsed.end != "open" and self.after:
            yield f"the connection went on after requests that end as {parsed.end}"


def environ_of(request, host):
    """What docs/environ.md says of a request's headers."""
    environ = {"REQUEST_METHOD": request.method, "REQUEST_URI": request.target, "SERVER_PROTOCOL": request.version}
    for name, value in request.headers:
        if not name.replace("-", "").isalnum() or name in ("proxy", "content-length") or name == "authorization" and host == "apache":
            continue
        key = "CONTENT_TYPE" if name == "content-type" else "HTTP_" + name.upper().replace("-", "_")
        separator = "; " if name == "cookie" and host == "nginx" else ", "
        environ[key] = environ[key] + separator + value if key in environ else value
    if request.authority is not None:
        environ["HTTP_HOST"] = request.authority
    lengths = request.all("content-length")
    environ["CONTENT_LENGTH"] = str(int(lengths[0])) if lengths and not request.all("transfer-encoding") else None
    return environ
