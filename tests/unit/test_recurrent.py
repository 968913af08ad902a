"""Recurrent states in the engine and behind the model's front door: nothing that is cancelled, forked, cut or preempted changes a bit."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import bf16, goldens
from conftest import ROOT
from torch_files import Assembler, archive

import pyllm
from pyllm import errors
from pyllm.build import build
from pyllm.engine import Engine
from pyllm.gguf import GGUF

N = 40


class Rig:
    def __init__(self, folder: Path, name: str = "rwkv7") -> None:
        golden = goldens.load(name)
        self.path = folder / f"{name}.gguf"
        goldens.write_gguf(self.path, golden.weights, golden.config, golden.hf_class)
        self.gguf, self.ids = GGUF(self.path), golden.ids
        self.tape = build(self.gguf)[0]
        self.engine = self.new()
        self.cold = self.run(self.ids)

    def new(self, **options: Any) -> Engine:
        given = {"threads": 2, "kv": "f16", "n_positions": 4096, "level": None, "parallel": 4} | options
        return Engine(self.gguf.handle, self.tape, **given)

    def run(self, ids: list[int], chunk: int = 16) -> np.ndarray:
        rows, seq = [], self.open()
        for at in range(0, len(ids), chunk):
            part = ids[at:at + chunk]
            rows.append(self.engine.logits[:self.engine.step([(seq, part, len(part))])].copy())
        self.engine.close_seq(seq)
        return np.concatenate(rows)

    def open(self) -> int:
        seq = self.engine.open_seq()
        assert seq is not None
        return seq

    def logits(self, seq: int, ids: list[int]) -> np.ndarray:
        return self.engine.logits[:self.engine.step([(seq, ids, len(ids))])].copy()

    def free(self) -> tuple[int, int]:
        group = self.engine.group(0)
        return group.n_pages, group.n_free


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("recurrent"))
    yield rig
    rig.engine.close()
    rig.gguf.close()


def test_a_cancelled_step_leaves_every_state(rig: Rig) -> None:
    seqs = [rig.open() for _ in range(3)]
    for i, seq in enumerate(seqs[:2]):
        rig.logits(seq, rig.ids[:15 + i])
    before, free = [rig.engine.save(s) for s in seqs], rig.free()
    rig.engine.cancel(True)
    with pytest.raises(errors.Cancelled):       # runs of one sequence twice, over a page's border
        rig.engine.step([(seqs[0], [1, 2], 1), (seqs[1], [3], 1), (seqs[2], [4] * 20, 0), (seqs[0], [5] * 40, 1)])
    rig.engine.cancel(False)
    assert [rig.engine.save(s) for s in seqs] == before and rig.free() == free
    assert np.array_equal(rig.logits(seqs[0], rig.ids[15:]), rig.cold[15:])
    assert np.array_equal(rig.logits(seqs[1], rig.ids[16:]), rig.cold[16:])
    for seq in seqs:
        rig.engine.close_seq(seq)
    assert rig.free()[0] == rig.free()[1]


def test_runs_of_a_sequence_follow_each_other(rig: Rig) -> None:
    a, b = rig.open(), rig.open()
    n = rig.engine.step([(a, rig.ids[:7], 7), (b, rig.ids[:3], 3), (a, rig.ids[7:20], 13), (b, rig.ids[3:5], 2), (a, rig.ids[20:21], 1)])
    got = rig.engine.logits[:n]
    assert np.array_equal(got[[*range(7), *range(10, 23), 25]], rig.cold[:21])
    assert np.array_equal(got[[7, 8, 9, 23, 24]], rig.cold[:5])
    rig.engine.close_seq(a)
    rig.engine.close_seq(b)


@pytest.mark.parametrize("at", [1, 16, 23])
def test_a_fork_goes_its_own_way(rig: Rig, at: int) -> None:
    one, two, free = rig.open(), rig.open(), rig.free()[1]
    rig.logits(one, rig.ids[:at])
    rig.engine.attach(two, at, rig.engine.seq_pages(one, 0, -(-at // 16)))
    assert rig.free()[1] == free - 1            # the state is stored once
    rig.logits(two, [9, 8, 7])
    assert np.array_equal(rig.logits(one, rig.ids[at:]), rig.cold[at:])
    rig.engine.close_seq(one)
    rig.engine.close_seq(two)
    assert rig.free()[1] == free


def test_there_is_no_way_back_but_to_the_beginning(rig: Rig) -> None:
    seq = rig.open()
    rig.logits(seq, rig.ids[:20])
    assert rig.engine.truncate(seq, 20) and not rig.engine.truncate(seq, 19) and rig.engine.length(seq) == 20
    assert rig.engine.truncate(seq, 0)
    assert np.array_equal(rig.logits(seq, rig.ids), rig.cold)
    rig.engine.close_seq(seq)


def test_a_step_that_finds_no_page_changes_nothing(rig: Rig) -> None:
    """Kept states fill the pool."""
    seq, kept = rig.open(), []
    before = rig.engine.save(seq)
    while rig.free()[1]:
        rig.engine.truncate(seq, 0)
        rig.logits(seq, [len(kept)])
        kept.append(rig.engine.seq_pages(seq, 0, 1)[0][0])
        rig.engine.keep([[kept[-1]]])
    with pytest.raises(errors.CacheFull):
        rig.logits(seq, [3])
    rig.engine.drop([kept])
    rig.engine.truncate(seq, 0)
    assert rig.engine.save(seq) == before and np.array_equal(rig.logits(seq, rig.ids), rig.cold)
    rig.engine.close_seq(seq)
    assert rig.free()[0] == rig.free()[1]


def test_long_sequences_take_no_more_room(rig: Rig) -> None:
    """4,096 tokens: one page, and a saved state as large as that of one token."""
    engine = rig.new(n_positions=1 << 20, threads=1)
    seq = engine.open_seq()
    assert seq is not None
    engine.step([(seq, [1], 0)])
    size, used = len(engine.save(seq)), engine.group(0).n_pages - engine.group(0).n_free
    for _ in range(8):
        engine.step([(seq, [i % 256 for i in range(512)], 0)])
    assert len(engine.save(seq)) == size and engine.group(0).n_pages - engine.group(0).n_free == used == 1
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rwkv5", "rwkv6", "rwkv7", "mamba", "mamba2"])
def test_65536_tokens_one_by_one(name: str, tmp_path: Path) -> None:
    """Memory as after the first tokens, and steps as fast as those of a sequence that has just begun: timed in turns."""
    whole = Rig(tmp_path, name)
    engine = whole.new(threads=1, n_positions=1 << 20)
    long, fresh = engine.open_seq(), engine.open_seq()
    assert long is not None and fresh is not None

    def second(seq: int, token: int) -> float:
        start = time.perf_counter()
        engine.step([(seq, [token], 1)])
        return time.perf_counter() - start

    for i in range(1024):
        second(long, i % 250)
    peak, used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, engine.group(0).n_pages - engine.group(0).n_free
    for i in range(1024, 65536):
        second(long, i % 250)
    assert engine.group(0).n_pages - engine.group(0).n_free == used
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 10        # KiB on Linux, bytes on macOS
    second(fresh, 1)
    times = np.array([(second(long, i % 250), second(fresh, i % 250)) for i in range(2048)])
    assert np.isfinite(engine.logits[0]).all()
    slower = np.median(times[:, 0] / times[:, 1])
    print(f"{name}: a step {np.median(times[:, 0]) * 1e6:.0f} us, {slower:.3f} of a fresh sequence's")
    assert slower < 1.05
    engine.close()
    whole.engine.close()


def test_models_without_attention_have_no_context_to_fill(rig: Rig) -> None:
    short, long = (pyllm.LLM.plan(rig.path, ctx=ctx) for ctx in (64, 1 << 22))
    assert short.kv == long.kv == rig.new(parallel=16).group(0).n_pages * state_bytes(rig)
    with pyllm.LLM(rig.path, threads=1) as llm:
        assert llm.ctx == 1 << 20 and llm.info["n_ctx_train"] == 4096


def test_fewer_requests_where_states_are_large(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllm.memory.available", lambda: 8 * 30 * state_bytes(rig))
    assert pyllm.LLM.plan(rig.path).kv == (2 * 8 + 8) * state_bytes(rig)
    assert pyllm.LLM.plan(rig.path, parallel=16).kv == (2 * 16 + 8) * state_bytes(rig)


def state_bytes(rig: Rig) -> int:
    """Of RWKV 7: two rows and, for each of 4 heads, a matrix a layer."""
    return 3 * (2 * 64 + 4 * 16 * 16) * 4


def test_conversations_go_on_from_states(rig: Rig) -> None:
    with pyllm.LLM(rig.path, threads=1, parallel=2) as llm:
        text = [(i * 31) % 251 for i in range(200)]
        first = llm.complete(text, max_tokens=20, temperature=0)
        assert first.usage.cached_tokens == 0
        more = [*text, *first.tokens, 5, 6, 7]
        second = llm.complete(more, max_tokens=4, temperature=0)
        assert second.usage.cached_tokens == len(text) + len(first.tokens) - 1
        again = llm.complete(text, max_tokens=20, temperature=0)        # another answer: from the last page before the end of the prompt
        assert again.usage.cached_tokens == 192 and again.tokens == first.tokens
        other = llm.complete([*text[:150], 1, 2, 3], max_tokens=1)      # a fork where nothing was kept: from the beginning
        assert other.usage.cached_tokens == 0
    with pyllm.LLM(rig.path, threads=2) as cold:
        assert cold.complete(more, max_tokens=4, temperature=0).tokens == second.tokens


def test_nothing_is_guessed(rig: Rig) -> None:
    """There is no way back from a guess that was wrong."""
    with pyllm.LLM(rig.path, threads=1, speculate="lookup") as llm:
        reply = llm.complete([1, 2, 3] * 20, max_tokens=20, temperature=0, speculate=8)
        assert reply.usage.drafted_tokens == 0
    with pytest.raises(errors.UnsupportedModel, match="cannot be rewound"):
        pyllm.LLM(rig.path, draft=rig.path)


def test_requests_that_take_turns(rig: Rig) -> None:
    """More of them than places, with priorities that push others out: every answer is that of a run alone."""
    prompts = [[(i * 7 + k * 13) % 251 for i in range(30 + 11 * k)] for k in range(8)]
    with pyllm.LLM(rig.path, threads=2, parallel=2) as llm:
        alone = [llm.complete(p, max_tokens=12, temperature=0).tokens for p in prompts]
    with pyllm.LLM(rig.path, threads=2, parallel=2) as llm:
        streams = [llm.stream_complete(p, max_tokens=12, temperature=0, priority=k % 3, client=str(k % 2)) for k, p in enumerate(prompts)]
        for s in streams:
            for _ in s:
                pass
        assert [s.reply.tokens for s in streams] == alone


def test_a_session_is_saved_with_its_state(rig: Rig, tmp_path: Path) -> None:
    with pyllm.LLM(rig.path, threads=1, chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}") as llm:
        chat = llm.session()
        chat.chat("Hello there, this is a long enough question.", max_tokens=20, logit_bias={97: 100.0})      # text of whole characters
        chat.save(tmp_path / "chat")
        want = chat.chat("And now?", max_tokens=8, temperature=0)
    with pyllm.LLM(rig.path, threads=1, chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}") as llm:
        chat = llm.session()
        chat.load(tmp_path / "chat")
        got = chat.chat("And now?", max_tokens=8, temperature=0)
        assert got.text == want.text and got.usage.cached_tokens == want.usage.cached_tokens > 0


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7", "mamba", "mamba2", "lfm2", "granite-hybrid"])
def test_quantized(name: str, tmp_path: Path) -> None:
    """Mixes leave alone what is no product; the logits move no more than 8 bits move them (ref.run with rounded inputs: as much)."""
    from pyllm.quantize.quantizer import quantize

    whole = Rig(tmp_path, name)
    quantize(whole.path, tmp_path / "q8_0.gguf", "Q8_0")
    with pyllm.LLM(tmp_path / "q8_0.gguf", threads=1) as llm:
        logits = llm.logits(whole.ids)
    whole.engine.close()
    assert np.corrcoef(logits.ravel(), whole.cold.ravel())[0, 1] > 0.995


# ---- the converter of RWKV's files ----

sys.path.insert(0, str(ROOT / "tools"))


def rwkv_models() -> Path:
    from pyllm.stores import cache_dir

    return cache_dir() / "rwkv"


@pytest.mark.models
@pytest.mark.parametrize("model, logits, bar", [
    ("tiny-rwkv-5v2-730K-FP32", "5v2-730K", 1e-5), ("tiny-rwkv-7v0-834K-FP32", "7v0-834K", 1e-5),
    ("tiny-rwkv-6v0-3m-Q5_1", "6v0-3m", 0.1), ("tiny-rwkv-7v0-834K-Q5_1", "7v0-834K", 0.01)])
def test_models_of_rwkv_cpp(model: str, logits: str, bar: float, tmp_path: Path) -> None:
    """Its test models and what it expects of them after three bytes (repository RWKV/rwkv.cpp, folder tests; here: in a folder `rwkv` of
    the cache). The logits are those of the unquantized models, so with Q5_1 the bar is what the quantization costs."""
    import convert_rwkv

    path = rwkv_models() / f"{model}.bin"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    convert_rwkv.convert(path, tmp_path / "model.gguf")
    want = np.fromfile(rwkv_models() / f"expected-logits-{logits}.bin", np.float32)
    with pyllm.LLM(tmp_path / "model.gguf", threads=1) as llm:
        assert llm.tokenize('"in') == list(b'"in')
        assert np.abs(llm.logits(list(b'"in'))[-1] - want).max() < bar


@pytest.mark.models
def test_weights_of_rwkv_cpp_in_5_bits(tmp_path: Path) -> None:
    """Of RWKV 6 there is a quantized model only, whose weights are 0.076 off those logits: with the `rwkv` package, too
    (tests/golden/rwkv6-3m-q5_1.npy, made by tools/make_rwkv_goldens.py)."""
    import convert_rwkv

    path = rwkv_models() / "tiny-rwkv-6v0-3m-Q5_1.bin"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    want = np.load(ROOT / "tests/golden/rwkv6-3m-q5_1.npy")
    weights = {name: convert_rwkv.Tensor.of(w) for name, w in convert_rwkv.dequantized(path).items()}
    convert_rwkv.write(weights, tmp_path / "model.gguf", "model", None, 4096, 1e-5)
    with pyllm.LLM(tmp_path / "model.gguf", threads=1) as llm:
        assert np.abs(llm.logits(list(b'"in'))[-1] - want).max() < 1e-4
    whole = np.fromfile(rwkv_models() / "expected-logits-6v0-3m.bin", np.float32)
    assert 0.07 < np.abs(want - whole).max() < 0.08


def test_pth_files_become_gguf(tmp_path: Path) -> None:
    """In bfloat16, which is what published ones have. That PyTorch writes such files is in test_checkpoint_files.py."""
    import convert_rwkv

    golden, code, data = goldens.load("rwkv7"), Assembler(), {}
    for i, (name, w) in enumerate(golden.weights.items()):
        code.tensor(name, "BFloat16Storage", str(i), w.shape)
        data[str(i)] = bf16(w)
    archive(tmp_path / "model.pth", code.done(), data)
    weights = {name: (np.frombuffer(bf16(w), "<u2").astype("<u4") << 16).view("<f4").reshape(w.shape) for name, w in golden.weights.items()}
    convert_rwkv.convert(tmp_path / "model.pth", tmp_path / "model.gguf")
    with GGUF(tmp_path / "model.gguf") as gguf:
        fused = gguf.read("blk.1.time_mix_lerp_fused.weight").reshape(6, -1)
        assert np.array_equal(fused[2], weights["blocks.1.att.x_k"].ravel())
        assert np.array_equal(gguf.read("blk.1.time_mix_w1.weight"), weights["blocks.1.att.w1"].T)
        assert "blk.0.time_mix_v1.weight" in gguf.tensors           # without use, but readers of GGUF expect it
