"""Low-rank fine-tuning of a GPT-2: one that the lab has trained itself on Python sources, or the paper's."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks import gpt, pretrained, text
from sgd_sai.lab.tasks.problem import IGNORED, Batch, Problem, Task, batches, epoch_indices, needs

RANK, ALPHA = 4, 32  # ALPHA as in the paper on LoRA
_PARTS = ("train", "valid", "test")  # files of E2E NLG
CONTEXT = 128  # tokens of the paper's scale: record and sentence together


def adapted(
    base: nn.Module,
    targets: list[str],
    dropout: float = 0.0,
    alpha: int = ALPHA,
    transposed: bool = False,
) -> nn.Module:
    """`base`, frozen, with matrices A and B of rank 4 beside its `targets`; A is random, B is zero.

    `transposed`: the targets' weights are (in, out), as in GPT-2.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=RANK, lora_alpha=alpha, target_modules=targets, lora_dropout=dropout, fan_in_fan_out=transposed
    )
    network: nn.Module = peft.get_peft_model(base, config)
    return network


def _own(
    path: Path | None,
    name: str,
    made: Callable[[], nn.Module],
    context: int,
    size: int,
    steps: int,
    lr: float,
) -> Problem:
    """Text of `path`, or English prose, for a model trained before on the standard library's sources."""
    _peft()
    if path is None:
        train, held_out, source = *_prose(), "pydoc_data.topics"
    elif files := e2e(path):
        train, held_out = text.of_two(*files, context)
        source = f"{path}, {files[0].name} and {files[1].name}"
    else:
        train, held_out = text.split(*text.files_of(path), context)
        source = str(path)
    before = gpt.load(None, made, context, size)
    weights = pretrained.weights(name, before, steps, lr)

    def model() -> nn.Module:
        base = made()
        base.load_state_dict(weights)
        return adapted(base, ["c_attn"], transposed=True)

    problem = gpt.of_bytes(train, held_out, source, model, context, size)
    base = f"base trained on {before.data.partition(':')[0]}, weights {pretrained.digest(weights)}"
    return replace(problem, data=f"{problem.data}; {base}")


def _prose() -> tuple[bytes, bytes]:
    """The help texts on Python's topics; every tenth topic is held out."""
    texts = [topic.encode() for _, topic in sorted(pydoc_data.topics.topics.items())]
    train = b"\n".join(topic for index, topic in enumerate(texts) if index % text.HELD_OUT)
    return train, b"\n".join(texts[:: text.HELD_OUT])


def e2e(path: Path) -> tuple[Path, Path] | None:
    """(to train on, held out) of a folder with E2E NLG; None for what is no such folder.

    train.txt and valid.txt, or test.txt if that is missing; without train.txt the larger of the other two
    is trained on.
    """
    files = [file for part in _PARTS if (file := path / f"{part}.txt").is_file()]
    if len(files) < 2:
        return None
    if files[0].stem != "train":
        files.sort(key=lambda file: file.stat().st_size, reverse=True)
    return files[0], files[1]


def _paper(path: Path | None) -> Problem:
    """GPT-2 medium and E2E NLG: lines of record||sentence, of which the sentence is learned."""
    import transformers

    _peft()
    files = None if path is None else e2e(path)
    if files is None:
        raise ValueError(
            f"--data: given {path}; this scale of lora needs E2E NLG: a folder with two of train.txt, "
            "valid.txt and test.txt, lines of record||sentence"
        )
    source = pretrained.checkpoint("gpt2-medium")
    tokenizer = pretrained.loaded(transformers.AutoTokenizer.from_pretrained, source)
    train, held = (_sentences(file, tokenizer) for file in files)
    size = 8

    def batch(seed: int, step: int) -> Batch:
        chosen = torch.from_numpy(epoch_indices(len(train[0]), size, seed, step))
        return train[0][chosen], train[1][chosen]

    def model() -> nn.Module:
        base = pretrained.loaded(transformers.AutoModelForCausalLM.from_pretrained, source)
        return adapted(base, ["c_attn"], dropout=0.1, transposed=True)

    counts = f"{len(train[0])} sentences of {files[0].name} to train on, {len(held[0])} of {files[1].name}"
    return Problem(model, batch, list(batches(32, *held)), f"{path}: {counts} held out; base {source}")


def _sentences(file: Path, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """(inputs, targets), int64 (lines, CONTEXT); what is record or padding is no target."""
    inputs, targets = [], []
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--data: cannot read {file}: {error}") from None
    for line in lines:
        record, bar, sentence = line.partition("||")
        if not bar:
            continue
        before = tokenizer.encode(f"{record.strip()} {tokenizer.eos_token}")
        after = [*tokenizer.encode(f" {sentence.strip()}"), tokenizer.eos_token_id]
        whole = (before + after)[: CONTEXT + 1]
        padding = CONTEXT + 1 - len(whole)
        inputs.append((whole + [tokenizer.eos_token_id] * padding)[:-1])
        targets.append(([IGNORED] * len(before) + after)[1 : CONTEXT + 1])
        targets[-1] += [IGNORED] * (CONTEXT - len(targets[-1]))
    if len(inputs) < 8:
        raise ValueError(f"--data: {file} has {len(inputs)} lines of record||sentence; needed: 8 or more")
    return torch.tensor(inputs), torch.tensor(targets)


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError:
        raise needs("peft", "lora") from None
    return peft


TINY = Task(
    name="lora",
    title="LoRA from Python to English",
    about="rank 4 on the attention of a GPT-2, 4 layers of width 128, byte level, context 64, batch 16",
    metric="val_loss",
    unit="nats per byte",
    steps=200,
    shrink=1e-5,  # the paper's lr 1e-3 × λ 1e-2, at every scale
    clip=1.0,
    load=partial(
        _own,
        name="gpt",
        made=gpt.tiny,
        context=gpt.CONTEXT,
        size=gpt.BATCH,
        steps=400,
        lr=3e-3,
    ),
)
SMALL = Task(
    name="lora-small",
    title="LoRA from Python to English, 12 layers",
    about="rank 4 on the attention of a byte-level GPT-2, 12 layers of 384, context 512, batch 64, bf16",
    metric="val_loss",
    unit="nats per byte",
    steps=1000,
    shrink=1e-5,
    clip=1.0,
    load=partial(
        _own,
        name="gpt-small",
        made=partial(gpt.model, 384, 12, 6, 512),
        context=512,
        size=64,
        steps=2000,
        lr=1e-3,
    ),
    bf16=True,
)
#: The paper is silent on batch, length and schedule: those of the paper on LoRA are chosen, batch 8, 5 epochs
#: of 42 061 sentences, 500 steps of warm-up and a line down to 0, dropout 0.1; not its label smoothing.
#: The metric is the held-out loss of the sentences; BLEU, the paper's, is not computed.
PAPER = Task(
    name="lora-paper",
    title="LoRA of GPT-2 medium on E2E NLG",
    about="rank 4 on the attention of GPT-2 medium, batch 8, 5 epochs",
    metric="val_loss",
    unit="nats per token",
    steps=5 * 5257,
    shrink=1e-5,
    clip=None,
    load=_paper,
    schedule=Schedule(warm_up=500 / (5 * 5257), linear=True),
)
