"""nginx with the module, configured for a test."""

import shutil
import signal

from support.log import NGINX
from support.server import MALLOC, Server
from support.stage import NGINX_MODULE


class Nginx(Server):
    host = "nginx"
    request_buffering = True
    pattern = NGINX
    signals = {"stop": signal.SIGTERM, "graceful": signal.SIGQUIT, "reload": signal.SIGHUP, "reopen": signal.SIGUSR1}

    def command(self):
        directory = self.directory
        return [binary(), "-e", directory / "error.log", "-p", directory, "-c", self.configuration]

    def check_command(self):
        # The log of a test is standard error, as an operator sees it.
        return [binary(), "-t", "-e", "stderr", "-p", self.directory, "-c", self.configuration]

    @property
    def worker_count(self):
        return self.site.processes if self.site.nginx_master else 0

    def is_worker(self, process):
        return process.command.startswith("nginx: worker process") and "shutting down" not in process.command

    def configure(self):
        site = self.site
        lines = [
            f"user {self.user};" if self.user else "",
            f"load_module {self.stage.artefact(NGINX_MODULE)};",
            "daemon off;",
            "" if site.nginx_master else "master_process off;",
            f"worker_processes {site.processes};",
            f"worker_shutdown_timeout {site.graceful}s;",
            f"error_log {self.directory}/error.log info;",
            f"pid {self.directory}/run/nginx.pid;",
            site.nginx_main,
            f"env {MALLOC};",
            "events { worker_connections 1024; }",
            "http {",
            f"access_log {self.directory}/access.log;",
            *(
                f"{name}_temp_path {self.directory}/tmp/{name};"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
            f"client_max_body_size {site.max_body};",
            "types { text/plain txt; text/css css; image/svg+xml svg; }",
        ]
        if self.grouped:
            lines += [f"wsgi_daemon_process site {self.group_options()};", "wsgi_process_group site;"]
            lines.append(f"wsgi_socket_prefix {self.socket_prefix};")
        else:
            lines += self.embedded()
        if not self.request_buffering:
            lines.append("wsgi_request_buffering off;")
        if site.shared_interpreter:
            lines.append("wsgi_application_group global;")
        listen = site.nginx_listen + (" ssl http2" if site.tls else "")
        lines += [site.nginx_http, "server {", f"listen 127.0.0.1:{self.port}{listen};", "server_name localhost;"]
        if site.tls:
            files = self.stage.certificates
            lines += [
                f"ssl_certificate {files}/server.pem;",
                f"ssl_certificate_key {files}/server.key;",
                f"ssl_client_certificate {files}/ca.pem;",
                "ssl_verify_client optional;",
            ]
        for prefix, directory in site.static.items():
            lines.append(f"location {prefix} {{ alias {directory}/; }}")
        for mount in site.mounts:
            lines += self.location(mount)
        lines += [site.nginx_server, "}", "}"]
        return "\n".join(line for line in lines if line) + "\n"

    def embedded(self):
        site = self.site
        home = self.stage.venv if site.home == "" else site.home
        if home is not None:
            yield f"wsgi_python_home {home};"
        path = [self.stage.apps] if site.path is None else site.path
        if path:
            yield f"wsgi_python_path {' '.join(str(entry) for entry in path)};"
        yield f"wsgi_threads {site.threads};"

    def location(self, mount):
        yield f"location {mount.at} {{"
        yield f'wsgi_pass "{mount.target}";'
        if mount.at != "/":
            yield f"wsgi_mount {mount.at.rstrip('/')};"
        if mount.script_reloading is not None:
            yield f"wsgi_script_reloading {'on' if mount.script_reloading else 'off'};"
        if mount.pass_authorization is not None:
            yield f"wsgi_pass_authorization {'on' if mount.pass_authorization else 'off'};"
        for name, value in mount.params.items():
            yield f'wsgi_param {name} "{value}";'
        if mount.nginx:
            yield mount.nginx
        yield "}"


class NginxUnbuffered(Nginx):
    """Request bodies are read while the application runs."""

    request_buffering = False


class NginxGroup(Nginx):
    """Applications in a process group."""

    grouped = True


def binary():
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if not found:
        raise FileNotFoundError("nginx is not installed: make test installs it")
    return found
