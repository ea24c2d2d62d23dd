"""Fine-tuning with a mask of frozen blocks in PyTorch, as its good users do it: AdamW for what trains, and autocast."""

# pyright: reportMissingImports=false

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import get_linear_schedule_with_warmup

Batch = dict[str, torch.Tensor]
Dtype = Literal["float32", "bfloat16"]


class Finetuner:
    """A network that is fine-tuned again and again, each time from its present weights, the pretrained ones.

    Args:
      model: is called with the entries of a batch; gives an object with `loss` and `logits`.
      blocks: a module for each of the G genes.
      head: always trains.
      learning_rates: highest ones of blocks and head, as for `population.adamw_recipe`.
      dtype: bfloat16 = autocast.
      frozen_in_eval: frozen blocks are in evaluation mode, so that their running statistics stay.

    Attributes:
      model: holds the last member's weights.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[torch.nn.Module],
        head: torch.nn.Module,
        *,
        learning_rates: tuple[float, float],
        dtype: Dtype = "float32",
        device: str = "cpu",
        frozen_in_eval: bool = False,
    ):
        self.model = model.to(device)
        self._blocks, self._head, self._frozen_in_eval = blocks, head, frozen_in_eval
        self._pretrained = copy.deepcopy(self.model.state_dict())
        self._rates, self._device = learning_rates, device
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def fit(self, genome: np.ndarray, batches: Sequence[Batch]) -> float:
        """Trains the pretrained model with a genome [G] and returns the mean loss."""
        model = self.model
        model.load_state_dict(self._pretrained)
        model.train()
        for module, frozen in zip(self._blocks, genome, strict=True):
            module.requires_grad_(not frozen)
            if self._frozen_in_eval and frozen:
                module.eval()
        body = [parameter for module in self._blocks for parameter in module.parameters() if parameter.requires_grad]
        groups = [
            {
                "params": [parameter for parameter in parameters if (parameter.ndim > 1) == is_matrix],
                "lr": rate,
                "weight_decay": 0.01 if is_matrix else 0.0,
            }
            for parameters, rate in zip((body, list(self._head.parameters())), self._rates, strict=True)
            for is_matrix in (True, False)
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        num_steps = len(batches)
        schedule = get_linear_schedule_with_warmup(optimizer, max(1, num_steps // 10), num_steps)
        trainable = [parameter for group in groups for parameter in group["params"]]
        total = torch.zeros((), device=self._device)
        for batch in batches:
            model.zero_grad()
            with self._autocast:
                loss = model(**self._moved(batch)).loss
            loss.backward()
            clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        return float(total) / num_steps

    @torch.inference_mode()
    def score(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Accuracy (a share) and mean loss of the model as it is."""
        self.model.eval()
        num, right, total = 0, 0, 0.0
        for batch in map(self._moved, batches):
            with self._autocast:
                output = self.model(**batch)
            num += len(batch["labels"])
            right += int((output.logits.argmax(-1) == batch["labels"]).sum())
            total += float(output.loss) * len(batch["labels"])
        return right / num, total / num

    def _moved(self, batch: Batch) -> Batch:
        return {name: tensor.to(self._device) for name, tensor in batch.items()}
