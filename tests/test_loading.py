"""Finding and loading the application, and what is said when that fails."""

import os
import shutil
import time
from pathlib import Path

import pytest

from support.client import until
from support.server import Mount
from test_errors import whole

HELLO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [%r]
"""


@pytest.mark.parametrize(
    "target", ["hello:application", "hello:make()", "hello:Site()", "hello:site.application", "hello:site"]
)
def test_an_application_is_named_in_several_ways(serve, target):
    if serve.host == "apache" and target == "hello:site.application":
        pytest.skip("a script imports names, not paths of names")
    assert serve(target, shared_interpreter=False).get("/").body == b"hello"


@pytest.mark.parametrize("name", ["app.wsgi", "app.py", "my-site.wsgi", "with space.wsgi", "noextension", "ünï.wsgi"])
def test_a_script_may_have_any_name(serve, name):
    if serve.host == "apache" and " " in name:
        pytest.skip("quoting is Apache's own")
    script = serve.script(name, HELLO % b"from a script")
    assert serve(Mount(str(script)), shared_interpreter=False).get("/").body == b"from a script"


def test_a_script_may_name_its_callable(serve):
    script = serve.script("app.wsgi", (HELLO % b"named").replace("application", "main"))
    assert serve(Mount(f"{script}:main"), shared_interpreter=False).get("/").body == b"named"


def test_a_script_knows_its_file_and_is_not_main(serve):
    script = serve.script("app.wsgi", "seen = __file__, __name__\n" + HELLO.replace("%r", "repr(seen).encode()"))
    body = serve(Mount(str(script)), shared_interpreter=False).get("/").body.decode()
    assert str(script) in body and "__main__" not in body


def test_two_scripts_of_one_name_are_two(serve):
    one = serve.script("one/app.wsgi", HELLO % b"one")
    two = serve.script("two/app.wsgi", HELLO % b"two")
    server = serve(Mount(str(one), at="/one"), Mount(str(two), at="/two"))
    assert (server.get("/one").body, server.get("/two").body) == (b"one", b"two")


def rewrite(script, text):
    """A new file with another time, as editors and deployments leave it."""
    new = script.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o644)
    stamp = time.time() + 2 + (script.stat().st_mtime - time.time() if script.stat().st_mtime > time.time() else 0)
    os.utime(new, (stamp, stamp))
    new.rename(script)


def test_a_changed_script_is_loaded_again_within_a_second_or_so(serve):
    script = serve.script("app.wsgi", HELLO % b"old")
    server = serve(Mount(str(script)), shared_interpreter=False)
    assert server.get("/").body == b"old"
    rewrite(script, HELLO % b"new")
    assert until(lambda: server.get("/").body == b"new", 3)
    rewrite(script, "this is ( no python")
    assert until(lambda: server.get("/").status == 500, 3)
    whole(server.expect_log("HB0304", times=None), str(script))
    rewrite(script, HELLO % b"mended")
    assert until(lambda: server.get("/").body == b"mended", 3)


def test_a_changed_script_stays_when_reloading_is_off(serve):
    script = serve.script("app.wsgi", HELLO % b"old")
    server = serve(Mount(str(script), script_reloading=False), shared_interpreter=False)
    assert server.get("/").body == b"old"
    rewrite(script, HELLO % b"new")
    time.sleep(1.2)
    assert server.get("/").body == b"old"


# Failures


def failing(serve, mount, code, *parts, status=500, **options):
    """Starts a server whose application cannot be loaded; it answers, says why once, and serves the rest."""
    static = serve.script("static/file.txt", "static")
    options.setdefault("shared_interpreter", False)
    server = serve(mount, static={"/static/": static.parent}, **options)
    for _ in range(3):
        response = server.get("/")
        assert response.status == status, response.body
        assert b"Traceback" not in response.body
    record = server.expect_log(rf"^(?:{code}) ", times=None)
    whole(record, *parts)
    # nginx and Apache say at configuration time what can be seen then.
    server.allow_log(code)
    assert server.get("/static/file.txt").body == b"static"
    return server, record


def test_a_missing_module_is_named(serve):
    script = serve.script("app.wsgi", "import no_such_package_anywhere\n")
    _, record = failing(serve, Mount(str(script)), "HB0303", "no_such_package_anywhere", "Traceback", str(script))
    assert "venv" in record.text, "says which environment was searched"


@pytest.mark.only("nginx")
def test_a_missing_application_module_is_named(serve):
    failing(serve, Mount("no_such_module:app"), "HB0303", "no_such_module", "no_such_module:app")


def test_a_syntax_error_is_shown_with_its_line(serve):
    script = serve.script("app.wsgi", "x = 1\ndef broken(:\n    pass\n")
    failing(serve, Mount(str(script)), "HB0304", str(script), "line 2", "def broken(:")


def test_an_exception_at_import_is_shown(serve):
    script = serve.script("app.wsgi", "raise ValueError('no settings')\n")
    failing(serve, Mount(str(script)), "HB0305", "ValueError", "no settings", str(script), "Traceback")


def test_an_exit_at_import_does_not_end_the_server(serve):
    script = serve.script("app.wsgi", "import sys\nsys.exit(3)\n")
    server, _ = failing(serve, Mount(str(script)), "HB0305|HB0409", "SystemExit")
    assert server.alive


def test_a_missing_callable_is_named_with_what_is_there(serve):
    script = serve.script("app.wsgi", HELLO.replace("application", "app") % b"x")
    failing(serve, Mount(str(script)), "HB0306", '"application"', "app")


def test_a_callable_that_is_none_is_refused(serve):
    script = serve.script("app.wsgi", "application = 5\n")
    failing(serve, Mount(str(script)), "HB0307", "int")


def test_a_missing_script_is_named(serve):
    missing = serve.scripts / "missing.wsgi"
    status = 500 if serve.host == "nginx" else 404
    failing(serve, Mount(str(missing)), "HB0301", str(missing), status=status)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs workers of another user")
def test_an_unreadable_script_is_named_with_the_remedy(serve):
    script = serve.script("app.wsgi", HELLO % b"x")
    script.chmod(0o600)
    failing(serve, Mount(str(script)), "HB0302", str(script), "chmod")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs workers of another user")
@pytest.mark.only("nginx")
def test_a_script_behind_a_closed_directory_names_the_directory(serve):
    script = serve.script("closed/deep/app.wsgi", HELLO % b"x")
    closed = script.parent.parent
    closed.chmod(0o700)
    failing(serve, Mount(str(script)), "HB0302", str(closed), "chmod o+x")


def failing_home(serve, home, code, *parts):
    script = serve.script("app.wsgi", HELLO % b"x")
    server, record = failing(serve, Mount(str(script)), code, str(home), *parts, home=home, path=[])
    server.allow_log("HB0309")
    critical = [found for found in server.log.matching(rf"^{code} ") if found.level == "crit"]
    assert len(critical) == 1, "no request can be served, which is said once"
    return server


def test_a_missing_home_is_said_once_and_answers_500(serve):
    server = failing_home(serve, serve.scripts / "no-venv", "HB0201", "does not exist")
    assert server.alive


def test_a_home_that_is_no_environment_is_refused(serve):
    home = serve.scripts / "plain"
    home.mkdir()
    failing_home(serve, home, "HB0203", "-m venv")


def test_an_environment_of_another_python_is_refused(serve, stage):
    home = serve.scripts / "venv"
    shutil.copytree(stage.venv, home, symlinks=True, ignore=shutil.ignore_patterns("site-packages"))
    config = (home / "pyvenv.cfg").read_text()
    lines = ["version = 3.7.2" if line.startswith("version") else line for line in config.splitlines()]
    (home / "pyvenv.cfg").write_text("\n".join(lines) + "\n")
    failing_home(serve, home, "HB0203", "3.7")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs workers of another user")
def test_a_home_the_workers_cannot_enter_names_the_closed_directory(serve, stage):
    closed = serve.scripts / "closed"
    home = closed / "venv"
    home.parent.mkdir()
    shutil.copytree(stage.venv, home, symlinks=True, ignore=shutil.ignore_patterns("site-packages"))
    closed.chmod(0o700)
    failing_home(serve, home, "HB0202", f'"{closed}"', "chmod o+x")


def test_an_environment_whose_base_is_gone_is_refused(serve, stage):
    home = serve.scripts / "venv"
    shutil.copytree(stage.venv, home, symlinks=True, ignore=shutil.ignore_patterns("site-packages"))
    config = (home / "pyvenv.cfg").read_text()
    lines = ["home = /nonexistent/python/bin" if line.startswith("home") else line for line in config.splitlines()]
    (home / "pyvenv.cfg").write_text("\n".join(lines) + "\n")
    for link in (home / "bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nonexistent/python/bin/python3")
    failing_home(serve, home, "HB0201", "-m venv")


def test_one_broken_application_leaves_the_others(serve):
    broken = serve.script("broken.wsgi", "import no_such_package_anywhere\n")
    server = serve(Mount("hello:application", at="/good"), Mount(str(broken), at="/broken"))
    assert server.get("/broken").status == 500
    assert server.get("/good").body == b"hello"
    server.expect_log("HB0303", times=None)


def test_a_failed_import_is_tried_again_when_the_script_changes(serve):
    script = serve.script("app.wsgi", "import no_such_package_anywhere\n")
    server = serve(Mount(str(script)), shared_interpreter=False)
    assert server.get("/").status == 500
    server.expect_log("HB0303", times=None)
    rewrite(script, HELLO % b"mended")
    assert until(lambda: server.get("/").body == b"mended")


def test_a_second_application_in_one_interpreter_is_refused_at_configuration(serve):
    one = serve.script("one.wsgi", HELLO % b"one")
    two = serve.script("two.wsgi", HELLO % b"two")
    right, text = serve.check(Mount(str(one), at="/one"), Mount(str(two), at="/two"), shared_interpreter=False)
    assert not right
    assert "HB0104" in text and str(one) in text and str(two) in text
    assert ("wsgi_application_group global" if serve.host == "nginx" else "%{GLOBAL}") in text, "names the remedy"


def test_one_application_may_be_mounted_twice(serve):
    script = serve.script("one.wsgi", HELLO % b"one")
    server = serve(Mount(str(script), at="/a"), Mount(str(script), at="/b"), shared_interpreter=False)
    assert server.get("/a").body == server.get("/b").body == b"one"


def test_the_configuration_test_starts_no_python(serve):
    mark = Path(serve.scripts) / "mark"
    serve.scripts.chmod(0o777)
    script = serve.script("app.wsgi", f"open({str(mark)!r}, 'w')\n" + HELLO % b"x")
    right, text = serve.check(Mount(str(script)), shared_interpreter=False)
    assert right, text
    assert not mark.exists()
    assert serve(Mount(str(script)), shared_interpreter=False).get("/").body == b"x"
    assert mark.exists()
