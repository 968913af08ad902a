"""What a quantized file says about how it was made: keys of its metadata. The general.* and quantize.imatrix.* keys are those that every
tool knows; pyllm.receipt.* holds the rest. `pyllm show` prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any

from pyllm import __version__
from pyllm.describe import RECEIPT as PREFIX

from .fields import Field
from .recipes import MIXES, Options
from .types import row_bytes, type_id

if TYPE_CHECKING:
    from .imatrix_file import Imatrix
    from .writer import Writer

_QUANTIZATION_VERSION = 2       # of the layouts of ggml's quantized types
_NO_CHECKSUM = "sha256:" + 64 * "0"
_OLD = (PREFIX, "quantize.imatrix.")


@dataclass(frozen=True)
class Evaluation:
    """How far the file is from its source on a text: mean, 99th percentile and largest KL divergence of the next token's distribution in
    nats, its standard error, the share of positions with the same likeliest token, and both perplexities."""

    kld: float
    kld_error: float
    kld_99: float
    kld_max: float
    same_top: float
    perplexity: float
    source_perplexity: float


def stamp(metadata: Mapping[str, Field], options: Options, tensors: Mapping[str, Sequence[int]], types: Mapping[str, str], source: str,
          imatrix: Imatrix | None, text: tuple[str, str] | None) -> dict[str, Field]:
    """The metadata with the receipt: what was there keeps its place, older receipts go, new keys stand at the end.

    tensors: sizes, and types: types of every tensor. source: name of what was read; its checksum is filled in by finish(). text: name and
    checksum of the text of an evaluation, whose figures are filled in by finish() too.
    """
    new: dict[str, Any] = {
        "general.quantization_version": _QUANTIZATION_VERSION, "general.file_type": _file_type(options, tensors, types),
        "general.quantized_by": f"pyllm {__version__}", PREFIX + "options": words(options),
        PREFIX + "tensors": [f"{name}={kind}" for name, kind in types.items()],
        PREFIX + "source.name": source, PREFIX + "source.checksum": _NO_CHECKSUM}
    if options.target is None:
        new[PREFIX + "mix"] = options.mix
    else:
        new |= {PREFIX + "target": options.target.words, PREFIX + "calibration.text": options.target.name,
                PREFIX + "calibration.text_checksum": options.target.checksum}
    if imatrix is not None:
        new |= {"quantize.imatrix.file": imatrix.name, "quantize.imatrix.dataset": ", ".join(imatrix.datasets),
                "quantize.imatrix.entries_count": len(imatrix), "quantize.imatrix.chunks_count": imatrix.chunks,
                PREFIX + "imatrix.checksum": imatrix.checksum}
    if text is not None:
        new |= {PREFIX + "evaluation.text": text[0], PREFIX + "evaluation.text_checksum": text[1]}
        new |= {PREFIX + f"evaluation.{f.name}": 0.0 for f in fields(Evaluation)}
    kept = {key: field for key, field in metadata.items() if not key.startswith(_OLD)}
    return kept | {key: Field.of(value) for key, value in new.items()}


def words(options: Options) -> list[str]:
    """The options beside mix and target in the words of the command."""
    given = [f"--tensor-type {pattern}={kind.lower()}" for pattern, kind in options.tensor_types]
    for option, kind in (("output-type", options.output_type), ("token-embedding-type", options.token_embedding_type)):
        if kind is not None:
            given.append(f"--{option} {kind.lower()}")
    return given + (["--pure"] if options.pure else [])


def _file_type(options: Options, tensors: Mapping[str, Sequence[int]], types: Mapping[str, str]) -> int:
    """The mix's; of types that were chosen one by one that of the first mix whose base takes most bytes."""
    if options.mix is not None:
        return MIXES[options.mix].file_type
    taken = Counter[str]()
    for name, kind in types.items():
        taken[kind] += prod(tensors[name][1:]) * row_bytes(type_id(kind), tensors[name][0])
    return next((mix.file_type for kind, _ in taken.most_common() for mix in MIXES.values() if mix.base == kind), 0)


def finish(writer: Writer, checksum: str, evaluation: Evaluation | None) -> None:
    """Fills in what is known only after the tensors were written."""
    writer.patch(PREFIX + "source.checksum", Field.of(checksum))
    for f in fields(Evaluation) if evaluation else ():
        writer.patch(PREFIX + f"evaluation.{f.name}", Field.of(float(getattr(evaluation, f.name))))
