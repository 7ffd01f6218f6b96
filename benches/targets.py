"""The servers that are compared: how each is set up for a workload."""

import signal
import socket
from pathlib import Path

import configuration
from server import Server
from workloads import OURS

APACHE_MODULES = Path("/usr/lib/apache2/modules")


def names(workload, peers):
    """Who is measured with a workload, controls first."""
    without = [name for name, _ in workload.without]
    return [*workload.controls, *OURS, *(peer for peer in peers if peer not in without)]


def target(name, workload, stage):
    place = stage.directory / workload.name / name.replace(" ", "-")
    place.mkdir(parents=True)
    static = f"/{workload.static}" if name in ("nginx static", "Apache static") else None
    server = Server(name, place, free_port(), static or workload.path, workload)
    SETUPS[name](server, stage)
    return server


def nginx(server, stage, location, main="", http="", workers=1):
    text = configuration.NGINX.format(
        place=server.place, port=server.port, workers=workers, location=location, main=main, http=http,
        user=f"user {stage.user.pw_name};" if stage.user else "",
    )  # fmt: skip
    (server.place / "nginx.conf").write_text(text)
    log = server.place / "error.log"
    server.add([stage.nginx, "-e", log, "-p", server.place, "-c", server.place / "nginx.conf"])


def nginx_return(server, stage):
    answer = server.workload.answer.decode().replace("\n", "\\n")
    nginx(server, stage, f'return 200 "{answer}";', workers=server.workload.processes)


def nginx_static(server, stage):
    nginx(server, stage, f"root {stage.documents};")


def nginx_pool(server, stage):
    stage.artefacts(server.place)
    nginx(
        server, stage, f"wsgi_pass {server.workload.application};",
        main=f"load_module {server.place}/libngx_http_highball_module.so;",
        http=f"wsgi_python_path {stage.documents} {stage.packages}; wsgi_threads {server.workload.threads};",
        workers=server.workload.processes,
    )  # fmt: skip


def nginx_group(server, stage):
    stage.artefacts(server.place)
    path = f"python-path={stage.documents}:{stage.packages}"
    nginx(
        server, stage, f"wsgi_pass {server.workload.application}; wsgi_process_group bench;",
        main=f"load_module {server.place}/libngx_http_highball_module.so;",
        http=f"wsgi_daemon_process bench {processes(server)} threads={server.workload.threads} {path};"
        f" wsgi_socket_prefix {server.place}/s;",
    )  # fmt: skip


def uwsgi(server, stage):
    workload = server.workload
    nginx(server, stage, configuration.UWSGI.format(socket=server.place / "s"))
    command = [stage.uwsgi, "--plugin", "python3", "--socket", server.place / "s", "--chmod-socket=666", "--master"]
    command += [f"--processes={workload.processes}", "--disable-logging", "--listen=100", "--die-on-term"]
    command += [f"--pythonpath={stage.documents}", f"--pythonpath={stage.packages}", "--module", workload.application]
    # Without threads it is at its fastest; where they are what is measured it has them.
    command += [f"--threads={workload.threads}"] if workload.rate else []
    server.add(command)


def gunicorn(server, stage):
    workload = server.workload
    nginx(server, stage, configuration.PROXY, http=configuration.UPSTREAM.format(socket=server.place / "s"))
    command = [stage.environment("gunicorn") / "bin" / "gunicorn", "--worker-class=gthread", f"--threads={workload.threads}"]
    command += [f"--workers={workload.processes}", f"--bind=unix:{server.place}/s", "--keep-alive=75", "--log-level=warning"]
    # It would lie in the home of whoever runs this.
    command += ["--no-control-socket"]
    server.add([*command, workload.application], stop=signal.SIGINT, environment=python_path(stage))


def granian(server, stage):
    workload = server.workload
    command = [stage.environment("granian") / "bin" / "granian", "--interface=wsgi", f"--port={server.port}"]
    command += [f"--workers={workload.processes}", f"--blocking-threads={workload.threads}", "--log-level=warning"]
    server.add([*command, workload.application], environment=python_path(stage))


def bjoern(server, stage):
    module, name = server.workload.application.split(":")
    program = f"import bjoern, {module}; bjoern.run({module}.{name}, '127.0.0.1', {server.port})"
    server.add([stage.environment("bjoern") / "bin" / "python", "-c", program], environment=python_path(stage))


def apache(server, stage, extra, workers=1):
    threads = 2 * server.workload.connections
    text = configuration.APACHE.format(
        place=server.place, port=server.port, workers=workers, threads=threads, all_threads=threads * workers,
        modules=APACHE_MODULES, documents=stage.documents, extra=extra,
        user=f"User {stage.user.pw_name}\nGroup #{stage.user.pw_gid}" if stage.user else "",
    )  # fmt: skip
    (server.place / "httpd.conf").write_text(text)
    server.add([stage.apache, "-d", server.place, "-f", server.place / "httpd.conf", "-DFOREGROUND"])


def apache_static(server, stage):
    apache(server, stage, "")


def embedded(server, stage, module):
    where = configuration.EMBEDDED.format(path=f"{stage.documents}:{stage.packages}")
    apache(server, stage, wsgi(server, stage, module, "%{GLOBAL}", where), workers=server.workload.processes)


def daemon(server, stage, module):
    where = configuration.GROUP.format(
        group="bench", processes=processes(server), threads=server.workload.threads,
        path=f"{stage.documents}:{stage.packages}",
    )  # fmt: skip
    apache(server, stage, wsgi(server, stage, module, "bench", where))


def wsgi(server, stage, module, group, where):
    script, application = server.workload.application.split(":")
    return configuration.WSGI.format(
        module=module, place=server.place, where=where, callable=application, documents=stage.documents,
        script=f"{script}.py", group=group,
    )  # fmt: skip


def apache_embedded(server, stage):
    stage.artefacts(server.place)
    embedded(server, stage, server.place / "libmod_highball.so")


def apache_group(server, stage):
    stage.artefacts(server.place)
    daemon(server, stage, server.place / "libmod_highball.so")


def mod_wsgi(server, stage):
    embedded(server, stage, stage.mod_wsgi)


def mod_wsgi_daemon(server, stage):
    daemon(server, stage, stage.mod_wsgi)


def processes(server):
    # Written at all it makes wsgi.multiprocess true.
    return f"processes={server.workload.processes}" if server.workload.processes > 1 else ""


def python_path(stage):
    return {"PYTHONPATH": f"{stage.documents}:{stage.packages}"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SETUPS = {
    "nginx return": nginx_return,
    "nginx static": nginx_static,
    "Apache static": apache_static,
    "nginx pool": nginx_pool,
    "nginx group": nginx_group,
    "Apache embedded": apache_embedded,
    "Apache group": apache_group,
    "uWSGI": uwsgi,
    "gunicorn": gunicorn,
    "mod_wsgi": mod_wsgi,
    "mod_wsgi daemon": mod_wsgi_daemon,
    "granian": granian,
    "bjoern": bjoern,
}
