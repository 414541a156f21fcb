"""The page of the server in a headless Chromium: photographs, captions, attention, search, errors, accessibility."""

from __future__ import annotations

import base64
import importlib.resources
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fake_embedder import NAMES, embed
from page_server import encode_photograph, serve_page

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TOKEN = "a-long-secret-token"
DROP = """async ([name, content]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
    for (const kind of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
PASTE = (
    DROP.replace('["dragover", "drop"]', '["paste"]')
    .replace("DragEvent", "ClipboardEvent")
    .replace("dataTransfer:", "clipboardData:")
)
PEAK = """() => {
    const canvas = document.querySelector(".heat.shown");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let best = 0;
    for (let i = 0; i < data.length; i += 4) if (data[i] > data[best]) best = i;
    return [(best / 4 / canvas.width | 0) / canvas.height, (best / 4 % canvas.width) / canvas.width];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the test extra)")
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"needs a Chromium ({', '.join(BROWSERS)} on the path)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_page() as url:
        yield url


class Visit:
    """A page in a context of its own.

    Attributes:
        page: the page.
        messages: messages of the console, and errors.
        requests: URLs of the requests.
    """

    def __init__(self, browser: Any, url: str, width: int = 1400, height: int = 900, scheme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.set_default_timeout(20_000)
        self.page, self.messages, self.requests = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = url

    def __enter__(self) -> Visit:
        self.page.goto(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def add(self, *names: str, content: bytes | None = None, event: str = DROP) -> None:
        content = encode_photograph() if content is None else content
        for name in names:
            self.page.evaluate(event, [name, base64.b64encode(content).decode()])

    def wait_for_text(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for(state="attached")


def test_a_dropped_photograph_has_a_caption_attention_and_alternatives(browser, url):
    with Visit(browser, url) as visit:
        page = visit.page
        visit.add("dog.png")
        assert page.locator(".plate img").get_attribute("src").startswith("blob:")
        words = page.get_by_role("toolbar").get_by_role("button")
        words.first.wait_for()
        assert page.locator(".caption").inner_text() == "a brown dog runs."
        assert page.locator(".plate img").get_attribute("alt") == "a brown dog runs."
        assert page.locator(".others li span").all_inner_texts() == ["two dogs on grass."]
        visit.wait_for_text("#live", "dog.png: a brown dog runs.")
        assert page.locator(".heat.shown").count() == 0
        words.nth(1).hover()
        row, column = page.evaluate(PEAK)  # the fake model attends to the second of three cells in the upper row
        assert row < 0.5 and 1 / 3 < column < 2 / 3
        assert page.locator(".note").inner_text() == "“brown”: most of all at the top"
        page.mouse.move(0, 0)
        page.locator(".heat.shown").wait_for(state="detached")
        assert visit.messages == []
        assert all(address.startswith((url, "blob:")) for address in visit.requests)


def test_the_keyboard_reaches_the_words_and_copies_the_caption(browser, url):
    with Visit(browser, url) as visit:
        page = visit.page
        visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url.rstrip("/"))
        visit.add("dog.png", event=PASTE)
        page.get_by_role("toolbar").wait_for()
        page.locator("#files").focus()
        page.keyboard.press("Tab")
        focused = "document.activeElement.textContent"
        assert page.evaluate(focused) == "a"
        for key, word in (("ArrowRight", "brown"), ("End", "."), ("ArrowLeft", "runs"), ("Home", "a")):
            page.keyboard.press(key)
            assert page.evaluate(focused) == word
            assert page.locator(".lit").inner_text() == word and page.locator(".heat.shown").count() == 1
        page.keyboard.press("Escape")
        assert page.locator(".heat.shown").count() == 0
        page.keyboard.press("Tab")  # past the other words
        assert page.evaluate("document.activeElement.ariaLabel") == "Copy: two dogs on grass."
        page.get_by_role("button", name="Copy alt text").press("Enter")
        visit.wait_for_text("#live", "Copied: a brown dog runs.")
        assert page.evaluate("navigator.clipboard.readText()") == "a brown dog runs."
        page.get_by_role("button", name="Remove dog.png").press("Enter")
        page.locator(".plate").wait_for(state="detached")
        assert page.evaluate("document.activeElement.id") == "files" and visit.messages == []


def test_each_photograph_has_its_own_request_and_three_are_in_flight(browser, url):
    with Visit(browser, url) as visit:
        page, held = visit.page, []
        page.route("**/v1/captions*", lambda route: held.append(route))
        names = [f"{number}.png" for number in range(5)]
        visit.add(*names)
        page.locator(".state", has_text="Captioning").nth(2).wait_for()
        page.wait_for_timeout(200)  # in which a fourth request would start
        assert len(held) == 3 and page.locator("[aria-busy=true]").count() == 5
        assert page.locator(".state").all_inner_texts() == ["Waiting."] * 2 + ["Captioning…"] * 3
        for count in range(5):  # each answer lets one more request start
            held.pop().continue_()
            page.locator(".caption", has_text="dog").nth(count).wait_for()
        assert page.locator(".caption").all_inner_texts() == ["a brown dog runs."] * 5
        assert page.locator(".name").all_inner_texts() == names[::-1] and visit.messages == []


def test_a_search_shows_a_grid_of_results(browser, url):
    with Visit(browser, url) as visit:
        page = visit.page
        page.get_by_role("searchbox").fill("a dog")
        page.keyboard.press("Enter")
        page.get_by_role("img", name="a dog").wait_for()
        scores = {name: float(embed(name) @ embed("a dog")) for name in NAMES}
        labels = {"dog": "a dog\n\ndog.jpg, ", "cat": "a cat\n\ncat.jpg, ", "horse": "horse.jpg\n\n"}
        ranked = sorted(NAMES, key=lambda name: -scores[name])
        assert page.locator("#results li").all_inner_texts() == [f"{labels[name]}{scores[name]:.2f}" for name in ranked]
        assert page.locator("#results .blank").count() == 1  # there is no thumbnail of the horse
        visit.wait_for_text("#live", "3 photographs for “a dog”")
        page.get_by_role("button", name="Close results").press("Enter")
        assert not page.locator("#found").is_visible() and visit.messages == []


def test_the_page_leaves_out_what_the_server_does_not_offer(browser, url):
    with Visit(browser, "about:blank") as visit:
        page = visit.page

        def describe(route: Any) -> None:
            model = route.fetch().json()
            model["options"] |= {"attention": False, "beams": []}
            route.fulfill(json=model | {"search": None})

        page.route("**/v1/model", describe)
        page.goto(url)
        visit.add("dog.png")
        visit.wait_for_text(".caption", "a brown dog runs.")
        assert page.get_by_role("toolbar").count() == 0 and not page.get_by_role("searchbox").is_visible()
        assert not page.locator(".others").is_visible() and visit.messages == []
        assert [address for address in visit.requests if address.endswith("/v1/captions?method=greedy")]


def test_errors_are_shown_in_words_and_a_full_queue_is_asked_again(browser, url):
    answers = [
        {"status": 503, "json": {"error": {"code": "unavailable", "message": "the request took longer than 30 s"}}},
        {"status": 429, "headers": {"Retry-After": "1"}, "json": {"error": {"code": "queue_full", "message": "full"}}},
    ]
    with Visit(browser, url) as visit:
        page = visit.page
        visit.add("broken.png", content=b"bad")
        visit.wait_for_text(".failed .state", "The server cannot read this file: cannot be decoded.")
        visit.wait_for_text("#live", "broken.png: The server cannot read")
        assert page.locator(".blind").count() == 1
        page.get_by_role("button", name="Remove broken.png").click()
        page.route("**/v1/captions*", lambda route: route.fulfill(**answers.pop(0)) if answers else route.continue_())
        visit.add("dog.png")
        visit.wait_for_text(".failed .state", "The server failed: the request took longer than 30 s.")
        page.get_by_role("button", name="Try again").click()
        visit.wait_for_text(".state", "The server is busy. Trying again in 1 s.")
        visit.wait_for_text(".caption", "a brown dog runs.")
        assert not answers and not page.get_by_role("button", name="Try again").is_visible()


def test_a_token_is_kept_only_in_memory(browser):
    with serve_page(TOKEN) as url, Visit(browser, url) as visit:
        page = visit.page
        field = page.get_by_label("This server needs an access token")
        field.fill("wrong")
        field.press("Enter")
        visit.wait_for_text("#access-note", "The server does not accept this token.")
        visit.add("dog.png")
        field.fill(TOKEN)
        field.press("Enter")
        visit.wait_for_text(".caption", "a brown dog runs.")
        assert not field.is_visible()
        page.get_by_role("searchbox").fill("a dog")
        page.keyboard.press("Enter")
        page.get_by_role("img", name="a dog").wait_for()  # the thumbnail needs the token too
        assert visit.context.cookies() == [] and page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert not [address for address in visit.requests if TOKEN in address]
        page.reload()
        field.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1400, 900)])
def test_axe_finds_no_violation(browser, url, width, height, scheme):
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python (the test extra)")
    script = next(file for file in importlib.resources.files(package).iterdir() if file.name == "axe.min.js")
    with Visit(browser, url, width, height, scheme) as visit:
        page = visit.page

        def check() -> None:
            page.evaluate(script.read_text(encoding="utf-8"))
            results = page.evaluate("axe.run()")
            assert results["violations"] == [] and len(results["passes"]) > 10
            assert page.evaluate("document.documentElement.scrollWidth") <= width

        check()
        visit.add("dog.png", "cat.png")
        visit.add("broken.png", content=b"bad")
        visit.wait_for_text(".failed .state", "The server cannot read")
        page.get_by_role("toolbar").nth(1).get_by_role("button").nth(2).focus()
        page.get_by_role("searchbox").fill("a dog")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("img", name="a dog", exact=True).wait_for()
        page.get_by_role("toolbar").nth(1).get_by_role("button").nth(2).hover()
        page.wait_for_timeout(300)  # until the heat map has faded in
        check()
