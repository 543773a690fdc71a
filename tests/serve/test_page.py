"""The page at `/`: its files, and what a person sees in headless Chromium (skipped where there is none)."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from helpers.servers import Canned, policy, running, until

from shadowpeft.serve import page
from shadowpeft.serve.app import Gateway, Served
from shadowpeft.serve.metrics import Metrics
from shadowpeft.serve.roles import Roles
from shadowpeft.serve.routed import Role, Routed
from shadowpeft.serve.settings import Serve

MARKUP = "<img src=x onerror=document.title='taken'> is all"


@pytest.fixture
def address(tmp_path, monkeypatch) -> Iterator[str]:
    """A pair that says what it was given: an unsure edge, whose answer is markup."""
    metrics = Metrics()
    edge, cloud = Canned(MARKUP, -3.0), Canned("the cloud knows")
    policy().save(tmp_path / "routing.json")
    names = {"e": Served(edge, "canned"), "c": Served(cloud, "canned")}
    settings = Serve(edge="e", cloud="c", policy=str(tmp_path))
    roles = Roles(settings, names, metrics)
    routed = Routed(Role(edge, "canned"), Role(cloud, "canned"), roles.policy, metrics=metrics)
    served = {"routed": Served(routed, "routed", has_roles=True), **names}
    gateway = Gateway(served, metrics=metrics, about=roles.about, routes=page.routes(), keys=["key"])
    with running(gateway.app()) as found:
        yield found.removesuffix("/v1")


def test_the_page_loads_nothing_from_elsewhere(address):
    """Catches a font or script of another host, and a page that may be put into another one."""
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        reply = httpx.get(f"{address}{path}")
        assert reply.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        hosts = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//\s.*", "", reply.text))
        assert set(hosts) <= {"http://www.w3.org"}


@pytest.fixture
def browser(tmp_path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # All of them, or Chromium looks for other hosts.
    for word in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path}",
    ):  # fmt: skip
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.mark.slow
def test_a_person_sees_who_answered(address, browser):
    """Catches a page that shows nothing, sends what was forbidden, or runs what a model wrote."""

    def one(selector: str) -> Any:
        return browser.find_element("css selector", selector)

    def ask(text: str) -> str:
        one("#text").send_keys(text)
        one("#send").click()
        until(lambda: one("#send").is_enabled())
        return one("#turns li:last-child").text

    browser.get(address)
    until(lambda: one("#key").is_displayed())
    assert "asks for a key" in one("#roles").text
    one("#key").send_keys("key\n")
    one("h1").click()
    until(lambda: one("#routes").is_displayed())
    turn = ask("what")
    assert "the cloud knows" in turn
    assert "deferred · score -3.00 (threshold -1.00) · P(error) 63 %" in turn
    one("input[value=local-only]").click()
    turn = ask("and here?")
    assert MARKUP in turn
    assert "local only" in turn
    until(lambda: "50 %" in one("#counts").text)
    assert "edge (local-only) 1" in one("#counts").text
    assert "min_logprob" in one("#promise").text
    assert len(browser.find_elements("css selector", "#curve circle")) == 2
    assert browser.title == "shadowpeft serve"
    # The key was missing at first; nothing else is amiss.
    wrong = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert all("401" in message for message in wrong), wrong
