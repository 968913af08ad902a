"""Tapes for hosts without Python: what chats have around messages, and the C chat of examples/ against the Python API."""

from __future__ import annotations

import os
import shutil
import signal
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


@pytest.fixture(scope="module")
def chat(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of examples/c-chat, built as its first lines say."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    folder, library = tmp_path_factory.mktemp("chat"), Path(pyllm.__file__).parent / "libpyllm.so"
    with GGUF(smollm2) as gguf:
        (folder / "model.tape").write_text(saved_tape(gguf))
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "csrc"), f"-Wl,-rpath,{library.parent}"]
    subprocess.run(["cc", *flags, str(ROOT / "examples/c-chat/chat.c"), str(library), "-o", str(folder / "chat")], check=True, timeout=60)
    return [str(folder / "chat"), str(smollm2), str(folder / "model.tape")]


def test_c_chat_answers_as_python(chat: list[str], smollm2: Path) -> None:
    """Two turns, so that the second prompt holds the first answer."""
    questions = ["hello", "Say yes."]
    done = subprocess.run(chat, input="\n".join(questions) + "\n", env=os.environ | {"GREEDY": "1"}, capture_output=True, encoding="utf-8",
                          timeout=120, check=True)
    messages: list[dict[str, str]] = []
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        for question in questions:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": llm.chat(messages, temperature=0, max_tokens=512).text})
    assert done.stdout == "".join(m["content"] + "\n" for m in messages[1::2])


def test_c_chat_is_cancelled(chat: list[str], smollm2: Path) -> None:
    """Ctrl-C ends the answer, not the chat; the conversation goes on with what was said."""
    question = "Why do leaves turn red in autumn?"
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        begin = llm.chat(question, temperature=0, max_tokens=64).text.encode()     # the whole has hundreds of tokens
    with subprocess.Popen(chat, env=os.environ | {"GREEDY": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          bufsize=0) as program:
        assert program.stdin and program.stdout
        program.stdin.write(question.encode() + b"\n")
        said = program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        program.stdin.write(b"Say yes.\n")
        program.stdin.close()
        while piece := program.stdout.read(4096):
            said += piece
        assert program.wait(60) == 0
    same = next((i for i, (a, b) in enumerate(zip(said, begin, strict=False)) if a != b), len(said))
    assert 1 <= same < len(begin) and len(said) > same + 2 and said.endswith(b"\n")


def test_c_chat_says_what_is_wrong(chat: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.tape").write_text("pyllm-tape 1\n")
    for arguments, said in (([chat[1]], "usage: "), ([chat[1], str(tmp_path / "none")], "none cannot be read"),
                            ([chat[1], str(tmp_path / "empty.tape")], "the tape has no such chat"),
                            ([str(tmp_path / "none.gguf"), chat[2]], "none.gguf")):
        done = subprocess.run([chat[0], *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (1, 2) and said in done.stderr
