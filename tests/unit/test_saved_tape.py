"""Tapes for hosts without Python: what chats have around messages, and the C chat of examples/ against the Python API."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

import pyllm
from pyllm.chat import ChatTemplate
from pyllm.errors import Error
from pyllm.gguf import GGUF
from pyllm.saved_tape import chat_pieces, prompt, saved_tape

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "A?"},
    {"role": "assistant", "content": "B."},
    {"role": "user", "content": "C?"},
]


def test_pieces_make_the_prompt() -> None:
    template = ChatTemplate(CHATML)
    pieces = chat_pieces(template.render)
    assert pieces["start"] == "<|im_start|>user\n" and pieces["answer_end"] == "<|im_end|>\n<|im_start|>user\n"
    assert prompt(pieces, CHAT) == template.render(CHAT)
    assert prompt(pieces, CHAT[1:]) == template.render(CHAT[1:])


@pytest.mark.parametrize(
    "change",
    [
        ("{{ m.content }}", "{{ m.content | upper }}"),
        ("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
        ("{{ m.role }}", "{{ m.role }}{{ loop.index }}"),
    ],
)
def test_other_templates_are_refused(change: tuple[str, str]) -> None:
    with pytest.raises(Error, match="chat template"):
        chat_pieces(ChatTemplate(CHATML.replace(*change)).render)


def test_a_template_without_system_messages() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert "system" not in chat_pieces(ChatTemplate(source).render)


def test_saved_tape_runs_as_the_tape(smollm2: Path, tmp_path: Path) -> None:
    with GGUF(smollm2) as gguf:
        text = saved_tape(gguf, 512)
    first, *lines = text.splitlines()
    assert first == "pyllm-tape 1" and [line.split()[2] for line in lines[:6]] == [
        "start",
        "answer",
        "answer_end",
        "reply",
        "system",
        "system_end",
    ]
    assert text.isascii()


@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc").split()[-1]), reason="no C compiler")
def test_c_chat_answers_as_python(smollm2: Path, tmp_path: Path) -> None:
    """Two turns, so that the second prompt holds the first answer."""
    tape, library = tmp_path / "model.tape", Path(pyllm.__file__).parent / "libpyllm.so"
    with GGUF(smollm2) as gguf:
        tape.write_text(saved_tape(gguf))
    subprocess.run(
        [
            "cc",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
            ROOT / "csrc",
            ROOT / "examples/c-chat/chat.c",
            library,
            f"-Wl,-rpath,{library.parent}",
            "-o",
            tmp_path / "chat",
        ],
        check=True,
        timeout=60,
    )
    questions = ["hello", "Say yes."]
    done = subprocess.run(
        [tmp_path / "chat", smollm2, tape],
        input="\n".join(questions) + "\n",
        env=os.environ | {"GREEDY": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    messages: list[dict[str, str]] = []
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        for question in questions:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": llm.chat(messages, temperature=0, max_tokens=512).text})
    assert done.stdout == "".join(m["content"] + "\n" for m in messages[1::2])
