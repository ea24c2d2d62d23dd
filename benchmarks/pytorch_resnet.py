"""The competitor for images: a CIFAR ResNet fine-tuned with a mask of frozen blocks, as a good PyTorch user would write it.

Checkpoint, head, genes and recipe are those of gafreeze_jax, and tests/benchmarks/test_pytorch_resnet.py checks that both train
the same parameters. Frozen blocks are in evaluation mode, so that their running statistics stay; images and weights lie in
PyTorch's channels_last layout, which is the faster one on a CPU.
"""

# pyright: reportMissingImports=false

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_loop
import torch
from pytorch_loop import Batch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from gafreeze_jax.data.batches import NONE, in_order
from gafreeze_jax.models.preprocessing import Preprocessing
from gafreeze_jax.tasks.base import SCORING_BATCH


class Block(nn.Module):
    """Two convolutions; where the shape changes, the shortcut is subsampled and padded with zero channels."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.missing = stride, width - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.missing:
            half = self.missing // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))
        return functional.relu(h + x)


class ResNet(nn.Module):
    """That of He et al. (2016) for CIFAR, with the shapes and names of a checkpoint."""

    def __init__(self, tensors: dict[str, torch.Tensor], num_classes: int):
        super().__init__()
        width, channels = tensors["conv1.weight"].shape[:2]
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.blocks: list[nn.Module] = []
        found = {tuple(map(int, match.groups())) for name in tensors if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
        for stage in sorted({stage for stage, _ in found}):
            numbers = sorted(number for other, number in found if other == stage)
            outputs = len(tensors[f"layer{stage}.0.conv1.weight"])
            layer = [Block(outputs if number else width, outputs, 2 if stage > 1 and not number else 1) for number in numbers]
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
            self.blocks, width = [*self.blocks, *layer], outputs
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        x = functional.relu(self.bn1(self.conv1(images)))
        for block in self.blocks:
            x = block(x)
        logits = self.linear(x.mean((2, 3)))
        return SimpleNamespace(loss=functional.cross_entropy(logits, labels), logits=logits)


def make_finetuner(
    path: Path, head: Any, *, learning_rates: tuple[float, float], dtype: pytorch_loop.Dtype = "float32"
) -> pytorch_loop.Finetuner:
    """A ResNet that is fine-tuned again and again.

    Args:
      path: of a .safetensors file.
      head: initial classifier, as in `models/resnet.py`.
      learning_rates: highest ones of blocks and head.
    """
    tensors = load_file(path)
    model: Any = ResNet(tensors, len(head["bias"]))
    tensors |= {"linear.weight": torch.tensor(np.array(head["kernel"]).T), "linear.bias": torch.tensor(np.array(head["bias"]))}
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return pytorch_loop.Finetuner(
        model.to(memory_format=torch.channels_last),
        [nn.ModuleList([model.conv1, model.bn1]), *model.blocks],
        model.linear,
        learning_rates=learning_rates,
        dtype=dtype,
        frozen_in_eval=True,
    )


def make_batches(images: np.ndarray, labels: np.ndarray, examples: np.ndarray, pixels: Preprocessing) -> list[Batch]:
    """What the model takes.

    Args:
      images: [N, H, W, C] bytes.
      examples: [steps, batch_size], -1 = none.
      pixels: how they are scaled.
    """
    mean, std = (np.array(values, np.float32) for values in (pixels.mean, pixels.std))
    scaled = torch.from_numpy((images.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels.astype(np.int64))
    return [
        {"images": scaled[rows].contiguous(memory_format=torch.channels_last), "labels": targets[rows]}
        for rows in (batch[batch != NONE] for batch in examples)
    ]


def scoring_batches(images: np.ndarray, labels: np.ndarray, pixels: Preprocessing) -> list[Batch]:
    """All images once."""
    return make_batches(images, labels, in_order(len(labels), SCORING_BATCH), pixels)
