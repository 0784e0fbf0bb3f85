"""Data of the forms that the tasks read, made small."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import transformers
from PIL import Image


def picture(seed, size=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def write_parquet(file, count, **columns):
    """A file in the layout of uoft-cs/cifar10: img, an image, and label, a class."""
    datasets = pytest.importorskip("datasets")
    labels = [index % 2 for index in range(count)]
    content = {"img": [picture(index) for index in range(count)], "label": labels, **columns}
    features = datasets.Features(
        {
            name: datasets.Image() if name == "img" else datasets.Value("int64")
            for name in content
            if content[name] is not None
        }
    )
    table = {name: content[name] for name in features}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(file))


def write_folders(root, count, suffix="png"):
    for index in range(count):
        folder = root / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(index, size=40).save(folder / f"{index}.{suffix}")


def write_e2e(root, **counts):
    """Files PART.txt of so many lines record||sentence."""
    root.mkdir()
    for part, count in counts.items():
        lines = (
            f"name : Place {i} | food : soup||Place {i} of {part} serves soup . \n" for i in range(count)
        )
        (root / f"{part}.txt").write_text("".join(lines))


def write_texts(file, rows, column="text"):
    """A file in the layout of the hub's data sets of text."""
    pytest.importorskip("datasets").Dataset.from_dict({column: rows}).to_parquet(str(file))


def write_gpt2(folder):
    """A checkpoint of GPT-2's classes, 16 wide, whose tokens are single bytes; its folder."""
    config = transformers.GPT2Config(vocab_size=300, n_positions=128, n_embd=16, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    end = "<|endoftext|>"
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([], 257, special_tokens=[end], show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=end)
    tokenizer.save_pretrained(folder)
    return folder
