"""Vocabularies out of tokenizer.model, sentencepiece's file: a protocol buffer of pieces with scores and types.

Fields: ModelProto {1: piece*, 2: trainer, 3: normalizer}; piece {1: text, 2: score, 3: type}; trainer {3: model type, 40 to 43: ids of
unknown, begin, end, padding}; normalizer {2: character map, 3: adds a space in front, 4: removes further spaces}.
Source: sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from pyllm import errors

from .vocab_types import BYTE, NORMAL, SPACE, USER_DEFINED, Vocab

_UNIGRAM, _BPE = 1, 2
_SPECIAL = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}       # field of the trainer, and its default


def read(data: bytes, where: str) -> Vocab:
    """The vocabulary of a tokenizer.model. where: its path, for messages. Raises FormatError or UnsupportedTokenizer."""
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data, where):
        if number == 1:
            piece = dict(_fields(_message(value, where), where))
            text = _message(piece.get(1, b""), where).decode("utf-8", "surrogateescape")
            # User-defined pieces are found in the text as it is, before spaces become U+2581.
            tokens.append(text.replace(SPACE, " ") if piece.get(3) == USER_DEFINED else text)
            scores.append(struct.unpack("<f", _message(piece.get(2, bytes(4)), where)[:4].ljust(4, b"\0"))[0])
            types.append(_whole(piece.get(3, NORMAL), where))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_fields(_message(value, where), where))
    if not tokens or not all(NORMAL <= t <= BYTE for t in types):
        _fail(where, "there are no pieces, or pieces of types that do not exist")
    kind = _whole(trainer.get(3, _UNIGRAM), where)
    if kind not in (_UNIGRAM, _BPE):
        raise errors.UnsupportedTokenizer(f"{where}: sentencepiece models of type {kind} cannot be converted\nhint: BPE and Unigram can")
    more: dict[str, Any] = {"add_space_prefix": bool(normalizer.get(3, 1))}
    if kind == _UNIGRAM:
        more["remove_extra_whitespaces"] = bool(normalizer.get(4, 1))
        if normalizer.get(2):
            more["precompiled_charsmap"] = np.frombuffer(_message(normalizer[2], where), np.uint8)
    special = {name: _signed(trainer.get(number, missing)) for name, (number, missing) in _SPECIAL.items()}
    return Vocab("llama" if kind == _BPE else "t5", "default", tokens, types, scores=scores, adds_bos=kind == _BPE,
                 adds_eos=kind == _UNIGRAM, special={name: i for name, i in special.items() if 0 <= i < len(tokens)}, more=more)


def _fail(where: str, what: str) -> NoReturn:
    raise errors.FormatError(f"{where}: {what}\nhint: the file is damaged or no sentencepiece model; download it again")


def _message(value: bytes | int, where: str) -> bytes:
    if isinstance(value, int):
        _fail(where, "a number stands where a message is due")
    return value


def _whole(value: bytes | int, where: str) -> int:
    if not isinstance(value, int):
        _fail(where, "a message stands where a number is due")
    return value


def _signed(value: Any) -> int:
    """An int32 as protocol buffers write it: negative ones with 64 bits."""
    return value - (1 << 64) if isinstance(value, int) and value >> 63 else value if isinstance(value, int) else -1


def _fields(data: bytes, where: str) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of a message's fields: varints as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(data) and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        _fail(where, "a number runs past its end")

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            _fail(where, "a field runs past the end")
        yield tag >> 3, data[at:at + size]
        at += size
