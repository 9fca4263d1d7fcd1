"""Text as numbers: loading, the vocabulary, and the batches."""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlstm.training.errors import TrainError

HELDOUT_MOST = 100_000


@dataclass(frozen=True)
class Corpus:
    """`train` (N,) and `heldout` (M,) index into `vocabulary`, the distinct characters in code point order."""

    name: str
    digest: str
    vocabulary: str
    train: Tensor
    heldout: Tensor

    def decode(self, indices: Tensor) -> str:
        return "".join(self.vocabulary[i] for i in indices.tolist())


def load_corpus(path: Path | None, batch: int, length: int) -> Corpus:
    """The text of a UTF-8 file, or the one that every CPython carries.

    Held out are its last 5%, at most 100,000 characters. Python's texts repeat some sections: a third of what is held
    out of them also stands elsewhere, so their held-out loss flatters.

    Raises TrainError where the file can't be read, isn't UTF-8, or is shorter than `batch` streams of `length`.
    """
    name, text = ("pydoc_data.topics", _python_topics()) if path is None else (path.name, _read(path))
    heldout = min(len(text) // 20, HELDOUT_MOST)
    if len(text) - heldout < batch * length or heldout < 2:
        least = max(40, batch * length * 20 // 19 + 1)
        raise TrainError(
            f"{name} has {len(text):,} characters, expected at least {least:,}: "
            f"--batch {batch} streams of --length {length}, and 5% held out"
        )
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    distinct, indices = np.unique(points, return_inverse=True)
    data = torch.from_numpy(indices.astype(np.int32))
    return Corpus(
        name=name,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        vocabulary="".join(map(chr, distinct)),
        train=data[: len(data) - heldout],
        heldout=data[len(data) - heldout :],
    )


def _python_topics() -> str:
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise TrainError(f"cannot read --text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise TrainError(f"--text {path} is not UTF-8: byte 0x{byte:02x} at position {error.start:,}") from None


def training_batch(data: Tensor, seed: int, step: int, B: int, T: int) -> tuple[Tensor, Tensor, bool]:
    """Inputs and targets (T, B) of a step, and whether a new pass over the text begins (the state starts at zero).

    B streams run side by side through the text, which is closed to a ring; each pass starts elsewhere on it. A batch
    depends on nothing but the seed and the step.
    """
    stream = len(data) // B
    epoch, window = divmod(step, stream // T)
    start = random.Random(f"{seed} {epoch}").randrange(len(data)) + window * T
    where = start + torch.arange(T + 1)[:, None] + stream * torch.arange(B)
    chunk = data[where % len(data)].long()
    return chunk[:-1], chunk[1:], window == 0


def heldout_batches(data: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets (<= T, <= B), one after the other along at most B streams."""
    B = max(1, min(B, (len(data) - 1) // T))
    stream = (len(data) - 1) // B
    x = data[: B * stream].view(B, stream).T.long()
    y = data[1 : B * stream + 1].view(B, stream).T.long()
    return list(zip(x.split(T), y.split(T), strict=True))
