"""The console's pages in a real Chromium, with real traffic through a real proxy."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from proxy.records.store import Row, open_store
from tests.backends.parts import needs
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Exchange, ask
from tests.test_console import ANN, bearer, eventually, stream
from tests.test_console import answer as plain_answer

pytestmark = [needs("chromium"), pytest.mark.long]
SHOTS = CHECKOUT / "docs" / "console"
NAMELESS, CONTRAST = ((CHECKOUT / "tests" / "data" / name).read_text() for name in ("nameless.js", "contrast.js"))
LARGEST_SHOT = 150 * 1024  # bytes
PAGES = ("now", "calls", "usage", "chat", "config", "api")
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
EVIL = '<img src=x onerror="window.__xss=1"><script>window.__xss=1;alert(1)</script>'
EVIL_TARGET = "<b onmouseover=alert(1)>evil"
FENCED = "Look:\n\n```python\nprint('<b>hi</b>')\n```\n\n- **one** `two`\n- [a link](javascript:alert(1))\n"
CONFIG = """
cerbere: {{max_tries: 1000}}
targets:
  default: main
  main: {{url: "{url}", dialect: openai, key: sk-upstream-secret-000001}}
  other: {{url: "{url}/other", dialect: openai}}
  "{evil}": {{url: "{url}", dialect: openai}}
keys:
  ann: {{key: {ann}, console: true, limits: 1000/minute, tokens: 100000/day, budget: {{usd: 20, per: month}}}}
prices: {{"*": {{input: 2.5, output: 10}}}}
records: {{calls: {{database: "sqlite:///calls.db"}}}}
console:
  enabled: true
  edit: true
  presets: {{Coder: You write code., "{evil}": "{evil}"}}
"""


def answer(exchange: Exchange) -> None:
    """Says what the last message wants: a fence, markup, or itself."""
    body = exchange.asked.json()
    said = body["messages"][-1]["content"]
    text = said if isinstance(said, str) else said[0]["text"]
    if text == "wait":
        plain_answer(exchange)
        return
    if text.startswith("fail"):
        exchange.reply(500, {"error": {"message": EVIL}})
        return
    shown = {"code": FENCED, "evil": EVIL}.get(text, f"You said: {text}")
    usage = {"prompt_tokens": 1200, "completion_tokens": 340, "total_tokens": 1540}
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": shown}, "finish_reason": "stop"}
        exchange.reply(
            200,
            {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice], "usage": usage},
        )
        return
    exchange.start()
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    for at in range(0, len(shown), 7):
        exchange.event({**head, "choices": [{"index": 0, "delta": {"content": shown[at : at + 7]}, "finish_reason": None}]})
    exchange.event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})
    exchange.event(b"[DONE]")
    exchange.end()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as made:
        for path in ("/v1/chat/completions", "/other/chat/completions"):
            made.on(path, answer)
        models = {"object": "list", "data": [{"id": "small"}, {"id": "large"}]}
        for path in ("/v1/models", "/other/models"):
            made.on(path, lambda exchange: exchange.reply(200, models))
        yield made


def config_for(backend: Backend) -> str:
    return CONFIG.format(url=backend.url, ann=ANN, evil=EVIL_TARGET)


def say(proxy: Proxy, content: Any, key: str = ANN, **more: Any) -> None:
    """One call of a client's."""
    body = {"model": "small", "messages": [{"role": "user", "content": content}], **more}
    assert ask(proxy.url, "POST", "/v1/chat/completions", body, bearer(key)).status == 200


@pytest.fixture(scope="module")
def proxy(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with some traffic in its log: of two keys, streamed and not, mapped, failed, and hostile."""
    with Proxy(tmp_path_factory.mktemp("pages"), config_for(backend)) as running:
        for number in range(4):
            say(running, f"What is the answer to question {number}?", model="small" if number % 2 else "large")
        say(running, "a streamed question", stream=True)
        say(running, EVIL, KEY, model=EVIL, user=EVIL)
        say(running, "evil", KEY, stream=True)
        mapped = {
            "model": "small",
            "max_tokens": 50,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "from Anthropic"}],
        }
        assert ask(running.url, "POST", "/v1/messages", mapped, bearer(ANN)).status == 200
        assert ask(running.url, "POST", "/v1/chat/completions", {}, {**bearer(ANN), "target": "nowhere"}).status == 404
        eventually(lambda: len(logged(running)) >= 9)
        yield running


def logged(proxy: Proxy) -> list[Any]:
    return list(ask(proxy.url, "GET", "/console/api/calls?limit=200", headers=bearer(KEY)).json()["calls"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "these tests need Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1100, "height": 760}, permissions=["clipboard-read", "clipboard-write"])
    made.set_default_timeout(10_000)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails its test when a script of somebody's ran, or one of ours broke, or anything was blocked."""
    faults: list[str] = []
    made = context.new_page()
    made.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    made.on("pageerror", lambda error: faults.append(f"error: {error}"))
    made.on("console", lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None)
    yield made
    assert made.evaluate("window.__xss") is None
    assert not faults


def log_in(page: Page, proxy: Proxy, key: str = KEY, where: str = "now") -> None:
    page.goto(f"{proxy.url}/console/#{where}")
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#who")).to_have_text("master" if key == KEY else "ann")


def show(page: Page, name: str) -> Locator:
    """Goes to a page by its link; its main part, once it is filled."""
    page.get_by_role("navigation").get_by_role("link", name=re.compile(name, re.I)).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(name, re.I))
    expect(page.locator("main:not([aria-busy]) .page > :nth-child(2)")).to_be_visible()
    return page.locator("main")


# --- each page, with the traffic


def test_now_shows_a_call_while_it_runs_and_stops_it(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy)
    thread, replies = stream(proxy, ANN)
    row = page.locator("tbody tr.streaming")
    expect(row).to_contain_text("you said")
    expect(row).to_contain_text("ann")
    row.get_by_role("button", name="Show the text").click()
    expect(page.get_by_label("Text so far")).to_have_text("you said ")
    row.get_by_role("button", name="Stop").click()
    thread.join(10)
    assert not replies[0].whole
    expect(page.locator("tbody tr.ended").first).to_contain_text("ann")


def test_calls_are_found_and_paged_and_saved(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy, where="calls")
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible()
    page.get_by_label("Text").fill("question 2")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("What is the answer to question 2?")
    page.get_by_label("Text").fill("")
    page.get_by_label("Status").select_option("404")
    page.get_by_role("button", name="Search").click()
    expect(rows.first).to_contain_text("nowhere")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.path().read_text().startswith("id,at,key_name")


def call_page(page: Page, proxy: Proxy, title: str) -> dict[str, Any]:
    found = next(call for call in logged(proxy) if (call["title"] or "").startswith(title))
    page.goto(f"{proxy.url}/console/#calls/{found['id']}")
    expect(page.get_by_text(found["id"], exact=True)).to_be_visible()
    return dict(found)


def test_a_mapped_call_shows_four_panes_and_what_was_changed(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy)
    call_page(page, proxy, "from Anthropic")
    panes = [
        page.get_by_role("region", name=name)
        for name in ("What the client sent", "What the backend got", "What the backend answered", "What the client got")
    ]
    for pane, text in zip(
        panes, ('"system": "Be brief."', '"role": "system"', '"chat.completion"', '"type": "message"'), strict=True
    ):
        expect(pane).to_contain_text(text)
    expect(panes[0].locator("mark.gone").filter(has_text="Be brief.")).to_have_count(1)
    expect(panes[1].locator("mark").filter(has_text="Be brief.")).to_have_count(1)
    page.get_by_text("What was changed in the request").click()
    expect(page.get_by_role("cell", name="$.system", exact=True)).to_be_visible()


def test_a_streamed_call_shows_its_events(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy)
    call_page(page, proxy, "a streamed question")
    events = page.get_by_role("region", name="What the client got").get_by_role("listitem")
    expect(events.first).to_contain_text("You sai")
    expect(events.first).to_contain_text(re.compile(r"^\d+ ms "))
    assert events.count() > 3
    events.first.locator("summary").click()
    expect(events.first.locator("pre")).to_contain_text("chat.completion.chunk")


def test_a_call_is_kept_as_a_cassette(page: Page, proxy: Proxy) -> None:
    call = next(call for call in logged(proxy) if call["title"] == "from Anthropic")
    log_in(page, proxy, where=f"calls/{call['id']}")
    page.get_by_role("button", name="Keep a cassette").click()
    told = page.get_by_role("region", name="Result")
    expect(told).to_contain_text(f"Kept in cassettes/{call['id']}.json. Today's mappers make the same of it.")
    assert "from Anthropic" in (proxy.folder / "cassettes" / f"{call['id']}.json").read_text()
    unmapped = next(call for call in logged(proxy) if call["title"] == "a streamed question")
    page.goto(f"{proxy.url}/console/#calls/{unmapped['id']}")
    expect(page.locator(".facts")).to_contain_text(unmapped["id"])
    page.get_by_role("button", name="Keep a cassette").click()
    expect(page.get_by_role("alert").filter(has_text="there is nothing to replay")).to_be_visible()


def test_a_call_is_copied_as_curl_and_replayed_elsewhere(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy)
    call_page(page, proxy, "What is the answer to question 1?")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#said")).to_contain_text("copied")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith(f"curl '{proxy.url}/v1/chat/completions'")
    assert '-H "Authorization: Bearer $MOOLTIPROXY_KEY"' in command
    assert KEY not in command
    page.get_by_label("Replay against").select_option("other")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("region", name="Then: main")).to_contain_text("You said: What is the answer to question 1?")
    expect(page.get_by_role("region", name="Now: other")).to_contain_text("You said: What is the answer to question 1?")


def test_usage_shows_what_was_used_and_what_is_left(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy, where="usage")
    main = page.locator("main")
    expect(main.get_by_role("img")).to_have_count(3)
    assert main.locator("svg rect").count() >= 3
    expect(main.get_by_role("table", name="Latency")).to_contain_text("ms")
    expect(main.get_by_role("table", name="Largest conversations")).to_contain_text("question")
    limits = main.get_by_role("table", name="Limits and budgets")
    expect(limits).to_contain_text("budget per month")
    expect(limits.get_by_role("meter")).to_have_count(3)
    page.get_by_role("combobox", name="By", exact=True).select_option("key_name")
    expect(main.get_by_role("table", name="Usage by key")).to_contain_text("ann")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.path().read_text().startswith("day,key_name,calls")


def test_chat_streams_renders_and_remembers(page: Page, proxy: Proxy, backend: Backend) -> None:
    log_in(page, proxy, where="chat")
    expect(page.get_by_label("Model")).to_have_value("small")
    page.get_by_label("Preset").select_option("Coder")
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature", exact=True).fill("0.3")
    page.get_by_text("Settings").click()
    page.get_by_label("Message").fill("code")
    page.keyboard.press("Enter")
    said = page.get_by_role("article", name="assistant")
    expect(said.locator("code").first).to_have_text("print('<b>hi</b>')")
    expect(said.locator("strong")).to_have_text("one")
    expect(said).to_contain_text("a link (javascript:alert(1))")
    assert said.locator("a").count() == 0
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    said.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>hi</b>')"
    sent = next(asked.json() for asked in reversed(backend.asked) if asked.json().get("temperature"))
    assert (sent["temperature"], sent["messages"][0]) == (0.3, {"role": "system", "content": "You write code."})
    assert "top_p" not in sent
    expect(page.get_by_role("complementary").get_by_role("link", name="code")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    expect(said).to_have_count(1)


def test_chat_sends_images_by_file_paste_and_drop(page: Page, proxy: Proxy, backend: Backend) -> None:
    log_in(page, proxy, where="chat")
    page.get_by_label("Images", exact=True).set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": PIXEL})
    expect(page.locator(".thumbs img")).to_have_count(1)
    give = """([selector, kind, data]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), given = new DataTransfer();
        given.items.add(new File([bytes], "b.png", {type: "image/png"}));
        const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: given, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: given, bubbles: true, cancelable: true});
        document.querySelector(selector).dispatchEvent(event);
    }"""
    data = base64.b64encode(PIXEL).decode()
    page.evaluate(give, [".composer", "drop", data])
    expect(page.locator(".thumbs img")).to_have_count(2)
    page.evaluate(give, [".composer textarea", "paste", data])
    expect(page.locator(".thumbs img")).to_have_count(3)
    page.get_by_role("button", name="Remove image 3").click()
    page.get_by_label("Message").fill("look at these")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="assistant")).to_contain_text("look at these")
    expect(page.get_by_role("article", name="user").locator("img")).to_have_count(2)
    sent = next(asked.json() for asked in reversed(backend.asked) if b"look at these" in asked.body)
    assert [part["type"] for part in sent["messages"][-1]["content"]] == ["text", "image_url", "image_url"]
    assert sent["messages"][-1]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{data}"


def test_a_chat_is_stopped_and_what_came_stays(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy, where="chat")
    page.get_by_label("Message").fill("wait")
    page.keyboard.press("Enter")
    said = page.get_by_role("article", name="assistant")
    expect(said).to_contain_text("you said")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    expect(said).to_contain_text("you said")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


def test_a_chat_that_fails_gives_back_what_was_written(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy, where="chat")
    expect(page.get_by_label("Model")).to_have_value("small")
    page.get_by_label("Message").fill("fail with a long question")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="onerror")).to_be_visible()
    expect(page.get_by_label("Message")).to_have_value("fail with a long question")
    page.keyboard.press("Escape")
    expect(page.locator("#fault")).to_be_empty()


def test_earlier_chats_are_found_restored_renamed_and_hidden(page: Page, proxy: Proxy) -> None:
    say(proxy, "a conversation to find", ANN)
    eventually(lambda: any(call["title"] == "a conversation to find" for call in logged(proxy)))
    log_in(page, proxy, ANN, where="chat")
    history = page.get_by_role("complementary")
    history.get_by_label("Search").fill("conversation to find")
    expect(history.get_by_role("listitem")).to_have_count(1)
    history.get_by_role("link", name="a conversation to find").click()
    expect(page.get_by_role("article", name="assistant")).to_contain_text("You said: a conversation to find")
    history = page.get_by_role("complementary")
    history.get_by_label("Search").fill("conversation to find")
    expect(history.get_by_role("listitem")).to_have_count(1)
    history.get_by_role("button", name="Rename").click()
    page.keyboard.type(EVIL)
    page.keyboard.press("Enter")
    expect(history.get_by_role("link", name=EVIL)).to_be_focused()
    history.get_by_role("button", name="Hide").click()
    expect(history.get_by_role("listitem")).to_have_count(0)


def test_config_shows_what_is_in_force_and_marks_faults_beside_their_lines(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy, where="config")
    table = page.get_by_role("table", name="The effective configuration")
    expect(table).to_contain_text("targets.main.key")
    expect(page.get_by_role("region", name="What is served")).to_contain_text("chat/completions")
    assert "sk-upstream" not in page.content()
    editor = page.get_by_label("The file")
    text = editor.input_value()
    editor.fill(text.replace("max_tries: 1000", "max_tries: many"))
    faults = page.get_by_role("list", name="Faults")
    expect(faults).to_contain_text("cerbere.max_tries: must be")
    expect(page.locator(".lines .bad")).to_have_text("2 ●")
    faults.get_by_role("button", name="Line 2").click()
    expect(editor).to_be_focused()
    assert page.evaluate("document.activeElement.value.slice(document.activeElement.selectionStart).startsWith('cerbere')")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert").filter(has_text="Nothing was changed")).to_be_visible()


def test_config_applies_and_undoes(page: Page, backend: Backend, tmp_path: Path) -> None:
    with Proxy(tmp_path, config_for(backend)) as proxy:
        log_in(page, proxy, where="config")
        editor = page.get_by_label("The file")
        editor.fill(editor.input_value().replace("max_tries: 1000", "max_tries: 999"))
        page.get_by_role("button", name="Apply").click()
        row = page.get_by_role("row").filter(has_text="cerbere.max_tries")
        expect(row).to_contain_text("999")
        page.get_by_role("button", name="Undo").click()
        expect(row).to_contain_text("1000")
        assert "sk-upstream-secret-000001" in (tmp_path / "config.yaml").read_text()


def test_the_api_page_shows_the_document(page: Page, proxy: Proxy) -> None:
    log_in(page, proxy, where="api")
    page.get_by_text("/console/api/rename").click()
    expect(page.get_by_text("JSON body: id title")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save openapi.json").click()
    assert json.loads(download.value.path().read_text())["openapi"] == "3.1.0"


# --- the login


def test_a_wrong_key_is_told_and_a_person_has_no_config_page(page: Page, proxy: Proxy) -> None:
    page.goto(f"{proxy.url}/console")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_visible()  # there is nothing behind it
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("the key is wrong")
    page.get_by_label("Key", exact=True).fill(ANN)
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text("ann")
    expect(page.get_by_role("link", name="Config")).to_have_count(0)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_login_that_ends_takes_nothing_that_was_typed(page: Page, backend: Backend, tmp_path: Path) -> None:
    with Proxy(tmp_path, config_for(backend).replace("edit: true", "session_s: 3")) as proxy:
        log_in(page, proxy, where="chat")
        page.get_by_label("Message").fill("half a thought")
        expect(page.get_by_role("dialog")).to_contain_text("Your session has ended", timeout=8000)
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.get_by_label("Message")).to_have_value("half a thought")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("article", name="assistant")).to_contain_text("You said: half a thought")


def test_another_page_cannot_act_in_the_visitors_name(page: Page, context: BrowserContext, proxy: Proxy) -> None:
    log_in(page, proxy)
    thread, replies = stream(proxy, ANN)
    calls = eventually(lambda: [row for row in [page.locator("tbody tr.streaming")] if row.count()])
    attack = """async ([url, id]) => {
        const tried = [], [plain, json] = ["text/plain", "application/json"];
        for (const [path, body, kind] of [["stop", {id}, plain], ["stop", {id}, json], ["logout", {}, plain]]) {
            const init = {method: "POST", credentials: "include", headers: {"content-type": kind}, body: JSON.stringify(body)};
            tried.push(await fetch(`${url}/console/api/${path}`, init).then((r) => r.status, () => "refused"));
        }
        tried.push(await fetch(`${url}/console/api/session`, {credentials: "include"}).then((r) => r.status, () => "refused"));
        return tried;
    }"""
    with Backend() as elsewhere:  # another port of this host: the same site, so that the cookie does go along
        form = (
            f'<form method="post" enctype="text/plain" action="{proxy.url}/console/api/logout"><button>A prize</button></form>'
        )
        elsewhere.on("/", lambda exchange: exchange.reply(200, form.encode(), kind="text/html"))
        other = context.new_page()
        other.goto(elsewhere.url)
        assert other.evaluate(attack, [proxy.url, "x"]) == ["refused"] * 4
        with other.expect_response(re.compile("logout")) as posted:
            other.get_by_role("button").click()
        assert posted.value.status == 403
    expect(calls[0]).to_be_visible()
    calls[0].get_by_role("button", name="Stop").click()
    thread.join(10)
    assert not replies[0].whole


# --- whatever is shown is text


@pytest.mark.parametrize("name", PAGES)
def test_hostile_names_prompts_and_answers_stay_text(page: Page, proxy: Proxy, name: str) -> None:
    log_in(page, proxy)
    main = show(page, name)
    assert page.locator("main [onerror], main script, main [onmouseover]").count() == 0
    if name in ("calls", "usage"):
        expect(main).to_contain_text("onerror=")
    if name == "chat":
        assert EVIL_TARGET in page.get_by_label("Target").locator("option").all_text_contents()
        page.get_by_label("Message").fill("evil")
        page.keyboard.press("Enter")
        expect(page.get_by_role("article", name="assistant")).to_contain_text(EVIL)
    if name == "calls":
        hostile = next(call["id"] for call in logged(proxy) if call["model_asked"] == EVIL)
        page.locator(f'a[href="#calls/{hostile}"]').first.click()
        expect(page.get_by_role("region", name="What the client sent")).to_contain_text("window.__xss=1")
        expect(page.get_by_role("region", name="What the client got")).to_contain_text("window.__xss=1")


# --- for everybody


@pytest.mark.parametrize("name", PAGES)
def test_each_page_fits_a_phone_and_names_its_controls(page: Page, proxy: Proxy, name: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    log_in(page, proxy)
    show(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(NAMELESS) == []
    assert page.locator("h1").count() == page.locator("main").count() == page.locator("nav").count() == 1
    assert page.locator("table:not(:has(caption)), th:not([scope]), img:not([alt])").count() == 0
    assert page.evaluate("(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_page_can_be_read_in_the_light_and_in_the_dark(page: Page, proxy: Proxy, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    log_in(page, proxy)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == (scheme == "dark")
    for name in PAGES:
        show(page, name)
        assert page.evaluate(CONTRAST) == [], name
    call_page(page, proxy, "from Anthropic")
    assert page.evaluate(CONTRAST) == []


def test_the_keyboard_is_enough(page: Page, proxy: Proxy) -> None:
    page.goto(f"{proxy.url}/console/")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "skip":
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    reach(page, "Chat", back=True)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Chat")
    expect(page.get_by_label("Model")).to_have_value("small")
    reach(page, "Message")
    page.keyboard.type("wait")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="assistant")).to_contain_text("you said")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    links = page.get_by_role("complementary").get_by_role("link")
    links.first.focus()
    page.keyboard.press("ArrowDown")
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(links.first).to_be_focused()


def reach(page: Page, name: str, back: bool = False) -> None:
    """Tabs until the control of that name has the focus; each that has it on the way shows it."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        found = page.evaluate(
            "((n) => [n.labels?.[0]?.textContent ?? n.textContent, getComputedStyle(n).outlineStyle, n.tagName])"
            "(document.activeElement)"
        )
        assert found[1] != "none" or found[2] in ("BODY", "MAIN"), found
        if (found[0] or "").strip().startswith(name):
            return
    raise AssertionError(f"the keyboard does not reach {name}")


# --- pictures for docs/console.md


def month() -> list[Row]:
    """A month of calls."""
    questions = (
        "Summarise this report",
        "Translate to French",
        "Why is the sky blue?",
        "Write a test for this function",
        "Plan a trip",
    )
    made, now = [], time.time()
    for number in range(900):
        at = now - 60 - number * 7919 % 2592 * 1000
        model, key, tokens = (
            ("gpt-large", "llama-small", "llama-small")[number % 3],
            ("ann", "bob")[number % 5 == 0],
            200 + number * 37 % 900,
        )
        row = Row(
            f"{number:028x}",
            at,
            key,
            client="10.0.0.7",
            method="POST",
            path="/v1/chat/completions",
            target="local",
            model_asked=model,
        )
        row.model_served, row.status, row.total_ms, row.first_ms = (
            model,
            500 if number % 40 == 7 else 200,
            300.0 + tokens * 4,
            180.0 + tokens % 70,
        )
        row.tokens_in, row.tokens_out, row.cost, row.title = (
            tokens * 3,
            tokens,
            tokens * (5e-5 if model == "gpt-large" else 5e-6),
            questions[number % 5],
        )
        row.conversation = row.id
        made.append(row)
    return made


@pytest.fixture
def friendly(backend: Backend, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy that has served for a month."""
    store = open_store(f"sqlite:///{tmp_path}/calls.db")
    store.write(month())
    store.close()
    config = (
        config_for(backend)
        .replace(f'  "{EVIL_TARGET}": {{url: "{backend.url}", dialect: openai}}\n', "")
        .replace(f', "{EVIL_TARGET}": "{EVIL_TARGET}"', "")
    )
    with Proxy(tmp_path, config) as running:
        yield running


def test_a_month_of_calls_is_shown_and_pictured(
    page: Page, friendly: Proxy, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The pictures go into docs/console with `--screenshots`, else they are only made."""
    folder = SHOTS if request.config.getoption("screenshots") else tmp_path
    folder.mkdir(exist_ok=True)

    def picture(name: str) -> None:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=folder / f"{name}.png", scale="css", animations="disabled")
        assert (folder / f"{name}.png").stat().st_size < LARGEST_SHOT

    mapped = {
        "model": "small",
        "max_tokens": 50,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "from Anthropic"}],
    }
    ask(friendly.url, "POST", "/v1/messages", mapped, bearer(ANN))
    eventually(lambda: logged(friendly)[0]["title"] == "from Anthropic")
    log_in(page, friendly)
    thread, _ = stream(friendly, ANN)
    row = page.locator("tbody tr.streaming")
    row.get_by_role("button", name="Show the text").click()
    expect(page.get_by_label("Text so far")).to_have_text("you said ")
    picture("now")
    row.get_by_role("button", name="Stop").click()
    thread.join(10)
    for name in ("calls", "usage", "config", "api"):
        show(page, name)
        if name == "usage":
            assert page.locator("svg rect").count() > 60
        picture(name)
    show(page, "chat")
    expect(page.get_by_label("Model")).to_have_value("small")
    page.get_by_label("Message").fill("code")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="assistant").locator("code").first).to_be_visible()
    expect(page.get_by_role("complementary").get_by_role("link", name="code")).to_be_visible()
    picture("chat")
    call_page(page, friendly, "from Anthropic")
    picture("call")
    page.emulate_media(color_scheme="dark")
    picture("dark")
