"""What a quantized file says about how it was made: keys of its metadata. The general.* and quantize.imatrix.* keys are those that every
tool knows; pyllm.receipt.* holds the rest. `pyllm show` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pyllm import __version__
from pyllm.describe import RECEIPT as PREFIX

from .fields import Field
from .recipes import MIXES, find_mix

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


def stamp(metadata: Mapping[str, Field], mix: str, options: Sequence[str], types: Mapping[str, str], source: str, imatrix: Imatrix | None,
          text: tuple[str, str] | None) -> dict[str, Field]:
    """The metadata with the receipt: what was there keeps its place, older receipts go, new keys stand at the end.

    options: in the command's words, beside the mix. types: of every tensor. source: name of what was read; its checksum is filled in by
    finish(). text: name and checksum of the text of an evaluation, whose figures are filled in by finish() too.
    """
    new: dict[str, Any] = {
        "general.quantization_version": _QUANTIZATION_VERSION, "general.file_type": MIXES[find_mix(mix)].file_type,
        "general.quantized_by": f"pyllm {__version__}", PREFIX + "mix": find_mix(mix), PREFIX + "options": list(options),
        PREFIX + "tensors": [f"{name}={kind}" for name, kind in types.items()],
        PREFIX + "source.name": source, PREFIX + "source.checksum": _NO_CHECKSUM}
    if imatrix is not None:
        new |= {"quantize.imatrix.file": imatrix.name, "quantize.imatrix.dataset": ", ".join(imatrix.datasets),
                "quantize.imatrix.entries_count": len(imatrix), "quantize.imatrix.chunks_count": imatrix.chunks,
                PREFIX + "imatrix.checksum": imatrix.checksum}
    if text is not None:
        new |= {PREFIX + "evaluation.text": text[0], PREFIX + "evaluation.text_checksum": text[1]}
        new |= {PREFIX + f"evaluation.{f.name}": 0.0 for f in fields(Evaluation)}
    kept = {key: field for key, field in metadata.items() if not key.startswith(_OLD)}
    return kept | {key: Field.of(value) for key, value in new.items()}


def finish(writer: Writer, checksum: str, evaluation: Evaluation | None) -> None:
    """Fills in what is known only after the tensors were written."""
    writer.patch(PREFIX + "source.checksum", Field.of(checksum))
    for f in fields(Evaluation) if evaluation else ():
        writer.patch(PREFIX + f"evaluation.{f.name}", Field.of(float(getattr(evaluation, f.name))))
