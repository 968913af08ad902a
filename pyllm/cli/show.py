"""pyllm show: what a model is and what it takes to run it."""

from __future__ import annotations

import argparse
from typing import Any

from ._options import add_json, add_kv, add_model, model_file, whole
from ._output import clean, count, print_json, size, styled

MAX_CTX = 1 << 24


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--ctx", type=whole(1, MAX_CTX), metavar="N", help="plan for N tokens (default: as `run` would choose)")
    add_kv(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..describe import describe

    d = describe(model_file(args.model))
    facts = {"path": d.path, "name": d.name, "architecture": d.architecture, "n_params": d.n_params, "bytes": d.bytes,
             "quantization": d.quantization, "mix": {kind: {"tensors": n, "bytes": b} for kind, (n, b) in d.mix.items()},
             "n_ctx_train": d.n_ctx_train, "chat_template": d.has_template, "license": d.license or None, "receipt": d.receipt or None,
             **_plan(d.path, args)}
    if args.json:
        print_json(facts)
    else:
        _print(facts)
    return 0


def _plan(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """The memory plan, or why this build cannot run the model."""
    from .. import LLM, memory
    from ..errors import Error

    try:
        plan = LLM.plan(path, args.ctx, args.kv)
    except Error as e:
        return {"runs": False, "why_not": str(e), "kv_bytes_per_token": None, "plan": None}
    # The cache is planned in whole pages: the difference of another plan, a larger one if there can be, is what further tokens cost.
    step = 4096 if plan.ctx + 4096 <= MAX_CTX else -4096
    other = LLM.plan(path, plan.ctx + step, args.kv)
    return {"runs": True, "why_not": None, "kv_bytes_per_token": round((other.kv - plan.kv) / step),
            "plan": {"ctx": plan.ctx, "kv": args.kv, "weights_bytes": plan.weights, "kv_bytes": plan.kv, "work_bytes": plan.activations,
                     "total_bytes": plan.total, "available_bytes": memory.available()}}


def _receipt(receipt: dict[str, Any]) -> list[tuple[str, str]]:
    """How the file was made, for people; the list of its tensors is in --json and in `pyllm inspect`."""
    if not receipt:
        return []
    get = {key: str(value) for key, value in receipt.items()}.get
    recipe = " ".join([str(receipt.get("mix", receipt.get("target", "-"))), *map(str, receipt.get("options", []))])
    lines = [("quantized by", f"{get('quantized_by')}: {recipe}"), ("from", get("source.name", "-")), ("", get("source.checksum", "-"))]
    if "calibration.text" in receipt:
        lines.append(("measured on", f"{get('calibration.text')} ({get('calibration.text_checksum')})"))
    if "imatrix.checksum" in receipt:
        lines += [("imatrix", f"{get('imatrix.file')} ({get('imatrix.dataset')}, {get('imatrix.chunks_count')} chunks)"),
                  ("", get("imatrix.checksum", "-"))]
    if "evaluation.kld" in receipt:
        f = {key.removeprefix("evaluation."): value for key, value in receipt.items() if isinstance(value, float)}
        lines += [("evaluated on", f"{get('evaluation.text')} ({get('evaluation.text_checksum')})"),
                  ("", f"KL divergence {f['kld']:.5f} ± {f['kld_error']:.5f}, 99 %: {f['kld_99']:.4f}, most: {f['kld_max']:.4f}"),
                  ("", f"same choice {f['same_top']:.2%}, perplexity {f['perplexity']:.4f}, of the source {f['source_perplexity']:.4f}")]
    return lines


def _print(facts: dict[str, Any]) -> None:
    mix = ", ".join(f"{kind} x{m['tensors']} ({size(m['bytes'])})" for kind, m in facts["mix"].items())
    ctx = facts["n_ctx_train"]
    lines = [("file", facts["path"]), ("name", facts["name"] or "-"), ("architecture", facts["architecture"] or "-"),
             ("parameters", count(facts["n_params"])), ("size", size(facts["bytes"])),
             ("quantization", f"{facts['quantization'] or '-'}: {mix}" if mix else "no tensors: only a vocabulary"),
             ("context", f"{ctx} tokens" if ctx else "-"), ("template", "yes" if facts["chat_template"] else "no"),
             ("licence", facts["license"] or "not stated"), *_receipt(facts["receipt"] or {})]
    if facts["runs"]:
        p = facts["plan"]
        fits = styled("fits", "green") if p["total_bytes"] <= p["available_bytes"] else styled("does not fit", "red")
        parts = ", ".join(f"{size(p[key])} {what}" for key, what in
                          (("weights_bytes", "weights"), ("kv_bytes", "KV cache"), ("work_bytes", "work space")))
        lines += [("KV cache", f"{size(facts['kv_bytes_per_token'])} a token ({p['kv']})"),
                  ("memory", f"{size(p['total_bytes'])} at ctx {p['ctx']}, {size(p['available_bytes'])} available: {fits}"), ("", parts)]
    else:
        lines.append(("runs", f"no: {facts['why_not'].splitlines()[0]}"))
    for name, value in lines:
        print(f"{styled(f'{name:<13}', 'bold')} {value if name == 'memory' else clean(value)}")
