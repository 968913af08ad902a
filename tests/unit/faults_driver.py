"""Child of test_faults.py: runs with a build whose N-th call for memory or a thread fails. Arguments: model file, stride, offset,
backend."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import pyllm
from pyllm._core import _NAME

faults = ctypes.CDLL(str(Path(pyllm.__file__).with_name(_NAME)))
for name in ("pyllm_fault_calls", "pyllm_fault_live"):
    getattr(faults, name).restype = ctypes.c_int64
faults.pyllm_fault_set.argtypes = [ctypes.c_int64, ctypes.c_int]


Result = tuple[list[int], list[int], list[int]]
want: list[Result] = []             # what a run without faults gives


def requests(llm: pyllm.LLM, state: str) -> Result:
    """4 tokens in a session, save, restore into another session, 4 more tokens there, a completion."""
    with llm.session() as a, llm.session() as b:
        first = a.chat("w1 w2", temperature=0, max_tokens=4)
        a.save(state)
        b.load(state)
        second = b.chat("w3", temperature=0.8, seed=1, max_tokens=4)
        plain = llm.complete([5, 6, 7], temperature=0, max_tokens=2)
    return list(first.tokens), list(second.tokens), list(plain.tokens)


def work(path: str, state: str) -> Result:
    """Loads, makes the requests, gives everything back. After a fault in one of them the same model makes them all."""
    with pyllm.LLM(path, ctx=64, threads=3, chat_template="{{ messages[-1].content }}", backend=sys.argv[4]) as llm:
        try:
            return requests(llm, state)
        except pyllm.OutOfMemory:
            faults.pyllm_fault_set(0, 0)
            assert requests(llm, state) == want[0], "the model that met the fault goes on differently"
            raise


def live() -> int:
    gc.collect()        # samplers hang in cycles with their requests
    n: int = faults.pyllm_fault_live()
    return n


def main() -> None:
    path, stride, offset = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    state = path + ".session"
    want.append(work(path, state))
    start = live()
    faults.pyllm_fault_set(0, 0)
    assert work(path, state) == want[0]
    total = faults.pyllm_fault_calls()
    assert live() == start, "a run without faults leaks"
    failed = 0
    for n in range(1 + offset, total + 1, stride):
        for forever in (0, 1):
            faults.pyllm_fault_set(n, forever)
            try:
                got = work(path, state)
            except pyllm.OutOfMemory as e:
                assert isinstance(e, MemoryError)
                failed += 1
            else:
                raise AssertionError(f"call {n} of {total} failed and nobody noticed: {got}")
            finally:
                faults.pyllm_fault_set(0, 0)
            left = live() - start
            assert left == 0, f"after the fault at {n} ({forever=}): {left} objects too many"
        assert work(path, state) == want[0], f"after the fault at {n}"
    print(total, failed)


main()
