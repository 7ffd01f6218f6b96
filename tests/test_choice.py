"""The process group chosen for each request, by an nginx variable or a variable of Apache's, and the list of those it may be."""

import os
import time
from pathlib import Path

import pytest

from support.client import until
from support.load import Load
from support.server import Mount

pytestmark = pytest.mark.only("nginx-group", "apache-group")

WHO = """
import json, os

def application(environ, start_response):
    body = environ["wsgi.input"].read()
    title = open("/proc/self/cmdline").read().rstrip(chr(0))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "title": title, "body": len(body)}).encode()]
"""

# Groups are "site", which every test's server has, and "other"; the header X-Group names one, and "site" is what is without.
NGINX = """wsgi_daemon_process other threads=4 "display-name=%{GROUP}"; map $http_x_group $group { '' site; default $http_x_group; }"""
APACHE = 'WSGIDaemonProcess other threads=4 display-name=%{GROUP}\nSetEnvIf Host ^ GROUP=site\nSetEnvIf X-Group "^(.+)$" GROUP=$1'


def options(lists="", nginx="", apache="", **more):
    """For `serve`, with both groups, and what may be chosen in `lists`, as Apache has it."""
    nginx_list = f"wsgi_restrict_process {lists.replace('%{GLOBAL}', 'off')};" if lists else ""
    return {
        "group": '"display-name=%{GROUP}"',
        "nginx_http": f"{NGINX}\n{nginx_list}\n{nginx}",
        "apache_modules": ("setenvif", "rewrite"),
        "apache": f"{APACHE}\n{f'WSGIRestrictProcess {lists}' if lists else ''}\n{apache}",
        **more,
    }


def chosen(target, at="/"):
    return Mount(str(target), at, nginx="wsgi_process_group $group;", apache="WSGIProcessGroup %{ENV:GROUP}")


def ask(server, group=None, path="/"):
    headers = {} if group is None else {"X-Group": group}
    response = server.get(path, headers)
    assert response.status == 200, response
    return response.json()


@pytest.fixture
def server(serve):
    return serve(chosen(serve.script("app.wsgi", WHO)), **options())


# Which group.


def test_each_request_goes_to_the_group_its_header_chooses(server):
    answers = [ask(server, group) for group in (None, "other", "site", "other", None)]
    assert [answer["title"] for answer in answers] == ["(wsgi:site)", "(wsgi:other)", "(wsgi:site)", "(wsgi:other)", "(wsgi:site)"]
    assert {answers[0]["pid"]} == server.groups.pids() and {answers[1]["pid"]} == server.groups.pids("serving", "other")
    assert len({answer["pid"] for answer in answers}) == 2


def test_a_body_goes_to_the_chosen_group(server):
    response = server.post("/", b"x" * 300_000, {"X-Group": "other"})
    assert response.json()["title"] == "(wsgi:other)" and response.json()["body"] == 300_000


@pytest.mark.only("nginx-group")
def test_a_module_may_be_chosen_for_and_so_may_a_part_of_a_name(serve):
    mount = Mount("behaviours:application", nginx="wsgi_process_group oth$arg_rest;")
    path = f"python-path={serve.stage.apps}"
    server = serve(mount, **options(nginx=f"wsgi_daemon_process others {path};"))
    pids = {server.get(f"/python?rest={rest}").json()["pid"] for rest in ("ers", "ers")}
    assert pids == server.groups.pids("serving", "others")


@pytest.mark.only("apache-group")
def test_an_alias_names_a_variable_that_a_rewrite_rule_sets(serve):
    script = serve.script("app.wsgi", WHO)
    more = f"WSGIScriptAlias /alias {script} process-group=%{{ENV:REWRITTEN}}\nRewriteEngine On\nRewriteRule ^/alias/(other|site) - [E=REWRITTEN:$1]"
    server = serve(Mount(str(script), at="/app"), **options(apache=more))
    assert ask(server, path="/alias/other")["title"] == "(wsgi:other)"
    assert ask(server, path="/alias/site")["title"] == "(wsgi:site)"


@pytest.mark.only("apache-group")
def test_the_environment_of_the_server_is_looked_at_last(serve):
    mount = Mount(str(serve.script("app.wsgi", WHO)), apache="WSGIProcessGroup %{ENV:TEST_GROUP}")
    server = serve(mount, environment={"TEST_GROUP": "other"}, **options(apache="SetEnvIf X-Set ^1 TEST_GROUP=site"))
    assert ask(server)["title"] == "(wsgi:other)"
    assert server.get("/", {"X-Set": "1"}).json()["title"] == "(wsgi:site)"


@pytest.mark.only("apache-group")
def test_a_note_is_looked_at_first(serve):
    """A module's, here one in Lua."""
    note = serve.script("note.lua", "function note(r)\n if r.headers_in['X-Note'] then r.notes['GROUP'] = r.headers_in['X-Note'] end\n return apache2.OK\nend\n")
    more = options("site other", apache=f"LuaHookFixups {note} note")
    server = serve(chosen(serve.script("app.wsgi", WHO)), **{**more, "apache_modules": ("setenvif", "lua")})
    assert server.get("/", {"X-Group": "other", "X-Note": "site"}).json()["title"] == "(wsgi:site)"
    assert server.get("/", {"X-Group": "site", "X-Note": "other"}).json()["title"] == "(wsgi:other)"
    assert ask(server, "other")["title"] == "(wsgi:other)"
    assert server.get("/", {"X-Note": "%{GLOBAL}"}).status == 500
    server.expect_log("HB0313")


@pytest.mark.only("apache-group")
def test_an_application_does_not_change_the_environment_that_chooses(serve):
    """One inside the server's own processes has the same environment, and may set what it likes there."""
    script = serve.script("app.wsgi", WHO.replace("body =", "os.environ['TEST_GROUP'] = 'other'; body ="))
    mount = Mount(str(script), apache="WSGIProcessGroup %{ENV:TEST_GROUP}")
    server = serve(mount, environment={"TEST_GROUP": "%{GLOBAL}"}, **options())
    own = {process.pid for process in server.workers()}
    assert {ask(server)["pid"] for _ in range(3)} == own


@pytest.mark.only("apache-group")
def test_the_index_of_a_directory_goes_where_its_alias_says(serve):
    """mod_dir takes over what a subrequest has found."""
    script = serve.script("app.wsgi", WHO)
    directory = serve.stage.directory("indexed")
    directory.chmod(0o755)
    more = f"""WSGIScriptAlias /fixed {script} process-group=other application-group=%{{GLOBAL}}
WSGIScriptAlias /chosen {script} process-group=%{{ENV:GROUP}} application-group=%{{GLOBAL}}
<Location /chosen>
WSGIRestrictProcess site
</Location>
Alias /of-fixed {directory}
Alias /of-chosen {directory}
<Location /of-fixed>
DirectoryIndex /fixed
</Location>
<Location /of-chosen>
DirectoryIndex /chosen
</Location>"""
    server = serve(Mount(str(script), at="/app"), **{**options(apache=more), "apache_modules": ("setenvif", "dir")})
    assert ask(server, path="/of-fixed/")["title"] == "(wsgi:other)"
    assert ask(server, path="/of-chosen/")["title"] == "(wsgi:site)"
    assert server.get("/of-chosen/", {"X-Group": "other"}).status == 500
    server.expect_log("HB0313")


# The server's own processes.


def threads(pid):
    return [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]


def test_global_off_and_nothing_are_the_server_s_own_processes(serve):
    """Python starts there with the first request that chooses it."""
    script = serve.script("app.wsgi", WHO)
    nothing = Mount(str(script), "/nothing", nginx="wsgi_process_group $arg_nothing;")
    section = '<Location /nothing>\nSetEnv NOTHING ""\nWSGIProcessGroup %{ENV:NOTHING}\n</Location>'
    server = serve(chosen(script), nothing, **options(apache=section))
    word = {"nginx": "off", "apache": "%{GLOBAL}"}[server.host]
    assert ask(server)["title"] == "(wsgi:site)"
    own = {process.pid for process in server.workers()}
    assert not [name for pid in own for name in threads(pid) if name.startswith("wsgi-")], "nginx has no threads for Python yet"
    for path in ("/", "/", "/nothing"):
        assert ask(server, word if path == "/" else None, path)["pid"] in own
    assert ask(server, "other")["title"] == "(wsgi:other)"
    server.note_workers()


def test_a_list_without_them_keeps_requests_out_of_the_server_s_own_processes(serve):
    server = serve(chosen(serve.script("app.wsgi", WHO)), **options("site other"))
    word = {"nginx": "off", "apache": "%{GLOBAL}"}[server.host]
    assert server.get("/", {"X-Group": word}).status == 500
    assert "the server's own processes" in server.expect_log("HB0313").text
    assert ask(server, "other")["title"] == "(wsgi:other)"


@pytest.mark.only("apache-group")
def test_restrict_embedded_holds_for_what_is_chosen(serve):
    server = serve(chosen(serve.script("app.wsgi", WHO)), **options(apache="WSGIRestrictEmbedded On"))
    assert server.get("/", {"X-Group": "%{GLOBAL}"}).status == 500
    server.expect_log("HB0309.*WSGIRestrictEmbedded")
    assert ask(server, "other")["title"] == "(wsgi:other)"


# What is wrong at a request.


def test_a_group_that_nobody_declares_is_500_with_one_record(server):
    assert server.get("/", {"X-Group": "othr"}).status == 500
    record = server.expect_log("HB0312").text
    assert '"othr"' in record and 'did you mean "other"' in record and "status 500" in record
    assert ask(server, "other")["title"] == "(wsgi:other)"


def test_what_cannot_be_a_name_is_not_written_to_the_log(server):
    for value in ("Basic dTpw", "a/../b", "x" * 65, "%{SERVER}", "%{ENV:GROUP}", "\xe4\xff"):
        assert server.get("/", {"X-Group": value}).status == 500
        assert value not in "".join(record.text for record in server.log.matching("HB0312"))
    assert "(2 bytes)" in server.log.matching("HB0312")[-1].text
    server.expect_log("HB0312.*bytes", times=6)
    assert ask(server)["title"] == "(wsgi:site)"


@pytest.mark.only("apache-group")
def test_a_variable_that_is_not_set_is_500(serve):
    server = serve(Mount(str(serve.script("app.wsgi", WHO)), apache="WSGIProcessGroup %{ENV:NOWHERE}"), **options())
    assert server.get("/").status == 500
    record = server.expect_log("HB0312").text
    assert '"NOWHERE"' in record and "SetEnvIf" in record


def test_a_group_outside_the_list_is_500_with_one_record(serve):
    server = serve(chosen(serve.script("app.wsgi", WHO)), **options("site"))
    assert ask(server)["title"] == "(wsgi:site)"
    assert server.get("/", {"X-Group": "other"}).status == 500
    record = server.expect_log("HB0313").text
    assert '"other"' in record and '"site"' in record
    assert "restrict_process" in record.lower() or "RestrictProcess" in record


def test_the_nearest_list_holds(serve):
    script = serve.script("app.wsgi", WHO)
    inner = Mount(
        str(script), "/inner",
        nginx="wsgi_process_group $group; wsgi_restrict_process other;",
        apache="WSGIProcessGroup %{ENV:GROUP}\nWSGIRestrictProcess other",
    )  # fmt: skip
    server = serve(chosen(script), inner, **options("site"))
    assert ask(server, "other", "/inner")["title"] == "(wsgi:other)"
    assert server.get("/inner", {"X-Group": "site"}).status == 500
    assert ask(server, "site")["title"] == "(wsgi:site)"
    server.expect_log("HB0313")


@pytest.mark.only("apache-group")
def test_the_last_list_of_a_section_holds(serve):
    """As with mod_wsgi: a list that is written again is not a longer one."""
    mount = Mount(str(serve.script("app.wsgi", WHO)), apache="WSGIProcessGroup %{ENV:GROUP}\nWSGIRestrictProcess site\nWSGIRestrictProcess other")
    server = serve(mount, **options())
    assert ask(server, "other")["title"] == "(wsgi:other)"
    assert server.get("/", {"X-Group": "site"}).status == 500
    server.expect_log("HB0313")


@pytest.mark.only("apache-group")
def test_a_fixed_group_outside_the_list_is_500(serve):
    server = serve(str(serve.script("app.wsgi", WHO)), **options("other"))
    assert server.get("/").status == 500
    server.expect_log("HB0313")


# The groups.


def test_a_group_serves_that_cannot_import_what_it_may_be_chosen_for(serve):
    script = serve.script("app.wsgi", "import os\nos.environ['ONLY_IN_SITE']\n" + WHO)
    more = options()
    server = serve(chosen(script), **{**more, "group": more["group"] + " environ=ONLY_IN_SITE=1"})
    assert ask(server)["title"] == "(wsgi:site)"
    assert until(lambda: len(server.groups.pids("serving", "other")) == 1, 10)
    assert "ONLY_IN_SITE" not in server.log.text()
    assert server.get("/", {"X-Group": "other"}).status == 500
    server.expect_log("HB0305.*ONLY_IN_SITE", times=None)
    server.allow_log("HB0305")
    assert ask(server)["title"] == "(wsgi:site)"
    assert server.groups.ask("reload", "other").returncode == 0


def test_reloads_lose_nothing_in_any_of_the_groups(server):
    ask(server), ask(server, "other")

    class Chosen(Load):
        def ask(self, kept):
            group = ("site", "other")[self.count % 2]
            response = self.server.get(self.path, {"X-Group": group})
            assert response.json()["title"] == f"(wsgi:{group})"
            return response, None

    before = {group: server.groups.pids("serving", group) for group in ("site", "other")}
    with Chosen(server, "/", expected=None) as load:
        for _ in range(2):
            server.reload()
        assert {group: server.groups.pids("serving", group) for group in before} == before
        assert server.groups.ask("reload", "other").returncode == 0
        load.reach(40)
    assert not load.failures, load.failures[:3]
    assert server.groups.pids() == before["site"] and not before["other"] & server.groups.pids("serving", "other")


def test_a_script_that_has_changed_is_loaded_again_where_it_was_chosen(serve):
    script = serve.script("app.wsgi", WHO)
    server = serve(chosen(script), **options())
    assert "new" not in ask(server, "other")
    script.write_text(WHO.replace('{"pid"', '{"new": 1, "pid"'))
    os.utime(script, (time.time() + 5, time.time() + 5))
    for group in ("other", "site"):
        assert until(lambda: "new" in ask(server, group), 15), group


def test_a_group_that_is_declared_with_a_reload_may_be_chosen_then(serve):
    server = serve(chosen(serve.script("app.wsgi", WHO)), **options())
    assert server.get("/", {"X-Group": "third"}).status == 500
    server.expect_log("HB0312")
    text = server.configuration.read_text()
    line = {"nginx": ("wsgi_daemon_process other", ";"), "apache": ("WSGIDaemonProcess other", "\n")}[server.host]
    server.configuration.write_text(text.replace(line[0], f"{line[0].replace('other', 'third')} \"display-name=%{{GROUP}}\"{line[1]}{line[0]}", 1))
    server.reload()
    assert ask(server, "third")["title"] == "(wsgi:third)"


# Configuration.


def test_two_applications_that_may_meet_in_a_group_have_to_say_so(serve):
    one, two = serve.script("one.wsgi", WHO), serve.script("two.wsgi", WHO)
    mounts = [chosen(one, "/one"), chosen(two, "/two")] if serve.host == "nginx-group" else []
    aliases = "".join(f"WSGIScriptAlias /{script.stem} {script} process-group=%{{ENV:GROUP}}%s\n" for script in (one, two))
    for lists in ("", "other", "site other"):
        right, text = serve.check(*mounts, **options(lists, apache=aliases.replace("%s", ""), shared_interpreter=False))
        assert not right and "HB0104" in text and "restrict" in text.lower(), text
    right, text = serve.check(*mounts, **options(apache=aliases.replace("%s", " application-group=%{GLOBAL}")))
    assert right, text


def test_lists_keep_two_applications_apart(serve):
    scripts = serve.script("site.wsgi", WHO), serve.script("other.wsgi", WHO)
    mounts, hosts = [], ""
    if serve.host == "nginx-group":
        line = "wsgi_process_group $group; wsgi_restrict_process {};"
        mounts = [Mount(str(script), f"/{script.stem}", nginx=line.format(script.stem)) for script in scripts]
    for script in scripts:
        alias = f"WSGIScriptAlias / {script} process-group=%{{ENV:GROUP}}"
        hosts += f"<VirtualHost *>\nServerName {script.stem}\n{alias}\nWSGIRestrictProcess {script.stem}\n</VirtualHost>\n"
    right, text = serve.check(*mounts, **options(apache=hosts, shared_interpreter=False))
    assert right, text


@pytest.mark.only("apache-group")
def test_a_list_in_a_section_that_is_longer_does_not_keep_two_apart(serve):
    hosts = ""
    for script in (serve.script("site.wsgi", WHO), serve.script("other.wsgi", WHO)):
        alias = f"WSGIScriptAlias / {script} process-group=%{{ENV:GROUP}}\nWSGIRestrictProcess {script.stem}"
        section = "<Location /more>\nWSGIRestrictProcess %s\n</Location>"
        hosts += f"<VirtualHost *>\nServerName {script.stem}\n{alias}\n{section}\n</VirtualHost>\n"
    for names in ("site other", "site"):
        right, text = serve.check(**options(apache=hosts.replace("%s", names), shared_interpreter=False))
        assert not right and "HB0104" in text and "section" in text, text


@pytest.mark.only("apache-group")
def test_a_section_that_names_a_group_says_nothing_of_aliases_that_do(serve):
    one, two = serve.script("one.wsgi", WHO), serve.script("two.wsgi", WHO)
    aliases = "".join(f"WSGIScriptAlias /{script.stem} {script} process-group=%{{ENV:GROUP}}\n" for script in (one, two))
    section = "<Location /three>\nWSGIProcessGroup other\n%s</Location>\n"
    right, text = serve.check(**options(apache=aliases + section % "", shared_interpreter=False))
    assert not right and "HB0104" in text, text
    right, text = serve.check(**options(apache=aliases + section % "WSGIApplicationGroup %{GLOBAL}\n", shared_interpreter=False))
    assert right, text
    right, text = serve.check(**options(apache=aliases.replace(" process-group=%{ENV:GROUP}", "") + section % "", shared_interpreter=False))
    assert right, text


@pytest.mark.only("apache-group")
def test_an_application_that_may_run_in_the_server_s_own_processes_meets_those_that_do(serve):
    """A client could choose them for the one and so keep the other out, for as long as the process lives."""
    one, two = serve.script("one.wsgi", WHO), serve.script("two.wsgi", WHO)
    aliases = f"WSGIScriptAlias /one {one} process-group=%{{ENV:GROUP}}\nWSGIScriptAlias /two {two} process-group=TWO\n"

    def check(group, lists, more=""):
        return serve.check(**options(lists, apache=aliases.replace("TWO", group) + more, shared_interpreter=False))

    for group, lists in (("%{GLOBAL}", ""), ("%{GLOBAL}", "site %{GLOBAL}"), ("%{ENV:GROUP}", "%{GLOBAL}")):
        right, text = check(group, lists)
        assert not right and "HB0104" in text, text
    for lists, more in (("site other", ""), ("", "WSGIRestrictEmbedded On\n")):
        right, text = check("%{GLOBAL}", lists, more)
        assert right, text


@pytest.mark.parametrize("inside", [False, True])
def test_a_list_names_declared_groups(serve, inside):
    mount = chosen(serve.script("app.wsgi", WHO))
    if inside:
        mount.nginx += " wsgi_restrict_process site othr;"
        mount.apache += "\nWSGIRestrictProcess site othr"
    right, text = serve.check(mount, **options("" if inside else "site othr"))
    assert not right and "HB0103" in text and 'did you mean "other"' in text, text


@pytest.mark.only("nginx-group")
def test_a_fixed_group_outside_the_list_is_refused(serve):
    script = str(serve.script("app.wsgi", WHO))
    for group in ("", "wsgi_process_group off;"):
        right, text = serve.check(Mount(script, nginx=group), **options("other"))
        assert not right and "HB0313" in text and "wsgi_restrict_process" in text, text


@pytest.mark.only("nginx-group")
def test_no_group_is_called_off(serve):
    right, text = serve.check(chosen(serve.script("app.wsgi", WHO)), **options(nginx="wsgi_daemon_process off;"))
    assert not right and "HB0103" in text and "wsgi_process_group" in text, text


@pytest.mark.only("nginx-group")
def test_a_variable_that_nginx_does_not_know_is_refused(serve):
    right, text = serve.check(Mount(str(serve.script("app.wsgi", WHO)), nginx="wsgi_process_group $nowhere;"), **options())
    assert not right and '"nowhere"' in text, text


@pytest.mark.only("apache-group")
@pytest.mark.parametrize("value", ["%{SERVER}", "%{HOST}", "%{RESOURCE}", "%{ENV:}", "%{ENV:X"])
def test_other_ways_to_choose_are_refused(serve, value):
    right, text = serve.check(Mount(str(serve.script("app.wsgi", WHO)), apache=f"WSGIProcessGroup {value}"), **options())
    assert not right and "HB0102" in text and "%{ENV:name}" in text, text


def test_a_configuration_without_groups_has_none_to_choose(serve):
    script = serve.script("app.wsgi", WHO)
    server = serve.prepare(chosen(script))
    server.grouped = False
    server.site.nginx_http = "map $http_x_group $group { default $http_x_group; }"
    server.configuration.write_text(server.configure())
    right, text = server.check()
    if server.host == "nginx":
        assert not right and "HB0103" in text and "none is declared" in text, text
    else:
        assert right, "as with mod_wsgi, a variable may always say %{GLOBAL}"
