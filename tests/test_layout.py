"""A module that was built from other headers than the running nginx says so, and crashes nothing."""

import os
import re
import shutil
import subprocess

import pytest

from support.stage import NGINX_MODULE, TESTS

pytestmark = [
    pytest.mark.only("nginx"),
    pytest.mark.no_sanitizer,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not shutil.which("cargo"), reason="cargo is not on PATH"),
]

REQUEST, CORE = "src/http/ngx_http_request.h", "src/http/ngx_http_core_module.h"

# Where a field is added, by a pattern of what stands before it.
IN_TEXT = {
    "headers_in, first": (REQUEST, r"typedef struct \{\s*(?=ngx_list_t +headers;\s*ngx_table_elt_t +\*host;)"),
    "headers_in, last": (REQUEST, r"time_t +keep_alive_n;\s*"),
    "location": (CORE, r"struct ngx_http_core_loc_conf_s \{\s*"),
    "cycle": ("src/core/ngx_cycle.h", r"struct ngx_cycle_s \{\s*"),
}
IN_WORK = {
    "connection": ("src/core/ngx_connection.h", r"struct ngx_connection_s \{\s*"),
    "list of headers": ("src/core/ngx_hash.h", r"typedef struct \{\s*(?=ngx_uint_t +hash;)"),
}


@pytest.fixture(scope="module")
def build(stage):
    """Builds the module from headers with a field added: build(file, pattern) is the module's path."""
    configured = [path.parent for path in stage.build.glob("build/ngx-http-highball-module-*/out/nginx/.configured")]
    if not configured:
        pytest.skip("the module was built with headers from elsewhere (NGINX_BUILD_DIR)")
    headers, target = stage.root / "nginx-headers", TESTS.parent / "target" / "layout"

    def build(file, pattern):
        shutil.rmtree(headers, ignore_errors=True)
        shutil.copytree(max(configured, key=lambda path: path.stat().st_mtime), headers)
        text = (headers / file).read_text()
        changed, count = re.subn(pattern, lambda match: match[0] + "void *added_by_a_test;\n", text)
        assert count == 1, f"{pattern} is in {file} {count} times"
        (headers / file).write_text(changed)
        environment = {**os.environ, "NGINX_SOURCE_DIR": str(headers), "PYO3_PYTHON": stage.python}
        command = ["cargo", "build", "-q", "--locked", "-p", "ngx-http-highball-module", "--target-dir", target]
        subprocess.run(command, cwd=TESTS.parent, env=environment, check=True, timeout=200)
        module = stage.root / "bin" / f"changed-{NGINX_MODULE}"
        shutil.copy2(target / "debug" / NGINX_MODULE, module)
        return module

    return build


def configured_with(server, stage, module):
    text = server.configuration.read_text()
    server.configuration.write_text(text.replace(str(stage.artefact(NGINX_MODULE)), str(module)))


@pytest.mark.parametrize("place", IN_TEXT)
def test_the_configuration_is_refused_where_it_can_be_seen(serve, stage, build, place):
    server = serve.prepare("behaviours:application")
    configured_with(server, stage, build(*IN_TEXT[place]))
    right, said = server.check()
    assert not right and "HB0105" in said and "make clean build" in said, said


@pytest.mark.parametrize("place", IN_WORK)
def test_requests_are_answered_500_where_only_a_worker_sees_it(serve, stage, build, place):
    server = serve.prepare("behaviours:application")
    configured_with(server, stage, build(*IN_WORK[place]))
    serve.servers.append(server)
    server.start()
    server.begin()
    server.log.position = 0
    assert [server.get("/hello").status for _ in range(3)] == [500] * 3
    assert server.expect_log("HB0105").level == "crit"
