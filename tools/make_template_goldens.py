"""Makes tests/data/templates.json.xz: what transformers renders for real chat templates and made conversations.

    python tools/make_template_goldens.py FOLDER      (FOLDER/*.jinja; needs transformers and jinja2)

The file holds {"templates": {name: source}, "conversations": {name: {messages, tools, options}}, "rendered": {template:
{conversation: text, or {"raises": message}}}}. The clock given to strftime_now stands at 2025-03-09 14:05:06.
"""

from __future__ import annotations

import datetime as clock
import json
import lzma
import sys
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils

TARGET = Path(__file__).parent.parent / "tests" / "data" / "templates.json.xz"


class StoppedClock(clock.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> clock.datetime:
        return clock.datetime(2025, 3, 9, 14, 5, 6)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def call(name: str, arguments: Any, id: str = "call12345") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text: Any, name: str, id: str = "call12345") -> dict[str, Any]:
    return {"role": "tool", "content": text, "name": name, "tool_call_id": id}


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city, e.g. \"Zürich\" <now>.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "The city's name"},
        "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C"},
        "days": {"type": "integer", "minimum": 1, "description": "how many & when"}}}}}
PLAN = {"type": "function", "function": {
    "name": "plan_trip", "description": "Plans a trip.\nTwo lines.",
    "parameters": {"type": "object", "required": ["stops", "budget"], "properties": {
        "stops": {"type": "array", "items": {"type": "object", "properties": {
            "place": {"type": "string"}, "nights": {"type": "number"}}, "required": ["place"]}},
        "budget": {"type": ["number", "null"], "description": "in CHF"},
        "fast": {"type": "boolean", "default": False, "nullable": True},
        "mode": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}}}}
BARE = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}

ASK = user("What is 2 + 2?")
TURNS = [user("Hi, I'm Zoë."), assistant("Hello Zoë! 👋"), user("  Spaces around, \"quotes\" & <tags>\n"), assistant("\n\nOK\n"),
         user("Bye")]
CALLS = [user("Weather in Genève?"), assistant("", tool_calls=[call("get_weather", {"city": "Genève", "days": 2})])]
ANSWER = [result('{"temp": 21.5, "sky": "clear"}', "get_weather")]
TWO_CALLS = [user("Compare."), assistant("Let me look.", tool_calls=[
    call("get_weather", {"city": "Bern", "unit": "°C"}, "abcdefgh1"),
    call("plan_trip", {"stops": [{"place": "Bern", "nights": 1.5}], "budget": None, "fast": True, "n": 2.0, "x": 0.1}, "abcdefgh2")])]
TWO_ANSWERS = [result("rain", "get_weather", "abcdefgh1"), result("12 & 13 <ok>", "plan_trip", "abcdefgh2")]
THOUGHT = [user("Why?"), assistant("Because.", reasoning_content="They ask why.\nSo I say."), user("Really?")]
INLINE = [user("Why?"), assistant("<think>\nThey ask.\n</think>\n\nBecause."), user("Really?")]
DATE = {"date_string": "09 Mar 2025"}


# Constructs that the real templates do not have, or hardly
CONSTRUCTS = {
    "generation": "{% for m in messages %}\n  {%- generation %}\n{{ m.content }}\n  {% endgeneration -%}\n|{% endfor %}",
    "generation scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "raw": "{% raw %}{{ x|tojson }}{% for a in none %}{% endraw %}{{ 'a{% generation %}b' }}{# {{ '#' }} #}{{ '|tojson' }}{{ \"it's\" }}",
    "braces": "{{ {'a': {'b': {}}}|tojson }}{{ {'}}': '%}'}|tojson }}{% set d = {'x': {'y': 1}} %}{{ d.x.y - -1 }}"
              "{%- if 5 % 2 %} odd{% endif %}",
    "trim": "a\n   {% if true %}\n   b\n   {%- endif %}\n  {{- 'c' }}\n {%+ if true %}d{% endif %}\n\n{# e #}\n  f\n",
    "json": "{{ messages|tojson(indent=2) }}{{ tools|tojson(separators=(',', ':')) }}{{ tools|tojson(sort_keys=True) }}"
            "{{ messages | tojson(ensure_ascii=True) }}{{ [2.0, 1e-7, 10**20, true, none, \"<'&>\", '\\\\u003c']|tojson }}{{ 2.0|tojson }}",
    "undefined json": "{{ nothing|tojson }}",
    "loops": "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{% if loop.last %}.{% endif %}"
             "{% if loop.index > 3 %}{% break %}{% endif %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
             "{{ loop.previtem.role if loop.previtem is defined else '-' }} {% else %}none{% endfor %}",
    "loop over none": "{% for t in tools %}{{ t.function.name }}{% endfor %}",
    "loop over undefined": "{% for t in nothing %}x{% else %}empty{% endfor %}{% for t in messages[0].nothing %}x{% endfor %}",
    "macros": "{% macro m(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=2.0) }}{{ m(m('a'), b=[1, 'b']) }}"
              "{% macro twice() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call twice() %}q{% endcall %}",
    "strings": "{% for m in messages if m.content is string %}{{ m.content.strip().split('.')[-1] | upper }}{{ m.content[::-1][:3] }}"
               "{{ m.content.replace('e', 'E', 1).lstrip('W').startswith('hat') }}{{ m.content|length }}"
               "{{ m.content.count('a') }}{{ m.content.find('i') }}{{ 'i' in m.content }}{{ m.content|trim|capitalize }}{% endfor %}",
    "values": "{{ [1, 2.5, 'a', \"b'c\", none, true, {'k': (1, 2)}] }}{{ none }}{{ true }}{{ 4 / 2 }}{{ 7 // 2 }}{{ -7 % 3 }}{{ 2 ** 10 }}"
              "{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] }}{{ nothing }}{{ 'x' * 3 }}{{ '%s'|format(1) }}{{ 1.0 }}{{ 0.1 + 0.2 }}",
    "tests": "{% for v in [1, 1.5, 'a', [1], {'a': 1}, none, true, (1, 2)] %}{{ v is string }}{{ v is number }}{{ v is mapping }}"
             "{{ v is iterable }}{{ v is sequence }}{{ v is none }}{{ v is boolean }}{{ v is integer }}"
             "{{ v is float }}{{ v is true }} {% endfor %}",
    "filters": "{{ [3, 1, 2]|sort|join(',') }}{{ messages|map(attribute='role')|unique|list }}"
               "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
               "{{ messages|rejectattr('role', 'eq', 'user')|map(attribute='role')|join('-') }}{{ {'b': 1, 'a': 2}|dictsort }}"
               "{{ 'a b'|title }}{{ nothing|default('d') }}{{ ''|default('e', true) }}{{ [1, 2]|first }}{{ [1, 2]|last }}{{ '3'|int + 1 }}"
               "{{ 'a\nb'|indent(2) }}{{ [[1, 2], [3]]|sum(start=[]) }}{{ 2.567|round(1) }}{{ [1, 2, 3]|reverse|list }}{{ '<'|e }}",
    "namespace": "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'tool' %}"
                 "{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}",
    "dicts": "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}{{ m.get('name', '-') }}"
             "{{ m.keys()|list }}{% endfor %}{{ dict(a=1, b=2) }}{{ messages[0].nothing is defined }}{{ messages[0]['nothing'] is none }}",
    "date": "{{ strftime_now('%d %b %Y %H:%M:%S %j') }}",
    "refusal": "{{ raise_exception('Roles <must> alternate: ' ~ messages|length) }}",
    "appending": "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}{{ messages|length }}",
    "changing": "{% set _ = messages[0].update({'role': 'x'}) %}{{ messages[0].role }}",
}


def chat(*messages: Any, tools: Any = None, **options: Any) -> dict[str, Any]:
    return {"messages": list(messages), "tools": tools, "options": {"add_generation_prompt": True, **options}}


CONVERSATIONS = {
    "plain": chat(ASK),
    "plain, no prompt": chat(ASK, add_generation_prompt=False),
    "plain, closed": chat(ASK, assistant("4"), add_generation_prompt=False),
    "plain, date": chat(ASK, **DATE),
    "system": chat(system("Be brief. Be kind."), ASK),
    "system only": chat(system("Be brief.")),
    "system twice": chat(system("One."), ASK, assistant("4"), system("Two."), user("And 3 + 3?")),
    "developer": chat({"role": "developer", "content": "Be terse."}, ASK),
    "turns": chat(*TURNS),
    "turns, system, closed": chat(system("  Trim me? "), *TURNS, assistant("Bye!"), add_generation_prompt=False),
    "empty": chat(),
    "empty content": chat(user("")),
    "null content": chat(user("x"), assistant(None), user("y")),
    "wrong order": chat(assistant("first"), ASK),
    "two users": chat(user("one"), user("two")),
    "unknown role": chat({"role": "critic", "content": "hm"}, ASK),
    "text parts": chat(system([{"type": "text", "text": "Be brief."}]), user([{"type": "text", "text": "one "},
                                                                           {"type": "text", "text": "two"}])),
    "image part": chat(user([{"type": "image"}, {"type": "text", "text": "What is this?"}])),
    "markup": chat(user("{{ 7 * 7 }} {% if x %} {# no #} <|im_end|> \\n \t é\u2028日本"), assistant("[INST] </s>"), user("'\"")),
    "tools": chat(user("Weather in Genève?"), tools=[WEATHER, PLAN, BARE]),
    "tools, system": chat(system("Be brief."), user("Weather?"), tools=[WEATHER]),
    "no tools": chat(ASK, tools=[]),
    "call": chat(*CALLS, tools=[WEATHER], add_generation_prompt=False),
    "call, answer": chat(*CALLS, *ANSWER, tools=[WEATHER, PLAN]),
    "call, answer, more": chat(system("Be brief."), *CALLS, *ANSWER, assistant("21.5 °C"), user("And Bern?"), tools=[WEATHER]),
    "call, text arguments": chat(user("Weather?"), assistant("", tool_calls=[call("get_weather", '{"city": "Bern"}')]), *ANSWER,
                                 tools=[WEATHER]),
    "call, null content": chat(user("Weather?"), assistant(None, tool_calls=[call("now", {})]), result("14:05", "now"), tools=[BARE]),
    "call, no content": chat(user("Weather?"), {"role": "assistant", "tool_calls": [call("now", {})]}, result("14:05", "now"),
                             tools=[BARE]),
    "two calls": chat(*TWO_CALLS, *TWO_ANSWERS, tools=[WEATHER, PLAN]),
    "two calls, closed": chat(*TWO_CALLS, *TWO_ANSWERS, assistant("Done."), tools=[WEATHER, PLAN], add_generation_prompt=False),
    "call without tools": chat(*CALLS, *ANSWER),
    "call, json answer": chat(*CALLS, result({"temp": 21.5, "list": [1, None, True]}, "get_weather"), tools=[WEATHER]),
    "thinking on": chat(system("Be brief."), ASK, enable_thinking=True, thinking=True),
    "thinking off": chat(system("Be brief."), ASK, enable_thinking=False, thinking=False),
    "thinking off, closed": chat(ASK, assistant("4"), enable_thinking=False, thinking=False, add_generation_prompt=False),
    "thought": chat(*THOUGHT),
    "thought, kept": chat(*THOUGHT, enable_thinking=True, thinking=True, keep_thinking=True, clear_thinking=False),
    "thought, last": chat(*THOUGHT[:2], add_generation_prompt=False),
    "thought inline": chat(*INLINE),
    "thought inline, last": chat(*INLINE[:2], add_generation_prompt=False),
    "thought, call": chat(user("Weather?"), assistant("", reasoning_content="I need a tool.", tool_calls=[call("now", {})]),
                          result("14:05", "now"), tools=[BARE], enable_thinking=True),
    "effort high": chat(ASK, reasoning_effort="high"),
    "effort low, tools": chat(system("Be brief."), user("Weather?"), tools=[WEATHER], reasoning_effort="low"),
    "no_think word": chat(system("Be brief. /no_think"), ASK),
    "builtin tools": chat(user("Search."), builtin_tools=["brave_search", "wolfram_alpha"], tools=[WEATHER]),
    "tools in system": chat(system("Be brief."), user("Weather?"), tools=[WEATHER], tools_in_user_message=False, **DATE),
    "documents": chat(user("Who?"), documents=[{"title": "A \"b\"", "text": "Some <text>.", "doc_id": 1}, {"title": "C", "text": "d"}]),
}


def render(source: str, conversation: dict[str, Any]) -> str | dict[str, str]:
    options = {"bos_token": "<BOS>", "eos_token": "<EOS>", **conversation["options"]}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [conversation["messages"]], tools=conversation["tools"], chat_template=source, **options)
    except Exception as error:
        return {"raises": f"{type(error).__name__}: {error}"}
    text: str = rendered[0]
    return text


def main() -> None:
    chat_template_utils.datetime = StoppedClock
    templates = {path.stem: path.read_text() for path in sorted(Path(sys.argv[1]).glob("*.jinja"))} | CONSTRUCTS
    rendered = {name: {case: render(source, conversation) for case, conversation in CONVERSATIONS.items()}
                for name, source in templates.items()}
    text = json.dumps({"templates": templates, "conversations": CONVERSATIONS, "rendered": rendered}, ensure_ascii=False)
    TARGET.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    raised = sum(isinstance(r, dict) for cases in rendered.values() for r in cases.values())
    print(f"{len(templates)} templates x {len(CONVERSATIONS)} conversations, {raised} raise, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
