"""TLS and HTTP/2: what the application is told, and whole and broken responses over both, with real clients."""

import json
import shutil
import ssl
import subprocess

import httpx
import pytest

from support.server import Mount
from test_broken import PACKED
from test_response import BODILESS

# nginx's users name what they want, as with uwsgi_param; mod_ssl has names of its own.
CLIENT_FACTS = {"SSL_CLIENT_VERIFY": "$ssl_client_verify", "SSL_CLIENT_S_DN": "$ssl_client_s_dn", "SSL_PROTOCOL": "$ssl_protocol"}


@pytest.fixture
def tls(serve):
    mount = Mount(
        "behaviours:application",
        nginx="".join(f"wsgi_param {name} {value};" for name, value in CLIENT_FACTS.items()),
        apache="SSLOptions +StdEnvVars",
    )
    server = serve(mount, tls=True)
    # Clients of tests end connections in the middle of a handshake, or do not care how.
    server.allow_log("SSL_|AH0(1882|1998|2008|1964|2031)|shutdown")
    return server


def client(server, **options):
    context = ssl.create_default_context(cafile=server.stage.certificates / "ca.pem")
    if options.pop("certificate", False):
        context.load_cert_chain(server.stage.certificates / "client.pem", server.stage.certificates / "client.key")
    return httpx.Client(base_url=server.url, verify=context, timeout=20, trust_env=False, **options)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_the_application_is_told_of_tls(tls, version):
    with client(tls, http2=version == "HTTP/2") as session:
        response = session.get("/environ")
        assert response.http_version == version
        environ = response.json()
    assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")
    assert environ["SERVER_PROTOCOL"] == ("HTTP/2.0" if version == "HTTP/2" else "HTTP/1.1")
    assert environ["HTTP_HOST"] == f"127.0.0.1:{tls.port}"
    assert environ["SSL_PROTOCOL"].startswith("TLSv1")


def test_a_client_certificate_is_told(tls):
    with client(tls) as session:
        assert session.get("/environ").json()["SSL_CLIENT_VERIFY"] == "NONE"
    with client(tls, certificate=True) as session:
        environ = session.get("/environ").json()
    assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS" and "A Client" in environ["SSL_CLIENT_S_DN"]


@pytest.mark.parametrize("how", ["FakeBasicAuth", "SSLUserName"])
def test_a_client_certificate_may_be_the_user(serve, how):
    """On Apache in the place of a password, which the application is not told; on nginx as the operator writes it."""
    made = subprocess.run(["openssl", "passwd", "-apr1", "password"], capture_output=True, text=True, check=True).stdout
    # The word "password" is mod_ssl's.
    users = serve.script("users", f"/O=Test/CN=A Client:{made}")
    apache = {
        "FakeBasicAuth": f"SSLOptions +FakeBasicAuth\nAuthType Basic\nAuthName test\nAuthUserFile {users}\nRequire valid-user",
        "SSLUserName": "SSLUserName SSL_CLIENT_S_DN_CN\nRequire ssl-verify-client",
    }
    mount = Mount("behaviours:application", nginx="wsgi_param REMOTE_USER $ssl_client_s_dn;", apache=apache[how])
    server = serve(mount, tls=True, apache_modules=("auth_basic", "authn_core", "authn_file", "authz_user"))
    server.allow_log("SSL_|AH0|shutdown")
    with client(server, certificate=True) as session:
        environ = session.get("/environ", headers={"X-Some-Header": "value"}).json()
    if server.host == "nginx":
        assert environ["REMOTE_USER"] == "CN=A Client,O=Test"
    elif how == "FakeBasicAuth":
        assert environ["REMOTE_USER"] == "/O=Test/CN=A Client" and environ["AUTH_TYPE"] == "Basic"
    else:
        assert environ["REMOTE_USER"] == "A Client"
    assert "HTTP_AUTHORIZATION" not in environ
    with client(server) as session:
        if server.host == "nginx":
            assert session.get("/environ").json()["REMOTE_USER"] == "", "no certificate, nobody"
        else:
            # What a client without a certificate says is no certificate's name.
            forged = {"Authorization": "Basic L089VGVzdC9DTj1BIENsaWVudDpwYXNzd29yZA=="}
            assert session.get("/environ").status_code in (401, 403)
            assert session.get("/environ", headers=forged).status_code in (401, 403)


def test_headers_cannot_forge_facts_of_tls(serve):
    server = serve("behaviours:application")
    environ = server.get("/environ", [("Ssl-Client-Verify", "SUCCESS"), ("SSL_CLIENT_VERIFY", "SUCCESS"), ("Https", "on")]).json()
    assert environ["wsgi.url_scheme"] == "http" and "HTTPS" not in environ and "SSL_CLIENT_VERIFY" not in environ
    server.allow_log("invalid header")


@pytest.mark.parametrize("http2", [False, True])
def test_bodies_go_both_ways(tls, http2):
    with client(tls, http2=http2) as session:
        assert session.get("/generated").content == b"one two three"
        assert len(session.get("/big?size=3000000").content) == 3_000_000
        body = b"0123456789" * 100_000
        assert session.post("/echo_all", content=body).content == body
        assert session.post("/echo_all", content=iter([body, b"more"])).content == body + b"more", "of unknown length"
        assert session.head("/hello").content == b""
        assert session.get("/status?line=204%20No").status_code == 204
        assert session.get("/raises").status_code == 500
    tls.expect_log("HB0401")


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_where_no_body_may_be_none_is_sent(serve, http2, packed):
    server = serve("behaviours:application", tls=True, **(PACKED if packed else {}))
    server.allow_log("SSL_|AH0(1882|1998|2008|1964|2031)|shutdown")
    with client(server, http2=http2) as session:
        for method, line in BODILESS:
            for given in ("list", "blocks", "written", "file", "large"):
                for length in ("", "8"):
                    what = (method, line, given, length)
                    response = session.request(method, f"/bodiless?line={line}&as={given}&length={length}")
                    assert response.status_code == int(line[:3]) and response.content == b"", what
                    assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
                    promised = response.headers.get("content-length")
                    if method == "GET":
                        # A packed answer has a length that nobody knows yet.
                        assert promised in {204: (None,), 205: ("0",), 304: (None, length)}[response.status_code], what
                    assert session.get("/hello").content == b"hello", what


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("path", ["/raises_after_block", "/short"])
def test_a_broken_response_is_seen(tls, http2, path):
    with client(tls, http2=http2) as session:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            session.get(path)
        # Over HTTP/2 only the stream is lost.
        assert session.get("/hello").content == b"hello"
    tls.expect_log("HB040[26]")


def curl(server, *arguments):
    command = ["curl", "-sS", "--max-time", "20", "--cacert", server.stage.certificates / "ca.pem", *arguments]
    return subprocess.run(command, capture_output=True, timeout=40)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed: make test installs it")
@pytest.mark.parametrize("option", ["--http1.0 --no-alpn", "--http1.1", "--http2"])
def test_curl_sees_what_is_whole_and_what_is_not(tls, option):
    done = curl(tls, *option.split(), tls.url + "/generated")
    assert (done.returncode, done.stdout) == (0, b"one two three")
    done = curl(tls, *option.split(), tls.url + "/raises_after_block")
    assert done.returncode in (18, 56, 92), (done.returncode, done.stderr)
    tls.expect_log("HB0402")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed: make test installs it")
@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_curl_uploads_after_100_continue(tls, option, tmp_path):
    file = tmp_path / "upload"
    file.write_bytes(b"u" * 3_000_000)
    done = curl(tls, option, "-v", "-H", "Expect: 100-continue", "--data-binary", f"@{file}", tls.url + "/digest")
    assert done.returncode == 0, done.stderr
    assert option == "--http2" or b"100 Continue" in done.stderr
    import hashlib

    assert hashlib.sha256(file.read_bytes()).hexdigest().encode() in done.stdout


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed: make test installs it")
def test_h2load_has_no_error(tls):
    # Fewer connections than httpd has threads: with more it closes idle ones under load, also those that get files of its own.
    done = subprocess.run(
        ["h2load", "-n", "2000", "-c", "4", "-m", "20", tls.url + "/hello", tls.url + "/generated", tls.url + "/big?size=100000"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "2000 succeeded, 0 failed, 0 errored" in done.stdout, done.stdout
    assert "status codes: 2000 2xx" in done.stdout, done.stdout
