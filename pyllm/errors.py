"""Every exception that pyllm raises on purpose. str(e) says what and where; e.hint, on its own line, what to do next."""

from __future__ import annotations


class Error(Exception):
    """Base of all. The message may end in a line "hint: ..."; hint is that text or None."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        before, found, hint = message.rpartition("\nhint: ")       # the last one: a name from a file may hold others
        self.message = before if found else message
        self.hint: str | None = hint if found and hint else None


class ArgumentError(Error, ValueError):
    """A wrong argument or option."""


class OutOfMemory(Error, MemoryError):
    """Memory or threads ran out, or a load would not fit; nothing was changed."""


class LibraryError(Error, ImportError):
    """pyllm's native library is missing, cannot be loaded, or is of another version."""


class FileError(Error, OSError):
    """The system refused to open, read or write a file."""


class ModelNotFound(FileError, FileNotFoundError):
    """No model is known under this name or path."""


class DownloadError(FileError):
    """A model could not be fetched or does not have the expected checksum."""


class FormatError(Error):
    """A file breaks the rules of its format."""


class Unsupported(Error):
    """Valid, but not something this build can run."""


class UnsupportedModel(Unsupported):
    """An architecture or tensor type that cannot run; the message names it."""


class UnsupportedTokenizer(Unsupported):
    """A tokenizer or pre-tokenizer that is not known; the message names it."""


class UnsupportedTemplate(Unsupported):
    """A chat template outside of the template language, or beyond its limits; the message names the construct."""


class ContextOverflow(Error):
    """The prompt has more tokens than the context: n_tokens, n_ctx."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(f"the prompt has {n_tokens} tokens, the context holds {n_ctx}\n"
                         "hint: shorten the prompt or load the model with a larger ctx")
        self.n_tokens, self.n_ctx = n_tokens, n_ctx


class Busy(Error):
    """Too many requests wait already: n_waiting; retry_s is when one of them may have left, in seconds, as far as can be foreseen."""

    def __init__(self, n_waiting: int, retry_s: float) -> None:
        super().__init__(f"{n_waiting} requests wait already, the most that this model takes\n"
                         f"hint: try again in {max(retry_s, 0.1):.1f} s, or load the model with a larger max_waiting")
        self.n_waiting, self.retry_s = n_waiting, retry_s


class CacheFull(Error):
    """No room in the KV cache; nothing was changed."""


class Cancelled(Error):
    """The work was cancelled; every sequence is as before."""


class StateError(Error):
    """A saved state that is damaged or belongs to another model."""


class NonFiniteLogits(Error):
    """The model produced NaN or infinity; only this request ended."""


class ForkedProcess(Error):
    """The object was made before a fork; the child must load its own."""

    def __init__(self, message: str = "this model was loaded before a fork\nhint: load it in the child process") -> None:
        super().__init__(message)


class Closed(Error):
    """The model or session is closed."""


_BY_STATUS: dict[int, type[Error]] = {-1: ArgumentError, -2: OutOfMemory, -3: FileError, -4: FormatError, -5: UnsupportedModel,
                                      -6: CacheFull, -7: Cancelled, -8: StateError}


def from_status(code: int, message: str) -> Error:
    """The exception of a pyllm_status with a C message."""
    return _BY_STATUS.get(code, Error)(message or f"error {code}")
