"""GPT-2: a small one that learns Python byte by byte from the standard library's sources, or the paper's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor, nn

from sgd_sai.lab import samples
from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks import text
from sgd_sai.lab.tasks.problem import Batch, Problem, Task, batches, generator, initial_std

CONTEXT, BATCH = 64, 16  # bytes, sequences, of the tiny scale
BYTES, TOKENS = 256, 50_257  # kinds of them: bytes, and GPT-2's tokens
PAPER_CONTEXT, _BINS = 1024, ("train.bin", "val.bin")
_LOOKED_AT = 10_000_000  # tokens, of which none may be out of range
VALIDATION = 256  # sequences, spread evenly over the held-out text
_SAMPLED, _TEMPERATURE = 200, 0.8


def model(
    width: int, layers: int, heads: int, context: int, vocabulary: int = BYTES, tied: bool = True
) -> nn.Module:
    """GPT-2 without dropout; weights of deviation 0.02 at width 768, as 1/√width.

    `tied`: the head is the embedding, as in GPT-2.
    """
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
        tie_word_embeddings=tied,
    )
    network: nn.Module = transformers.GPT2LMHeadModel(config)
    return network


def tiny() -> nn.Module:
    """4 layers, 128 wide, 4 heads, bytes."""
    return model(128, 4, 4, CONTEXT)


@dataclass(frozen=True)
class Text(Problem):
    """The problem of the next byte or token; its sample goes on with a held-out text.

    Attributes:
        prompt: the start of that text, half a context long.
        decode: symbols → text.
    """

    prompt: Sequence[int] = ()
    decode: Callable[[list[int]], str] = lambda symbols: bytes(symbols).decode(errors="replace")

    @torch.no_grad()
    def samples(self, model: nn.Module) -> str:
        """The prompt, a bar, and 200 symbols drawn at temperature 0.8, always by the same random numbers."""
        device, draws = next(model.parameters()).device, torch.Generator().manual_seed(0)
        symbols = list(self.prompt)
        model.eval()
        for _ in range(_SAMPLED):
            window = torch.tensor([symbols[-2 * len(self.prompt) :]], device=device)
            logits = model(window).logits[0, -1].float().cpu()
            chances = torch.softmax(logits / _TEMPERATURE, -1)
            symbols.append(int(torch.multinomial(chances, 1, generator=draws)))
        model.train()
        return samples.joined(self.decode(list(self.prompt)), self.decode(symbols[len(self.prompt) :]))


def load(
    path: Path | None,
    made: Callable[[], nn.Module] | None = None,
    context: int = CONTEXT,
    batch_size: int = BATCH,
) -> Problem:
    """Return the problem of the text of `path`, a file or a folder, or of the interpreter's library."""
    root, files = text.standard_library() if path is None else text.files_of(path)
    train, held_out = text.split(root, files, context)
    source = "Python's standard library" if path is None else str(path)
    return of_bytes(train, held_out, source, made or tiny, context, batch_size)


def of_bytes(
    train: bytes, held_out: bytes, source: str, made: Callable[[], nn.Module], context: int, batch_size: int
) -> Problem:
    """Return the problem of the next byte of a text."""
    digest = hashlib.sha256(train + held_out).hexdigest()[:12]
    problem = _of_symbols(
        np.frombuffer(train, np.uint8),
        np.frombuffer(held_out, np.uint8),
        f"{source}, sha256 {digest}: {len(train)} bytes to train on, {len(held_out)} held out",
        made,
        context,
        batch_size,
    )
    prompt = list(held_out[: context // 2])
    return Text(problem.model, problem.batch, problem.validation, problem.data, prompt)


def small(path: Path | None) -> Problem:
    """Return the problem of GPT-2 small on the tokens or the text of `path`, or on the library's text.

    A text is cut into tokens by a vocabulary of GPT-2's kind and size that is learned from its training part.
    """
    if path is not None and all((path / part).is_file() for part in _BINS):
        return tokens(path, batch_size=32)
    root, files = text.standard_library() if path is None else text.files_of(path)
    train, held_out = text.split(root, files, PAPER_CONTEXT)
    texts = [part.decode(errors="ignore") for part in (train, held_out)]  # one may be cut in a character
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts[0].splitlines(keepends=True), vocab_size=TOKENS, show_progress=False)
    parts = [np.array(tokenizer.encode(each).ids, np.uint16) for each in texts]
    source = "Python's standard library" if path is None else str(path)
    if min(map(len, parts)) <= PAPER_CONTEXT:
        raise ValueError(
            f"--data: {source} holds {len(parts[0])} tokens to train on and {len(parts[1])} to hold out; "
            f"needed: more than {PAPER_CONTEXT} of each"
        )
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]
    data = f"{source}, sha256 {digest}: {len(parts[0])} tokens to train on, {len(parts[1])} held out"
    problem = _of_symbols(parts[0], parts[1], data, gpt2_small, PAPER_CONTEXT, 32)
    prompt = parts[1][: PAPER_CONTEXT // 16].tolist()
    return Text(problem.model, problem.batch, problem.validation, problem.data, prompt, tokenizer.decode)


def gpt2_small() -> nn.Module:
    """12 layers, 768 wide, 12 heads, GPT-2's tokens: 124 M parameters."""
    return model(768, 12, 12, PAPER_CONTEXT, TOKENS)


def tokens(path: Path | None, batch_size: int = 480) -> Problem:
    """Return the problem of GPT-2's tokens in train.bin and val.bin, uint16, as OpenWebText is found."""
    parts = []
    for part in _BINS:
        file = Path(path or "") / part
        if path is None or not file.is_file() or file.stat().st_size < 2 * 2 * PAPER_CONTEXT + 2:
            raise ValueError(
                f"--data: given {path}; this scale of gpt needs a folder with train.bin and val.bin, GPT-2's "
                "tokens as uint16, as for OpenWebText, each more than 2048 tokens"
            )
        held = np.memmap(file, np.uint16, "r", shape=(file.stat().st_size // 2,))
        if (largest := int(held[:_LOOKED_AT].max())) >= TOKENS:
            raise ValueError(f"--data: {file} holds {largest}; needed: GPT-2's tokens, less than {TOKENS}")
        parts.append(held)
    train, held_out = parts
    data = f"{path}: {len(train)} tokens to train on, {len(held_out)} held out"
    return _of_symbols(train, held_out, data, gpt2_small, PAPER_CONTEXT, batch_size)


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


def _windows(symbols: np.ndarray, starts: np.ndarray, context: int) -> tuple[Tensor, Tensor]:
    """Symbols from each start, and those that follow them: int64, shape (starts, context)."""
    windows = torch.from_numpy(symbols[starts[:, None] + np.arange(context + 1)].astype(np.int64))
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
#: 1000 steps of 32 × 1024 tokens. A token costs 6 × 124 M + 12 × 12 × 768 × 1024 = 0.86 GFLOP, a run 2.8e16:
#: 6 minutes at 25 % of an A100's 312 TFLOP/s, and 11 evaluations add a thirtieth. Estimated, not measured.
SMALL = Task(
    name="gpt-small",
    title="GPT-2 small, 1000 steps",
    about="GPT-2, 12 layers of width 768, 124 M parameters, context 1024, 32 sequences a step, bf16",
    metric="val_loss",
    unit="nats per token",
    steps=1000,
    shrink=6e-5,
    clip=1.0,
    load=small,
    accumulate=2,
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
