"""Chat templates against transformers' renderings (tests/data/templates.json.xz, made by tools/make_template_goldens.py), errors
and limits. Hostile templates run in a child process with limits on memory and processor time."""

from __future__ import annotations

import datetime
import json
import lzma
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pyllm import chat, errors
from pyllm.chat import ChatTemplate

GOLDENS = json.loads(lzma.decompress((Path(__file__).parents[1] / "data" / "templates.json.xz").read_bytes()))
HELLO = [{"role": "user", "content": "hello"}]


class StoppedClock(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> StoppedClock:
        return cls(2025, 3, 9, 14, 5, 6)


@pytest.mark.parametrize("name", GOLDENS["templates"])
def test_renders_as_transformers_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "datetime", StoppedClock)
    template = ChatTemplate(GOLDENS["templates"][name], "<BOS>", "<EOS>")
    for case, wanted in GOLDENS["rendered"][name].items():
        conversation = GOLDENS["conversations"][case]
        try:
            text: Any = template.render(conversation["messages"], conversation["tools"], **conversation["options"])
        except (errors.ArgumentError, errors.UnsupportedTemplate) as error:
            assert error.hint, f"{case}: no hint in {error}"
            assert isinstance(wanted, dict), f"{case}: {error}"
            refusal = wanted["raises"].removeprefix("TemplateError: ")
            assert refusal == wanted["raises"] or refusal in str(error), f"{case}: {error} does not say {refusal}"
        else:
            assert text == wanted, case


def test_the_goldens_hold_all_that_they_should() -> None:
    rendered = [text for cases in GOLDENS["rendered"].values() for text in cases.values()]
    assert len(GOLDENS["templates"]) == 58
    assert len(rendered) == 58 * len(GOLDENS["conversations"])
    assert sum(isinstance(text, str) for text in rendered) > 2000


# ---- the caller's values ----


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}], "reasoning": "r"}]
    before = json.dumps(messages)
    template = ChatTemplate("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}{% set d = messages[0].copy() %}"
                            "{{ d.update({'role': 'x'}) }}{{ messages[0].role }}")
    assert template.render(messages) == "rrNoneuser"
    assert json.dumps(messages) == before


@pytest.mark.parametrize("messages", [["text"], [None], [HELLO], [{"role": "user", "content": b"bytes"}],
                                      [{"role": "user", "content": object()}]])
def test_a_wrong_message_is_an_argument_error(messages: Any) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        ChatTemplate("{{ messages[0].content }}").render(messages)
    assert caught.value.hint


def test_messages_nested_too_deep() -> None:
    content: Any = "x"
    for _ in range(100_000):
        content = [content]
    with pytest.raises(errors.ArgumentError):
        ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": content}])


def test_message_text_is_never_template_code() -> None:
    rng = random.Random(seed := 20250309)
    pieces = ["{{ 7 * 7 }}", "{% for x in y %}", "{% endfor %}", "{#", "#}", "{{", "}}", "%}", "'", '"', "\\", "\n",
              "<b>&", "é", "日本", "\0", "\u2028"]
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{{ m.content|tojson }}{% endfor %}")
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        assert template.render([{"role": "user", "content": text}]) == f"[{text}]{json.dumps(text, ensure_ascii=False)}", (seed, text)


def test_json_is_written_as_python_writes_it() -> None:
    rng = random.Random(seed := 7)

    def value(depth: int) -> Any:
        kind = rng.randrange(8 if depth else 6)
        if kind == 0:
            return rng.choice([None, True, False])
        if kind == 1:
            return rng.choice([0, -1, 10**18, 10**30, rng.randrange(10**6)])
        if kind == 2:
            return rng.choice([0.0, -0.0, 2.0, 1e16, 1e-7, 1e300, rng.random()])
        if kind < 6:
            return "".join(rng.choices("ab\"'\\<>&/\n\t\b\f\x7f\u2028é\U0001f600", k=rng.randrange(6)))
        if kind == 6:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {str(i) + rng.choice("b<'"): value(depth - 1) for i in range(rng.randrange(4), 0, -1)}

    plain, spaced = ChatTemplate("{{ v|tojson }}"), ChatTemplate("{{ v | tojson(indent=3, sort_keys=true, ensure_ascii=true) }}")
    for _ in range(500):
        v = value(3)
        assert plain.render([], v=v) == json.dumps(v, ensure_ascii=False), (seed, v)
        assert spaced.render([], v=v) == json.dumps(v, indent=3, sort_keys=True), (seed, v)


def test_one_template_renders_from_many_threads() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ m|tojson }}{% endfor %}{{ n }}")
    wrong: list[str] = []

    def work(n: int) -> None:
        wanted = "hello" + json.dumps(HELLO[0]) + str(n)
        wrong.extend(text for _ in range(200) if (text := template.render(HELLO, n=n)) != wanted)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_long_conversation_has_steps_enough() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"message {i} " * 20} for i in range(401)]
    for name in ("google-gemma-4-31B-it", "meetkai-functionary-medium-v3.2", "NVIDIA-Nemotron-Nano-v2", "Qwen-Qwen3-0.6B"):
        assert "message 400" in ChatTemplate(GOLDENS["templates"][name]).render(messages)
    text = "word " * 1_000_000
    assert text.strip() in ChatTemplate(GOLDENS["templates"]["Qwen-Qwen3-0.6B"]).render([{"role": "user", "content": text}])


# ---- errors ----


@pytest.mark.parametrize(("source", "named"), [
    ("{% frobnicate %}", "frobnicate"),
    ("{{ x|frobnicate }}", "frobnicate"),
    ("{{ frobnicate(1) }}", "frobnicate"),
    ("{{ x is frobnicate }}", "frobnicate"),
    ("{% trans %}a{% endtrans %}", "trans"),
    ("{% include 'other.jinja' %}", "other.jinja"),
    ("{{ 'a'.zfill(3) }}", "zfill"),
    ("{{ x.format(1) }}", ".format"),
    ("{{ messages|map('tojson')|list }}", "map('tojson')"),
    ("a\n{% for x in messages %}", "line 2"),
    ("{{ 'never ends", "line 1"),
    ("{% set x = {'a': 1 %}", "line 1"),
    ("{# never ends", "comment"),
    ("x" * (chat.MAX_SOURCE + 1), str(chat.MAX_SOURCE)),
])
def test_a_template_outside_of_the_language_is_named(source: str, named: str) -> None:
    with pytest.raises(errors.UnsupportedTemplate) as caught:
        ChatTemplate(source).render(HELLO)
    assert named in caught.value.message
    assert "--chat-template FILE" in (caught.value.hint or "")


@pytest.mark.parametrize(("source", "named"), [
    ("{{ raise_exception('Roles must alternate') }}", "refuses these messages: Roles must alternate"),
    ("a\n{{ messages[5].content }}", "line 2"),
    ("{{ messages[0].content + 1 }}", "+"),
    ("{{ none.get('x') }}", "get"),
    ("{% for t in tools %}{% endfor %}", "tools is None"),
    ("{{ messages[0].get() }}", "get"),
    ("{{ messages.append(1) }}", "must not change lists"),
    ("{{ messages[0].pop('role') }}", "must not change dicts"),
    ("{{ nothing|tojson }}", "undefined"),
])
def test_messages_that_do_not_fit_the_template(source: str, named: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        ChatTemplate(source).render(HELLO)
    assert named in caught.value.message
    assert caught.value.hint


def test_the_output_has_a_limit() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ messages[0].content }}")
    half = chat.MAX_OUTPUT // 2
    assert len(template.render([{"role": "user", "content": "a" * half}])) == 2 * half
    with pytest.raises(errors.UnsupportedTemplate, match="limit"):
        template.render([{"role": "user", "content": "a" * (half + 1)}])


# ---- hostile templates ----

ENDLESS = "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = OPERATION %}{% endfor %}{{ ns.x|length }}"
HOSTILE = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a) %}{{ m(a ~ a) }}{% endmacro %}{{ m('aa') }}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10 ** 10 ** 9 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{{ ('{:>1000000000}').format(1) }}",
    "{% set f = '{:>1000000000}' %}{{ f.format(1) }}",
    "{{ 'a'|indent(10**9) }}",
    "{{ [1]|slice(10**9)|list }}{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{{ [1, 2]|tojson(separators=('a' * 100000, 'b')) }}",
    "{{ strftime_now('%999999999d') }}",
    ENDLESS.replace("OPERATION", "ns.x ~ ns.x"),
    ENDLESS.replace("OPERATION", "ns.x + ns.x"),
    ENDLESS.replace("OPERATION", "ns.x * 2"),
    "{% set x %}{% for a in range(5000) %}{{ 'a' * 1000 }}{% endfor %}{% endset %}{{ x }}{{ x }}",
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "[" * 100_000 + "1" + "]" * 100_000 + " }}",
    "{% if true %}" * 20_000 + "{% endif %}" * 20_000,
    "{{ " + "-" * 100_000 + "1 }}",
    "{{ " + "- " * 990 + "1 }}{{ 1|frobnicate }}",  # just allowed, and must not end the process
    "{{ messages" + ".x" * 100_000 + " }}",
    "{% if true %}" + "{% elif true %}" * 100_000 + "{% endif %}",
    "{{ " * 100_000,
    "{{ '" + "{" * 300_000,
]
CHILD = """
import json, resource, sys, threading, time
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from pyllm import errors
from pyllm.chat import ChatTemplate

def run():
    for source in json.load(sys.stdin):
        start = time.process_time()
        try:
            ChatTemplate(source).render([{"role": "user", "content": "hello"}])
            outcome = "rendered"
        except errors.Error as error:
            outcome = type(error).__name__
        print(json.dumps([outcome, time.process_time() - start]), flush=True)

threading.stack_size(512 << 10)  # what threads have on macOS
threading.Thread(target=run).start()
"""


def test_hostile_templates_end_soon_in_little_memory() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(HOSTILE), capture_output=True, text=True, timeout=120,
                           cwd=Path(chat.__file__).parents[1])
    outcomes = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(outcomes) == len(HOSTILE), f"{HOSTILE[len(outcomes)][:100]} ended the process: {child.stderr[-500:]}"
    for source, (outcome, seconds) in zip(HOSTILE, outcomes, strict=True):
        assert outcome == "UnsupportedTemplate", (source[:100], outcome)
        assert seconds < 3, (source[:100], seconds)


@pytest.mark.parametrize("source", [
    "{{ messages.__class__ }}", "{{ messages[0].__class__ }}", "{{ messages['__class__'] }}", "{{ messages|attr('__class__') }}",
    "{{ ''.__class__ }}", "{{ raise_exception.__globals__ }}", "{{ messages[0].get.__self__ }}", "{{ messages._fixed }}",
    "{{ namespace.__init__ }}", "{{ strftime_now.__code__ }}", "{{ self.__dict__ }}", "{{ messages[0].__init__.__globals__ }}",
    "{{ messages.__class__.__mro__ }}", "{{ '{0.__class__}'.format(messages) }}", "{{ debug() }}", "{{ messages.__len__() }}",
])
def test_templates_cannot_reach_python(source: str) -> None:
    try:
        text = ChatTemplate(source).render(HELLO)
    except errors.Error:
        return
    assert text in ("", "None")
