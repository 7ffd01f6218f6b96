"""Responses that break off, and files that change: a client can always tell, whatever stands between."""

import os
import subprocess
import zlib

import pytest

PACKED = {
    "nginx_http": "gzip on; gzip_min_length 1; gzip_types text/plain; gzip_proxied any;",
    "apache_modules": ("deflate", "filter"),
    "apache": "SetOutputFilter DEFLATE",
}

BROKEN = ["/raises_after_block", "/short"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", BROKEN)
def test_a_packed_response_that_breaks_is_seen(serve, path, version):
    server = serve("behaviours:application", **PACKED)
    whole = server.get("/big?size=100000", [("Accept-Encoding", "gzip")])
    assert whole.header("Content-Encoding") == "gzip"
    assert len(zlib.decompress(whole.body, 31)) == 100_000
    response = server.get(path, [("Accept-Encoding", "gzip")], version=version)
    unpacker = zlib.decompressobj(31)
    if response.header("Content-Encoding") == "gzip":
        unpacker.decompress(response.body)
    assert response.broken or not unpacker.eof, "the client must be able to tell"
    server.expect_log("HB0402|HB0406")
    server.allow_log("AH01882")


@pytest.mark.parametrize("path", BROKEN)
@pytest.mark.parametrize("options", [["--http2"], ["--http1.1"], ["--http1.0", "--no-alpn"]], ids=["2", "1.1", "1.0"])
def test_curl_fails_over_tls_where_a_packed_response_breaks(serve, path, options):
    server = serve("behaviours:application", tls=True, **PACKED)
    command = ["curl", "-sk", "--compressed", *options, "-o", "/dev/null", "-w", "%{http_code}", server.url + path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0, (done.returncode, done.stdout)
    server.expect_log("HB0402|HB0406")
    server.allow_log("AH01882")


@pytest.fixture
def file(serve):
    return serve.script("file.bin", "x" * 3_000_000)


def test_a_file_that_shrinks_meanwhile_ends_visibly(serve, file):
    server = serve("behaviours:application")
    with server.connect(receive_buffer=4096) as connection:
        connection.request("GET", f"/wrapped_file?path={file}")
        head = connection.read_head()
        assert head.header("Content-Length") == "3000000"
        os.truncate(file, 500_000)
        connection.read_body(head)
        assert head.broken or len(head.body) == 3_000_000
    server.allow_log("HB0406|HB0501|sendfile|pread|truncated|reported|AH0|close_notify")


def test_a_file_that_grows_meanwhile_is_sent_as_long_as_it_was(serve, file):
    server = serve("behaviours:application")
    with server.connect(receive_buffer=4096) as connection:
        connection.request("GET", f"/wrapped_file?path={file}")
        head = connection.read_head()
        with open(file, "ab") as more:
            more.write(b"y" * 100_000)
        connection.read_body(head)
        assert head.ending == "whole" and head.body == b"x" * 3_000_000
        connection.request("GET", "/hello")
        assert connection.response().body == b"hello"
