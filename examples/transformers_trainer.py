"""Hugging Face's Trainer: a tiny GPT-2 learns to write English, byte by byte, and resumes from a checkpoint.

python examples/transformers_trainer.py
"""

import tempfile
from pydoc_data.topics import topics

import torch
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from sgd_sai import SGDSaI

STEPS, CONTEXT = 80, 32

text = torch.tensor(list("\n".join(topics.values()).encode()))  # Python's own documentation
windows = TensorDataset(text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT))


def collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Make a batch for the Trainer; the model shifts the labels itself."""
    tokens = torch.stack([row for (row,) in rows])
    return {"input_ids": tokens, "labels": tokens}


def trainer(folder: str) -> Trainer:
    """Make a Trainer that starts from the same weights each time."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2, use_cache=False)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=2.0,
        weight_decay=1e-3,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        save_steps=STEPS // 2,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
    )
    return Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        data_collator=collate,
        train_dataset=windows,
        optimizer_cls_and_kwargs=(SGDSaI, {"lr": 2.0, "momentum": 0.9}),
    )


with tempfile.TemporaryDirectory() as folder:
    whole = trainer(folder)
    whole.train()
    resumed = trainer(folder)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{STEPS // 2}")

pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
print("resumed, equal to the uninterrupted run:", all(torch.equal(p, q) for p, q in pairs))
losses = [row["loss"] for row in resumed.state.log_history if "loss" in row]
print(f"loss {float(losses[0]):.2f} -> {float(losses[-1]):.2f}")
