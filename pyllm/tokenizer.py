"""Text to token ids and back. The work is done in C (csrc/tokenizer); this is its Python face."""

from __future__ import annotations

import codecs
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

from . import errors
from ._core import check, ffi, lib, new_error
from .gguf import GGUF


class Tokenizer:
    """The tokenizer of a GGUF file, vocabulary-only files included. Immutable; safe to use from many threads.

    Raises FileError, FormatError, or UnsupportedTokenizer for a kind or pre-tokenizer that is not known.
    """

    def __init__(self, path: str | os.PathLike[str] | GGUF) -> None:
        gguf = path if isinstance(path, GGUF) else GGUF(path)
        try:
            out, err = ffi.new("pyllm_tokenizer **"), new_error()
            rc = lib.pyllm_tokenizer_new(gguf.handle, out, err)
            if rc == lib.PYLLM_ERR_UNSUPPORTED:
                raise errors.UnsupportedTokenizer(ffi.string(err.message).decode("utf-8", "replace"))
            check(rc, err)
        finally:
            if gguf is not path:
                gguf.close()
        self._handle = ffi.gc(out[0], lib.pyllm_tokenizer_free)
        self.n_vocab: int = lib.pyllm_tokenizer_size(self._handle)
        self.bos, self.eos = self._special(0), self._special(1)

    def _special(self, kind: int) -> int | None:
        token: int = lib.pyllm_token_special(self._handle, kind)
        return token if token >= 0 else None

    def _id(self, token: int) -> int:
        try:
            if 0 <= index(token) < self.n_vocab:
                return index(token)
        except TypeError:
            pass
        raise errors.ArgumentError(f"token id {reprlib.repr(token)} is not in the vocabulary of {self.n_vocab}")

    def _ids(self, ids: Iterable[int]) -> list[int]:
        try:
            return [self._id(token) for token in ids]
        except TypeError:
            raise errors.ArgumentError(f"token ids are a list of integers, not {reprlib.repr(ids)}") from None

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of text. add_special: BOS and EOS as the model asks. parse_special: control tokens in the text become themselves."""
        if not isinstance(text, (str, bytes)):
            raise errors.ArgumentError(f"a text is a str or UTF-8 bytes, not {reprlib.repr(text)}")
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        err, room = new_error(), len(data) // 2 + 16
        while True:
            ids = ffi.new("int32_t[]", room)
            n = check(lib.pyllm_tokenize(self._handle, data, len(data), add_special, parse_special, ids, room, err), err)
            if n <= room:
                return list(ffi.unpack(ids, n))
            room = n

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. special: control tokens are written by name."""
        return self.decode_bytes(ids, special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], special: bool = False) -> bytes:
        tokens, err = ffi.new("int32_t[]", self._ids(ids)), new_error()
        n = check(lib.pyllm_detokenize(self._handle, tokens, len(tokens), special, ffi.NULL, 0, err), err)
        out = ffi.new("char[]", max(n, 1))
        check(lib.pyllm_detokenize(self._handle, tokens, len(tokens), special, out, n, err), err)
        return bytes(ffi.buffer(out, n))

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes that one token adds to a text. Raises ArgumentError for ids outside of the vocabulary."""
        n = ffi.new("int64_t *")
        p = lib.pyllm_token_bytes(self._handle, self._id(token), special, n)
        return bytes(ffi.buffer(p, n[0]))

    def token_text(self, token: int) -> str:
        """The token as the vocabulary writes it."""
        n = ffi.new("int64_t *")
        p = lib.pyllm_token_text(self._handle, self._id(token), n)
        return bytes(ffi.buffer(p, n[0])).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether a reply ends with this token."""
        return bool(lib.pyllm_token_is_end(self._handle, self._id(token)))

    def ids_containing(self, pieces: Sequence[str]) -> list[int]:
        """Tokens whose bytes hold one of the pieces."""
        if isinstance(pieces, str) or not isinstance(pieces, Sequence) or not all(isinstance(p, str) for p in pieces):
            raise errors.ArgumentError(f"pieces is {reprlib.repr(pieces)}, must be a list of strings")
        wanted = [p.encode("utf-8", "surrogatepass") for p in pieces]
        return [token for token, data in enumerate(self.pieces()) if any(p in data for p in wanted)]

    def pieces(self) -> list[bytes]:
        """`token_bytes` of every token."""
        n, handle, get, unpack = ffi.new("int64_t *"), self._handle, lib.pyllm_token_bytes, ffi.unpack
        return [unpack(get(handle, token, 0, n), n[0]) for token in range(self.n_vocab)]

    def ends(self) -> list[int]:
        """The tokens with which a reply ends."""
        handle, is_end = self._handle, lib.pyllm_token_is_end
        return [token for token in range(self.n_vocab) if is_end(handle, token)]

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)

    @property
    def handle(self) -> Any:
        return self._handle


class StreamDecoder:
    """Ids one at a time to text: holds back bytes that do not yet form a character. shown: texts of tokens that have none otherwise."""

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, bytes] | None = None) -> None:
        self._tokenizer, self._shown = tokenizer, shown or {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token) or self._shown.get(token, b""))

    def finish(self) -> str:
        """What is left: an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)
