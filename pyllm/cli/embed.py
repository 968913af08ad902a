"""pyllm embed: texts as vectors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .. import errors
from ._options import add_json, add_kv, add_model, add_pack_cache, add_threads, model_file, read_text, whole
from ._output import note, print_json, progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .. import LLM

SLICE = 64      # texts between two steps of the progress bar


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.usage = "pyllm embed [OPTIONS] MODEL [TEXT...]"
    parser.add_argument("text", metavar="TEXT", nargs="*", help="texts; none: as -f -")
    parser.add_argument("-f", "--file", metavar="FILE", help="a text on every line, UTF-8; - for standard input")
    parser.add_argument("-o", "--out", metavar="FILE.npy", help="write a float32 array [texts, width] for numpy.load, and print nothing")
    parser.add_argument("--similarity", action="store_true", help="print the cosines of all pairs in place of the vectors")
    parser.add_argument("--pooling", choices=("mean", "cls", "last"),
                        help="what of a text's tokens is taken (default: as the file says, else mean)")
    parser.add_argument("--no-normalize", action="store_true", help="vectors as they are, not of length 1")
    parser.add_argument("--dimensions", type=whole(1, 1 << 20), metavar="N", help="only the first N values (default: all)")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long; else they are an error")
    parser.add_argument("--ctx", type=whole(4, 1 << 24), metavar="N",
                        help="most tokens of a text (default: what the model was trained for)")
    add_threads(parser)
    add_kv(parser)
    add_pack_cache(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from .. import LLM

    texts = _texts(args)
    with LLM(model_file(args.model), ctx=args.ctx, threads=args.threads, kv=args.kv, pack_cache=args.pack_cache) as llm:
        with progress("embed", "texts") as show:
            vectors = np.concatenate(list(_slices(llm, texts, args, lambda n: show(n, len(texts)))))
        name = llm.path
    if args.out:
        _save(args.out, vectors)
    elif args.similarity:
        _print_cosines(texts, vectors, args.json)
    elif args.json:
        print_json({"model": name, "width": vectors.shape[1], "embeddings": [_numbers(v) for v in vectors]})
    else:
        for vector in vectors:
            print(json.dumps(_numbers(vector)))
    note(f"{len(texts)} vector{'' if len(texts) == 1 else 's'} of {vectors.shape[1]} values")
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    if args.text and args.file:
        raise errors.ArgumentError("texts are given, and -f too\nhint: one of both")
    if args.text:
        return list(args.text)
    if args.file is None and sys.stdin.isatty():
        note("reading texts from the terminal, one a line; Ctrl-D ends them")
    lines = read_text(args.file or "-").decode("utf-8", "replace").splitlines()
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise errors.ArgumentError("there is no text\nhint: give texts, or a file with one on every line")
    return texts


def _slices(llm: LLM, texts: list[str], args: argparse.Namespace, show: Callable[[int], None]) -> Iterator[NDArray[np.float32]]:
    for at in range(0, len(texts), SLICE):
        yield llm.embed(texts[at:at + SLICE], pooling=args.pooling, normalize=not args.no_normalize, dimensions=args.dimensions,
                        truncate=args.truncate)
        show(min(at + SLICE, len(texts)))


def _numbers(vector: NDArray[np.float32]) -> list[float]:
    """The shortest decimals that give the same float32."""
    return [float(f"{x:.9g}") for x in vector.tolist()]


def _save(path: str, vectors: NDArray[np.float32]) -> None:
    import numpy as np

    try:
        with open(path, "wb") as f:
            np.save(f, vectors)
    except OSError as e:
        raise errors.FileError(f"{path}: {e.strerror}\nhint: -o takes the path of a new file") from e


def _print_cosines(texts: list[str], vectors: NDArray[np.float32], as_json: bool) -> None:
    import numpy as np

    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    cosines = unit @ unit.T
    if as_json:
        print_json({"texts": texts, "cosines": [[round(float(c), 6) for c in row] for row in cosines]})
        return
    for text, row in zip(texts, cosines, strict=True):
        print(" ".join(f"{c:6.3f}" for c in row), " ", text if len(text) < 60 else text[:57] + "...")
