"""The chat page in a headless Chromium (Debian: apt-get install chromium) against a real model.

Slow: pytest -m slow tests/unit/test_server_page.py. PYLLM_SCREENSHOTS=docs writes the picture of the documentation, and one in dark.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import chromium
import pytest
from serving import Client, wait_until

import pyllm

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.find() is None, reason="needs chromium")]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=4096) as llm:
        yield llm


@pytest.fixture
def page(llm: pyllm.LLM) -> Iterator[chromium.Page]:
    with llm.serve(0, name="smollm2", drain_s=0) as server:
        page = chromium.Page(server.url)
        try:
            page.wait("document.querySelector('#model option') !== null")
            yield page
            problems = [e for e in page.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
            assert not problems
            asked = {e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"}
            assert asked and all(url.startswith((server.url, "data:", "about:")) for url in asked)
        finally:
            page.close()


def set_options(page: chromium.Page, **options: float) -> None:
    page.run(f"for (const [k, v] of Object.entries({options})) document.getElementById(k).value = v")


def ask(page: chromium.Page, text: str) -> None:
    page.run("document.getElementById('input').focus()")
    page.type(text)
    page.press("Enter")


def last(page: chromium.Page) -> str:
    return str(page.run("[...document.querySelectorAll('.assistant .text')].at(-1)?.innerText ?? ''"))


def idle(page: chromium.Page) -> None:
    page.wait("document.getElementById('send').textContent === 'Send' && document.querySelector('.stats') !== null")


def test_a_conversation(page: chromium.Page, llm: pyllm.LLM) -> None:
    set_options(page, **GREEDY)
    ask(page, "Name a colour.")
    idle(page)
    first = llm.chat("Name a colour.", **GREEDY).text
    assert page.run("messages.at(-1).content") == first and last(page).split() == first.split()
    stats = page.run("document.querySelector('.stats').textContent")
    assert "12 new @" in stats and "prompt @" in stats

    ask(page, "And another?")
    page.wait("document.querySelectorAll('.assistant').length === 2")
    idle(page)
    history = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": first},
               {"role": "user", "content": "And another?"}]
    second = llm.chat(history, **GREEDY).text
    assert page.run("messages.at(-1).content") == second

    set_options(page, temperature=1, seed=3)
    page.click(".assistant .bar button:nth-child(2)")       # Regenerate
    idle(page)
    other = llm.chat(history, temperature=1, seed=3, max_tokens=12).text
    assert page.run("messages.length") == 4 and page.run("messages.at(-1).content") == other
    page.click(".assistant .bar button:nth-child(1)")       # Copy
    page.wait("document.querySelector('.assistant:last-child .bar button').textContent === 'Copied'")
    page.call("Page.reload")        # what was said is still there
    page.wait("document.querySelectorAll('.message').length === 4")
    page.click("#new")
    page.wait("document.querySelectorAll('.message').length === 0")


def test_stop_ends_the_request_and_keeps_the_text(page: chromium.Page, llm: pyllm.LLM) -> None:
    for stop in ("button", "Escape"):
        ask(page, "Write a very long story.")
        page.wait("(messages.at(-1)?.content ?? '').length > 20")
        assert llm.load[0] == 1
        page.click("#send") if stop == "button" else page.press("Escape")
        wait_until(lambda: llm.load[:2] == (0, 0))
        page.wait("document.getElementById('send').textContent === 'Send'")
        assert len(last(page)) >= 20
        page.click("#new")


def test_errors_are_shown(page: chromium.Page) -> None:
    page.run("document.getElementById('input').value = 'word '.repeat(6000); document.getElementById('input').oninput()")
    page.click("#send")
    page.wait("document.querySelector('.error')?.textContent.includes('4096')")
    page.events[:] = [e for e in page.events if e.get("method") != "Log.entryAdded"]       # the 400 itself


def test_it_fits_a_phone_in_light_and_dark(page: chromium.Page) -> None:
    set_options(page, **GREEDY | {"max_tokens": 217})
    ask(page, "Write a Python function that counts the words of a file, and explain it in two points.")
    idle(page)
    folder = os.environ.get("PYLLM_SCREENSHOTS")
    seen = {}
    for theme in ("light", "dark"):
        seen[theme] = page.run("getComputedStyle(document.body).backgroundColor")
        if folder:
            Path(folder, f"chat-page-{theme}.png").write_bytes(page.screenshot())
        page.click("#theme")
    assert len(set(seen.values())) == 2
    page.size(360, 640, phone=True)
    page.click("#show")
    assert page.run("document.documentElement.scrollWidth") <= 360
    for control in ("#send", "#input", "#model", "#new", "#show", "#theme", "#system"):
        place = f"document.querySelector({control!r}).getBoundingClientRect()"
        left, right, top, bottom = page.run(f"(r => [r.left, r.right, r.top, r.bottom])({place})")
        assert 0 <= left < right <= 360 and 0 <= top < bottom <= 640, control


TEXTS = [
    "# Title\nText with **bold**, *thin*, `code` and [a link](https://example.org/a_b).\n\n- one\n- two\n  - inner\n- three\n\n1. a\n2. b",
    "```python\nprint('<b>')\n\n# not a title\n```\nafter\n\n> quoted\n> more\n\n---\n\n| a | b |\n|---|---|\n| 1 | **2** |\n",
    "<img src=x onerror=alert(1)> <script>alert(2)</script> [x](javascript:alert(3)) **<i>**",
    "unfinished **bold and `code\n\n```\nno end\n\nof it", "a\nb\n\n\n\nc * d * e _f_ snake_case_name 2*3*4",
    "```\n```\n\n````\n```\n````\n"]


def rendered(page: chromium.Page, text: str, cuts: Sequence[int] = ()) -> str:
    """The HTML of a text that was shown up to each of the cuts before."""
    return str(page.run(f"(() => {{ const text = {json.dumps(text)}, d = document.createElement('div'), m = new Markdown(d);"
                        f"for (const n of {list(cuts)}) m.show(text.slice(0, n), false); m.show(text, true); return d.innerHTML; }})()"))


def test_markdown_grows_to_what_it_is_at_once_and_is_never_html(page: chromium.Page) -> None:
    rng = random.Random(1)
    for text in TEXTS:
        whole = rendered(page, text)
        for _ in range(5):
            assert rendered(page, text, sorted(rng.sample(range(len(text)), min(6, len(text))))) == whole
        assert "<img" not in whole and "<script" not in whole and "javascript:" not in whole.replace("](javascript:", "")
    first, second = rendered(page, TEXTS[0]), rendered(page, TEXTS[1])
    for part in ("<h2>Title</h2>", "<strong>bold</strong>", "<em>thin</em>", "<code>code</code>", 'href="https://example.org/a_b"',
                 "<ul><li>one</li><li>two<ul><li>inner</li></ul></li><li>three</li></ul>", '<ol start="1"><li>a</li><li>b</li></ol>'):
        assert part in first, first
    for part in ("print('&lt;b&gt;')\n\n# not a title</code>", "<blockquote><p", "<hr>", "<td><strong>2</strong></td>"):
        assert part in second, second


def test_the_page_has_a_policy_and_nothing_from_elsewhere(llm: pyllm.LLM) -> None:
    with llm.serve(0, drain_s=0) as server:
        answer = Client(server.url).get("/")
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert b"src=" not in answer.body.replace(b"http://www.w3.org/2000/svg", b"") and len(answer.body) < 60_000
