"""The same request gives the same environ on nginx and on Apache; where it does not, docs/environ.md says why."""

import json
import re

import pytest

from support.client import Connection
from support.stage import TESTS

# Keys whose values differ, or which only one server has. Each is in the table of docs/environ.md.
DIFFERENT = {
    "SERVER_SOFTWARE",
    "SERVER_PORT",
    "REMOTE_PORT",
    "DOCUMENT_ROOT",
    "SCRIPT_FILENAME",
    "HTTP_AUTHORIZATION",
    "wsgi.multiprocess",
    "wsgi.input",
    "wsgi.errors",
    "wsgi.file_wrapper",
    # Apache's own.
    "REQUEST_SCHEME",
    "CONTEXT_PREFIX",
    "CONTEXT_DOCUMENT_ROOT",
    "SERVER_ADMIN",
    "REDIRECT_STATUS",
}


def request(target, *headers, method="GET", version="1.1", host="Host: example.org", body=b""):
    lines = [f"{method} {target} HTTP/{version}", *([host] if host else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


CASES = {
    "plain": request("/environ"),
    "empty query": request("/environ?"),
    "question marks": request("/environ?a=b?c&d=%20+%C3%A9"),
    "bytes in the query": request("/environ?caf\xe9=\xc3\xa9"),
    "path below": request("/environ/a/b/"),
    "encoded path": request("/environ/a%20b%3Fc%25"),
    "utf-8 path": request("/environ/caf%C3%A9"),
    "latin-1 path": request("/environ/caf%E9"),
    "bytes in the path": request("/environ/caf\xe9"),
    "dot segments": request("/environ/a/../b/./c"),
    "encoded dot segments": request("/environ/a/%2e%2e/b"),
    "runs of slashes": request("//environ///a//b"),
    "semicolon": request("/environ/a;b=c"),
    "absolute form": request("http://example.org/environ/a?b"),
    "absolute form, other host": request("http://other.example:81/environ"),
    "no host": request("/environ", version="1.0", host=None),
    "host with port": request("/environ", host="Host: example.org:8443"),
    "ipv6 host": request("/environ", host="Host: [::1]:8080"),
    "host in capitals": request("/environ", host="Host: EXAMPLE.org"),
    "http/1.0": request("/environ", version="1.0"),
    "http/1.0 kept": request("/environ", "Connection: keep-alive", version="1.0"),
    "other method": request("/environ", method="PROPFIND"),
    "options": request("/environ", method="OPTIONS"),
    "headers": request("/environ", "User-Agent: x/1", "Accept: */*", "X-Some-Header: a  b", "x-lower: c", "X-1: d"),
    "empty header": request("/environ", "X-Empty:", "Accept:"),
    "white space": request("/environ", "X-Space: \t a b \t "),
    "latin-1 header": request("/environ", "X-Latin: caf\xe9 \xc3\xa9"),
    "repeated": request("/environ", "X-A: 1", "Accept: a", "x-a: 2", "ACCEPT: b", "X-Forwarded-For: 1", "X-Forwarded-For: 2"),
    "underscores": request("/environ", "X_User: forged", "X-User: real", "Content_Length: 7", "X__: 1"),
    "httpoxy": request("/environ", "Proxy: http://evil/", "PROXY: http://evil/"),
    "identity": request("/environ", "Remote-User: forged", "REMOTE-USER: forged", "Auth-Type: x", "Https: on", "Script-Name: /x"),
    "connection": request("/environ", "Connection: close, X-Hop", "X-Hop: 1", "TE: trailers", "Keep-Alive: 5", "Upgrade: x"),
    "many headers": request("/environ", *(f"X-Number-{number}: {number}" for number in range(80))),
    "long header": request("/environ", "X-Long: " + "v" * 7000),
    "content type": request("/environ", "Content-Type: text/plain; charset=x"),
    "post": request("/environ", "Content-Length: 5", "Content-Type: a/b", method="POST", body=b"12345"),
    "leading zeros": request("/environ", "Content-Length: 0005", method="POST", body=b"12345"),
    "empty post": request("/environ", "Content-Length: 0", method="POST"),
    "post without length": request("/environ", method="POST"),
    "get with a body": request("/environ", "Content-Length: 3", body=b"abc"),
    "chunked": request("/environ", "Transfer-Encoding: chunked", method="POST", body=b"3\r\nabc\r\n0\r\n\r\n"),
    "range and conditions": request("/environ", "Range: bytes=0-1", 'If-None-Match: "x"', "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"),
    "authorization": request("/environ", "Authorization: Basic eDp5"),
    "cookies": request("/environ", "Cookie: a=1; b=2"),
    "dnt and fetch": request("/environ", "DNT: 1", "Sec-Fetch-Mode: navigate", "Sec-CH-UA: \"x\"", "Priority: u=1"),
}


def environ(server, raw):
    with Connection(server.port) as connection:
        connection.send(raw)
        response = connection.response()
    assert response.status == 200, (server.host, response)
    return json.loads(response.body)


@pytest.fixture(scope="module")
def servers(shared):
    both = [shared.server("nginx"), shared.server("apache")]
    for server in both:
        server.begin()
    yield both
    complaints = [line for server in both for line in server.gate()]
    assert not complaints, complaints


@pytest.mark.parametrize("case", CASES)
def test_both_servers_give_the_same_environ(servers, case):
    nginx, apache = (environ(server, CASES[case]) for server in servers)
    for each in (nginx, apache):
        for name in DIFFERENT:
            each.pop(name, None)
        for name, value in each.items():
            if isinstance(value, str):
                value.encode("latin-1")
    assert nginx == apache


def test_what_differs_is_documented():
    page = (TESTS.parent / "docs" / "environ.md").read_text()
    table = page[page.index("## Where the servers differ") :]
    documented = set(re.findall(r"`([A-Za-z_.]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))))
    assert documented == DIFFERENT
