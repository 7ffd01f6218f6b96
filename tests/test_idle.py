"""Much of what costs nothing: idle connections, and bodies that never end."""

import os
import resource
import shutil
import selectors
import socket
import subprocess
import threading
import time

import pytest

from support.client import until

IDLE = 10_000


@pytest.mark.slow
@pytest.mark.no_sanitizer
@pytest.mark.only("nginx", "nginx-group")
def test_ten_thousand_idle_connections_do_not_slow_a_request(serve):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 1000:
        pytest.skip(f"no more than {hard} descriptors may be opened")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 1000), hard))
    main = f"worker_rlimit_nofile {IDLE + 2000};"
    server = serve.prepare("behaviours:application", nginx_main=main, nginx_http="keepalive_timeout 300s;")
    text = server.configuration.read_text().replace("worker_connections 1024", f"worker_connections {IDLE + 1000}")
    server.configuration.write_text(text)
    serve.servers.append(server)
    server.start()
    server.begin()

    def median():
        times = []
        with server.connect() as connection:
            for _ in range(300):
                began = time.perf_counter()
                connection.request("GET", "/hello")
                assert connection.response().body == b"hello"
                times.append(time.perf_counter() - began)
        return sorted(times)[150]

    for _ in range(3):
        alone = median()
    memory = server.memory("resident")
    idle = []
    try:
        for _ in range(IDLE):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            idle.append(connection)
        selector = selectors.DefaultSelector()
        for connection in idle:
            selector.register(connection, selectors.EVENT_READ)
        answered, deadline = 0, time.monotonic() + 30
        while answered < IDLE and time.monotonic() < deadline:
            for key, _ in selector.select(1):
                assert b"200 OK" in key.fileobj.recv(4096)
                selector.unregister(key.fileobj)
                answered += 1
        assert answered == IDLE
        beside = min(median() for _ in range(3))
        grown = server.memory("resident") - memory
        print(f"median {alone * 1e6:.0f} us alone, {beside * 1e6:.0f} us beside {IDLE} connections, {grown / IDLE:.2f} KiB each")
        assert beside < 2 * alone + 0.0002
        assert grown < 2 * IDLE, f"{grown} KiB"
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.slow
@pytest.mark.no_sanitizer
@pytest.mark.parametrize("megabytes", [300])
def test_a_large_upload_takes_no_memory(serve, host, megabytes):
    """HIGHBALL_UPLOAD_MB= makes it larger."""
    size = int(os.environ.get("HIGHBALL_UPLOAD_MB", megabytes)) << 20
    options = {"nginx": "wsgi_request_buffering off;"}
    server = serve("behaviours:application", max_body="0", nginx_http=options.get(host, ""))
    server.post("/digest", b"x" * 1_000_000)
    before, most = server.memory("resident"), 0
    block = bytes(1 << 20)
    with server.connect(timeout=120) as connection:
        connection.send(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        watching = True

        def watch():
            nonlocal most
            while watching:
                most = max(most, server.memory("resident"))
                time.sleep(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(size >> 20):
                connection.socket.sendall(block)
            response = connection.response()
        finally:
            watching = False
            watcher.join()
    assert response.status == 200 and response.json()[0] == size
    print(f"{size >> 20} MiB: {before} KiB before, {most} KiB at most")
    assert most - before < 20_000


@pytest.mark.slow
@pytest.mark.no_sanitizer
@pytest.mark.only("nginx", "apache")
@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed: make test installs it")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="compares times: make hammer runs it by itself")
@pytest.mark.parametrize("kind", ["list=1", "stream=1"])
def test_large_answers_hold_small_ones_up_no_more_in_a_group_than_embedded(serve, host, stage, kind):
    """Four clients take 8 MiB again and again while another one asks for little; both models in turn, the best of three."""

    def median(server):
        assert until(lambda: server.get("/hello").status == 200, 10)
        large = f"http://127.0.0.1:{server.port}/big?size={8 << 20}&{kind}"
        load = subprocess.Popen(["h2load", "--h1", "-c", "4", "-D", "2", large], stdout=subprocess.PIPE, text=True)
        time.sleep(0.3)
        times = []
        with server.connect() as connection:
            while load.poll() is None and len(times) < 2000:
                began = time.perf_counter()
                connection.request("GET", "/hello")
                assert connection.response().body == b"hello"
                times.append(time.perf_counter() - began)
        out = load.communicate(timeout=20)[0]
        assert "0 failed, 0 errored" in out, out
        return sorted(times)[len(times) // 2]

    options = {"threads": 8, "nginx_http": "keepalive_requests 1000000;"}
    embedded = serve("behaviours:application", **options)
    serve.host = f"{host}-group"
    group = serve("behaviours:application", **options)
    medians = [(median(embedded), median(group)) for _ in range(3)]
    alone, beside = (min(column) for column in zip(*medians))
    print(f"{host} {kind}: median {alone * 1e6:.0f} us embedded, {beside * 1e6:.0f} us in a group")
    assert beside < 2 * alone, medians
