"""environ: what the application is told of the request."""

import json
from urllib.parse import quote

import pytest

from support.server import Mount
from test_response import way  # noqa: F401


def environ_of(server, path="/environ", headers=(), method="GET", body=b"", **options):
    return server.request(method, path, headers, body, **options).json()


def test_pep_3333_s_keys_are_there(site, host, way):  # noqa: F811
    # A browser names the port in Host; Apache takes SERVER_PORT from there (UseCanonicalName Off).
    environ = environ_of(site, f"{way}/environ", {"Host": f"localhost:{site.port}"})
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == f"{way}/environ" and environ["PATH_INFO"] == ""
    assert environ["QUERY_STRING"] == ""
    assert environ["SERVER_NAME"] == "localhost" and environ["SERVER_PORT"] == str(site.port)
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["wsgi.version"] == [1, 0]
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.multithread"] is (host != "apache-prefork")
    assert environ["wsgi.multiprocess"] is False or site.host == "apache"
    assert environ["wsgi.run_once"] is False
    for key in ("wsgi.input", "wsgi.errors", "wsgi.file_wrapper"):
        assert environ[key]
    assert environ["wsgi.input_terminated"] is True


def test_the_connection_is_described(site):
    with site.connect() as connection:
        connection.request("GET", "/environ")
        environ = connection.response().json()
        assert environ["REMOTE_ADDR"] == "127.0.0.1"
        assert environ["REMOTE_PORT"] == str(connection.socket.getsockname()[1])
        assert environ["SERVER_ADDR"] == "127.0.0.1"
        assert site.host in environ["SERVER_SOFTWARE"].lower()
        assert environ["DOCUMENT_ROOT"].startswith("/")
    assert "REMOTE_USER" not in environ and "AUTH_TYPE" not in environ


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_methods_reach_the_application(site, method):
    assert environ_of(site, method=method)["REQUEST_METHOD"] == method


def test_http_1_0_is_told(site):
    assert environ_of(site, version="1.0")["SERVER_PROTOCOL"] == "HTTP/1.0"


@pytest.mark.parametrize(
    ("path", "info"),
    [
        ("/environ", ""),
        ("/environ/", "/"),
        ("/environ/a/b", "/a/b"),
        ("/environ/a%20b", "/a b"),
        ("/environ/%C3%A4", "/\xc3\xa4"),
        ("/environ/%e9", "/\xe9"),
        ("/environ/a%2Bb+c", "/a+b+c"),
        ("/environ/a;b=c", "/a;b=c"),
        ("/environ/a%3Fb", "/a?b"),
        ("/environ/./a/../b", "/b"),
        ("/environ/a%25b", "/a%b"),
    ],
)
def test_path_info_is_decoded_latin_1_text(site, path, info):
    environ = environ_of(site, path)
    assert environ["SCRIPT_NAME"] == "/environ" and environ["PATH_INFO"] == info
    assert environ["REQUEST_URI"] == path, "the path as the client wrote it"


@pytest.mark.parametrize("query", ["", "a=b", "a=b&c=%20d", "a+b", "%E4", "a=b?c=d", "=", "a=%C3%A4;x"])
def test_the_query_string_is_raw(site, query):
    environ = environ_of(site, "/environ?" + query)
    assert environ["QUERY_STRING"] == query
    assert environ["REQUEST_URI"] == "/environ?" + query


def test_headers_become_keys(site):
    environ = environ_of(
        site,
        headers=[
            ("Host", "example.org:8080"),
            ("X-Some-Header", "value"),
            ("x-lower", "low"),
            ("X-Latin", b"caf\xe9"),
            ("X-Empty", ""),
            ("Cookie", "a=1; b=2"),
            ("Content-Type", "text/plain; charset=x"),
            ("User-Agent", "test"),
        ],
    )
    assert environ["HTTP_HOST"] == "example.org:8080"
    assert environ["HTTP_X_SOME_HEADER"] == "value"
    assert environ["HTTP_X_LOWER"] == "low"
    assert environ["HTTP_X_LATIN"] == "caf\xe9"
    assert environ["HTTP_X_EMPTY"] == ""
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["CONTENT_TYPE"] == "text/plain; charset=x" and "HTTP_CONTENT_TYPE" not in environ
    assert environ["HTTP_USER_AGENT"] == "test"


def test_repeated_headers_are_joined(site):
    environ = environ_of(
        site,
        headers=[("X-A", "1"), ("Accept", "a/b"), ("Cookie", "a=1"), ("X-Forwarded-For", "1.1.1.1")]
        + [("x-a", "2"), ("Accept", "c/d"), ("Cookie", "b=2"), ("X-Forwarded-For", "2.2.2.2")],
    )
    assert environ["HTTP_X_A"] == "1, 2"
    assert environ["HTTP_ACCEPT"] == "a/b, c/d"
    # Apache has joined headers before any module sees them, cookies too.
    assert environ["HTTP_COOKIE"] == ("a=1; b=2" if site.host == "nginx" else "a=1, b=2")
    assert environ["HTTP_X_FORWARDED_FOR"] == "1.1.1.1, 2.2.2.2"


def test_content_length_is_told_as_it_is(site):
    environ = environ_of(site, method="POST", body=b"12345")
    assert environ["CONTENT_LENGTH"] == "5" and "HTTP_CONTENT_LENGTH" not in environ
    assert environ_of(site, method="POST", body=b"")["CONTENT_LENGTH"] == "0"
    assert environ_of(site).get("CONTENT_LENGTH", "") == ""


def test_underscores_cannot_pass_for_dashes(site):
    environ = environ_of(site, headers=[("X-User", "real"), ("X_User", "forged"), ("Content_Length", "7"), ("X_Other", "x")])
    assert environ["HTTP_X_USER"] == "real"
    assert environ.get("CONTENT_LENGTH", "") == "" and "HTTP_X_OTHER" not in environ
    site.allow_log("invalid header|underscore")


@pytest.mark.only("nginx")
def test_underscores_cannot_pass_for_dashes_when_nginx_allows_them(serve):
    server = serve("behaviours:application", nginx_server="underscores_in_headers on; ignore_invalid_headers off;")
    environ = environ_of(server, headers=[("X-User", "real"), ("X_User", "forged"), ("Content_Length", "7"), ("X_Other", "x")])
    assert environ["HTTP_X_USER"] == "real"
    assert environ.get("CONTENT_LENGTH", "") == "" and "HTTP_X_OTHER" not in environ


def test_a_proxy_header_does_not_become_http_proxy(site):
    assert "HTTP_PROXY" not in environ_of(site, headers={"Proxy": "http://evil/"})


def test_the_process_s_environment_is_not_in_environ(site):
    environ = environ_of(site)
    assert "HIGHBALL_ENV" not in environ and "PATH" not in environ and "LANG" not in environ


def test_each_request_has_an_environ_of_its_own(site):
    first = environ_of(site, headers={"X-Only-First": "1"})
    second = environ_of(site)
    assert "HTTP_X_ONLY_FIRST" in first and "HTTP_X_ONLY_FIRST" not in second


def test_many_and_long_headers_reach_the_application(site):
    headers = [(f"X-Number-{number}", "v" * 100) for number in range(40)] + [("X-Long", "w" * 7000)]
    environ = environ_of(site, headers=headers)
    assert all(environ[f"HTTP_X_NUMBER_{number}"] == "v" * 100 for number in range(40))
    assert environ["HTTP_X_LONG"] == "w" * 7000


# Mounts


@pytest.mark.parametrize(
    ("path", "script", "info"),
    [
        ("/sub/environ", "/sub/environ", ""),
        ("/sub/environ/x", "/sub/environ", "/x"),
        ("/sub//environ/x", None, None),
    ],
)
def test_a_mounted_application_is_told_its_prefix(serve, path, script, info):
    server = serve(Mount("behaviours:application", at="/sub"))
    if script is None:
        assert server.get(path).status in (200, 404, 500)
        server.allow_log("HB0401")
        return
    environ = environ_of(server, path)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script, info)


def test_prefixes_are_whole_path_segments(serve):
    server = serve(Mount("hello:application", at="/sub"))
    assert server.get("/sub").status == 200
    assert server.get("/sub/").status == 200
    assert server.get("/sub/x").status == 200
    assert server.get("/sub?x").status == 200
    assert server.get("/subx").status == 404
    assert server.get("/su").status == 404
    server.allow_log("No such file|AH00128|open\\(\\)")


def test_several_applications_share_a_server(serve):
    server = serve(
        Mount("hello:application", at="/"), Mount("behaviours:application", at="/b"), Mount("hello:make()", at="/b/deeper")
    )
    assert server.get("/").body == b"hello"
    assert server.get("/b/listed").body == b"one two three"
    assert server.get("/b/deeper").body == b"hello"
    assert environ_of(server, "/b/environ")["SCRIPT_NAME"] == "/b/environ"


def test_params_reach_environ(serve):
    server = serve(Mount("behaviours:application", params={"SITE_MODE": "test", "X_SPACE": "a b"}))
    environ = environ_of(server)
    assert environ["SITE_MODE"] == "test" and environ["X_SPACE"] == "a b"


@pytest.mark.only("nginx")
def test_params_take_nginx_s_variables(serve):
    server = serve(Mount("behaviours:application", params={"X_METHOD": "<$request_method>", "SERVER_NAME": "told"}))
    environ = environ_of(server)
    assert environ["X_METHOD"] == "<GET>" and environ["SERVER_NAME"] == "told"


# Authorization

BASIC = {"Authorization": "Basic dTpw"}


def test_authorization_is_passed_as_the_host_s_users_expect(serve):
    server = serve("behaviours:application")
    environ = environ_of(server, headers=BASIC)
    if server.host == "nginx":
        assert environ["HTTP_AUTHORIZATION"] == "Basic dTpw"
    else:
        assert "HTTP_AUTHORIZATION" not in environ, "mod_wsgi's default"


@pytest.mark.parametrize("passed", [True, False])
def test_authorization_follows_the_directive(serve, passed):
    server = serve(Mount("behaviours:application", pass_authorization=passed))
    assert ("HTTP_AUTHORIZATION" in environ_of(server, headers=BASIC)) is passed


@pytest.mark.parametrize("passed", [None, True])
def test_a_password_the_server_checks_is_its_own_unless_passed_on(serve, passed):
    users = serve.script("users", "u:{PLAIN}p\n" if serve.host == "nginx" else "u:$apr1$x$wYJqsLgfkWJf2xnoVL5NU1\n")
    mount = Mount(
        "behaviours:application",
        pass_authorization=passed,
        nginx=f'auth_basic "test"; auth_basic_user_file {users};',
        apache=f'AuthType Basic\nAuthName test\nAuthUserFile {users}\nRequire valid-user',
    )
    if serve.host == "apache":
        import subprocess

        made = subprocess.run(["openssl", "passwd", "-apr1", "p"], capture_output=True, text=True, check=True).stdout
        users.write_text("u:" + made)
    server = serve(mount, apache_modules=("auth_basic", "authn_core", "authn_file", "authz_user"))
    assert server.get("/environ").status == 401
    assert server.get("/environ", {"Authorization": "Basic dTp3cm9uZw=="}).status == 401
    environ = environ_of(server, headers=BASIC)
    assert environ["REMOTE_USER"] == "u" and environ["AUTH_TYPE"] == "Basic"
    assert ("HTTP_AUTHORIZATION" in environ) is bool(passed)
    server.allow_log("password mismatch|AH01617")


@pytest.mark.parametrize("first", ["Basic dTpw", 'Digest username="u", realm="r, Basic eDp5"'])
def test_one_password_is_passed_on_and_two_are_refused(serve, first):
    server = serve(Mount("behaviours:application", pass_authorization=True))
    assert environ_of(server, headers=[("Authorization", first)])["HTTP_AUTHORIZATION"] == first
    response = server.get("/environ", [("Authorization", first), ("Authorization", "Basic eDp5")])
    assert response.status == 400
    assert server.get("/hello").body == b"hello"
    server.allow_log("client sent duplicate header")


def test_a_user_nobody_checked_is_no_remote_user(serve):
    server = serve(Mount("behaviours:application", pass_authorization=True))
    environ = environ_of(server, headers=BASIC)
    assert "REMOTE_USER" not in environ and "AUTH_TYPE" not in environ


# Requests that are none


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /environ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\nabcdefghij",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /environ HTTP/1.1\r\n\r\n",
        b"GET /environ HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n",
    ],
    ids=lambda value: json.dumps(value.decode())[16:70],
)
def test_ambiguous_requests_never_reach_the_application(site, request_):
    with site.connect() as connection:
        connection.send(request_)
        response = connection.response()
        assert response.status in (400, 501, 411), response.body
    site.allow_log("client sent|AH0|unknown transfer coding")


def test_content_length_beside_chunked_is_no_way_to_smuggle(site):
    with site.connect() as connection:
        connection.send(
            b"POST /echo_all HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        response = connection.response()
        if response.status == 200:
            # RFC 9112 section 6.1: Transfer-Encoding overrides, and the connection ends after the response.
            assert response.body == b"hello"
            assert connection.wait_end()
        else:
            assert response.status == 400
    site.allow_log("client sent|AH0")


def test_encoded_slashes_and_nul_do_no_harm(site):
    for path in ("/environ/a%2Fb", "/environ/a%00b", "/environ/" + quote("../../x", safe="")):
        assert site.get(path).status in (200, 400, 404)
    site.allow_log("client sent|AH0|HB0401")
