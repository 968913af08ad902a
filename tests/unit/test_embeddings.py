"""Embeddings: encoders and decoders, alone and together, cut and refused; MiniLM against sentence-transformers."""

from __future__ import annotations

import base64
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tok_oracle
from checkpoints import goldens
from conftest import model_path
from serving import Client, wait_until

import pyllm
from pyllm.gguf import GGUF
from pyllm.quantize.convert import convert

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "minilm-embeddings.json"
TEXTS = ["the cat", "w1 w2 w3 w4 w5 " * 9, "x", "ein Satz, der länger ist", "w7"]


def tiny(folder: Path, name: str, pooling: str | None = None) -> Path:
    """A golden's model with sentence-transformers' files."""
    golden = goldens.load(name)
    goldens.write_checkpoint(folder, golden.weights, golden.config, golden.hf_class)
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "modules.json").write_text(json.dumps([{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]))
        modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    convert(folder, folder / "model.gguf", "F32", n_threads=1)
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(tiny(tmp_path_factory.mktemp("bert"), "bert", "mean_tokens"), threads=2, kv="f32") as llm:
        yield llm


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(tiny(tmp_path_factory.mktemp("llama"), "llama"), threads=2, kv="f32", parallel=2) as llm:
        yield llm


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_pooling(name: str, pooling: str, request: pytest.FixtureRequest) -> None:
    """Texts alone, together, in another order, and what their tokens' vectors give, are one and the same, bit for bit."""
    llm: pyllm.LLM = request.getfixturevalue(name)
    got = llm.embed(TEXTS, pooling=pooling, normalize=False)
    assert got.shape == (len(TEXTS), 64) == (len(TEXTS), llm.n_embd) and got.dtype == np.float32
    assert np.array_equal(got, llm.embed(TEXTS[::-1], pooling=pooling, normalize=False)[::-1])
    for text, vector in zip(TEXTS, got, strict=True):
        assert np.array_equal(vector, llm.embed(text, pooling=pooling, normalize=False))
        rows = llm.token_embeddings(text).astype(np.float64)
        assert len(rows) == len(llm.tokenize(text))
        wanted = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]
        np.testing.assert_allclose(vector, wanted, rtol=0, atol=1e-6)


def test_decoders_give_what_the_head_multiplies(llama: pyllm.LLM) -> None:
    ids = llama.tokenize(TEXTS[3])
    with GGUF(llama.path) as gguf:
        head = gguf.read("output.weight").astype(np.float64)
    logits = llama.token_embeddings(ids).astype(np.float64) @ head.T
    np.testing.assert_allclose(logits, llama.logits(ids), rtol=0, atol=1e-5)


def test_lengths_and_dimensions(bert: pyllm.LLM) -> None:
    plain, unit = bert.embed(TEXTS, normalize=False), bert.embed(TEXTS)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6)
    short = bert.embed(TEXTS, dimensions=16)
    np.testing.assert_allclose(short, plain[:, :16] / np.linalg.norm(plain[:, :16], axis=1, keepdims=True), rtol=1e-6)
    assert bert.embed([]).shape == (0, 64)


def test_threads_levels_and_company_change_nothing(bert: pyllm.LLM, tmp_path: Path) -> None:
    wanted = bert.embed(TEXTS)
    with pyllm.LLM(bert.path, threads=1, kv="f32", level="ref", parallel=1) as other:
        assert np.array_equal(other.embed(TEXTS), wanted)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(bert.embed(TEXTS * 9))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4 and all(np.array_equal(f, np.concatenate([wanted] * 9)) for f in found)


def test_first_calls_at_once(llama: pyllm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take turns though each may make an Embedder of its own: functools.cached_property has no lock from Python 3.12 on."""
    monkeypatch.setattr(pyllm.LLM, "_embedder", property(pyllm.LLM._embedder.func))       # type: ignore[attr-defined]
    texts = [[5 + (i + k) % 90 for k in range(llama.ctx)] for i in range(4)]        # several steps each, and more of them than sequences
    wanted, together, found = llama.embed(texts), threading.Barrier(8), list[Any]()

    def embed() -> None:
        together.wait()
        found.append(llama.embed(texts))

    threads = [threading.Thread(target=embed) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8 and all(np.array_equal(f, wanted) for f in found)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_that_fill_the_context(pooling: str, llama: pyllm.LLM) -> None:
    """Of those that fit beside each other as many run together as the KV cache has room for."""
    wanted = [llama.embed([ids], pooling=pooling)[0] for ids in full_texts(llama.ctx)]
    with pyllm.LLM(llama.path, threads=2, kv="f32", parallel=8) as other:
        assert np.array_equal(other.embed(full_texts(llama.ctx), pooling=pooling), wanted)


def full_texts(ctx: int) -> list[list[int]]:
    return [[5 + (i * 7 + k) % 90 for k in range(ctx - i)] for i in range(8)]


def test_recurrent_models(tmp_path: Path) -> None:
    """Each text of a step needs a state of its own; conversations whose states are kept make room."""
    golden, path = goldens.load("rwkv7"), tmp_path / "rwkv7.gguf"
    goldens.write_gguf(path, golden.weights, golden.config, golden.hf_class)
    with pyllm.LLM(path, threads=1, parallel=8) as llm:
        texts = [[5 + (i * 7 + k) % 90 for k in range(20)] for i in range(8)]
        wanted = [llm.embed([ids])[0] for ids in texts]
        for i in range(40):
            llm.complete([1 + i, *range(2, 40)], max_tokens=2)
        assert llm._driver.call(lambda: llm._engine.group(0).n_free) < 8
        assert np.array_equal(llm.embed(texts), wanted)


def test_embedding_keeps_no_model(llama: pyllm.LLM) -> None:
    """The last reference frees it, at once: gigabytes would wait for a collection of cycles."""
    llm = pyllm.LLM(llama.path, threads=1)
    llm.embed("w1")
    gone = weakref.ref(llm)
    gc.disable()
    try:
        del llm
        assert gone() is None
    finally:
        gc.enable()


def test_nobody_waits_for_a_turn_that_cannot_come(llama: pyllm.LLM) -> None:
    """On the engine's thread, which whoever has the turn needs, and of a model that is closed: refused though others embed."""
    llm = pyllm.LLM(llama.path, threads=1)
    llm.embed("w1")

    def processor() -> None:
        llm.complete("w1", max_tokens=1, logits_processor=lambda ids, logits: llm.embed("w1"))

    with llm._driver.turn:
        assert isinstance(in_time(processor), pyllm.ArgumentError)
        llm.close()
        assert isinstance(in_time(lambda: llm.embed("w1")), pyllm.Closed)


def in_time(call: Callable[[], object]) -> BaseException | None:
    """What it raises, within seconds."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return raised[0] if raised else None


def test_beside_chats(llama: pyllm.LLM) -> None:
    """Embedding takes places of running answers and gives them back."""
    alone = llama.complete("w1", max_tokens=40, temperature=0).text
    wanted = llama.embed(TEXTS)
    streams = [llama.stream_complete("w1", max_tokens=40, temperature=0) for _ in range(2)]
    assert np.array_equal(llama.embed(TEXTS), wanted)
    assert ["".join(c.text for c in s) for s in streams] == [alone, alone]
    running, waiting, _ = llama.load
    assert running == waiting == 0


def test_long_texts(bert: pyllm.LLM) -> None:
    long = [5] * 300
    with pytest.raises(pyllm.ContextOverflow):
        bert.embed([long])
    assert np.array_equal(bert.embed([long], truncate=True), bert.embed([long[:bert.ctx]]))


def test_a_cut_text_keeps_its_end(tmp_path: Path) -> None:
    """[SEP] stays where a text is cut."""
    path = tmp_path / "vocab.gguf"
    path.write_bytes(tok_oracle.vocabulary("bert-bge"))
    tokenizer = pyllm.Tokenizer(path)
    assert (tokenizer.bos, tokenizer.eos) == (101, 102)

    class Stub:
        ctx = 8

    from pyllm.embedding import Embedder

    embedder = object.__new__(Embedder)
    stub = Stub()
    embedder._weak = weakref.ref(stub)      # type: ignore[arg-type]
    Stub.tokenizer = tokenizer      # type: ignore[attr-defined]
    ids = embedder._ids("one two three four five six seven eight nine", True)
    assert len(ids) == 8 and ids[-1] == 102 and ids[0] == 101


@pytest.mark.parametrize("call", [
    lambda llm: llm.embed(["a"], pooling="max"), lambda llm: llm.embed([""] if not llm.encodes else [[]]), lambda llm: llm.embed(5),
    lambda llm: llm.embed(["a"], dimensions=0), lambda llm: llm.embed(["a"], dimensions=65), lambda llm: llm.embed(["a"], dimensions=True),
    lambda llm: llm.embed([[1 << 30]]), lambda llm: llm.embed([5]), lambda llm: llm.embed(b"x")])
def test_wrong_arguments(call: Any, bert: pyllm.LLM) -> None:
    with pytest.raises(pyllm.ArgumentError):
        call(bert)


@pytest.mark.parametrize("call", [lambda llm: llm.chat("Hi"), lambda llm: llm.complete("Hi"), lambda llm: llm.logits([1]),
                                  lambda llm: list(llm.logit_blocks([1]))])
def test_encoders_write_nothing(call: Any, bert: pyllm.LLM) -> None:
    with pytest.raises(pyllm.UnsupportedModel, match="embeds texts"):
        call(bert)


def test_closed(tmp_path: Path) -> None:
    llm = pyllm.LLM(tiny(tmp_path, "bert"))
    llm.embed("x")
    llm.close()
    with pytest.raises(pyllm.Closed):
        llm.embed("x")


@pytest.mark.parametrize("pooling, kind", [("mean_tokens", 1), ("cls_token", 2), ("lasttoken", 3)])
def test_conversion_keeps_the_pooling(pooling: str, kind: int, tmp_path: Path) -> None:
    with GGUF(tiny(tmp_path, "bert", pooling)) as gguf:
        assert gguf.kv["bert.pooling_type"] == kind and gguf.kv["bert.attention.causal"] is False
    with pyllm.LLM(tmp_path / "model.gguf", kv="f32") as llm:
        wanted = pooling.partition("_")[0].replace("token", "")
        assert np.array_equal(llm.embed("some words"), llm.embed("some words", pooling=wanted))


def test_matrices_behind_the_pooling(tmp_path: Path) -> None:
    """EmbeddingGemma's: the mean of its tokens' vectors, times both."""
    tiny(tmp_path, "gemma-embedding", "mean_tokens")
    r = np.random.default_rng(1)
    steps = [r.normal(size=shape).astype(np.float32) / 8 for shape in ((96, 64), (48, 96))]
    listed = json.loads((tmp_path / "modules.json").read_text())
    for i, matrix in enumerate(steps, 2):
        folder = tmp_path / f"{i}_Dense"
        folder.mkdir()
        listed.append({"idx": i, "path": folder.name, "type": "sentence_transformers.models.Dense"})
        (folder / "config.json").write_text(json.dumps({"activation_function": "torch.nn.modules.linear.Identity", "bias": False}))
        goldens.write_safetensors(folder / "model.safetensors", {"linear.weight": ("F32", matrix.shape, matrix.tobytes())})
    with pyllm.LLM(tmp_path / "model.gguf", kv="f32") as llm:
        rows = llm.token_embeddings(TEXTS[1]).astype(np.float64)
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    convert(tmp_path, tmp_path / "dense.gguf", "F32", n_threads=1)
    with pyllm.LLM(tmp_path / "dense.gguf", kv="f32") as llm:
        assert llm.n_embd == 48
        got = llm.embed(TEXTS, normalize=False)
        np.testing.assert_allclose(got[1], steps[1] @ (steps[0] @ rows.mean(axis=0)), rtol=0, atol=1e-5)
        with pytest.raises(pyllm.ArgumentError, match="made for mean"):
            llm.embed(TEXTS, pooling="last")
        assert np.array_equal(got[1], llm.embed(TEXTS[1], normalize=False)) and len(llm.token_embeddings(TEXTS[1])[0]) == 64
    (tmp_path / "3_Dense" / "config.json").write_text(json.dumps({"activation_function": "torch.nn.modules.activation.Tanh"}))
    with pytest.raises(pyllm.UnsupportedModel, match="3_Dense: a layer with bias or activation"):
        convert(tmp_path, tmp_path / "other.gguf", "F32", n_threads=1)


def test_nomic_as_published(tmp_path: Path) -> None:
    """The publisher's own names in config.json mean the same."""
    golden = goldens.load("nomic-bert")
    c = golden.config
    own = {"n_embd": c["hidden_size"], "n_layer": c["num_hidden_layers"],
           "n_head": c["num_attention_heads"],
           "n_inner": c["intermediate_size"], "n_positions": c["max_position_embeddings"],
           "layer_norm_epsilon": c["layer_norm_eps"], "activation_function": "swiglu",
           "rotary_emb_base": c["rope_parameters"]["rope_theta"], "vocab_size": c["vocab_size"]}
    for name, config in (("a", c), ("b", own)):
        (tmp_path / name).mkdir()
        goldens.write_gguf(tmp_path / name / "x.gguf", golden.weights, config, golden.hf_class)
    with pyllm.LLM(tmp_path / "a/x.gguf") as a, pyllm.LLM(tmp_path / "b/x.gguf") as b:
        assert np.array_equal(a.embed(TEXTS), b.embed(TEXTS))


def test_other_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pyllm.UnsupportedModel, match="pooling by max_tokens"):
        tiny(tmp_path, "bert", "max_tokens")


# ---- the server ----

@pytest.fixture(scope="module")
def client(bert: pyllm.LLM) -> Iterator[Client]:
    pytest.importorskip("uvicorn")
    with bert.serve(0, name="tiny", drain_s=0, inputs=40, queue=4) as server:
        yield Client(server.url)


def test_openai_route(client: Client, bert: pyllm.LLM) -> None:
    texts = TEXTS * 7       # more than a slice
    wanted = bert.embed(texts)
    body = client.post("/v1/embeddings", {"model": "tiny", "input": texts}).json
    assert (body["object"], body["model"], [d["index"] for d in body["data"]]) == ("list", "tiny", list(range(35)))
    assert np.array_equal(np.array([d["embedding"] for d in body["data"]], np.float32), wanted)
    n = sum(len(bert.tokenize(t)) for t in texts)
    assert body["usage"] == {"prompt_tokens": n, "total_tokens": n}
    body = client.post("/v1/embeddings", {"input": bert.tokenize(TEXTS[0]), "encoding_format": "base64", "dimensions": 8}).json
    vector = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.array_equal(vector, bert.embed(TEXTS[0], dimensions=8))
    ids = [bert.tokenize(t) for t in TEXTS]
    assert [d["embedding"] for d in client.post("/v1/embeddings", {"input": ids}).json["data"]] == \
        [d["embedding"] for d in client.post("/v1/embeddings", {"input": TEXTS}).json["data"]]


@pytest.mark.parametrize("fields, said", [
    ({}, "input must be"), ({"input": []}, "input must be"),
    ({"input": 5}, "input is 5, must be a list"), ({"input": [1, "x"]}, "input[0]"),
    ({"input": [[]]}, "input[0] is a list"), ({"input": ["x"] * 41}, "at most 40"),
    ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "x", "dimensions": 0}, "dimensions"), ({"input": "x", "dimensions": 65}, "dimensions is 65"),
    ({"input": [[1 << 40]]}, "not in the vocabulary"), ({"input": [5] * 400}, "400 tokens")])
def test_openai_route_refuses(client: Client, fields: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/embeddings", fields)
    assert answer.status == 400 and said in answer.json["error"]["message"]


def test_ollama_routes(client: Client, bert: pyllm.LLM) -> None:
    body = client.post("/api/embed", {"model": "tiny:latest", "input": TEXTS, "keep_alive": "5m"}).json
    assert np.array_equal(np.array(body["embeddings"], np.float32), bert.embed(TEXTS))
    assert body["prompt_eval_count"] == sum(len(bert.tokenize(t)) for t in TEXTS) and body["total_duration"] > 0
    long = {"model": "tiny", "input": "w1 " * 2000}
    assert len(client.post("/api/embed", long).json["embeddings"]) == 1
    assert client.post("/api/embed", long | {"truncate": False}).status == 400
    assert client.post("/api/embed", long | {"keep_alive": "soon"}).status == 400
    one = client.post("/api/embeddings", {"model": "tiny", "prompt": "w1"}).json["embedding"]
    assert np.array_equal(np.array(one, np.float32), bert.embed("w1", normalize=False))
    shown = client.post("/api/show", {"model": "tiny"}).json
    assert shown["capabilities"] == ["embedding"] and shown["model_info"]["bert.embedding_length"] == 64


def test_embedders_that_wait_take_no_threads_of_others(llama: pyllm.LLM) -> None:
    with llama.serve(0, drain_s=0) as server:
        client = Client(server.url)
        askers = [threading.Thread(target=client.post, args=("/v1/embeddings", {"input": f"w{i}"})) for i in range(50)]
        with llama._driver.turn:
            for asker in askers:
                asker.start()
            wait_until(lambda: client.get("/health").json["generations"] == len(askers))
            answer: list[int] = []
            other = threading.Thread(target=lambda: answer.append(client.post("/tokenize", {"content": "w1"}).status))
            other.start()
            other.join(10)
            assert answer == [200]
        for asker in askers:
            asker.join()


def test_chats_with_an_encoder_are_refused(client: Client) -> None:
    answer = client.chat("Hi")
    assert answer.status == 400 and "embeds texts" in answer.json["error"]["message"]
    assert client.get("/health").json["generations"] == 0


# ---- the command ----

def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    from pyllm.cli import main

    code = main(["embed", *argv])
    return code, *capsys.readouterr()


def test_command(bert: pyllm.LLM, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wanted = bert.embed(TEXTS)
    model = [str(bert.path), "--kv", "f32"]
    code, out, err = run(capsys, *model, *TEXTS)
    assert code == 0 and np.array_equal(np.array([json.loads(line) for line in out.splitlines()], np.float32), wanted)
    assert "5 vectors of 64 values" in err
    (tmp_path / "texts").write_text("\n\n".join(TEXTS) + "\n")
    code, out, _ = run(capsys, *model, "-f", str(tmp_path / "texts"), "-o", str(tmp_path / "x.npy"))
    assert code == 0 and not out and np.array_equal(np.load(tmp_path / "x.npy"), wanted)
    code, out, _ = run(capsys, *model, *TEXTS[:2], "--json", "--dimensions", "4", "--no-normalize", "--pooling", "cls")
    got = json.loads(out)
    assert got["width"] == 4
    assert np.array_equal(np.array(got["embeddings"], np.float32), bert.embed(TEXTS[:2], dimensions=4, normalize=False, pooling="cls"))
    code, out, _ = run(capsys, *model, *TEXTS[:2], "--similarity")
    assert out.splitlines()[0].startswith(f" 1.000 {float(wanted[0] @ wanted[1]):6.3f}")
    assert json.loads(run(capsys, *model, "a", "b", "--similarity", "--json")[1])["texts"] == ["a", "b"]


@pytest.mark.parametrize("argv, said", [(["x", "-f", "y"], "one of both"), (["-f", "/nowhere/x"], "path of a text file"),
                                        (["x", "-o", "/nowhere/x.npy"], "path of a new file"), (["w1 " * 400], "--truncate")])
def test_command_refuses(argv: list[str], said: str, bert: pyllm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, str(bert.path), *argv)
    assert code == 1 and not out and said in err.replace("context", "--truncate")


# ---- MiniLM ----

@pytest.mark.models
def test_minilm_is_as_published(tmp_path: Path) -> None:
    """The checkpoint's weights, converted; vectors of sentence-transformers."""
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary("bert-bge"))
    (tmp_path / "model.safetensors").symlink_to(model_path("minilm"))
    config = {"architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": 384, "intermediate_size": 1536, "layer_norm_eps": 1e-12,
              "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
              "vocab_size": 30522}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(tok_oracle.hf_wordpiece(meta).to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    convert(tmp_path, tmp_path / "minilm.gguf", "F32")
    golden = json.loads(GOLDEN.read_text())["results"]
    with pyllm.LLM(tmp_path / "minilm.gguf") as llm:
        whole = [r["text"] for r in golden if len(r["ids"]) < 256]
        assert [llm.tokenize(text) for text in whole] == [r["ids"] for r in golden if len(r["ids"]) < 256] and len(whole) > 8
        got = llm.embed([r["ids"] for r in golden])
        wanted = np.array([r["embedding"] for r in golden])
        cosine = (got * wanted).sum(axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosine.min() >= 0.9999 and np.array_equal(llm.embed(whole), got[[len(r["ids"]) < 256 for r in golden]])
    with pyllm.LLM(tmp_path / "minilm.gguf", kv="f32") as llm:
        np.testing.assert_allclose(llm.embed([r["ids"] for r in golden]), wanted, rtol=0, atol=1e-6)
