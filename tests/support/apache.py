"""Apache httpd with the module, configured for a test."""

import os
import shutil
import signal
from pathlib import Path

from support.log import APACHE, Unjudged
from support.server import Server, write_script
from support.stage import APACHE_MODULE

MODULES = Path("/usr/lib/apache2/modules")


class Apache(Server):
    host = "apache"
    mpm = "event"
    module = APACHE_MODULE
    pattern = APACHE
    signals = {"stop": signal.SIGTERM, "graceful": signal.SIGWINCH, "reload": signal.SIGUSR1, "restart": signal.SIGHUP}

    def command(self):
        return [binary(), "-d", self.directory, "-f", self.configuration, "-DFOREGROUND"]

    def check_command(self):
        return [binary(), "-d", self.directory, "-f", self.configuration, "-t"]

    def is_worker(self, process):
        return True

    @property
    def worker_count(self):
        return self.site.processes * (self.site.threads if self.mpm == "prefork" else 1)

    def configure(self):
        site = self.site
        modules = ["mpm_" + self.mpm, "authz_core", "alias", "mime", "env", *site.apache_modules]
        if site.tls:
            modules += ["socache_shmcb", "ssl", "http2"]
        lines = [f"ServerRoot {self.directory}", f"Listen 127.0.0.1:{self.port}", "ServerName localhost"]
        lines += [f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in dict.fromkeys(modules)]
        lines.append(f"LoadModule wsgi_module {self.stage.artefact(self.module)}")
        if self.user:
            lines += [f"User {self.user}", f"Group {group_of(self.user)}"]
        lines += [
            f"DefaultRuntimeDir {self.directory}/run",
            f"PidFile {self.directory}/run/apache.pid",
            f"ErrorLog {self.directory}/error.log",
            "LogLevel info",
            'LogFormat "%h %r %>s %b" common',
            f"CustomLog {self.directory}/access.log common",
            f"DocumentRoot {self.directory}/tmp",
            "Timeout 30",
            "KeepAliveTimeout 15",
            "MaxKeepAliveRequests 0",
            f"GracefulShutdownTimeout {site.graceful}",
            "AddType text/plain .txt",
            "AddType text/css .css",
            "TypesConfig /dev/null",
            f"LimitRequestBody {size(site.max_body)}",
            "<Directory />",
            "AllowOverride None",
            "Require all granted",
            "</Directory>",
            *self.limits(),
        ]
        if self.grouped:
            lines += [f"WSGIDaemonProcess site {self.group_options()}", "WSGIProcessGroup site"]
            lines.append(f"WSGISocketPrefix {self.socket_prefix}")
        else:
            lines += self.embedded()
        if site.chunked:
            lines.append("WSGIChunkedRequest On")
        if site.tls:
            files = self.stage.certificates
            lines += [
                "SSLEngine on",
                "Protocols h2 http/1.1",
                f"SSLCertificateFile {files}/server.pem",
                f"SSLCertificateKeyFile {files}/server.key",
                f"SSLCACertificateFile {files}/ca.pem",
                "SSLVerifyClient optional",
                f"SSLSessionCache shmcb:{self.directory}/run/sessions",
            ]
        for prefix, directory in site.static.items():
            lines.append(f"Alias {prefix} {directory}/")
        # The first alias that matches wins: longer ones first.
        for number, mount in enumerate(sorted(site.mounts, key=lambda mount: -len(mount.at))):
            lines += self.alias(mount, number)
        lines.append(site.apache)
        return "\n".join(str(line) for line in lines if line) + "\n"

    def embedded(self):
        site = self.site
        home = self.stage.venv if site.home == "" else site.home
        if home is not None:
            yield f"WSGIPythonHome {home}"
        path = [self.stage.apps] if site.path is None else site.path
        if path:
            yield f"WSGIPythonPath {':'.join(str(entry) for entry in path)}"

    def limits(self):
        site = self.site
        total = site.processes * site.threads
        if self.mpm == "prefork":
            return [f"StartServers {total}", f"MinSpareServers {total}", f"MaxSpareServers {total + 1}", f"ServerLimit {total}", f"MaxRequestWorkers {total}"]
        return [
            f"StartServers {site.processes}",
            f"ServerLimit {max(site.processes * 3, 16)}",
            f"ThreadsPerChild {site.threads}",
            f"ThreadLimit {site.threads}",
            f"MaxRequestWorkers {total}",
            "MinSpareThreads 1",
            f"MaxSpareThreads {total + site.threads + 1}",
        ]

    def alias(self, mount, number):
        script, callable_object = self.script(mount, number)
        options = " application-group=%{GLOBAL}" if self.site.shared_interpreter else ""
        if not self.grouped:
            options += " process-group=%{GLOBAL}" if self.site.shared_interpreter else ""
        if callable_object:
            options += f" callable-object={callable_object}"
        yield f"WSGIScriptAlias {mount.at} {script}{options}"
        yield f"<Location {mount.at}>"
        if mount.script_reloading is not None:
            yield f"WSGIScriptReloading {'On' if mount.script_reloading else 'Off'}"
        if mount.pass_authorization is not None:
            yield f"WSGIPassAuthorization {'On' if mount.pass_authorization else 'Off'}"
        for name, value in mount.params.items():
            yield f'SetEnv {name} "{value}"'
        if mount.apache:
            yield mount.apache
        yield "</Location>"

    def script(self, mount, number):
        """Apache mounts files: a module target gets a script that imports it, as a user would write."""
        place, _, name = mount.target.rpartition(":")
        if mount.target.startswith("/"):
            return (place, name) if place else (mount.target, None)
        if name.endswith("()"):
            text = f"from {place} import {name[:-2]}\napplication = {name}\n"
        else:
            text = f"from {place} import {name} as application\n"
        return write_script(self.directory / "scripts", f"mount{number}.wsgi", text), None


class ApacheGroup(Apache):
    """Applications in a process group."""

    grouped = True

    @property
    def spare_descriptors(self):
        """Each thread keeps a link to a worker, and a thread that watches keeps one per worker."""
        return 4 + 2 * self.site.threads + 4

    @spare_descriptors.setter
    def spare_descriptors(self, count):
        pass

    def is_worker(self, process):
        # Not the child that starts the supervisor, for a moment.
        return process.threads > 1


class ApacheWorker(Apache):
    mpm = "worker"


class ApachePrefork(Apache):
    """As many processes as the others have threads."""

    mpm = "prefork"


class ModWsgi(Apache):
    """Apache with mod_wsgi in place of Highball (make test-reference): what of these behaviours does it have?"""

    module = os.environ.get("HIGHBALL_REFERENCE")
    log_class = Unjudged


def size(text):
    units = {"k": 1024, "m": 1024**2, "g": 1024**3}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def group_of(user):
    import grp
    import pwd

    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def binary():
    found = shutil.which("apache2", path="/usr/sbin:/usr/local/sbin:/usr/bin") or shutil.which("httpd")
    if not found:
        raise FileNotFoundError("Apache httpd is not installed: make test installs it")
    return found
