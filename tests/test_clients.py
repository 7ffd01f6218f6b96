"""Clients that go away, are slow, or both."""

import threading
import time

import pytest

from support.client import Connection, exchange, until
from test_response import events


def closed_once(site, key, timeout=3):
    until(lambda: "close" in events(site, key), timeout)
    time.sleep(0.1)
    return [event for event in events(site, key) if event == "close"] == ["close"]


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("path", ["endless", "endless?size=100000", "flood"])
def test_a_client_that_leaves_ends_its_request(site, key, how, path):
    """close() is called once, promptly, whether the application waits or is held up by a full connection."""
    connection = site.connect()
    connection.request("GET", f"/{path}{'&' if '?' in path else '?'}key={key}")
    assert connection.read_head().status == 200
    time.sleep(0.2)
    getattr(connection, how)()
    began = time.monotonic()
    assert closed_once(site, key), events(site, key)
    assert time.monotonic() - began < 2.5
    assert "end" not in events(site, key)
    assert site.get("/hello").body == b"hello"


def test_clients_may_leave_in_any_phase(site, key):
    """Within the head, within the body, while the application works, within the response."""
    for _ in range(5):
        for data, wait in (
            (b"GET /hello HT", 0),
            (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 5000, 0.02),
            (b"POST /echo_all HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", 0.02),
            (b"GET /waiting?seconds=0.2 HTTP/1.1\r\nHost: x\r\n\r\n", 0.05),
            (b"GET /big?size=9000000&list=1 HTTP/1.1\r\nHost: x\r\n\r\n", 0.02),
            (b"GET /big?size=9000000 HTTP/1.1\r\nHost: x\r\n\r\n", 0.02),
            (b"GET /generated HTTP/1.1\r\nHost: x\r\n\r\n", 0),
        ):
            connection = site.connect()
            connection.send(data)
            time.sleep(wait)
            connection.abort()
    # What the application raises because its input broke is the client's doing.
    until(lambda: False, 0.6)
    for _ in range(10):
        assert site.get("/hello").body == b"hello"


def test_a_client_that_left_is_noted_below_warn(site, key):
    connection = site.connect()
    connection.request("GET", f"/endless?key={key}")
    connection.read_head()
    connection.abort()
    assert closed_once(site, key)
    record = site.expect_log("HB0501")
    assert record.level == "info"


def read_slowly(connection, seconds, rate=1024):
    """Reads `rate` bytes a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.read_some(rate // 8)
        time.sleep(0.125)


@pytest.mark.no_sanitizer
def test_a_slow_client_neither_fills_memory_nor_holds_up_others(site, key):
    before = site.memory("resident")
    with Connection(site.port, receive_buffer=4096) as slow:
        slow.request("GET", f"/flood?key={key}")
        reader = threading.Thread(target=read_slowly, args=(slow, 3))
        reader.start()
        slowest = 0
        while reader.is_alive():
            began = time.monotonic()
            assert exchange(site.port, "GET", "/hello").body == b"hello"
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02)
        reader.join()
        taken = site.get(f"/recorded?key={key}-taken").json()[0]
        grown = site.memory("resident") - before
    assert closed_once(site, key)
    assert slowest < 0.5, "others waited for the slow client"
    # The kernel's send buffer takes a few MiB by itself.
    assert taken < 16 * 1024 * 1024, f"the application was asked for {taken} bytes"
    assert grown < 8 * 1024, f"memory grew by {grown} KiB"


@pytest.mark.only("nginx")
@pytest.mark.parametrize(("size", "least", "most"), [("4k", 0, 6 << 20), ("24m", 24 << 20, 40 << 20)])
def test_the_response_buffer_bounds_what_waits_for_a_client(serve, key, size, least, most):
    """The sockets' own buffers come on top."""
    server = serve("behaviours:application", nginx_http=f"wsgi_response_buffer {size};")
    with Connection(server.port, receive_buffer=4096) as slow:
        slow.request("GET", f"/flood?key={key}")
        slow.read_head()
        taken = 0
        while until(lambda: server.get(f"/recorded?key={key}-taken").json()[0] > taken, 1):
            taken = server.get(f"/recorded?key={key}-taken").json()[0]
    assert least <= taken <= most, taken
    server.expect_log("HB0501")


@pytest.mark.only("nginx")
def test_slow_clients_of_finished_responses_hold_no_thread(serve):
    """More slow clients than threads; their responses are whole and wait in nginx."""
    server = serve("behaviours:application", threads=2)
    slow = [Connection(server.port, receive_buffer=4096) for _ in range(6)]
    for connection in slow:
        connection.request("GET", "/big?size=9000000&list=1&length=1")
        assert connection.read_head().status == 200
    began = time.monotonic()
    assert server.get("/hello").body == b"hello"
    assert time.monotonic() - began < 1
    for connection in slow:
        connection.close()


def test_a_slow_client_gets_its_response_whole(site):
    size = 400_000
    with Connection(site.port, receive_buffer=4096) as slow:
        slow.request("GET", f"/big?size={size}&length=1&block=1000")
        head = slow.read_head()
        got = 0
        while got < size:
            data = slow.read_some(8192)
            assert data, f"ended after {got} of {size} bytes"
            got += len(data)
            time.sleep(0.005)
    assert head.status == 200


def test_a_client_that_closes_its_sending_side_still_gets_the_answer(site):
    """A half-closed connection after a whole request: many clients do that (nc, some libraries)."""
    import socket

    with site.connect() as connection:
        connection.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        connection.socket.shutdown(socket.SHUT_WR)
        try:
            assert connection.response().body == b"hello"
        except Exception:
            # nginx takes it for a client that left unless the answer is quicker (proxy_ignore_client_abort).
            if site.host != "nginx":
                raise


@pytest.mark.parametrize("name", ["hello", "listed", "generated", "echo_all"])
def test_many_requests_over_many_connections_have_no_error(site, name):
    body = b"x" * 2000 if name == "echo_all" else b""
    # Fewer connections than threads: with more, httpd's event MPM closes those that are kept alive.
    expected = {"hello": b"hello", "echo_all": body}.get(name, b"one two three")
    errors = []

    def client():
        try:
            with site.connect() as connection:
                for _ in range(50):
                    connection.request("POST" if body else "GET", f"/{name}", body=body)
                    response = connection.response()
                    if response.body != expected or response.status != 200:
                        errors.append(response)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[:3]


@pytest.mark.no_sanitizer
def test_memory_is_level_over_many_requests(site):
    def round_():
        with site.connect() as connection:
            for number in range(600):
                name = ("hello", "generated", "written", "environ?x=%d" % number, "raises_in_iter")[number % 4]
                connection.request("GET", "/" + name)
                connection.response()
            for _ in range(20):
                connection.request("POST", "/echo_all", body=b"x" * 100_000)
                connection.response()

    for _ in range(3):
        round_()
    before = site.memory("private")
    for _ in range(4):
        round_()
    grown = site.memory("private") - before
    assert grown < 1500, f"memory grew by {grown} KiB over 2,480 requests"
