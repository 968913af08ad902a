"""Sampling parameters by name, checked, and the C sampler made from them."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index
from typing import TYPE_CHECKING, Any

from . import errors
from ._core import check, ffi, lib, new_error, steady_floats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .tokenizer import Tokenizer

    LogitsProcessor = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32] | None]

DRY_BREAKERS = ("\n", ":", '"', "*")


@dataclass(frozen=True)
class Options:
    """Every parameter of a generating call, with its default.

    max_tokens: None = to the end of the context. stop: strings that end the reply, over token borders. logprobs: number of alternatives a
    token (None: no logprobs). order: the chain's filters as letters (pyllm.h); empty = "edskypmxt". Names and defaults as in llama.cpp.
    speculate: "auto", "lookup", "off" or a number of tokens, as for LLM; None: as the model was loaded.
    priority: requests of a higher one go first. client: who asks; the engine is shared evenly between clients.
    schema (a JSON schema or a type), grammar (Lark or GBNF) or regex: the form that the reply must have (docs/structured.md).
    """

    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    seed: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = 64
    min_keep: int = 0
    order: str = ""
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    logits_processor: LogitsProcessor | None = None
    speculate: str | int | None = None
    choice: int = 0
    priority: int = 0
    client: str = ""
    schema: Any = None
    grammar: str | None = None
    regex: str | None = None

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> Options:
        unknown = [k for k in options if k not in cls.__dataclass_fields__]
        if unknown:
            from difflib import get_close_matches

            near = get_close_matches(unknown[0], cls.__dataclass_fields__, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(cls.__dataclass_fields__)}"
            raise errors.ArgumentError(f"unknown option {unknown[0]!r}\nhint: {hint}")
        made = cls(**options)
        for name, kinds, meant in _TYPES:
            value = getattr(made, name)
            optional = cls.__dataclass_fields__[name].default is None
            if not (value is None and optional) and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise errors.ArgumentError(f"{name} is {reprlib.repr(value)}, must be {meant}")
        if made.max_tokens is not None and made.max_tokens < 1:
            raise errors.ArgumentError(f"max_tokens is {made.max_tokens}, must be at least 1")
        if made.logprobs is not None and not 0 <= made.logprobs <= 1000:
            raise errors.ArgumentError(f"logprobs is {made.logprobs}, must be 0 to 1000")
        if any(not isinstance(s, str) or not s for s in made.stops):
            raise errors.ArgumentError(f"stop is {reprlib.repr(made.stop)}, must be strings of at least one character")
        if made.logits_processor is not None and not callable(made.logits_processor):
            raise errors.ArgumentError(f"logits_processor is {reprlib.repr(made.logits_processor)}, must be a function of ids and logits")
        return made

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


_INTEGERS = ("choice", "top_k", "repeat_last_n", "dry_allowed_length", "dry_last_n", "min_keep")
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "repeat_penalty",
            "frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base")
_TYPES: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    *((name, Integral, "an integer") for name in ("max_tokens", "seed", "logprobs", "priority", *_INTEGERS)),
    *((name, Real, "a number") for name in _NUMBERS),
    ("order", str, "a string"), ("client", str, "a string"),
    ("stop", (str, Sequence), "a string or a list of strings"), ("logit_bias", Mapping, "a mapping from token ids to numbers"))


def _bias_pairs(bias: Mapping[int, float]) -> list[tuple[int, float]]:
    try:
        pairs = [(index(i), float(b)) for i, b in bias.items()]
    except (TypeError, ValueError, OverflowError) as e:
        raise errors.ArgumentError(f"logit_bias must map token ids to numbers: {e}") from None
    wide = next((i for i, _ in pairs if not -(1 << 31) <= i < 1 << 31), None)
    if wide is not None:
        raise errors.ArgumentError(f"logit_bias of token {wide}: there is no such token")
    return pairs


class Sampler:
    """Owns one C sampler. Raises ArgumentError for parameters out of range."""

    @steady_floats()        # numbers become f32 here
    def __init__(self, options: Options, tokenizer: Tokenizer, n_vocab: int) -> None:
        s = ffi.new("pyllm_sampling *")
        lib.pyllm_sampling_defaults(s)
        seed = int.from_bytes(os.urandom(8), "little") if options.seed is None else options.seed
        if not -(1 << 63) <= seed < 1 << 64:
            raise errors.ArgumentError(f"seed is {seed}, must fit in 64 bits")
        s.seed = seed & ((1 << 64) - 1)
        for name in (*_INTEGERS, *_NUMBERS):
            try:
                setattr(s, "penalty_last_n" if name == "repeat_last_n" else name, getattr(options, name))
            except (TypeError, OverflowError) as e:
                raise errors.ArgumentError(f"{name} is {reprlib.repr(getattr(options, name))}: {e}") from None
        order = options.order.encode("utf-8", "replace")
        if len(order) > 15 or b"\0" in order:
            raise errors.ArgumentError(f"order is {reprlib.repr(options.order)}, must be at most 15 letters")
        s.order = order
        if options.logprobs is not None and options.logprobs > n_vocab:
            raise errors.ArgumentError(f"logprobs is {options.logprobs}, the vocabulary has {n_vocab} tokens")
        bias = _bias_pairs(options.logit_bias or {})
        breakers = tokenizer.ids_containing(DRY_BREAKERS) if options.dry_multiplier else []
        out, err = ffi.new("pyllm_sampler **"), new_error()
        check(lib.pyllm_sampler_new(n_vocab, s, ffi.new("pyllm_logprob[]", bias), len(bias), ffi.new("int32_t[]", breakers), len(breakers),
                                    out, err), err)
        self._sampler = ffi.gc(out[0], lib.pyllm_sampler_free)
        self._n_top, self._err, self._chance = options.logprobs, new_error(), ffi.new("pyllm_logprob *")
        self._make_room(0)

    def _make_room(self, n_drafts: int) -> None:
        """Places for what one call of pyllm_choose writes."""
        self._room = n_drafts
        self._ids, self._drafts = ffi.new("int32_t[]", n_drafts + 1), ffi.new("int32_t[]", n_drafts)
        self._top = ffi.NULL if self._n_top is None else ffi.new("pyllm_logprob[]", (n_drafts + 1) * (self._n_top + 1))

    def accept(self, ids: Sequence[int]) -> None:
        """Tokens that the history begins with."""
        check(lib.pyllm_sampler_accept(self._sampler, ffi.new("int32_t[]", ids), len(ids), self._err), self._err)

    def rewind(self, n: int) -> None:
        """Takes the last n chosen tokens back."""
        check(lib.pyllm_sampler_rewind(self._sampler, n, self._err), self._err)

    def lookup(self, most: int) -> tuple[list[int], int]:
        """(how the history may go on, by what followed where its last tokens stood before; how many of these tokens match)."""
        if most > self._room:
            self._make_room(most)
        length = ffi.new("int32_t *")
        n = lib.pyllm_sampler_lookup(self._sampler, self._drafts, most, length)
        return ffi.unpack(self._drafts, n) if n else [], length[0]

    def ask(self, choice: Any, logits: Any, n_logits: int, position: int, drafts: Sequence[int], mask: bytes | None, guess: bool) -> object:
        """Fills a pyllm_choice for the token at absolute position `position` and those that follow it, if the drafts are right. logits:
        float *, [len(drafts) + 1][n_logits]. mask: a bit for every token (in whole 32-bit words), set where it may be chosen. guess: the
        logits are those of another model, `chance` is all that is asked for. What is returned must live until pyllm_choose has returned."""
        if len(drafts) > self._room:
            self._make_room(len(drafts))
        if drafts:
            self._drafts[0:len(drafts)] = drafts
        allowed = ffi.NULL if mask is None else ffi.from_buffer("uint32_t *", mask)
        choice.sampler, choice.logits, choice.mask, choice.drafts, choice.ids = self._sampler, logits, allowed, self._drafts, self._ids
        choice.top, choice.err, choice.position, choice.n_logits = self._top, self._err, position, n_logits
        choice.n_drafts, choice.n_top = len(drafts), self._n_top or 0
        if guess:
            choice.top, choice.n_top = self._chance, 0
        return allowed

    def chance(self) -> float:
        """The probability of the token that was chosen as a guess, in the untouched distribution."""
        return math.exp(self._chance.logprob)

    def chosen(self, choice: Any) -> tuple[list[int], errors.Error | None]:
        """(tokens, what ended them) after pyllm_choose; NonFiniteLogits if logits hold a NaN or +inf."""
        error: errors.Error | None = None
        if choice.rc:
            message = ffi.string(self._err.message).decode(errors="replace")
            error = errors.NonFiniteLogits(message) if choice.rc == lib.PYLLM_ERR_ARG else errors.from_status(choice.rc, message)
        return ffi.unpack(self._ids, choice.n) if choice.n else [], error

    def logprob(self, i: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """(of the i-th token chosen last, the most likely (id, logprob) pairs)."""
        n = self._n_top or 0
        at = i * (n + 1)
        return self._top[at + n].logprob, tuple((self._top[at + k].id, self._top[at + k].logprob) for k in range(n))
