"""Which type each tensor gets: the named mixes, as llama.cpp's users know them, and the options above them.

A mix has a base type and exceptions: matrices that lose most when they are coded coarsely (attention values, the second matrix of the
feed-forward network, the output) get more bits, in some layers or in all. Where a row is not whole blocks of the wanted type, a type of
smaller blocks takes its place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pyllm import errors

from .fields import Field
from .types import block, type_id

Dims = Sequence[int]
# (index of the layer, number of layers, the model's facts) -> type, or None: the mix's base type
Rule = Callable[[int, int, "_Facts"], str | None]


@dataclass(frozen=True)
class _Facts:
    """What rules depend on. gqa: query heads per key-value head; wide: a dense model of 80 layers with grouped heads (70B)."""

    gqa: float
    experts: int
    wide: bool
    imatrix: bool


@dataclass(frozen=True)
class Mix:
    """file_type: general.file_type's number. experts8: attn_output's type in models of 8 experts, if it differs there."""

    file_type: int
    base: str
    rules: Mapping[str, Rule] = field(default_factory=dict)     # by role, see _role
    output: str = "q6_k"
    embedding: str | None = None
    experts8: str | None = None


# ---- rules ----

def more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third one between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _always(kind: str) -> Rule:
    return lambda i, n, f: kind


def _more(kind: str) -> Rule:
    return lambda i, n, f: kind if more_bits(i, n) else None


def _first(share: int, kind: str, then: str | None = None) -> Rule:
    """The first n / share layers."""
    return lambda i, n, f: kind if i < n // share else then


def _first_layers(count: int, kind: str, then: str | None = None) -> Rule:
    return lambda i, n, f: kind if i < count else then


def _grouped(kind: str, otherwise: str | None = None) -> Rule:
    """Where at least four query heads share a key-value head."""
    return lambda i, n, f: kind if f.gqa >= 4 else otherwise


def _plain(rule: Rule) -> Rule:
    """A rule for quantizing without an importance matrix."""
    return lambda i, n, f: None if f.imatrix else rule(i, n, f)


def _with_imatrix(rule: Rule) -> Rule:
    return lambda i, n, f: rule(i, n, f) if f.imatrix else None


def _middle(kind: str) -> Rule:
    """All layers but the first and the last eighth."""
    return lambda i, n, f: kind if n // 8 <= i < 7 * n // 8 else None


def _few_bits(file_type: int, base: str, finer: str, attn_output: str | None) -> Mix:
    """The mixes of less than 3 bits. finer: the type of what needs more than the base."""
    rules: dict[str, Rule] = {"v": lambda i, n, f: "q4_k" if f.gqa >= 4 or f.experts >= 4 else finer,
                              "k": lambda i, n, f: "q4_k" if f.experts == 8 else None, "down": _first(8, finer)}
    if attn_output:
        rules["attn_output"] = _always(attn_output)
    return Mix(file_type, base, rules, output="q5_k", embedding=finer, experts8="q5_k")


def _iq3_xxs_v(i: int, n: int, f: _Facts) -> str | None:
    return "q4_k" if f.gqa >= 4 else None if f.imatrix else "iq3_s"


def _iq3_m_down(i: int, n: int, f: _Facts) -> str | None:
    return "q4_k" if i < n // 8 or (f.experts == 8 and more_bits(i, n)) else None


_MORE = {"v": _more("q6_k"), "down": _more("q6_k")}
_IQ4 = {"v": _grouped("q5_k"), "down": _plain(_first(8, "q5_k"))}
MIXES = {
    "F32": Mix(0, "f32", output="f32"), "F16": Mix(1, "f16", output="f16"), "BF16": Mix(32, "bf16", output="bf16"),
    "Q4_0": Mix(2, "q4_0", {"down": _with_imatrix(_first(8, "q4_1"))}), "Q4_1": Mix(3, "q4_1"),
    "Q5_0": Mix(8, "q5_0", {"down": _with_imatrix(_first(8, "q5_1"))}), "Q5_1": Mix(9, "q5_1"),
    "Q8_0": Mix(7, "q8_0", output="q8_0"),
    "Q2_K": Mix(10, "q2_k", {"v": _grouped("q4_k", "q3_k"), "down": _always("q3_k"), "attn_output": _always("q3_k")}, experts8="q5_k"),
    "Q2_K_S": Mix(21, "q2_k", {"v": _grouped("q4_k"), "down": _first(8, "q4_k")}),
    "Q3_K_S": Mix(11, "q3_k", experts8="q5_k"),
    "Q3_K_M": Mix(12, "q3_k", {"v": _first_layers(2, "q5_k", "q4_k"), "down": _first(16, "q5_k", "q4_k"), "attn_output": _always("q4_k")},
                  experts8="q5_k"),
    "Q3_K_L": Mix(13, "q3_k", {"v": _always("q5_k"), "down": _always("q5_k"), "attn_output": _always("q5_k")}, experts8="q3_k"),
    "Q4_K_S": Mix(14, "q4_k", {"v": _first_layers(4, "q5_k"), "down": _first(8, "q5_k")}, experts8="q5_k"),
    "Q4_K_M": Mix(15, "q4_k", _MORE, experts8="q5_k"),
    "Q5_K_S": Mix(16, "q5_k", experts8="q5_k"),
    "Q5_K_M": Mix(17, "q5_k", _MORE, experts8="q5_k"),
    "Q6_K": Mix(18, "q6_k"),
    "IQ4_NL": Mix(25, "iq4_nl", _IQ4, experts8="q5_k"), "IQ4_XS": Mix(30, "iq4_xs", _IQ4, experts8="q5_k"),
    "IQ3_S": Mix(26, "iq3_s", {"v": _grouped("q4_k")}, experts8="q5_k"),
    "IQ3_M": Mix(27, "iq3_s", {"v": _always("q4_k"), "down": _iq3_m_down, "attn_output": _always("q4_k")}, experts8="q5_k"),
    "IQ3_XS": Mix(22, "iq3_s", {"v": _grouped("q4_k"), "k": _always("iq3_xxs"), "q": _always("iq3_xxs"), "gate": _middle("iq3_xxs"),
                                "up": _middle("iq3_xxs")}, experts8="q5_k"),
    "IQ3_XXS": Mix(23, "iq3_xxs", {"v": _iq3_xxs_v, "k": _always("iq2_s"), "q": _always("iq2_s"),
                                   "down": _plain(_first(8, "q4_k", "q3_k")), "attn_output": _always("iq3_s")},
                   output="q5_k", embedding="iq3_s", experts8="q5_k"),
    "IQ2_M": _few_bits(29, "iq2_s", "iq3_s", "iq3_s"), "IQ2_S": _few_bits(28, "iq2_xs", "iq3_s", "iq3_s"),
    "IQ2_XS": _few_bits(20, "iq2_xs", "q2_k", None), "IQ2_XXS": _few_bits(19, "iq2_xxs", "q2_k", None),
    "IQ1_S": _few_bits(24, "iq1_s", "q2_k", "iq2_xxs"), "IQ1_M": _few_bits(31, "iq1_m", "q2_k", "iq2_xxs"),
    "TQ1_0": Mix(36, "tq1_0", embedding="q4_k"), "TQ2_0": Mix(37, "tq2_0", embedding="q4_k"),
    "MXFP4_MOE": Mix(38, "mxfp4", output="q8_0", embedding="q8_0"),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FEW_BITS = {"IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M"}
_FLOATS = ("f32", "f16", "bf16")
# A type of smaller blocks for rows that are not whole blocks; f16 takes any.
_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "tq1_0": "q4_0", "tq2_0": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}

# ---- which tensors, and what they are ----

# Small, sensitive or looked up by index: routers, norms, positions, convolutions and what else is not a plain matrix product.
_KEPT = re.compile(r"_norm\.weight$|ffn_gate_inp\.weight$|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj|^pos(ition)?_embd|"
                   r"^token_types|ssm_conv1d|shortconv\.conv|indexer|time_mix_(first|w0|w1|w2|v0|v1|v2|a0|a1|a2|g1|g2|decay_w1|decay_w2|lerp_fused)|"
                   r"attn_rel_b|\.position_embd|^sam\.|\.rel_pos|\.patch_embd|\.patch_merger|codebook")
_ROLES = (("attn_output", r"attn_output\."), ("v", r"attn_(v|qkv|kv_b|v_b)\."), ("k", r"attn_k\."), ("q", r"attn_q\."),
          ("down", r"ffn_down"), ("gate", r"ffn_gate"), ("up", r"ffn_up"))


def is_quantized(name: str, dims: Dims) -> bool:
    """Whether mixes give this tensor a type; the others keep theirs."""
    return len(dims) > 1 and name.endswith("weight") and not _KEPT.search(name)


def hparams(metadata: Mapping[str, Field]) -> dict[str, Any]:
    """What plan() wants to know of a model, from a GGUF file's metadata. Counts that differ from layer to layer: the largest."""
    def number(key: str, missing: int) -> int:
        found = metadata.get(f"{arch}.{key}")
        if found is None:
            return missing
        values = found.value if found.is_array else [found.value]
        try:
            return max((int(v) for v in values), default=missing)
        except (TypeError, ValueError):
            raise errors.FormatError(f"{arch}.{key} is not a number") from None
    named = metadata.get("general.architecture")
    arch = named.value if named and isinstance(named.value, str) else ""
    heads = number("attention.head_count", 0)
    return {"arch": arch, "block_count": number("block_count", 0), "head_count": heads,
            "head_count_kv": number("attention.head_count_kv", heads), "expert_count": number("expert_count", 0)}


def find_mix(name: str) -> str:
    """The mix's own name; ArgumentError for a name that is none."""
    upper = ALIASES.get(name.upper(), name.upper())
    if upper not in MIXES:
        near = get_close_matches(upper, MIXES, 1)
        raise errors.ArgumentError(f"there is no mix {name!r}\nhint: {f'did you mean {near[0]}?' if near else ', '.join(MIXES)}")
    return upper


def plan(hparams: Mapping[str, Any], tensors: Mapping[str, Dims], mix: str, imatrix: bool = False) -> dict[str, str]:
    """The type of every tensor under a mix: name -> "q4_k".

    hparams: arch, block_count, head_count, head_count_kv, expert_count. tensors: name -> sizes, the contiguous one first. imatrix: whether
    an importance matrix is used, which changes some choices. Tensors that are not quantized have f32 here: they keep what they have. Pure:
    nothing else is looked at. Raises ArgumentError for an unknown mix.
    """
    name = find_mix(mix)
    chosen = MIXES[name]
    kv = hparams["head_count_kv"]
    facts = _Facts(gqa=hparams["head_count"] / kv if kv else 0, experts=hparams["expert_count"], imatrix=imatrix,
                   wide=hparams["block_count"] == 80 and hparams["arch"] in ("llama", "qwen2") and hparams["head_count"] != kv)
    places = _places(tensors, hparams["block_count"])
    tied = "output.weight" not in tensors
    found = {}
    for tensor, dims in tensors.items():
        if not is_quantized(tensor, dims):
            found[tensor] = "f32"
        else:
            kind = _choose(name, chosen, tensor, dims, facts, tied, *places.get(tensor, (0, 1)))
            found[tensor] = fitting(kind, dims[0])
    return found


def _choose(name: str, mix: Mix, tensor: str, dims: Dims, facts: _Facts, tied: bool, i: int, n: int) -> str:
    role = _role(tensor)
    if mix.base in _FLOATS:
        return mix.base
    if tensor == "output.weight" or (tied and tensor == "token_embd.weight"):
        return mix.output if fitting(mix.output, dims[0]) == mix.output else "q8_0"
    if tensor in ("token_embd.weight", "per_layer_token_embd.weight"):
        return mix.embedding or mix.base
    if name == "MXFP4_MOE":
        return mix.base if len(dims) > 2 else "q8_0"
    if facts.experts == 8 and role in ("v", "k") and name not in _FEW_BITS:
        return "q8_0"
    if facts.experts == 8 and role == "attn_output" and mix.experts8:
        return mix.experts8
    kind = (mix.rules[role](i, n, facts) if role in mix.rules else None) or mix.base
    return "q5_k" if role == "v" and facts.wide and kind in ("q3_k", "q4_k") else kind


def _role(tensor: str) -> str:
    return next((role for role, pattern in _ROLES if re.search(pattern, tensor)), "")


def _places(tensors: Mapping[str, Dims], block_count: int) -> dict[str, tuple[int, int]]:
    """(index, number) for the rules: of attention values among those that there are, of others the layer's."""
    layers = {t: int(m[1]) for t in tensors if (m := re.match(r"blk\.(\d+)\.", t))}
    places = {t: (i, block_count) for t, i in layers.items()}
    values = sorted((t for t in layers if _role(t) == "v"), key=lambda t: layers[t])
    return places | {t: (i, len(values)) for i, t in enumerate(values)}


def fitting(kind: str, width: int) -> str:
    """The type, or the one that takes its place for rows of this width."""
    while kind != "f16" and width % block(type_id(kind))[0]:
        kind = _FALLBACK.get(kind) or ("iq4_nl" if kind.startswith("iq") and kind != "iq4_nl" else "f16")
    return kind


# ---- options above the mix ----

@dataclass(frozen=True)
class Target:
    """What a search for types aims at. kind: "size" in bytes of the file, "bpw" in bits of the tensors' data for each parameter, or "kld"
    in nats, mean over the text. text: what everything is measured on; name: of its file."""

    kind: str
    value: float
    text: bytes
    name: str

    def __post_init__(self) -> None:
        if self.kind not in ("size", "bpw", "kld") or not 0 < self.value < float("inf"):
            raise errors.ArgumentError(f"there is no target {self.kind} of {self.value}\nhint: size, bpw or kld, and a number above 0")

    @property
    def words(self) -> str:
        """As the command says it."""
        return f"--target-{self.kind} {self.value:.12g}"

    @property
    def checksum(self) -> str:
        """Of the text."""
        return "sha256:" + hashlib.sha256(self.text).hexdigest()


@dataclass(frozen=True)
class Options:
    """mix: one of MIXES; or target: what the types aim at, as measurements on the source say; types: those that were found, by tensor.
    tensor_types: (regular expression searched in the name, type); of several that match, the last counts.
    output_type: of the output matrix, also where it is the embedding. token_embedding_type: of the embedding, before output_type. pure: the
    base type for all, but for the other options here. imatrix: whether there is one."""

    mix: str | None = None
    tensor_types: Sequence[tuple[str, str]] = ()
    output_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    imatrix: bool = False
    target: Target | None = None
    types: Mapping[str, str] | None = None


def choose(hparams: Mapping[str, Any], tensors: Mapping[str, Dims], options: Options) -> dict[str, str]:
    """plan(), or the types that were found for a target, with the options. Raises ArgumentError also for what is no type, no regular
    expression, or matches no tensor."""
    if options.types is not None:
        return {n: options.types.get(n, "f32") for n in tensors} | wanted(tensors, options)
    assert options.mix is not None
    return plan(hparams, tensors, options.mix, options.imatrix) | wanted(tensors, options)


def wanted(tensors: Mapping[str, Dims], options: Options) -> dict[str, str]:
    """The types of the tensors that the options name."""
    names = [n for n in tensors if is_quantized(n, tensors[n])]
    found: dict[str, str] = {}
    if options.pure and options.mix is not None:
        found |= dict.fromkeys(names, MIXES[find_mix(options.mix)].base)
    for name, kind in (("output.weight", options.output_type), ("token_embd.weight", options.token_embedding_type)):
        if kind is not None:
            found["token_embd.weight" if name not in tensors else name] = _checked(kind)
    for pattern, kind in options.tensor_types:
        found |= dict.fromkeys(_matching(pattern, names), _checked(kind))
    return {n: fitting(kind, tensors[n][0]) for n, kind in found.items() if n in names}


def _checked(kind: str) -> str:
    type_id(kind)
    return kind.lower()


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        found = [n for n in names if re.search(pattern, n)]
    except re.error as e:
        raise errors.ArgumentError(f"{pattern!r} is not a regular expression: {e}") from None
    if not found:
        raise errors.ArgumentError(f"no tensor that is quantized matches {pattern!r}\nhint: --dry-run lists the tensors")
    return found


