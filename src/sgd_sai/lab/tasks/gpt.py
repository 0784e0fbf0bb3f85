"""GPT-2: a small one that learns Python byte by byte from the standard library's sources, or the paper's."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks.problem import Batch, Problem, Task, batches, generator, initial_std

CONTEXT, BATCH = 64, 16  # bytes, sequences, of the tiny scale
BYTES, TOKENS = 256, 50_257  # kinds of them: bytes, and GPT-2's tokens
VALIDATION = 256  # sequences, spread evenly over the held-out text
HELD_OUT = 10  # one file in so many
BAR = "┃"  # between the prompt of a sample and what the model made of it
_SAMPLED, _TEMPERATURE = 200, 0.8


def model(width: int, layers: int, heads: int, context: int, vocabulary: int = BYTES) -> nn.Module:
    """GPT-2 with tied embeddings, without dropout; weights of deviation 0.02 at width 768, as 1/√width."""
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        initializer_range=initial_std(width),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    network: nn.Module = transformers.GPT2LMHeadModel(config)
    return network


def tiny() -> nn.Module:
    """4 layers, 128 wide, 4 heads, bytes."""
    return model(128, 4, 4, CONTEXT)


@dataclass(frozen=True)
class Text(Problem):
    """The problem of the next byte; its sample goes on with a held-out text.

    Attributes:
        prompt: the start of that text, half a context long.
    """

    prompt: bytes = b""

    @torch.no_grad()
    def samples(self, model: nn.Module) -> str:
        """The prompt, a bar, and 200 bytes drawn at temperature 0.8, always by the same random numbers."""
        device, draws = next(model.parameters()).device, torch.Generator().manual_seed(0)
        text = list(self.prompt)
        model.eval()
        for _ in range(_SAMPLED):
            window = torch.tensor([text[-2 * len(self.prompt) :]], device=device)
            logits = model(window).logits[0, -1].float().cpu()
            chances = torch.softmax(logits / _TEMPERATURE, -1)
            text.append(int(torch.multinomial(chances, 1, generator=draws)))
        model.train()
        made = bytes(text[len(self.prompt) :])
        return f"{self.prompt.decode(errors='replace')}{BAR}{made.decode(errors='replace')}"


def load(
    path: Path | None,
    made: Callable[[], nn.Module] | None = None,
    context: int = CONTEXT,
    batch_size: int = BATCH,
) -> Problem:
    """The text of `path`, a file or a folder of text files, or of the running interpreter's library."""
    root, files = standard_library() if path is None else text_files(path)
    train, held_out = split(root, files, context)
    source = "Python's standard library" if path is None else str(path)
    return of_bytes(train, held_out, source, made or tiny, context, batch_size)


def of_bytes(
    train: bytes, held_out: bytes, source: str, made: Callable[[], nn.Module], context: int, batch_size: int
) -> Problem:
    """The problem of the next byte of a text."""
    digest = hashlib.sha256(train + held_out).hexdigest()[:12]
    problem = _of_symbols(
        np.frombuffer(train, np.uint8),
        np.frombuffer(held_out, np.uint8),
        f"{source}, sha256 {digest}: {len(train)} bytes to train on, {len(held_out)} held out",
        made,
        context,
        batch_size,
    )
    return Text(
        problem.model, problem.batch, problem.validation, problem.data, prompt=held_out[: context // 2]
    )


def tokens(path: Path | None) -> Problem:
    """GPT-2's tokens in train.bin and val.bin, uint16, the usual form of a tokenised OpenWebText."""
    parts = []
    for part in ("train.bin", "val.bin"):
        file = Path(path or "") / part
        if path is None or not file.is_file() or file.stat().st_size < 2 * 2 * 1024 + 2:
            raise ValueError(
                f"--data: given {path}; this scale of gpt needs a folder with train.bin and val.bin, GPT-2's "
                "tokens as uint16, as for OpenWebText, each more than 2048 tokens"
            )
        parts.append(np.memmap(file, np.uint16, "r", shape=(file.stat().st_size // 2,)))
    train, held_out = parts
    data = f"{path}: {len(train)} tokens to train on, {len(held_out)} held out"
    return _of_symbols(train, held_out, data, partial(model, 768, 12, 12, 1024, TOKENS), 1024, 480)


def _of_symbols(
    train: np.ndarray,
    held_out: np.ndarray,
    data: str,
    made: Callable[[], nn.Module],
    context: int,
    batch_size: int,
) -> Problem:
    starts = np.linspace(0, len(held_out) - context - 1, VALIDATION).astype(int)

    def batch(seed: int, step: int) -> Batch:
        return _windows(train, generator(seed, step).integers(0, len(train) - context, batch_size), context)

    return Problem(
        model=made,
        batch=batch,
        validation=list(batches(16, *_windows(held_out, starts, context))),
        data=f"{data}, of which {VALIDATION} × {context} are judged",
    )


def standard_library() -> tuple[Path, list[Path]]:
    """The folder of the running interpreter's library and its modules, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
    files = (path for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts))
    return root, sorted(files)


def text_files(path: Path) -> tuple[Path, list[Path]]:
    """A folder and all files below it, or a file and its folder."""
    if not path.exists():
        raise ValueError(
            f"--data: given {path}, which does not exist; allowed: a text file or a folder of them"
        )
    if path.is_file():
        return path.parent, [path]
    return path, sorted(file for file in path.rglob("*") if file.is_file())


def split(root: Path, files: list[Path], context: int) -> tuple[bytes, bytes]:
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
    if min(len(train), len(held_out)) <= 2 * context:
        raise ValueError(
            f"--data: {files[0] if len(files) == 1 else root} holds {len(train)} bytes of text to train on "
            f"and {len(held_out)} to hold out; needed: more than {2 * context} of each"
        )
    return train, held_out


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"\n".join(texts)


def _windows(text: np.ndarray, starts: np.ndarray, context: int) -> tuple[Tensor, Tensor]:
    """Symbols from each start, and those that follow them: int64, shape (starts, context)."""
    windows = torch.from_numpy(text[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


TINY = Task(
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
SMALL = Task(
    name="gpt-small",
    title="GPT-2, byte level, 12 layers",
    about="GPT-2, 12 layers of width 384, byte level, context 512, batch 64, bf16",
    metric="val_loss",
    unit="nats per byte",
    steps=3000,
    shrink=1e-4,
    clip=1.0,
    load=partial(load, made=partial(model, 384, 12, 6, 512), context=512, batch_size=64),
    bf16=True,
)
#: Adam-mini's settings: κ = AdamW's lr 6e-4 × λ 0.1; 480 × 1024 tokens a step. 100 000 steps are chosen.
PAPER = Task(
    name="gpt-paper",
    title="GPT-2 small on OpenWebText",
    about="GPT-2, 12 layers of width 768, context 1024, 480 sequences a step, bf16",
    metric="val_loss",
    unit="nats per token",
    steps=100_000,
    shrink=6e-5,
    clip=1.0,
    load=tokens,
    schedule=Schedule(warm_up=0.02, floor=0.1),
    accumulate=40,
    bf16=True,
)
