"""Child of test_sanitizers.py: threads, cancelled streams, sessions and full caches on a tiny model. Argument: model files."""

from __future__ import annotations

import sys
import threading

import pyllm

TEMPLATE = "{{ messages[-1].content }}"


def client(llm: pyllm.LLM, which: int, wrong: list[str], want: tuple[int, ...]) -> None:
    for i in range(4):
        if (which + i) % 4 == 0:
            for n, _ in enumerate(llm.stream_complete([5 + k % 90 for k in range(60)], seed=i, max_tokens=20)):
                if n == 1:
                    break
            for n, _ in enumerate(llm.stream_complete([5 + k % 9 for k in range(40)], seed=i, max_tokens=30, speculate=3 + i, top_k=3)):
                if n == 9:
                    break
        elif (which + i) % 4 == 1:
            llm.logits([7, 8, 9] * 25)
        elif (which + i) % 4 == 2:
            with llm.session() as s:
                s.chat("w1 w2", seed=i, max_tokens=6)
                s.chat("w3", seed=i, max_tokens=6)
        elif llm.complete([5, 6, 7], temperature=0, max_tokens=12, speculate=which % 4).tokens != want:
            wrong.append(f"{which} {i}")


for path in sys.argv[1:]:
    for level in [None, "ref"]:
        with pyllm.LLM(path, ctx=128, threads=3, chat_template=TEMPLATE, level=level, draft=path, speculate="auto") as llm:
            want = llm.complete([5, 6, 7], temperature=0, max_tokens=12).tokens
            wrong: list[str] = []
            clients = [threading.Thread(target=client, args=(llm, i, wrong, want)) for i in range(8)]
            for c in clients:
                c.start()
            for c in clients:
                c.join()
            assert not wrong, wrong
print("ok")
