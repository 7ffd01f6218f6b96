"""One run of each module under valgrind: invalid reads and writes, and branches on memory nobody set."""

import shutil
import signal
import subprocess
import time

import pytest

from support.stage import TESTS

valgrind = shutil.which("valgrind")


@pytest.mark.no_sanitizer
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not valgrind, reason="valgrind is not installed: make test installs it")
def test_a_clean_run_under_valgrind(serve, host, key):
    log = serve.scripts / "valgrind.txt"
    server = serve.prepare(
        "behaviours:application",
        nginx_master=False,
        threads=4,
        wrapper=(
            valgrind, "--error-exitcode=99", f"--log-file={log}", "--num-callers=30", "--leak-check=no",
            f"--suppressions={TESTS / 'valgrind.supp'}",
        ),
    )  # fmt: skip
    if host == "apache":
        command = server.command()
        server.command = lambda: [part if part != "-DFOREGROUND" else "-X" for part in command]
    serve.servers.append(server)
    server.start()
    server.begin()
    server.log.position = 0
    options = {"timeout": 60}
    assert server.get("/hello", **options).body == b"hello"
    for name in ("listed", "generated", "written", "late_start", "replaced_head", "empty_list", "with_length", "wrapped_object"):
        assert server.get(f"/{name}", **options).status in (200, 503)
    assert server.get("/environ?a=b", [(f"X-{n}", "v" * n) for n in range(30)], **options).status == 200
    for size in (10, 100_000, 2_000_000):
        assert len(server.post("/echo_all", b"x" * size, **options).body) == size
    body = b"%x\r\n" % 50_000 + b"y" * 50_000 + b"\r\n0\r\n\r\n"
    assert len(server.post("/echo_all", body, [("Transfer-Encoding", "chunked")], **options).body) == 50_000
    for query in ("size=500000", "size=500000&list=1", "size=500000&length=1&block=400000"):
        assert len(server.get(f"/big?{query}", **options).body) == 500_000
    assert server.get(f"/wrapped_file?path={server.configuration}", **options).status == 200
    assert server.get("/raises", **options).status == 500
    assert server.get("/raises_after_block", **options).broken
    assert server.get("/short", **options).broken
    assert server.get("/bad_head?what=crlf_value", **options).status == 500
    assert server.post("/read_on_thread", b"z" * 1000, **options).body == b"z" * 1000
    for path in (f"/endless?key={key}-endless", f"/flood?key={key}-flood"):
        with server.connect(timeout=60) as connection:
            connection.request("GET", path)
            connection.read_head()
            connection.abort()
    assert server.get("/hello", **options).body == b"hello"
    for code in ("HB0401", "HB0402", "HB0405", "HB0406"):
        server.expect_log(code, timeout=20)
    if host == "apache":
        # httpd with -X falls over its own feet where a connection still lingers at its exit.
        time.sleep(4)
        server.process.send_signal(signal.SIGTERM)
    else:
        server.process.send_signal(signal.SIGQUIT)
    try:
        status = server.process.wait(60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        pytest.fail("the server did not stop under valgrind")
    server.stopped = True
    text = log.read_text()
    assert status != 99 and "ERROR SUMMARY: 0 errors" in text, text[-8000:]
    server.allow_log("AH00")
