"""A chat window on pyllm's Python API: chat.py [MODEL] [--temperature T]. Everything that a model does runs on the worker's thread."""

from __future__ import annotations

import argparse
import queue
import tkinter as tk
from pathlib import Path
from tkinter import filedialog, font, ttk

from worker import Event, Worker

from pyllm.catalogue import known_names

PAGE, BAND, BAR, LINE, INK, FAINT = "#ffffff", "#f3f6fc", "#fafafb", "#e3e5ea", "#1d2129", "#737a87"
ACCENT, DARKER, CHOSEN, RED = "#2f6fed", "#2459c4", "#cfe0ff", "#b3261e"
FAMILIES = ("Inter", "Segoe UI", "SF Pro Text", "Helvetica Neue", "Cantarell", "Ubuntu", "Noto Sans", "Open Sans", "DejaVu Sans")
POLL_MS = 20
EMPTY = "Ask anything. Nothing leaves this machine."


class Window:
    """The window is idle, loading or answering; its title says which, for those who switch between windows."""

    def __init__(self, root: tk.Tk, model: str, options: dict[str, float]) -> None:
        self.root, self.worker = root, Worker(options)
        self.model, self.busy, self.asked = "", "", ""       # name; what is going on; the last question
        self.facts = "Enter sends, Shift+Enter is a new line, Escape stops"
        self.discarded = False          # the answer that is being written belongs to a conversation that was left
        family = next((f for f in FAMILIES if f in font.families(root)), "TkDefaultFont")
        self.fonts = {"text": font.Font(family=family, size=11), "small": font.Font(family=family, size=9),
                      "bold": font.Font(family=family, size=10, weight="bold"), "large": font.Font(family=family, size=15)}
        root.geometry("920x730")
        root.minsize(520, 400)
        root.configure(background=PAGE)
        root.protocol("WM_DELETE_WINDOW", self.leave)
        root.bind("<Escape>", lambda _: self.stop())
        self.style()
        self.header().pack(side="top", fill="x")
        self.footer().pack(side="bottom", fill="x")
        self.conversation().pack(side="top", fill="both", expand=True)
        self.show_state()
        self.greet()
        self.entry.focus_set()
        if model:
            self.picker.set(model)
            self.load()
        root.after(POLL_MS, self.poll)

    # ---- how it looks ----

    def style(self) -> None:
        style = ttk.Style(self.root)
        style.theme_use("clam")
        style.configure(".", font=self.fonts["text"], background=BAR, foreground=INK, bordercolor=LINE, lightcolor=LINE, darkcolor=LINE)
        style.configure("TButton", background=PAGE, padding=(14, 7), relief="solid", borderwidth=1, focuscolor=PAGE)
        style.map("TButton", background=[("active", BAND)], foreground=[("disabled", FAINT)])
        style.configure("Send.TButton", background=ACCENT, foreground=PAGE, relief="flat", focuscolor=ACCENT)
        style.map("Send.TButton", background=[("disabled", LINE), ("active", DARKER)], foreground=[("disabled", FAINT)],
                  **{edge: [("disabled", LINE), ("!disabled", ACCENT)] for edge in ("bordercolor", "lightcolor", "darkcolor")})
        style.configure("TCombobox", fieldbackground=PAGE, background=PAGE, padding=7, arrowcolor=FAINT, arrowsize=15,
                        selectbackground=PAGE, selectforeground=INK)
        style.map("TCombobox", bordercolor=[("focus", ACCENT)], lightcolor=[("focus", ACCENT)])
        style.configure("Faint.TLabel", font=self.fonts["small"], foreground=FAINT)
        style.configure("Vertical.TScrollbar", background=LINE, troughcolor=PAGE, bordercolor=PAGE, lightcolor=LINE, darkcolor=LINE,
                        arrowcolor=FAINT, gripcount=0, relief="flat")
        style.layout("Vertical.TScrollbar", [("Vertical.Scrollbar.trough", {"sticky": "ns", "children": [
            ("Vertical.Scrollbar.thumb", {"expand": True, "sticky": "nswe"})]})])
        self.root.option_add("*TCombobox*Listbox.font", self.fonts["text"])

    def header(self) -> tk.Frame:
        bar = tk.Frame(self.root, background=BAR)
        row = tk.Frame(bar, background=BAR, padx=20, pady=12)
        row.pack(fill="x")
        ttk.Label(row, text="Model", font=self.fonts["bold"]).pack(side="left", padx=(0, 10))
        self.picker = ttk.Combobox(row, font=self.fonts["text"], postcommand=lambda: self.picker.configure(values=known_names()))
        self.picker.pack(side="left", fill="x", expand=True)
        for event in ("<Return>", "<<ComboboxSelected>>"):
            self.picker.bind(event, lambda _: self.load())
        ttk.Button(row, text="Open file", command=self.choose_file).pack(side="left", padx=(10, 0))
        ttk.Button(row, text="New chat", command=self.new_chat).pack(side="left", padx=(10, 0))
        tk.Frame(bar, background=LINE, height=1).pack(fill="x")
        return bar

    def conversation(self) -> tk.Frame:
        frame = tk.Frame(self.root, background=PAGE)
        self.text = tk.Text(frame, font=self.fonts["text"], background=PAGE, foreground=INK, wrap="word", relief="flat", borderwidth=0,
                            highlightthickness=0, padx=0, pady=0, spacing2=5, spacing3=5, cursor="arrow", selectbackground=CHOSEN,
                            selectforeground=INK, inactiveselectbackground=CHOSEN, insertwidth=0)
        scroll = ttk.Scrollbar(frame, command=self.text.yview)
        self.text.configure(yscrollcommand=scroll.set)
        scroll.pack(side="right", fill="y")
        self.text.pack(side="left", fill="both", expand=True)
        sides = {"lmargin1": 48, "lmargin2": 48, "rmargin": 48}
        for name, tag in {"question": {"background": BAND, **sides}, "answer": sides, "reasoning": {"foreground": FAINT, **sides},
                          "error": {"foreground": RED, **sides}, "who": {"font": self.fonts["bold"], "foreground": FAINT},
                          "facts": {"font": self.fonts["small"], "foreground": FAINT, "spacing1": 6, "spacing3": 14, **sides},
                          "top": {"spacing1": 16}, "gap": {"spacing3": 16},
                          "empty": {"font": self.fonts["large"], "foreground": FAINT, "justify": "center", "spacing1": 180}}.items():
            self.text.tag_configure(name, **tag)
        self.text.tag_raise("sel")
        # A disabled Text takes no keys; one whose keys do nothing can still be selected and copied from.
        self.text.bind("<Key>", lambda e: None if e.state & 4 and e.keysym.lower() in ("c", "a", "insert") else self.type_instead(e))
        self.text.bind("<Control-a>", self.select_all)
        self.text.bind("<<Paste>>", lambda _: "break")
        self.text.bind("<<Cut>>", lambda _: "break")
        return frame

    def footer(self) -> tk.Frame:
        bar = tk.Frame(self.root, background=BAR)
        tk.Frame(bar, background=LINE, height=1).pack(fill="x")
        row = tk.Frame(bar, background=BAR, padx=20)
        row.pack(fill="x", pady=(14, 6))
        self.button = ttk.Button(row, style="Send.TButton", width=6)
        self.button.pack(side="right", fill="y", padx=(10, 0))
        border = tk.Frame(row, background=LINE, padx=1, pady=1)
        border.pack(side="left", fill="x", expand=True)
        self.entry = tk.Text(border, font=self.fonts["text"], height=2, wrap="word", relief="flat", borderwidth=0, highlightthickness=0,
                             padx=12, pady=9, background=PAGE, foreground=INK, insertbackground=ACCENT, selectbackground=CHOSEN,
                             selectforeground=INK, undo=True)
        self.entry.pack(fill="x")
        self.entry.bind("<FocusIn>", lambda _: border.configure(background=ACCENT))
        self.entry.bind("<FocusOut>", lambda _: border.configure(background=LINE))
        self.entry.bind("<Return>", self.enter)
        self.status = ttk.Label(bar, style="Faint.TLabel")
        self.status.pack(anchor="w", padx=22, pady=(0, 12))
        return bar

    # ---- what the user does ----

    def load(self) -> None:
        if (spec := self.picker.get().strip()) and not self.busy:
            self.worker.load(spec)
            self.set_busy("loading")
        self.picker.selection_clear()
        self.entry.focus_set()

    def choose_file(self) -> None:
        path = filedialog.askopenfilename(parent=self.root, title="A model", filetypes=[("GGUF models", "*.gguf"), ("All files", "*")])
        if path:
            self.picker.set(path)
            self.load()

    def new_chat(self) -> None:
        self.worker.forget()
        self.asked, self.discarded = "", self.busy == "answering"
        self.text.delete("1.0", "end")
        self.greet()

    def enter(self, event: tk.Event[tk.Misc]) -> str | None:
        if event.state & 1:             # with Shift: a new line
            return None
        self.send()
        return "break"

    def send(self) -> None:
        question = self.entry.get("1.0", "end").strip()
        if not question or self.busy or not self.model:
            return
        self.entry.delete("1.0", "end")
        self.asked = question
        self.write(("You\n", "question", "who", "top"), (f"{question}\n", "question", "gap"), (f"{self.model}\n", "answer", "who", "top"))
        self.text.see("end")
        self.worker.ask(question)
        self.set_busy("answering")

    def stop(self) -> None:
        if self.busy:
            self.worker.cancel()

    def leave(self) -> None:
        self.worker.close()
        self.root.destroy()

    def type_instead(self, event: tk.Event[tk.Misc]) -> str:
        """Keys that are pressed over the conversation go to the question, where they were meant."""
        if event.char and event.char.isprintable():
            self.entry.insert("insert", event.char)
            self.entry.focus_set()
        return "break"

    def select_all(self, _: tk.Event[tk.Misc]) -> str:
        self.text.tag_add("sel", "1.0", "end-1c")
        return "break"

    # ---- what the model does ----

    def poll(self) -> None:
        """Takes what the worker has told since the last time."""
        try:
            while True:
                self.take(self.worker.events.get_nowait())
        except queue.Empty:
            self.root.after(POLL_MS, self.poll)

    def take(self, event: Event) -> None:
        if self.discarded and event.kind in ("text", "reasoning", "done", "error"):
            if event.kind in ("done", "error"):
                self.discarded = False
                self.set_busy("")
        elif event.kind in ("text", "reasoning"):
            self.write((event.text, "answer" if event.kind == "text" else "reasoning"))
        elif event.kind == "progress":
            self.status.configure(text=f"{self.busy}: {event.text}")
        elif event.kind == "gone":
            self.model = ""
        elif event.kind == "loaded":
            self.model, _, facts = event.text.partition("\n")
            self.set_busy("", facts)
            if not self.asked:
                self.new_chat()
        elif event.kind == "done":
            self.write((f"\n{event.text}\n", "facts"))
            self.set_busy("")
        elif event.kind == "error":
            if self.busy == "answering" and not self.entry.get("1.0", "end").strip():
                self.entry.insert("1.0", self.asked)        # to be sent again when what failed is mended
            self.write((f"{event.text}\n", "error", "gap"))
            self.set_busy("")

    # ---- inside ----

    def greet(self) -> None:
        self.write((EMPTY if self.model else "Choose a model at the top.", "empty"))

    def write(self, *pieces: tuple[str, ...]) -> None:
        """(text, tags...) at the end; stays there if that is what is looked at."""
        if self.text.tag_ranges("empty"):
            self.text.delete("1.0", "end")
        at_end = self.text.yview()[1] >= 0.999
        for text, *tags in pieces:
            self.text.insert("end", text, tuple(tags))
        if at_end:
            self.text.see("end")

    def set_busy(self, what: str, facts: str = "") -> None:
        self.busy = what
        if facts:
            self.facts = facts
        self.show_state()

    def show_state(self) -> None:
        answering = self.busy == "answering"
        self.button.configure(text="Stop" if answering else "Send", command=self.stop if answering else self.send)
        self.button.state(["!disabled" if answering or (self.model and not self.busy) else "disabled"])
        name = self.model or "pyllm"
        self.root.title(f"{name} ({self.busy})" if self.busy else name)
        self.status.configure(text=f"{self.busy} ..." if self.busy else self.facts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat with a model in a window.")
    parser.add_argument("model", nargs="?", default="", help="a GGUF file, or a name that `pyllm list` shows")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token")
    args = parser.parse_args()
    model = str(Path(args.model).resolve()) if Path(args.model).is_file() else args.model
    root = tk.Tk(className="pyllm")
    Window(root, model, {} if args.temperature is None else {"temperature": args.temperature})
    root.mainloop()


if __name__ == "__main__":
    main()
