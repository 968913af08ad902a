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
    call("plan_trip", {"stops": [{"place": "Bern", "nights": 1.5}], "budget": None, "fast": True, "n": 1e16}, "abcdefgh2")])]
TWO_ANSWERS = [result("rain", "get_weather", "abcdefgh1"), result("12 & 13 <ok>", "plan_trip", "abcdefgh2")]
THOUGHT = [user("Why?"), assistant("Because.", reasoning_content="They ask why.\nSo I say."), user("Really?")]
INLINE = [user("Why?"), assistant("<think>\nThey ask.\n</think>\n\nBecause."), user("Really?")]
DATE = {"date_string": "09 Mar 2025"}


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
    templates = {path.stem: path.read_text() for path in sorted(Path(sys.argv[1]).glob("*.jinja"))}
    rendered = {name: {case: render(source, conversation) for case, conversation in CONVERSATIONS.items()}
                for name, source in templates.items()}
    text = json.dumps({"templates": templates, "conversations": CONVERSATIONS, "rendered": rendered}, ensure_ascii=False)
    TARGET.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    raised = sum(isinstance(r, dict) for cases in rendered.values() for r in cases.values())
    print(f"{len(templates)} templates x {len(CONVERSATIONS)} conversations, {raised} raise, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
