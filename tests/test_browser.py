"""A real browser uploads a file while its page is still coming: over two connections, and over one of HTTP/2."""

import hashlib
import os
import shutil

import pytest

from support.client import until

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed: make test installs them on Debian"),
    pytest.mark.only("nginx", "nginx-unbuffered", "apache"),
]

SIZE = 48 << 20
# Bytes a second: the upload takes some three seconds.
PACE = 16 << 20


@pytest.fixture
def browser(tmp_path):
    """One for each test: it keeps connections as long as it lives."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    options.accept_insecure_certs = True
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-proxy-server", f"user-data-dir={tmp_path}/profile"):
        options.add_argument(f"--{argument}")
    # The page counts as there at once: it is not whole before the file is.
    options.page_load_strategy = "none"
    with Chrome(options, ChromeService(DRIVER, env={**os.environ, "HOME": str(tmp_path)})) as browser:
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": PACE}
        )
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("upload") / "file.bin"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    return path


@pytest.mark.parametrize("tls", [False, True], ids=["http/1.1", "http/2"])
def test_a_page_streams_while_its_file_is_uploaded(serve, browser, file, key, tls):
    server = serve("browser:application", tls=tls)
    server.allow_log("SSL_|AH0(1882|1998|2008|1964|2031)|shutdown")
    browser.get(f"{server.url}/page?key={key}")

    def state(name):
        return browser.execute_script(f"return typeof {name} === 'undefined' ? null : {name}")

    assert until(lambda: len(state("blocks") or []) >= 3, 20), "the page does not begin"
    browser.find_element("id", "file").send_keys(str(file))
    answer = until(lambda: state("answer"), 40, 0.1)
    assert answer == [SIZE, hashlib.sha256(file.read_bytes()).hexdigest()]
    assert until(lambda: state("whole"), 10)
    blocks, sent, begun, ended = (state(name) for name in ("blocks", "sent", "begun", "ended"))
    assert [number for number, _ in blocks] == list(range(len(blocks)))
    assert len(sent) > 5 and ended - begun > 1000, "the upload is too quick to tell"
    meanwhile = [when for _, when in blocks if begun < when < ended]
    assert len(meanwhile) >= 10, f"{len(meanwhile)} blocks came in {ended - begun:.0f} ms of the upload"
    # None was kept back for long.
    gaps = [later - earlier for earlier, later in zip([begun, *meanwhile], [*meanwhile, ended], strict=True)]
    assert max(gaps) < (ended - begun) / 2, gaps
    protocol = browser.execute_script("return performance.getEntriesByType('navigation')[0].nextHopProtocol")
    assert protocol == ("h2" if tls else "http/1.1")
