"""A small GPT-2 that learns to write Python, byte by byte, from the standard library's own sources."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from sgd_sai.lab.tasks.problem import Batch, Problem, Task, batches, generator, initial_std

WIDTH = 128
CONTEXT = 64  # bytes
BATCH = 16  # sequences
VALIDATION = 256  # sequences, spread evenly over the held-out text
HELD_OUT = 10  # one file in so many


def model() -> nn.Module:
    """4 layers, 128 wide, 4 heads, 256 tokens (bytes), tied embeddings, no dropout."""
    config = transformers.GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        initializer_range=initial_std(WIDTH),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    network: nn.Module = transformers.GPT2LMHeadModel(config)
    return network


def load(path: Path | None) -> Problem:
    """The text of `path`, a file or a folder of text files, or of the running interpreter's library."""
    root, files = _standard_library() if path is None else _text_files(path)
    train, held_out = _split(root, files)
    source = "Python's standard library" if path is None else str(path)
    digest = hashlib.sha256(train + held_out).hexdigest()[:12]
    starts = np.linspace(0, len(held_out) - CONTEXT - 1, VALIDATION).astype(int)
    text = np.frombuffer(train, dtype=np.uint8)

    def batch(seed: int, step: int) -> Batch:
        return _windows(text, generator(seed, step).integers(0, len(text) - CONTEXT, BATCH))

    return Problem(
        model=model,
        batch=batch,
        validation=list(batches(*_windows(np.frombuffer(held_out, dtype=np.uint8), starts), BATCH)),
        data=(
            f"{source}, sha256 {digest}: {len(train)} bytes to train on, "
            f"{len(held_out)} held out, of which {VALIDATION} × {CONTEXT} are judged"
        ),
    )


def _standard_library() -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
    files = (path for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts))
    return root, sorted(files)


def _text_files(path: Path) -> tuple[Path, list[Path]]:
    if not path.exists():
        raise ValueError(
            f"--data: given {path}, which does not exist; allowed: a text file or a folder of them"
        )
    if path.is_file():
        return path.parent, [path]
    return path, sorted(file for file in path.rglob("*") if file.is_file())


def _split(root: Path, files: list[Path]) -> tuple[bytes, bytes]:
    """(training, held-out) text: every tenth file, in an order by hash, is held out; of one file, its end."""
    texts = {}
    for file in files:
        try:
            content = file.read_bytes()
            content.decode()
        except OSError as error:
            raise ValueError(f"--data: cannot read {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            continue  # not a text
        texts[file.relative_to(root).as_posix()] = content
    if len(texts) == 1:
        (content,) = texts.values()
        cut = len(content) - len(content) // HELD_OUT
        train, held_out = content[:cut], content[cut:]
    else:
        # The names in the order of their hashes, so that the split does not depend on what else is there.
        names = sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_names = set(names[::HELD_OUT])
        train = _joined(texts[name] for name in texts if name not in held_names)
        held_out = _joined(texts[name] for name in texts if name in held_names)
    if min(len(train), len(held_out)) <= 2 * CONTEXT:
        raise ValueError(
            f"--data: {files[0] if len(files) == 1 else root} holds {len(train)} bytes of text to train on "
            f"and {len(held_out)} to hold out; needed: more than {2 * CONTEXT} of each"
        )
    return train, held_out


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"\n".join(texts)


def _windows(text: np.ndarray[tuple[int], np.dtype[np.uint8]], starts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Bytes from each start, and the bytes that follow them: int64, shape (starts, CONTEXT)."""
    windows = torch.from_numpy(text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


TASK = Task(
    name="gpt",
    title="GPT-2 on Python sources",
    about="GPT-2, 4 layers of width 128, byte level, context 64, batch 16",
    metric="val_loss",
    unit="nats per byte",
    steps=300,
    shrink=1e-4,
    clip=1.0,
    load=load,
)
