"""What is nginx's own: its configuration, its phases and filters, its processes."""

import gzip
import json
import time

import pytest

from support.client import until
from support.server import Mount

pytestmark = pytest.mark.only("nginx")

REFUSED = [
    ("wsgi_threads 0;", "", ["wsgi_threads", "0"]),
    ("wsgi_threads many;", "", ["wsgi_threads", "many"]),
    ("wsgi_threads 5000;", "", ["wsgi_threads", "5000"]),
    ("wsgi_application_group blog;", "", ["wsgi_application_group", "blog", "global"]),
    ("wsgi_script_reloading perhaps;", "", ["wsgi_script_reloading", "perhaps"]),
    ("wsgi_python_home;", "", ["wsgi_python_home"]),
    ("wsgi_python_hom /x;", "", ["wsgi_python_hom"]),
    ("", "location /x { wsgi_pass nothing; }", ["wsgi_pass", "nothing", "module:callable"]),
    ("", "location /x { wsgi_pass 'two words:app'; }", ["wsgi_pass", "two words"]),
    ("", "location /x { wsgi_pass relative/app.wsgi; }", ["wsgi_pass", "absolute"]),
    ("", "location /x { wsgi_pass hello:application; wsgi_pass hello:application; }", ["wsgi_pass", "duplicate"]),
    ("", "location /x { wsgi_pass hello:application; wsgi_mount x; }", ["wsgi_mount", "x"]),
    ("", "location /x { wsgi_pass hello:application; wsgi_pass_authorization maybe; }", ["wsgi_pass_authorization", "maybe"]),
    ("", "location /x { wsgi_param ONE; }", ["wsgi_param"]),
    ("", "wsgi_threads 3;", ["wsgi_threads"]),
    ("", "location /x { wsgi_python_home /x; }", ["wsgi_python_home"]),
]


@pytest.mark.parametrize(("http", "server", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_a_wrong_configuration_is_refused_with_directive_and_line(serve, http, server, said):
    prepared = serve.prepare("hello:application", nginx_http=http, nginx_server=server)
    if "wsgi_threads" in http:
        # Ours says it already, and twice is another fault.
        prepared.configuration.write_text(prepared.configuration.read_text().replace("wsgi_threads 8;\n", ""))
    if "wsgi_application_group" in http:
        prepared.configuration.write_text(prepared.configuration.read_text().replace("wsgi_application_group global;\n", ""))
    if "wsgi_python_home;" in http:
        prepared.configuration.write_text(
            prepared.configuration.read_text().replace(f"wsgi_python_home {serve.stage.venv};\n", "")
        )
    right, text = prepared.check()
    assert not right
    assert "[emerg]" in text and ".conf:" in text
    for part in said:
        assert part in text, text


@pytest.mark.parametrize("directive", ["wsgi_threads 8;", "wsgi_python_home /usr;", "wsgi_application_group global;"])
def test_a_directive_given_twice_is_refused(serve, directive):
    right, text = serve.check("hello:application", nginx_http=directive)
    assert not right and "duplicate" in text and directive.split()[0] in text


def test_a_right_configuration_is_right(serve):
    right, text = serve.check("hello:application", Mount("behaviours:application", at="/b"))
    assert right and "test is successful" in text
    assert "[warn]" not in text


def test_without_the_master_process_it_serves(serve):
    server = serve("behaviours:application", nginx_master=False)
    assert server.get("/hello").body == b"hello"
    assert server.post("/echo", b"x" * 100_000).body == b"x" * 100_000
    info = server.get("/subprocesses", timeout=40).json()
    assert (info["false"], info["terminated"]) == (1, -15)
    assert not server.stop("graceful")
    assert server.process.returncode == 0


def test_no_python_runs_in_cache_processes(serve):
    server = serve(
        "behaviours:application",
        nginx_http=f"proxy_cache_path {serve.scripts / 'cache'} keys_zone=zone:1m;",
    )
    assert server.get("/hello").body == b"hello"
    names = [p for p in server.members() if "cache" in p.command]
    assert any("cache manager" in p.command for p in names), server.family()
    assert all(p.threads == 1 for p in names)
    assert server.worker().threads > 1


def test_no_python_runs_where_no_application_is_mounted(serve):
    server = serve(static={"/static/": serve.script("static/file.txt", "static").parent})
    assert server.get("/static/file.txt").body == b"static"
    assert server.worker().threads == 1


def test_responses_are_compressed_by_nginx(serve):
    server = serve("behaviours:application", nginx_http="gzip on; gzip_types text/plain; gzip_min_length 1;")
    for path in ("/big?size=100000&list=1", "/big?size=100000", "/generated"):
        response = server.get(path, {"Accept-Encoding": "gzip"})
        assert response.header("Content-Encoding") == "gzip"
        assert response.header("Content-Length") is None
        assert gzip.decompress(response.body) == server.get(path).body


def test_each_block_leaves_at_once_through_gzip(serve):
    server = serve("behaviours:application", nginx_http="gzip on; gzip_types text/plain; gzip_min_length 1;")
    response = server.get("/slow_blocks", {"Accept-Encoding": "gzip"})
    assert gzip.decompress(response.body) == b"firstsecondthird"
    assert response.pieces[0][0] < 0.3


def test_nginx_s_headers_come_along(serve):
    server = serve("behaviours:application", nginx_server="add_header X-Added yes always; server_tokens off;")
    for path in ("/hello", "/generated", "/raises", "/status?line=404+None"):
        assert server.get(path).header("X-Added") == "yes"
    server.expect_log("HB0401")


def test_limits_and_rewrites_of_nginx_apply(serve):
    server = serve(
        "behaviours:application",
        nginx_server=(
            "location /open { rewrite ^/open/(.*)$ /environ/$1 last; }"
            "location /closed { deny all; wsgi_pass behaviours:application; }"
            "location /only { limit_except GET { deny all; } wsgi_pass behaviours:application; wsgi_mount /only; }"
        ),
    )
    environ = server.get("/open/x?a=b").json()
    assert environ["PATH_INFO"] == "/x" and environ["REQUEST_URI"] == "/open/x?a=b"
    assert server.get("/closed/hello").status == 403
    assert server.get("/only/hello").body == b"hello"
    assert server.post("/only/hello", b"").status == 403
    server.allow_log("access forbidden by rule")


def test_an_application_in_if_and_in_named_locations(serve):
    server = serve(
        "hello:application",
        nginx_server=(
            "location /if { if ($arg_python) { wsgi_pass behaviours:application; } return 404; }"
            "location /try { root /nonexistent; try_files $uri @application; }"
            "location @application { wsgi_pass behaviours:application; wsgi_mount /try; }"
        ),
    )
    assert server.get("/if/hello").status == 404
    assert server.get("/try/listed").body == b"one two three"
    assert server.get("/try/generated").body == b"one two three"


@pytest.mark.parametrize("name", ["hello", "generated", "raises", "listed", "endless", "flood"])
def test_an_application_may_answer_subrequests(serve, name):
    """auth_request asks the application, and drops what it says but for the status."""
    server = serve(
        Mount("behaviours:application", at="/app"),
        static={"/static/": serve.script("static/file.txt", "static").parent},
        nginx_server=f"location /guarded/ {{ auth_request /app/{name}; alias {serve.scripts}/static/; }}",
    )
    response = server.get("/guarded/file.txt")
    assert response.status == (500 if name == "raises" else 200)
    assert name == "raises" or response.body == b"static"
    server.allow_log("HB0401|auth request unexpected status")
    assert server.get("/app/hello").body == b"hello"


def test_an_application_may_be_included_in_a_page(serve):
    """Several subrequests of one page, in order (addition module)."""
    server = serve(
        Mount("behaviours:application", at="/app"),
        static={"/static/": serve.script("static/file.txt", " middle ").parent},
        nginx_server=(
            f"location /page/ {{ alias {serve.scripts}/static/; add_before_body /app/hello;"
            " add_after_body /app/generated; addition_types text/plain; }"
        ),
    )
    assert server.get("/page/file.txt").body == b"hello middle one two three"


def test_real_client_addresses_come_from_realip(serve):
    server = serve("behaviours:application", nginx_server="set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP;")
    environ = server.get("/environ", {"X-Real-IP": "192.0.2.7"}).json()
    assert environ["REMOTE_ADDR"] == "192.0.2.7"


def test_long_records_are_whole(serve):
    """nginx cuts its own records at 2 KiB; ours are not."""
    script = serve.script(
        "app.wsgi",
        "def application(environ, start_response):\n    raise ValueError('x' * 6000 + ' the end')\n",
    )
    server = serve(Mount(str(script)), shared_interpreter=False)
    assert server.get("/").status == 500
    record = server.expect_log("HB0401")
    assert "x" * 6000 + " the end" in record.text


def test_log_files_are_reopened(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    old = server.directory / "error.old"
    (server.directory / "error.log").rename(old)
    server.signal("reopen")
    assert until(lambda: (server.directory / "error.log").exists())
    time.sleep(0.2)
    assert server.get("/raises").status == 500
    server.expect_log("HB0401")
    assert "HB0401" not in old.read_text()


def test_slow_uploads_are_buffered_before_the_application(serve):
    server = serve("behaviours:application", threads=1)
    with server.connect() as slow:
        slow.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        assert server.get("/hello").body == b"hello", "the one thread is free"
        slow.send(b"cd")
        assert slow.response().body == b"abcd"


def test_a_client_that_stops_reading_is_given_up(serve):
    from support.client import Connection
    from test_response import events

    server = serve("behaviours:application", nginx_server="send_timeout 1s;")
    with Connection(server.port, receive_buffer=4096) as slow:
        slow.request("GET", "/flood?key=stuck")
        assert until(lambda: "close" in events(server, "stuck"), 8)


def test_the_application_decides_for_auth_request(serve):
    """It is asked without the body, and what it says can be handed on."""
    script = serve.script(
        "auth.wsgi",
        "def application(environ, start_response):\n"
        "    allowed = environ.get('HTTP_X_TOKEN') == 'right'\n"
        "    length = environ.get('CONTENT_LENGTH', 'none') + ' ' + str(len(environ['wsgi.input'].read()))\n"
        "    start_response('204 No Content' if allowed else '403 Forbidden', [('X-Auth-User', 'ann'), ('X-Length', length)])\n"
        "    return []\n",
    )
    server = serve(
        Mount(
            "behaviours:application",
            nginx=(
                "auth_request /auth; auth_request_set $auth_user $upstream_http_x_auth_user;"
                " auth_request_set $auth_sent $sent_http_x_auth_user; auth_request_set $auth_length $sent_http_x_length;"
                " wsgi_param AUTH_SENT $auth_sent; wsgi_param AUTH_LENGTH $auth_length;"
            ),
        ),
        nginx_server=f"location = /auth {{ internal; wsgi_pass {script}; }}",
    )
    body = b"x" * 100_000
    assert server.post("/echo", body).status == 403
    assert server.post("/echo", body, {"X-Token": "right"}).body == body
    with server.connect() as connection:
        for _ in range(3):
            connection.request("POST", "/digest", {"X-Token": "right"}, body)
            assert connection.response().json()[0] == len(body)
    environ = server.get("/environ", {"X-Token": "right"}).json()
    assert environ["AUTH_SENT"] == "ann", "the answer's headers are nginx's variables"
    assert environ["AUTH_LENGTH"] == "none 0"
    assert server.get("/auth").status == 404, "internal"
    server.allow_log("access forbidden|auth request unexpected")


def test_try_files_falls_through_to_the_application(serve):
    serve.script("public/file.txt", "a file")
    serve.script("public/directory/index.html", "an index")
    server = serve(
        nginx_server=(
            f"root {serve.scripts}/public; location / {{ try_files $uri $uri/index.html @application; }}"
            "location @application { wsgi_pass behaviours:application; }"
        ),
    )
    assert server.get("/file.txt").body == b"a file"
    assert server.get("/directory/").body == b"an index"
    environ = server.get("/environ/below?a=b").json()
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/environ", "/below", "a=b")
    assert environ["REQUEST_URI"] == "/environ/below?a=b"
    for body in (b"short", b"x" * 200_000):
        assert server.post("/echo", body).body == body
    assert server.request("HEAD", "/hello").status == 200


def test_error_pages_of_nginx_come_from_the_application(serve):
    server = serve(
        Mount("behaviours:application", nginx="error_page 404 = /environ/own;"),
        static={"/static/": serve.script("static/file.txt", "a file").parent},
        nginx_server=(
            "error_page 404 /environ/missing; error_page 403 = @named; error_page 416 /environ/range;"
            "location /closed { deny all; } location /digested { error_page 404 /digest; return 404; }"
            "location @named { wsgi_pass behaviours:application; }"
        ),
    )
    response = server.get("/static/none.txt?a=b")
    environ = json.loads(response.body)
    assert response.status == 404 and environ["PATH_INFO"] == "/missing"
    assert environ["REQUEST_URI"] == "/static/none.txt?a=b", "what the client asked for"
    # nginx makes a GET of a POST, and leaves it its body.
    with server.connect() as connection:
        for body in (b"x" * 500, b"x" * 50_000):
            connection.request("POST", "/digested", body=body)
            response = connection.response()
            assert response.status == 404 and json.loads(response.body)[0] == len(body)
    # But for one that nginx has dropped already, when a filter fails the response.
    for sent in (0, 10):
        with server.connect() as connection:
            connection.request("GET", "/static/file.txt", {"Range": "bytes=100-", "Content-Length": "20"}, b"x" * sent)
            response = connection.read_head()
            connection.read_body(response)
            environ = json.loads(response.body)
            assert response.status == 416 and environ["PATH_INFO"] == "/range"
            assert "CONTENT_LENGTH" not in environ, "nothing of it could be read"
    assert server.get("/closed/hello").status == 500, "no behaviour of that name"
    server.expect_log("HB0401")
    server.allow_log(r"open\(\)|access forbidden|No such file")


def test_an_error_page_that_fails_is_nginx_s_own(serve):
    server = serve("behaviours:application", nginx_server="error_page 500 502 /raises; recursive_error_pages on;")
    response = server.get("/raises")
    assert response.status == 500 and b"nginx" in response.body
    assert server.get("/hello").body == b"hello"
    server.expect_log("HB0401", times=None)
    server.allow_log("rewrite or internal redirection cycle")


def test_requests_may_be_mirrored_to_the_application(serve, key):
    from test_response import events

    server = serve(
        "behaviours:application",
        nginx_server=(
            f"location /mirrored/ {{ mirror /copy; rewrite ^/mirrored/(.*)$ /$1 break; wsgi_pass behaviours:application; }}"
            f"location = /copy {{ internal; wsgi_pass behaviours:application; rewrite ^ /notes_read?key={key} break; }}"
        ),
    )
    body = b"x" * 30_000
    for _ in range(3):
        assert server.post("/mirrored/echo", body).body == body
    assert until(lambda: events(server, key) == ["read 30000"] * 3), events(server, key)


def test_params_are_inherited_unless_there_are_others(serve):
    server = serve(
        "behaviours:application",
        nginx_http="wsgi_param OUTER http; wsgi_param BOTH http;",
        nginx_server="location /own/ { wsgi_pass behaviours:application; wsgi_mount /own; wsgi_param BOTH own; }",
    )
    environ = server.get("/environ").json()
    assert (environ["OUTER"], environ["BOTH"]) == ("http", "http")
    environ = server.get("/own/environ").json()
    assert "OUTER" not in environ and environ["BOTH"] == "own", "as nginx's other lists are inherited: whole or not"
