#!/usr/bin/env python3
"""Freezes examples/desktop with PyInstaller and uses it as a user would, on an X server without a screen.

    tools/try_desktop.py [--screenshot docs/desktop.png]

In build/desktop: an environment with pyllm and PyInstaller from the package index, and the frozen program. It is started there without an
environment of Python, types two questions, compares what the window then holds (select all, copy) with the answers of the Python API, stops
a third answer with Escape, and asks for a model that does not exist. Needs Python with tkinter, and: apt install xvfb xdotool python3-tk
fonts-inter. Exit status: 0 all as expected, 2 something is not installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/desktop"
PYTHON = FOLDER / "env/bin/python"
MODEL = "smollm2"
QUESTIONS = ("Name three primary colors.", "Explain photosynthesis in two sentences.")
ENDLESS = "What is a kernel?"
NOBODY = "no-such-model"
SIZE = (920, 730)
ANSWERS = """
import json, sys, pyllm
with pyllm.LLM(sys.argv[1]) as llm:
    session = llm.session()
    print(json.dumps([llm.path, *(str(session.chat(q, temperature=0)) for q in sys.argv[2:])]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Freeze the desktop example and use it.")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="PNG of the window with the answers")
    parser.add_argument("--keep", action="store_true", help="use what build/desktop has already")
    args = parser.parse_args()
    if missing := [name for name in ("Xvfb", "xdotool") if not shutil.which(name)]:
        print(f"try_desktop: {', '.join(missing)} not installed\nhint: apt install xvfb xdotool fonts-inter", file=sys.stderr)
        return 2
    try:
        import tkinter  # noqa: F401
    except ImportError:
        print("try_desktop: this Python has no tkinter\nhint: apt install python3-tk", file=sys.stderr)
        return 2
    program = FOLDER / "dist/chat/chat"
    if not (args.keep and program.exists()):
        freeze()
    size = sum(p.stat().st_size for p in program.parent.rglob("*") if p.is_file() and not p.is_symlink())
    print(f"frozen: {size / 1e6:.0f} MB in {sum(p.is_file() for p in program.parent.rglob('*'))} files", flush=True)
    with screen() as display, Program(program, display) as chat:
        use(chat, args.screenshot)
    print("ok: answers as the Python API's, stopped on Escape, errors shown")
    return 0


def run(*command: str | Path, **more: Any) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise SystemExit(f"try_desktop: {command[0]} failed\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def freeze() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER / "env", with_pip=True)
    run(PYTHON, "-m", "pip", "install", "-q", f"{ROOT}[hub]", "pyinstaller", "pillow", cwd=FOLDER)
    run(PYTHON, "-m", "PyInstaller", "--log-level", "WARN", "--noconfirm", "--distpath", FOLDER / "dist", "--workpath", FOLDER / "work",
        ROOT / "examples/desktop/chat.spec", cwd=FOLDER)


@contextmanager
def screen() -> Iterator[str]:
    """The name of a display of its own."""
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "{}x{}x24".format(*SIZE)], pass_fds=[write],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.close(write)
        number = os.read(read, 20).decode().strip()
        yield f":{number}"
    finally:
        os.close(read)
        server.terminate()
        server.wait()


class Program:
    """The frozen program on a display; nothing of Python's settings reaches it."""

    def __init__(self, path: Path, display: str) -> None:
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYLLM_CPU", "VIRTUAL_ENV"))} | {"DISPLAY": display}
        self.display = display
        self.process = subprocess.Popen([path, MODEL, "--temperature", "0"], cwd="/", env=self.env)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def do(self, *command: str | int) -> str:
        return run("xdotool", *map(str, command), env=self.env)

    @property
    def title(self) -> str:
        command = ["xdotool", "search", "--onlyvisible", "--class", "pyllm", "getwindowname", "%1"]
        found = subprocess.run(command, capture_output=True, text=True, env=self.env, check=False)
        return found.stdout.strip()

    def wait(self, what: str, holds: Callable[[str], bool], seconds: float = 180) -> str:
        end = time.monotonic() + seconds
        while not holds(title := self.title):
            if self.process.poll() is not None:
                raise SystemExit(f"try_desktop: the program ended, status {self.process.returncode}, before {what}")
            if time.monotonic() > end:
                raise SystemExit(f"try_desktop: not seen: {what}; the window is called {title!r}")
            time.sleep(0.05)
        return title

    def ask(self, question: str) -> None:
        self.do("mousemove", SIZE[0] // 2, SIZE[1] - 70, "click", 1, "type", "--delay", 2, question)
        self.do("key", "Return")
        self.wait(f"the answer to {question!r}", lambda t: t.endswith("(answering)"), 20)

    def conversation(self) -> str:
        """What the window holds, through the clipboard."""
        import tkinter

        self.do("mousemove", SIZE[0] // 2, SIZE[1] // 2, "click", 1, "key", "ctrl+a", "key", "ctrl+c")
        time.sleep(0.3)
        root = tkinter.Tk(screenName=self.display)
        root.withdraw()
        try:
            return str(root.clipboard_get())
        finally:
            root.destroy()


def idle(title: str) -> bool:
    return bool(title) and not title.endswith(")")


def use(chat: Program, screenshot: Path | None) -> None:
    import json

    path, *answers = json.loads(run(PYTHON, "-c", ANSWERS, MODEL, *QUESTIONS, cwd=FOLDER))
    name = Path(path).stem
    chat.wait("the loaded model", lambda t: t == name)
    for question in QUESTIONS:
        chat.ask(question)
        chat.wait("the end of the answer", idle)
    if screenshot:
        take(chat, screenshot)
    text = chat.conversation()
    for question, answer in zip(QUESTIONS, answers, strict=True):
        if f"You\n{question}\n{name}\n{answer}\n" not in text:
            raise SystemExit(f"try_desktop: the answer to {question!r} is not\n{answer}\nbut\n{text}")
    chat.ask(ENDLESS)
    time.sleep(0.5)
    chat.do("key", "Escape")
    chat.wait("the stopped answer", idle, 5)
    before = chat.conversation()
    if not (after := before.partition(f"{ENDLESS}\n{name}\n")[2]) or "stopped, " not in after:
        raise SystemExit(f"try_desktop: no stopped answer in\n{before}")
    chat.do("mousemove", SIZE[0] // 2, 32, "click", "--repeat", 3, 1, "type", NOBODY)
    chat.do("key", "Return")
    time.sleep(1)
    chat.wait("the end of the loading", lambda t: t == name, 20)
    if f"no model {NOBODY!r}" not in chat.conversation():
        raise SystemExit("try_desktop: the window does not say that there is no such model")


def take(chat: Program, file: Path) -> None:
    code = "import sys; from PIL import ImageGrab; ImageGrab.grab(xdisplay=sys.argv[1]).quantize(64).save(sys.argv[2], optimize=True)"
    run(PYTHON, "-c", code, chat.display, file.absolute())
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
