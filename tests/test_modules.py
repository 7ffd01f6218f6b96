"""Applications among the servers' other modules: pages that include them, filters behind them, addresses and users before them."""

import subprocess

import pytest

from support.client import chunked
from support.server import Mount

BASIC = {"Authorization": "Basic dTpw"}


# Pages that include an application's (SSI)


def including(serve, page, **options):
    """A server with a page that is put together from others."""
    directory = serve.script("pages/page.txt", page).parent
    serve.script("pages/part.txt", "a file")
    return serve(
        Mount("behaviours:application", at="/app", **options),
        static={"/pages/": directory},
        nginx_server=f"location /ssi/ {{ alias {directory}/; ssi on; ssi_types text/plain; ssi_silent_errors off; }}",
        apache_modules=("include", "filter"),
        apache=f"Alias /ssi/ {directory}/\n<Location /ssi/>\nOptions +Includes\nSetOutputFilter INCLUDES\n</Location>",
    )


@pytest.mark.parametrize("name", ["hello", "listed", "generated", "written", "late_start", "slow_blocks", "sequence_protocol"])
def test_an_application_is_included_where_the_page_says_so(serve, name):
    server = including(serve, f'<<!--#include virtual="/app/{name}" -->|<!--#include virtual="/pages/part.txt" -->>')
    expected = server.get(f"/app/{name}").body
    for _ in range(2):
        response = server.get("/ssi/page.txt")
        assert response.status == 200 and response.body == b"<" + expected + b"|a file>"
    assert server.get("/app/hello").body == b"hello"


def test_several_applications_of_a_page_come_in_order(serve):
    parts = ["slow_blocks", "hello", "big?size=300000&list=1", "generated", "big?size=300000", "hello"]
    server = including(serve, "".join(f'<!--#include virtual="/app/{part}" -->' for part in parts))
    assert server.get("/ssi/page.txt").body == b"".join(server.get(f"/app/{part}").body for part in parts)


@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b"a body")])
def test_an_included_application_is_told_of_its_own_request(serve, method, body):
    server = including(serve, '<!--#include virtual="/app/environ/below?own=1" -->', params={"MOUNTED": "yes"})
    # Apache gives files to GET and POST alike, nginx to GET alone.
    response = server.request(method, "/ssi/page.txt?outer=1", {"X-Some-Header": "value"}, body)
    if response.status == 405:
        assert server.host == "nginx" and method == "POST"
        return
    environ = response.json()
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/app/environ", "/below", "own=1")
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["HTTP_X_SOME_HEADER"] == "value" and environ["MOUNTED"] == "yes"
    assert not environ.get("CONTENT_LENGTH")


@pytest.mark.parametrize("name", ["raises", "raises_before_first_block", "never_starts"])
def test_an_included_application_that_fails_spoils_its_own_part(serve, name):
    server = including(serve, f'before <!--#include virtual="/app/{name}" --> after')
    response = server.get("/ssi/page.txt")
    assert response.status == 200
    assert response.body.startswith(b"before ") and response.body.endswith(b" after")
    server.allow_log("HB04|AH0|SSI|unable to include|subrequest")
    assert server.get("/app/hello").body == b"hello"


def test_an_application_s_own_page_may_include_others(serve):
    script = serve.script(
        "app.wsgi",
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    yield b'one <!--#include virt'\n"
        "    yield b'ual=\"/pages/part.txt\" --> two'\n",
    )
    serve.script("pages/part.txt", "a file")
    server = serve(
        Mount(str(script), nginx="ssi on; ssi_types text/plain;", apache="Options +Includes\nSetOutputFilter INCLUDES"),
        shared_interpreter=False,
        static={"/pages/": serve.scripts / "pages"},
        apache_modules=("include", "filter"),
    )
    assert server.get("/").body == b"one a file two"


# Filters behind an application


def test_pages_are_rewritten_by_the_server(serve):
    """sub_filter, mod_substitute: also across blocks, and Content-Length is theirs."""
    mount = Mount(
        "behaviours:application",
        nginx="sub_filter_types text/plain; sub_filter 'two' 'second'; sub_filter 'hello' 'good day'; sub_filter_once off;",
        apache="SetOutputFilter SUBSTITUTE\nSubstitute s/two/second/n\nSubstitute \"s/hello/good day/n\"",
    )
    server = serve(mount, apache_modules=("substitute", "filter"))
    assert server.get("/listed").body == server.get("/generated").body == b"one second three"
    assert server.get("/slow_blocks").body == b"firstsecondthird"
    response = server.get("/hello")
    assert response.body == b"good day" and response.ending == "whole"
    assert server.request("HEAD", "/hello").body == b""


def test_a_broken_response_stays_broken_behind_filters(serve):
    mount = Mount(
        "behaviours:application",
        nginx="sub_filter_types text/plain; sub_filter 'begun' 'started'; gzip on; gzip_types text/plain; gzip_min_length 1;",
        apache="SetOutputFilter SUBSTITUTE;DEFLATE\nSubstitute s/begun/started/n",
    )
    server = serve(mount, apache_modules=("substitute", "filter", "deflate"))
    for name in ("raises_after_block", "raises_within_length", "short"):
        for headers in ({}, {"Accept-Encoding": "gzip"}):
            assert server.get(f"/{name}", headers).broken, name
    server.expect_log("HB040[26]", times=None)


# Who the client is


def proxied(server, line, path="/environ", headers=b""):
    with server.connect() as connection:
        connection.send(line + f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + headers + b"Connection: close\r\n\r\n")
        return connection.response()


def test_the_client_s_address_is_that_of_a_trusted_header(serve):
    server = serve(
        "behaviours:application",
        nginx_server="set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For; real_ip_recursive on;",
        apache_modules=("remoteip",),
        apache="RemoteIPHeader X-Forwarded-For\nRemoteIPInternalProxy 127.0.0.1",
    )
    environ = server.get("/environ", {"X-Forwarded-For": "192.0.2.9, 203.0.113.5"}).json()
    assert environ["REMOTE_ADDR"] == "203.0.113.5", "only 127.0.0.1 is trusted"
    assert "REMOTE_PORT" not in environ, "which the header does not tell"
    if server.host == "apache":
        # mod_remoteip takes away what it has used.
        assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.9"
    assert server.get("/environ", {"X-Forwarded-For": "2001:db8::7"}).json()["REMOTE_ADDR"] == "2001:db8::7"
    assert server.get("/environ").json()["REMOTE_ADDR"] == "127.0.0.1"
    assert server.get("/environ", {"X-Forwarded-For": "nonsense"}).json()["REMOTE_ADDR"] == "127.0.0.1"
    server.allow_log("AH0")


def test_the_client_s_address_is_not_that_of_an_untrusted_header(serve):
    server = serve(
        "behaviours:application",
        nginx_server="set_real_ip_from 192.0.2.0/24; real_ip_header X-Forwarded-For;",
        apache_modules=("remoteip",),
        apache="RemoteIPHeader X-Forwarded-For\nRemoteIPInternalProxy 192.0.2.0/24",
    )
    environ = server.get("/environ", {"X-Forwarded-For": "203.0.113.5"}).json()
    assert environ["REMOTE_ADDR"] == "127.0.0.1" and environ["HTTP_X_FORWARDED_FOR"] == "203.0.113.5"


@pytest.mark.parametrize(
    ("line", "address", "port"),
    [
        (b"PROXY TCP4 203.0.113.5 127.0.0.1 4711 80\r\n", "203.0.113.5", "4711"),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n", "2001:db8::7", "4711"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([203, 0, 113, 5, 127, 0, 0, 1, 0x12, 0x67, 0, 80]), "203.0.113.5", "4711"),
    ],
    ids=["version 1", "version 1, IPv6", "version 2"],
)
def test_the_client_s_address_is_that_of_the_proxy_protocol(serve, line, address, port):
    server = serve(
        "behaviours:application",
        nginx_listen=" proxy_protocol",
        nginx_server="set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;",
        apache_modules=("remoteip",),
        apache="RemoteIPProxyProtocol On",
    )
    environ = proxied(server, line, headers=b"X-Forwarded-For: 192.0.2.9\r\n").json()
    assert environ["REMOTE_ADDR"] == address
    assert environ["REMOTE_PORT"] == port
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.9"
    server.allow_log("broken header|AH0")


def test_a_request_without_the_proxy_protocol_is_none(serve):
    server = serve(
        "behaviours:application", nginx_listen=" proxy_protocol", apache_modules=("remoteip",), apache="RemoteIPProxyProtocol On"
    )
    with server.connect() as connection:
        # nginx knows at once, and logs line ends as they are.
        connection.send(b"GET /environ HTTP/1.1" + (b"" if server.host == "nginx" else b"\r\nHost: x\r\n\r\n"))
        assert not connection.rest()
        assert connection.ended
    server.allow_log("broken header|AH0")


# Who the user is


def users(serve):
    """A file of passwords with the user `u`."""
    made = subprocess.run(["openssl", "passwd", "-apr1", "p"], capture_output=True, text=True, check=True).stdout
    return serve.script("users", f"u:{made}")


def test_a_password_that_was_not_needed_makes_no_user(serve):
    """Where the address is enough (satisfy any, RequireAny), nobody may have checked the password."""
    file = users(serve)
    server = serve(
        Mount(
            "behaviours:application",
            nginx=f'satisfy any; allow 127.0.0.1; deny all; auth_basic "test"; auth_basic_user_file {file};',
            apache=f"AuthType Basic\nAuthName test\nAuthUserFile {file}\n<RequireAny>\nRequire ip 127.0.0.1\nRequire valid-user\n</RequireAny>",
        ),
        apache_modules=("auth_basic", "authn_core", "authn_file", "authz_user", "authz_host"),
    )
    for headers in ({}, {"Authorization": "Basic dTp3cm9uZw=="}):
        environ = server.get("/environ", headers).json()
        assert "REMOTE_USER" not in environ and "AUTH_TYPE" not in environ
    server.allow_log("password mismatch|AH01617")


def test_a_user_is_told_over_rewrites_and_chunked_bodies(serve):
    file = users(serve)
    server = serve(
        Mount(
            "behaviours:application",
            at="/app",
            nginx=f'auth_basic "test"; auth_basic_user_file {file};',
            apache=f"AuthType Basic\nAuthName test\nAuthUserFile {file}\nRequire valid-user",
        ),
        nginx_server="rewrite ^/old/(.*)$ /app/$1 last;",
        apache_modules=("auth_basic", "authn_core", "authn_file", "authz_user", "rewrite"),
        apache="RewriteEngine On\nRewriteRule ^/old/(.*)$ /app/$1 [PT]",
    )
    assert server.get("/old/environ").status == 401
    assert server.get("/old/environ", BASIC).json()["REMOTE_USER"] == "u"
    headers = [*BASIC.items(), ("Transfer-Encoding", "chunked")]
    assert server.post("/old/echo_all", chunked(b"hello"), headers).body == b"hello"
    refused = server.post("/old/echo_all", chunked(b"hello"), [("Transfer-Encoding", "chunked")])
    assert refused.status == 401
