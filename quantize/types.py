"""Tensor types by the names that users and GGUF files know, and what they take."""

from __future__ import annotations

from difflib import get_close_matches

from pyllm import errors
from pyllm._core import ffi, lib

_IDS = range(64)


def type_name(type_id: int) -> str:
    """"q4_k"; ArgumentError for an id that is no type's."""
    name = lib.pyllm_type_name(type_id)
    if name == ffi.NULL:
        raise errors.ArgumentError(f"there is no tensor type {type_id}")
    return str(ffi.string(name).decode())


def type_id(name: str) -> int:
    """The id of a type by its name in any case; ArgumentError for a name that is none."""
    found = _BY_NAME.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), _BY_NAME, 1)
        raise errors.ArgumentError(f"there is no tensor type {name!r}\n"
                                   f"hint: {f'did you mean {near[0].upper()}?' if near else ', '.join(n.upper() for n in _BY_NAME)}")
    return found


def block(type_id: int) -> tuple[int, int]:
    """Elements and bytes of a block."""
    return lib.pyllm_type_elems(type_id), lib.pyllm_type_bytes(type_id)


def row_bytes(type_id: int, width: int) -> int:
    """Bytes of a row; ArgumentError if the width is not whole blocks."""
    elems, size = block(type_id)
    if width % elems:
        raise errors.ArgumentError(f"rows of {width} values are not whole blocks of {type_name(type_id)} ({elems})")
    return width // elems * size


_BY_NAME = {ffi.string(lib.pyllm_type_name(i)).decode(): i for i in _IDS if lib.pyllm_type_name(i) != ffi.NULL}
