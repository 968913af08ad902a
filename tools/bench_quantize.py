#!/usr/bin/env python3
"""Speed and memory of quantizing against llama.cpp: the same tensors, the same threads, run by run in turns.

    python tools/bench_quantize.py --folder FOLDER [--mix Q4_K_M] [--source checkpoint] [--threads N] [--rounds 3] [--layers 16]
                                   [--peer native|avx2] [--peer-python PYTHON] [--json FILE] [--check]

FOLDER gets synthetic models of tools/make_model.py (1.2 billion parameters unless --layers says otherwise: 2.5 GB each) that stay there,
and the outputs, which don't. We start from a BF16 checkpoint as Hugging Face's libraries write it (--source bf16, f16: from a GGUF file),
llama-cpp-python (as tools/bench_peers.py builds it) from F16, as its converter makes them; only the one call is timed, ours with its
checksum of the source and its last fsync. A round runs one, then the other, the first of the two alternating, each in a process of its own
that reports its peak resident memory (VmHWM) and its processor time. The figure is the median of the rounds' ratios ours / theirs (below 1
= faster). Processor time says how much of a ratio is due to others on the machine. --check: exit status 1 if the ratio is above 0.4 or our
memory above 350 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_peers import BUILDS, PEER, environment, peer_python

MOST_TIME, MOST_BYTES = 0.4, 350e6

REPORT = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
t = os.times()
print(json.dumps({"seconds": seconds, "cpu_seconds": t.user + t.system, "peak_bytes": 1024 * int(status["VmHWM"].split()[0])}))
"""
OURS = """
import json, os, sys, time
from pyllm.quantize import convert, quantize
source, out, mix, threads = sys.argv[1:]
begin = time.perf_counter()
(convert if os.path.isdir(source) else quantize)(source, out, mix, n_threads=int(threads))
seconds = time.perf_counter() - begin
""" + REPORT
THEIRS = """
import json, os, sys, time
import llama_cpp as l
source, out, mix, threads = sys.argv[1:]
params = l.llama_model_quantize_default_params()
params.ftype, params.nthread = int(mix), int(threads)
begin = time.perf_counter()
assert l.llama_model_quantize(source.encode(), out.encode(), params) == 0
seconds = time.perf_counter() - begin
""" + REPORT


def model(folder: Path, kind: str, layers: int) -> Path:
    """The synthetic model of a type, made if it is not there."""
    path = folder / f"synthetic-{layers}-{kind}.gguf"
    if not path.exists():
        print(f"making {path.name}", file=sys.stderr)
        part = path.with_suffix(".part")
        subprocess.run([sys.executable, str(Path(__file__).with_name("make_model.py")), str(part), "--type", kind, "--layers", str(layers)],
                       check=True, env={**os.environ, "TMPDIR": str(folder)})
        part.rename(path)
    return path


def checkpoint(folder: Path, layers: int) -> Path:
    """The BF16 model as a folder that transformers would read, made if it is not there."""
    from pyllm.gguf import GGUF
    from pyllm.models import families

    out = folder / f"synthetic-{layers}"
    if out.exists():
        return out
    part = out.with_suffix(".part")
    part.mkdir(exist_ok=True)
    stems = {ours: theirs for theirs, ours in families()["llama"].tensors.items()}
    with GGUF(model(folder, "bf16", layers)) as gguf, open(part / "model.safetensors", "wb") as f:
        header, at = {}, 0
        for name, t in gguf.tensors.items():
            stem, layer = re.sub(r"\.(\d+)\.", ".{i}.", name.removesuffix(".weight")), re.search(r"\.(\d+)\.", name)
            header[f"{stems[stem].replace('{i}', layer[1] if layer else '')}.weight"] = {
                "dtype": t.type.upper(), "shape": t.shape[::-1], "data_offsets": [at, at + t.n_bytes]}
            at += t.n_bytes
        text = json.dumps(header).encode()
        f.write(len(text).to_bytes(8, "little") + text)
        for name, t in gguf.tensors.items():
            for at in range(0, t.n_bytes, 1 << 24):
                f.write(gguf.read_bytes(name, at, min(1 << 24, t.n_bytes - at)))
        key, n_vocab = "llama.{}".format, gguf.tensors["token_embd.weight"].shape[1]
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "vocab_size": n_vocab, "tie_word_embeddings": True,
                  "hidden_size": gguf.kv[key("embedding_length")], "num_attention_heads": gguf.kv[key("attention.head_count")],
                  "num_key_value_heads": gguf.kv[key("attention.head_count_kv")], "rms_norm_eps": 1e-5, "rope_theta": 5e5,
                  "intermediate_size": gguf.kv[key("feed_forward_length")], "max_position_embeddings": gguf.kv[key("context_length")]}
    (part / "config.json").write_text(json.dumps(config))
    words = {"type": "BPE", "vocab": {f"w{i}": i for i in range(n_vocab)}, "merges": []}
    (part / "tokenizer.json").write_text(json.dumps({"model": words, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
    return part.rename(out)


def measure(python: str, code: str, source: Path, out: Path, mix: str, threads: int) -> dict[str, float]:
    """One run: seconds, cpu_seconds, peak_bytes."""
    for path in source.iterdir() if source.is_dir() else [source]:
        with open(path, "rb", buffering=0) as f:    # both read from the page cache
            while f.read(1 << 24):
                pass
    os.sync()                                       # what others wrote is not to be waited for by us
    done = subprocess.run([python, "-I", "-c", code, str(source), str(out), mix, str(threads)], capture_output=True, text=True, check=False)
    size = out.stat().st_size if out.exists() else 0
    out.unlink(missing_ok=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {**json.loads(done.stdout.splitlines()[-1]), "bytes": size}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    from pyllm.quantize.recipes import MIXES, find_mix

    ours = checkpoint(args.folder, args.layers) if args.source == "checkpoint" else model(args.folder, args.source, args.layers)
    theirs = model(args.folder, "f16", args.layers)
    out, mix = args.folder / "out.gguf", find_mix(args.mix)
    runs = {"ours": (sys.executable, OURS, ours, out, mix, args.threads),
            "peer": (args.peer_python or peer_python(args.peer), THEIRS, theirs, out, str(MIXES[mix].file_type), args.threads)}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for i in range(args.rounds):
        for name in list(runs) if i % 2 else reversed(list(runs)):
            taken[name].append(measure(*runs[name]))
            run = taken[name][-1]
            print(f"{name}: {run['seconds']:.2f} s, {run['cpu_seconds']:.2f} s of processor time, {run['peak_bytes'] / 1e6:.0f} MB at most"
                  f", file {run['bytes'] / 1e6:.1f} MB", flush=True)
    pairs = list(zip(taken["ours"], taken["peer"], strict=True))
    ratios, cpu_ratios = ([a[key] / b[key] for a, b in pairs] for key in ("seconds", "cpu_seconds"))
    ratio, cpu_ratio, peak = statistics.median(ratios), statistics.median(cpu_ratios), max(run["peak_bytes"] for run in taken["ours"])
    print(f"{mix} from {args.source}, {args.threads} threads: {ratio:.3f} of the peer's time (rounds {min(ratios):.3f} to "
          f"{max(ratios):.3f}), {cpu_ratio:.3f} of its processor time, {peak / 1e6:.0f} MB at most")
    return {"mix": mix, "source": args.source, "threads": args.threads, "rounds": args.rounds, "ratio": ratio, "cpu_ratio": cpu_ratio,
            "peak_bytes": peak, "runs": taken}


def main() -> int:
    from pyllm._core import lib

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models and outputs go")
    parser.add_argument("--mix", default="Q4_K_M")
    parser.add_argument("--source", choices=("checkpoint", "bf16", "f16"), default="checkpoint", help="our input")
    parser.add_argument("--threads", type=int, default=lib.pyllm_threads_default())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--peer", choices=tuple(BUILDS), default="native", help="instruction set that the peer is built for")
    parser.add_argument("--peer-python", help="an interpreter that has the peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="exit status 1 above 0.4 of the time or 350 MB")
    args = parser.parse_args()
    args.llama_bench = None
    args.folder.mkdir(parents=True, exist_ok=True)
    found = compare(args)
    if args.json:
        args.json.write_text(json.dumps({**environment(args), "peer": f"{PEER} {args.peer}", **found}, indent=1) + "\n")
    return int(args.check and (found["ratio"] > MOST_TIME or found["peak_bytes"] > MOST_BYTES))


if __name__ == "__main__":
    sys.exit(main())
