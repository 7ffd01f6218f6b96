"""wsgi.input and wsgi.errors: what the application reads of what the client sends."""

import contextlib
import hashlib
import json
import threading
import time
from urllib.parse import quote

import pytest

from support.client import chunked, until
from test_response import events, way  # noqa: F401

# Where the application is called before the body is there.
STREAMS = pytest.mark.only("nginx-unbuffered", "apache", "apache-worker", "apache-prefork")

LINES = b"first\nsecond line\n\nfourth without end"


def calls(site, body, *sequence, way="", headers=()):  # noqa: F811
    return site.post(f"{way}/calls?do={quote(json.dumps(sequence))}", body, headers).json()


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ([["read"]], [LINES.decode()]),
        ([["read", -1]], [LINES.decode()]),
        ([["read", None]], [LINES.decode()]),
        ([["read", 5], ["read", 1], ["read", 1000], ["read", 10]], ["first", "\n", LINES[6:].decode(), ""]),
        ([["read", 0], ["read", 3]], ["", "fir"]),
        ([["readline"], ["readline"], ["readline"], ["readline"], ["readline"]],
         ["first\n", "second line\n", "\n", "fourth without end", ""]),
        ([["readline", 3], ["readline", 100], ["readline", -1], ["readline", 0]], ["fir", "st\n", "second line\n", ""]),
        ([["readlines"], ["readlines"]], [["first\n", "second line\n", "\n", "fourth without end"], []]),
        ([["readlines", 7], ["readlines"]], [["first\n", "second line\n"], ["\n", "fourth without end"]]),
        ([["readlines", 0]], [["first\n", "second line\n", "\n", "fourth without end"]]),
        ([["iterate"]], [["first\n", "second line\n", "\n", "fourth without end"]]),
        ([["iterate", 1], ["read"]], [["first\n"], LINES[6:].decode()]),
        ([["read", 2], ["readline"], ["readlines"]], ["fi", "rst\n", ["second line\n", "\n", "fourth without end"]]),
    ],
    ids=lambda value: None if isinstance(value[0], str) else json.dumps(value)[:60],
)  # fmt: skip
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_reads_give_what_python_s_files_give(site, sequence, expected, framing):
    if framing == "length":
        assert calls(site, LINES, *sequence) == expected
    else:
        body = chunked(LINES[:3], LINES[3:9], LINES[9:])
        assert calls(site, body, *sequence, headers=[("Transfer-Encoding", "chunked")]) == expected


def test_the_validator_reads_too(site):
    assert calls(site, LINES, ["read", 5], ["readline", 100], ["readlines", 100], way="/valid") == [
        "first", "\n", ["second line\n", "\n", "fourth without end"],
    ]  # fmt: skip


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "0"}], ids=["no body", "length 0"])
def test_without_a_body_every_read_is_empty(site, headers):
    do = quote(json.dumps([["read"], ["read", 10], ["readline"], ["readlines"], ["iterate"]]))
    assert site.get(f"/calls?do={do}", headers).json() == ["", "", "", [], []]


def test_lines_of_any_length_arrive(site):
    long = b"x" * 200_000 + b"\n"
    body = long + b"short\n" + long
    read = calls(site, body, ["readline"], ["readline"], ["readline", 10], ["readline"])
    assert [len(line) for line in read] == [200_001, 6, 10, 199_991]


@pytest.mark.parametrize("size", [1, 1000, 16384, 65536, 70_000, 300_000, 5_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bodies_of_any_size_come_back(site, size, framing):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    if framing == "length":
        response = site.post("/echo", body)
    else:
        blocks = [body[start : start + 100_000] for start in range(0, size, 100_000)]
        response = site.post("/echo_all", chunked(*blocks), [("Transfer-Encoding", "chunked")])
    assert response.status == 200 and response.body == body


@pytest.mark.no_sanitizer
def test_a_large_upload_is_never_held_whole(site):
    size = 50_000_000
    block = bytes(range(250)) * 4000
    before = max(worker.resident for worker in site.workers())
    with site.connect(timeout=60) as connection:
        connection.send(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        digest = hashlib.sha256()
        for _ in range(size // len(block)):
            connection.send(block)
            digest.update(block)
        assert connection.response().json() == [size, digest.hexdigest()]
    after = max(worker.resident for worker in site.workers())
    assert after - before < 12_000, f"memory grew from {before} to {after} KiB"


def test_a_chunked_body_has_no_content_length_and_ends(site):
    response = site.request(
        "POST", "/environ", [("Transfer-Encoding", "chunked"), ("Content-Type", "text/x")], chunked(b"abc", b"def")
    )
    environ = response.json()
    assert "CONTENT_LENGTH" not in environ and environ["CONTENT_TYPE"] == "text/x"
    assert environ["wsgi.input_terminated"] is True


def test_the_body_is_not_needed_for_the_answer(site):
    """What the application leaves unread does not become the next request."""
    with site.connect() as connection:
        for size in (10, 100_000):
            connection.request("POST", "/unread", body=b"GET /raises HTTP/1.1\r\n\r\n".ljust(size, b"x"))
            assert connection.response().body == b"not interested"
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello"


def test_input_can_be_read_after_the_head(site, way):  # noqa: F811
    assert site.post(f"{way}/reads_after_start", b"then read").body == b"started then read"


def test_bodies_are_answered_while_they_are_read(site):
    body = b"0123456789" * 20_000
    assert site.post("/echo_while_reading", body).body == body


@STREAMS
def test_the_application_reads_while_the_client_still_sends(site):
    with site.connect() as connection:
        connection.send(b"POST /echo_lines HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            line = b"line %d\n" % number
            connection.send(b"%x\r\n%s\r\n" % (len(line), line))
            assert until(lambda: connection.buffer.count(line) or not connection._more()), line
        connection.send(b"0\r\n\r\n")
        response = connection.response()
        assert response.body == b"".join(b"line %d\n" % number for number in range(20))
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello", "the connection goes on"


@STREAMS
def test_100_continue_comes_at_the_first_read(site):
    with site.connect() as connection:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        connection.send(head % b"/reads_late?seconds=0.5")
        assert connection.silent(0.3)
        assert connection.read_head().status == 100
        connection.send(b"hello")
        assert connection.response().body == b"hello"
    with site.connect() as connection:
        connection.send(head % b"/hello")
        assert connection.response().status == 200, "no body was asked for"


@STREAMS
def test_a_body_that_is_not_read_waits_outside(site, key):
    """Memory holds no more of it than a window; the client is slowed down instead."""
    # Without "close", nginx keeps a connection whose client went away meanwhile for its keepalive_timeout.
    head = b"POST /waiting?key=%s&seconds=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 60000000\r\n\r\n"
    with site.connect(timeout=2) as connection:
        connection.send(head % key.encode())
        sent = 0
        with contextlib.suppress(OSError):
            connection.socket.settimeout(0.3)
            while sent < 60_000_000:
                sent += connection.socket.send(b"x" * 65536)
        assert sent < 20_000_000, f"{sent} bytes were taken that nobody reads"
    site.allow_log("HB0501")


def test_expect_100_continue_is_answered(site):
    with site.connect() as connection:
        connection.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        head = connection.read_head()
        assert head.status == 100
        connection.send(b"hello")
        assert connection.response().body == b"hello"


def test_a_body_cut_short_raises_oserror(site, host, key):
    """An upload that breaks is never taken for a short one."""
    with site.connect() as connection:
        connection.send(b"POST /notes_read?key=%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this" % key.encode())
        time.sleep(0.2)
    if host in ("nginx", "nginx-group"):
        # nginx reads the body before the application is called.
        time.sleep(0.3)
        assert events(site, key) == []
    else:
        assert until(lambda: events(site, key))
        (event,) = events(site, key)
        assert event.startswith("OSError"), event


def test_a_broken_chunk_raises_oserror_or_is_refused(site, key):
    body = b"5\r\nhello\r\nnot a size\r\nxxxx\r\n0\r\n\r\n"
    response = site.post(f"/notes_read?key={key}", body, [("Transfer-Encoding", "chunked")])
    assert response.status in (400, 500)
    recorded = events(site, key)
    assert recorded == [] or recorded[0].startswith("OSError"), recorded
    site.allow_log("HB0401|HB0501|invalid chunk|client sent invalid chunked body")


def test_a_body_over_the_server_s_limit_is_413(serve):
    server = serve("behaviours:application", max_body="1m")
    assert server.post("/echo", b"x" * 1_000_000).status == 200
    for path in ("/echo", "/unread", "/echo_all"):
        with server.connect() as connection:
            connection.send(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1100000\r\n\r\n" % path.encode())
            assert connection.response().status == 413
    assert server.get("/hello").body == b"hello"
    server.allow_log("client intended to send too large body|AH01587|AH01588|LimitRequestBody|too large")


def test_another_thread_can_read_the_body(site):
    body = b"z" * 200_000
    assert site.post("/read_on_thread", body).body == body


def test_another_thread_can_write(site):
    assert site.get("/written_on_thread").body == b"".join(b"%d " % n for n in range(20)) + b"end"


def test_what_an_application_keeps_of_a_request_is_closed_with_it(site, key):
    # Over one connection, which stays with one process.
    with site.connect() as connection:
        connection.request("POST", f"/keep?key={key}", body=b"a body that was not read")
        assert connection.response().body == b"kept"
        connection.request("GET", f"/use_kept?key={key}")
        outcome = connection.response().json()
    for name in ("read", "readline", "write", "start_response"):
        assert outcome[name].endswith("Error"), (name, outcome)
    site.allow_log("after the end")
    assert site.get("/hello").body == b"hello"


def test_slow_uploads_do_not_hold_up_others(site):
    body = b"slow"
    with site.connect() as slow:
        slow.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        for byte in body:
            began = time.monotonic()
            assert site.get("/hello").body == b"hello"
            assert time.monotonic() - began < 1
            time.sleep(0.1)
            slow.send(bytes([byte]))
        assert slow.response().body == body


def test_uploads_run_side_by_side(site):
    bodies = [bytes([65 + number]) * (400_000 + number) for number in range(6)]
    results = [None] * len(bodies)

    def upload(number):
        results[number] = site.post("/echo_all", bodies[number]).body

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == bodies


# wsgi.errors


def test_wsgi_errors_goes_to_the_server_s_log(site, way, key):  # noqa: F811
    assert site.get(f"{way}/errors?text={key}").status == 200
    site.expect_log(f"^{key}")
    site.expect_log("line one", times=None)
    site.expect_log("line two", times=None)


def test_wsgi_errors_takes_any_text(site):
    site.get("/errors?text=" + quote("käse ☃"))
    site.expect_log(r"^k.*se")
    site.expect_log("line one", times=None)
    site.expect_log("line two", times=None)


def test_wsgi_errors_cannot_forge_records(site):
    site.get("/errors?text=" + quote("real\n2026/01/01 00:00:00 [emerg] 1#1: forged\x1b[2J\n"))
    site.expect_log("^real")
    site.expect_log("forged|line one|line two", times=None)
    assert not [record for record in site.log.records() if record.level == "emerg"]
    assert "\x1b" not in site.log.text()
