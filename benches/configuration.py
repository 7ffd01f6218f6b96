"""The configuration files of nginx and Apache httpd."""

NGINX = """{main}
daemon off;
{user}
worker_processes {workers};
error_log {place}/error.log warn;
pid {place}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    default_type text/plain;
    {http}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{ {location} }}
    }}
}}
"""

# Twice as many threads as connections: with fewer the event MPM closes idle connections, and reconnects are what is
# measured. The factor lets it keep the idle ones that cost of memory is measured with.
APACHE = """ServerRoot {place}
DefaultRuntimeDir {place}
PidFile {place}/pid
ErrorLog {place}/error.log
LogLevel warn
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
{user}
ServerName localhost
Listen 127.0.0.1:{port}
ListenBacklog 2048
StartServers {workers}
ServerLimit {workers}
ThreadsPerChild {threads}
ThreadLimit {threads}
MaxRequestWorkers {all_threads}
MinSpareThreads 1
MaxSpareThreads {all_threads}
AsyncRequestWorkerFactor 40
MaxKeepAliveRequests 0
KeepAliveTimeout 600
DocumentRoot {documents}
<Directory {documents}>
    AllowOverride None
    Require all granted
</Directory>
{extra}
"""

WSGI = """LoadModule wsgi_module {module}
WSGISocketPrefix {place}/s
{where}
WSGICallableObject {callable}
WSGIScriptAlias / {documents}/{script} process-group={group} application-group=%{{GLOBAL}}
"""

EMBEDDED = "WSGIPythonPath {path}"

GROUP = "WSGIDaemonProcess {group} {processes} threads={threads} python-path={path}"

UWSGI = """uwsgi_pass unix:{socket};
uwsgi_param QUERY_STRING $query_string; uwsgi_param REQUEST_METHOD $request_method;
uwsgi_param CONTENT_TYPE $content_type; uwsgi_param CONTENT_LENGTH $content_length;
uwsgi_param REQUEST_URI $request_uri; uwsgi_param PATH_INFO $document_uri;
uwsgi_param DOCUMENT_ROOT $document_root; uwsgi_param SERVER_PROTOCOL $server_protocol;
uwsgi_param REMOTE_ADDR $remote_addr; uwsgi_param REMOTE_PORT $remote_port;
uwsgi_param SERVER_PORT $server_port; uwsgi_param SERVER_NAME $server_name;"""

PROXY = """proxy_pass http://application;
proxy_http_version 1.1; proxy_set_header Connection "";
proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;"""

UPSTREAM = "upstream application {{ server unix:{socket}; keepalive 64; }}"
