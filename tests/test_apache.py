"""What is Apache's own: mod_wsgi's directives, access control, handlers, MPMs."""

import json
import re
from pathlib import Path

import pytest

from support.client import until
from support.server import Mount
from support.stage import COMMAND, TESTS

pytestmark = pytest.mark.only("apache")

HELLO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [%r]
"""

SHOWS_PATHS = """
import json
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["SCRIPT_FILENAME"]]).encode()]
"""

# Answers with the process it runs in.
WHO = """
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""


def not_built():
    source = (TESTS.parent / "src" / "directives.rs").read_text()
    return re.findall(r'"(WSGI\w+)"', source[source.index("NOT_BUILT") : source.index("];", source.index("NOT_BUILT"))])


@pytest.mark.parametrize("name", not_built())
def test_a_directive_that_is_not_built_is_refused_by_name(serve, name):
    right, text = serve.check("hello:application", apache=f"{name} one two")
    assert not right
    assert "HB0102" in text and name in text
    assert "Invalid command" not in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("WSGIScriptReloading Perhaps", ["WSGIScriptReloading", "Perhaps", "On"]),
        ("WSGIPassAuthorization 1", ["WSGIPassAuthorization", "1", "On"]),
        ("WSGIChunkedRequest", ["WSGIChunkedRequest"]),
        ("WSGIRestrictEmbedded maybe", ["WSGIRestrictEmbedded", "maybe"]),
        ("WSGIApplicationGroup blog", ["WSGIApplicationGroup", "blog", "%{GLOBAL}"]),
        ("WSGIScriptAlias /x", ["WSGIScriptAlias"]),
        ("WSGIScriptAlias x /x.wsgi", ["WSGIScriptAlias"]),
        ("WSGIScriptAlias /x /x.wsgi aplication-group=%{GLOBAL}", ["aplication-group", "application-group"]),
        ("WSGIScriptAlias /x /x.wsgi colour=red", ["colour"]),
        ("WSGIScriptAlias /x /x.wsgi process-group=blog", ["WSGIScriptAlias", "blog", "WSGIDaemonProcess"]),
        ("<Directory /x>\nWSGIPythonHome /x\n</Directory>", ["WSGIPythonHome", "not allowed"]),
        ("WSGIPythonHom /x", ["WSGIPythonHom"]),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_sentence(serve, line, said):
    right, text = serve.check("hello:application", apache=line)
    assert not right
    assert re.search(r"line \d+ of|HB0", text), text
    for part in said:
        assert part in text, text


def test_an_alias_may_be_an_expression(serve):
    one = serve.script("one.wsgi", SHOWS_PATHS)
    serve.script("two.wsgi", SHOWS_PATHS)
    server = serve(
        shared_interpreter=False,
        apache=f"WSGIApplicationGroup %{{GLOBAL}}\nWSGIScriptAliasMatch ^/apps/([a-z]+) {one.parent}/$1.wsgi\n",
    )
    for path, script, info in [("/apps/one", "one", ""), ("/apps/two/a/b", "two", "/a/b")]:
        assert server.get(path).json() == [f"/apps/{script}", info, str(one.parent / f"{script}.wsgi")], path
    assert server.get("/apps/").status == 404
    assert server.get("/apps/three").status == 404
    server.expect_log("HB0301")
    assert server.get("/other").status == 404
    right, text = serve.check(apache=f"WSGIScriptAliasMatch ^/( {one}")
    assert not right and "HB0103" in text and "WSGIScriptAliasMatch" in text


def test_an_expression_without_groups_is_loaded_at_start(serve):
    mark = serve.scripts / "mark"
    serve.scripts.chmod(0o777)
    script = serve.script("app.wsgi", f"open({str(mark)!r}, 'w')\n" + HELLO % b"x")
    groups = "process-group=%{GLOBAL} application-group=%{GLOBAL}"
    serve(apache=f"WSGIScriptAliasMatch ^/a+ {script} {groups}", shared_interpreter=False)
    assert until(mark.exists, 5), "no request was needed"


def test_flags_are_read_in_any_case(serve):
    right, text = serve.check("hello:application", apache="WSGIScriptReloading oFF\nWSGIPassAuthorization ON")
    assert right, text


def test_the_module_is_known_as_mod_wsgi(serve):
    right, text = serve.check(
        "hello:application", apache="<IfModule !mod_wsgi.c>\nBroken\n</IfModule>\n<IfModule !wsgi_module>\nBroken\n</IfModule>"
    )
    assert right, text


def test_a_chunked_body_is_411_unless_allowed(serve):
    server = serve("behaviours:application", chunked=False)
    with server.connect() as connection:
        connection.request("POST", "/echo_all", [("Transfer-Encoding", "chunked")], b"5\r\nhello\r\n0\r\n\r\n")
        assert connection.response().status == 411
    assert server.post("/echo", b"hello").body == b"hello"
    server.allow_log("WSGIChunkedRequest|chunked|HB0")


def test_restricted_embedded_starts_no_python_and_answers_500(serve):
    server = serve("hello:application", apache="WSGIRestrictEmbedded On")
    assert server.get("/").status == 500
    record = server.expect_log("HB0309|WSGIRestrictEmbedded", times=None)
    assert "WSGIRestrictEmbedded" in record.text


def test_directory_access_control_is_respected(serve):
    script = serve.script("closed/app.wsgi", HELLO % b"secret")
    server = serve(
        Mount(str(script)), shared_interpreter=False, apache=f"<Directory {script.parent}>\nRequire all denied\n</Directory>"
    )
    assert server.get("/").status == 403
    assert server.get("/x/y").status == 403
    server.expect_log("AH01630", times=None)


def test_location_access_control_is_respected(serve):
    server = serve(
        Mount("behaviours:application", apache='<RequireAll>\nRequire method GET\n</RequireAll>'),
    )
    assert server.get("/hello").body == b"hello"
    assert server.post("/echo", b"x").status == 403
    server.expect_log("AH01630", times=None)


def test_a_handler_needs_execcgi(serve):
    script = serve.script("site/app.wsgi", HELLO % b"handled")
    serve.script("site/page.txt", "a file")
    section = f"Alias /site {script.parent}\n<Directory {script.parent}>\nAddHandler wsgi-script .wsgi\n%s\n</Directory>"
    server = serve(shared_interpreter=False, apache=section % "Options ExecCGI")
    assert server.get("/site/app.wsgi").body == b"handled"
    assert server.get("/site/app.wsgi/more/path").body == b"handled"
    assert server.get("/site/page.txt").body == b"a file"
    refused = serve(shared_interpreter=False, apache=section % "Options None")
    assert refused.get("/site/app.wsgi").status == 403
    refused.expect_log("ExecCGI")


def test_sethandler_runs_scripts_of_any_name(serve):
    script = serve.script("site/anything", HELLO % b"handled")
    server = serve(
        shared_interpreter=False,
        apache=f"Alias /site {script.parent}\n<Directory {script.parent}>\nSetHandler wsgi-script\nOptions ExecCGI\n</Directory>",
    )
    assert server.get("/site/anything").body == b"handled"
    assert server.get("/site/missing").status == 404
    server.allow_log("HB0301|AH00128")


@pytest.fixture
def workers(stage):
    """What process groups need beside the module."""
    stage.artefact(COMMAND), stage.artefact("libhighball_worker.so")


@pytest.mark.usefixtures("workers")
def test_a_handled_script_runs_in_the_group_of_its_section(serve):
    script = serve.script("site/app.wsgi", WHO)
    beside = serve.script("beside/app.wsgi", WHO)
    section = "Alias /%s %s\n<Directory %s>\nAddHandler wsgi-script .wsgi\nOptions ExecCGI\n%s\n</Directory>\n"
    server = serve(
        shared_interpreter=False,
        apache="WSGIDaemonProcess one\nWSGIDaemonProcess two\n"
        + section % ("site", script.parent, script.parent, "WSGIProcessGroup one")
        + section % ("beside", beside.parent, beside.parent, "WSGIProcessGroup two"),
    )
    children = {str(process.pid) for process in server.workers()}
    pids = [server.get(f"/{name}/app.wsgi").body.decode() for name in ("site", "beside", "site")]
    # Links to workers are kept.
    server.note_workers()
    assert pids[0] == pids[2] and pids[0] != pids[1] and not children & set(pids)


@pytest.mark.usefixtures("workers")
def test_sections_name_the_groups_of_aliases(serve):
    """No application group is needed: each has a process of its own."""
    one, two = serve.script("one/app.wsgi", WHO), serve.script("two/app.wsgi", WHO)
    server = serve(
        shared_interpreter=False,
        apache=f"WSGIDaemonProcess one\nWSGIDaemonProcess two\nWSGIScriptAlias /one {one}\nWSGIScriptAlias /two {two}\n"
        + "".join(f"<Directory {path.parent}>\nWSGIProcessGroup {name}\nRequire all granted\n</Directory>\n" for name, path in (("one", one), ("two", two))),
    )
    children = {str(process.pid) for process in server.workers()}
    pids = {server.get(f"/{name}").body.decode() for name in ("one", "two")}
    server.note_workers()
    assert len(pids) == 2 and not children & pids


def test_a_second_handled_script_needs_the_global_group(serve):
    one = serve.script("site/one.wsgi", HELLO % b"one")
    serve.script("site/two.wsgi", HELLO % b"two")
    section = f"Alias /site {one.parent}\n<Directory {one.parent}>\nAddHandler wsgi-script .wsgi\nOptions ExecCGI\n</Directory>\n"
    server = serve(shared_interpreter=False, apache=section)
    assert server.get("/site/one.wsgi").body == b"one"
    assert server.get("/site/two.wsgi").status == 500
    record = server.expect_log("HB0104", times=None)
    assert "two.wsgi" in record.text and "%{GLOBAL}" in record.text
    both = serve(shared_interpreter=False, apache=section + "WSGIApplicationGroup %{GLOBAL}")
    assert both.get("/site/one.wsgi").body == b"one"
    assert both.get("/site/two.wsgi").body == b"two"


def test_an_alias_may_name_a_directory(serve):
    script = serve.script("site/app.wsgi", "import json\ndef application(environ, start_response):\n"
        "    start_response('200 OK', [])\n    return [json.dumps([environ['SCRIPT_NAME'], environ['PATH_INFO']]).encode()]\n")  # fmt: skip
    server = serve(
        shared_interpreter=False,
        apache=f"WSGIScriptAlias /run/ {script.parent}/\nWSGIApplicationGroup %{{GLOBAL}}",
    )
    assert server.get("/run/app.wsgi/x").json() == ["/run/app.wsgi", "/x"]
    assert server.get("/run/missing.wsgi").status == 404
    server.allow_log("HB0301|AH00128|AH00037")


def test_the_first_alias_that_matches_wins(serve):
    one, two = serve.script("one.wsgi", HELLO % b"one"), serve.script("two.wsgi", HELLO % b"two")
    server = serve(
        shared_interpreter=False,
        apache=f"WSGIApplicationGroup %{{GLOBAL}}\nWSGIScriptAlias /a/b {two}\nWSGIScriptAlias /a {one}\nWSGIScriptAlias /a/c {two}",
    )
    assert server.get("/a/b").body == b"two"
    assert server.get("/a/b/x").body == b"two"
    assert server.get("/a/c").body == b"one"
    assert server.get("/a").body == b"one"
    assert server.get("/ab").status == 404
    assert server.get("//a//b").body == b"two", "runs of slashes match one"
    server.allow_log("AH00128")


def test_options_of_an_alias_win_over_directives(serve):
    script = serve.script("app.wsgi", HELLO % b"application" + (HELLO % b"other").replace("application(", "other("))
    server = serve(
        shared_interpreter=False,
        apache=(
            f"WSGIScriptAlias /one {script}\nWSGIScriptAlias /two {script} callable-object=other application-group=%{{GLOBAL}}\n"
            "WSGIApplicationGroup %{GLOBAL}"
        ),
    )
    assert server.get("/one").body == b"application"
    assert server.get("/two").body == b"other"


def test_a_callable_can_be_named_by_directive(serve):
    script = serve.script("app.wsgi", (HELLO % b"other").replace("application", "other"))
    server = serve(Mount(str(script), apache="WSGICallableObject other"), shared_interpreter=False)
    assert server.get("/").body == b"other"


def test_htaccess_may_set_what_mod_wsgi_allows_there(serve):
    script = serve.script("site/app.wsgi", "import json\ndef application(environ, start_response):\n"
        "    start_response('200 OK', [])\n    return [environ.get('HTTP_AUTHORIZATION', 'none').encode()]\n")  # fmt: skip
    server = serve(
        Mount(str(script)),
        shared_interpreter=False,
        apache=f"<Directory {script.parent}>\nAllowOverride FileInfo\n</Directory>",
    )
    basic = {"Authorization": "Basic dTpw"}
    assert server.get("/", basic).body == b"none"
    serve.script("site/.htaccess", "WSGIPassAuthorization On\n")
    assert server.get("/", basic).body == b"Basic dTpw"


def test_accept_path_info_off_refuses_the_rest(serve):
    server = serve(Mount("hello:application", at="/app", apache="AcceptPathInfo Off"))
    assert server.get("/app").body == b"hello"
    assert server.get("/app/rest").status == 404
    server.allow_log("AcceptPathInfo|AH0")


def test_variables_of_other_modules_reach_environ(serve):
    server = serve(
        "behaviours:application",
        apache_modules=("setenvif", "rewrite"),
        apache=(
            'SetEnv PLAIN value\nSetEnvIf User-Agent "^(test)" AGENT=$1\n'
            "RewriteEngine On\nRewriteRule ^ - [E=REWRITTEN:yes]\nSetEnv SERVER_NAME forged\nSetEnv wsgi.input forged"
        ),
    )
    environ = server.get("/environ", {"User-Agent": "test agent"}).json()
    assert environ["PLAIN"] == "value" and environ["AGENT"] == "test" and environ["REWRITTEN"] == "yes"
    assert environ["SERVER_NAME"] == "localhost", "computed values win"
    assert environ["wsgi.input"] != "forged"


def test_cgi_keys_of_apache_are_there(serve):
    server = serve("behaviours:application", apache="ServerAdmin admin@example.org")
    environ = server.get("/environ/x?y=z").json()
    assert environ["SCRIPT_FILENAME"].endswith(".wsgi") and Path(environ["SCRIPT_FILENAME"]).exists()
    assert environ["REQUEST_SCHEME"] == "http"
    assert environ["SERVER_ADMIN"] == "admin@example.org"
    assert "CONTEXT_PREFIX" in environ and "CONTEXT_DOCUMENT_ROOT" in environ
    for absent in ("GATEWAY_INTERFACE", "PATH_TRANSLATED", "SERVER_SIGNATURE", "REMOTE_HOST", "PATH", "HTTPS"):
        assert absent not in environ, absent


def test_https_set_by_the_operator_decides_the_scheme(serve):
    server = serve("behaviours:application", apache_modules=("setenvif",), apache="SetEnvIf X-Proto https HTTPS=on")
    assert server.get("/environ").json()["wsgi.url_scheme"] == "http"
    assert server.get("/environ", {"X-Proto": "https"}).json()["wsgi.url_scheme"] == "https"


def test_internal_redirects_are_told(serve):
    server = serve(
        Mount("behaviours:application", at="/app"),
        apache_modules=("rewrite",),
        apache="RewriteEngine On\nRewriteRule ^/old/(.*)$ /app/environ/$1 [PT]",
    )
    environ = server.get("/old/x?q=1").json()
    assert environ["PATH_INFO"] == "/x" and environ["REQUEST_URI"] == "/old/x?q=1"


def test_responses_pass_through_filters(serve):
    import gzip

    server = serve(
        "behaviours:application", apache_modules=("deflate", "filter", "headers"), apache="SetOutputFilter DEFLATE\nHeader set X-Added yes"
    )
    for path in ("/big?size=100000&list=1", "/big?size=100000", "/generated"):
        response = server.get(path, {"Accept-Encoding": "gzip"})
        assert response.header("Content-Encoding") == "gzip" and response.header("X-Added") == "yes"
        assert gzip.decompress(response.body) == server.get(path).body


def test_request_bodies_pass_through_filters(serve):
    """mod_deflate unpacks it; Content-Length is then that of the packed body."""
    import gzip

    server = serve("behaviours:application", apache_modules=("deflate", "filter"), apache="SetInputFilter DEFLATE")
    body = b"".join(b"%d " % (number * number) for number in range(20_000))
    packed = gzip.compress(body)
    response = server.post("/echo_all", packed, [("Content-Encoding", "gzip")])
    assert response.body == body


@pytest.mark.only("apache-worker", "apache-prefork")
def test_other_mpms_serve_over_reloads(serve, host):
    server = serve("behaviours:application", threads=4)
    environ = server.get("/environ").json()
    assert environ["wsgi.multithread"] is (host == "apache-worker")
    # One process of the worker MPM is all there can be here.
    assert environ["wsgi.multiprocess"] is (host == "apache-prefork")
    for _ in range(2):
        server.reload()
        assert server.get("/hello").body == b"hello"
    assert not server.stop("graceful")


def test_without_an_alias_no_python_starts(serve):
    server = serve(shared_interpreter=False, static={"/static/": serve.script("static/file.txt", "static").parent})
    assert server.get("/static/file.txt").body == b"static"
    mapped = Path(f"/proc/{server.worker().pid}/maps").read_text()
    assert "lib-dynload" not in mapped


def test_a_script_of_both_global_groups_is_loaded_at_start(serve):
    mark = serve.scripts / "mark"
    serve.scripts.chmod(0o777)
    script = serve.script("app.wsgi", f"open({str(mark)!r}, 'w')\n" + HELLO % b"x")
    serve(Mount(str(script)), shared_interpreter=True)
    assert until(mark.exists, 5), "no request was needed"


def test_a_hard_restart_ends_requests_and_serves_again(serve):
    server = serve("behaviours:application")
    assert server.get("/hello").body == b"hello"
    before = server.known_workers
    # The event MPM of a process being ended may find its own poll set closed. It says so.
    server.log.allow("AH03093: process_socket: apr_pollset_add failure for keep alive")
    server.signal("restart")
    assert until(lambda: server.workers() and not {w.pid for w in server.workers()} & before, 15)
    assert until(lambda: server.accepts(), 5)
    assert server.get("/hello").body == b"hello"
    server.note_workers()


def test_virtual_hosts_have_their_own_aliases(serve):
    one, two = serve.script("one.wsgi", HELLO % b"one"), serve.script("two.wsgi", HELLO % b"two")
    server = serve(
        shared_interpreter=False,
        apache=(
            "WSGIApplicationGroup %{GLOBAL}\n"
            f"<VirtualHost *>\nServerName one.example\nWSGIScriptAlias / {one}\n</VirtualHost>\n"
            f"<VirtualHost *>\nServerName two.example\nWSGIScriptAlias / {two}\n</VirtualHost>\n"
        ).replace("*", "127.0.0.1"),
    )
    assert server.get("/", {"Host": "one.example"}).body == b"one"
    assert server.get("/", {"Host": "two.example"}).body == b"two"


SHOWS_ENVIRON = """
import json
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    shown = {key: value for key, value in environ.items() if isinstance(value, str)}
    return [json.dumps({**shown, "body": environ["wsgi.input"].read().decode()}).encode()]
"""


def handled(serve, htaccess, *modules):
    """A directory with a script, files, and settings of its own."""
    script = serve.script("site/app.wsgi", SHOWS_ENVIRON)
    serve.script("site/file.txt", "a file")
    serve.script("site/.htaccess", htaccess)
    return serve(
        shared_interpreter=False,
        apache_modules=modules,
        apache=(
            f"Alias /site {script.parent}\n<Directory {script.parent}>\nAllowOverride All\nAddHandler wsgi-script .wsgi\n"
            "Options ExecCGI FollowSymLinks\n</Directory>"
        ),
    )


def test_rewriting_in_htaccess_leads_to_the_script(serve):
    """As shared hosting does it: what is no file is the application's."""
    server = handled(
        serve,
        "RewriteEngine On\nRewriteBase /site/\nRewriteCond %{REQUEST_FILENAME} !-f\n"
        "RewriteRule ^(.*)$ app.wsgi/$1 [QSA,L,E=REWRITTEN:yes]\n",
        "rewrite",
    )
    assert server.get("/site/file.txt").body == b"a file"
    environ = server.get("/site/some/page?a=b").json()
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/site/app.wsgi", "/some/page", "a=b")
    assert environ["REQUEST_URI"] == "/site/some/page?a=b"
    assert environ["REDIRECT_REWRITTEN"] == "yes" and environ["REDIRECT_URL"] == "/site/some/page"
    for body in (b"short", b"x" * 100_000):
        environ = server.post("/site/form", body).json()
        assert environ["body"] == body.decode() and environ["REQUEST_METHOD"] == "POST"


def test_a_script_may_be_the_index_of_a_directory(serve):
    server = handled(serve, "DirectoryIndex app.wsgi\n", "dir")
    environ = server.get("/site/?a=b").json()
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/site/app.wsgi", "", "a=b")
    assert environ["REQUEST_URI"] == "/site/?a=b"
    assert server.post("/site/", b"a body").json()["body"] == "a body"
    assert server.get("/site").status == 301


def test_a_script_may_take_what_is_not_there(serve):
    server = handled(serve, "FallbackResource /site/app.wsgi\n", "dir")
    assert server.get("/site/file.txt").body == b"a file"
    environ = server.get("/site/none?a=b").json()
    assert environ["SCRIPT_NAME"] == "/site/app.wsgi" and environ["REQUEST_URI"] == "/site/none?a=b"
    assert environ["QUERY_STRING"] == "a=b"
    assert server.post("/site/none", b"a body").json()["body"] == "a body"


def test_a_script_may_be_the_error_document_of_a_directory(serve):
    server = handled(serve, "ErrorDocument 404 /site/app.wsgi\nErrorDocument 403 /site/app.wsgi\n<Files file.txt>\nRequire all denied\n</Files>\n")
    for path, status in (("/site/none", 404), ("/site/file.txt", 403)):
        response = server.post(path + "?a=b", b"dropped")
        assert response.status == status
        environ = json.loads(response.body)
        assert environ["REQUEST_METHOD"] == "GET" and environ["body"] == "" and "CONTENT_LENGTH" not in environ
        assert (environ["REDIRECT_STATUS"], environ["REDIRECT_URL"]) == (str(status), path)
        assert environ["REDIRECT_QUERY_STRING"] == "a=b" and environ["REQUEST_URI"] == path + "?a=b"
    server.allow_log("AH01630|AH00128|AH01276")


def test_access_control_knows_what_a_request_carries(serve):
    server = serve(
        Mount("behaviours:application", at="/app", apache='Require expr "%{HTTP:X-Token} == \'right\'"'),
        Mount("behaviours:application", at="/env", apache="SetEnvIf X-Token right LET_IN\nRequire env LET_IN"),
        Mount("behaviours:application", at="/here", apache="Require ip 192.0.2.0/24"),
        apache_modules=("setenvif", "authz_host"),
    )
    for mount in ("/app", "/env"):
        assert server.get(f"{mount}/hello").status == 403
        assert server.get(f"{mount}/hello", {"X-Token": "right"}).body == b"hello"
    assert server.get("/here/hello").status == 403
    server.expect_log("AH01630", times=None)


def test_request_headers_set_by_the_server_reach_environ(serve):
    server = serve(
        Mount("behaviours:application", apache="SetEnv PLACE location"),
        apache_modules=("headers",),
        apache='RequestHeader set X-Set "by the server"\nRequestHeader unset X-Unset\nRequestHeader append X-More two\nSetEnv GONE x\nUnsetEnv GONE',
    )
    environ = server.get("/environ", {"X-Set": "by the client", "X-Unset": "x", "X-More": "one"}).json()
    assert environ["HTTP_X_SET"] == "by the server" and "HTTP_X_UNSET" not in environ and environ["HTTP_X_MORE"] == "one, two"
    assert environ["PLACE"] == "location" and "GONE" not in environ
