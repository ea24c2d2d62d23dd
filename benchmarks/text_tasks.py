"""Four tasks on texts, fine-tuned by gafreeze_jax and by plain PyTorch with transformers, for equally many steps.

    python benchmarks/text_tasks.py --data FOLDER

prints the test metric of MiniLM, everything trained, over seeds: Spearman on STS-B, MCC on CoLA, macro-F1 on GoEmotions and
entity F1 on WNUT17. Both sides see the same 512 training examples and have the same learning rates, schedule, weight decay and
clipping. PyTorch's side is what a user writes: padded batches in random order, and the head that `AutoModelFor...` makes. Its
metrics are those of scikit-learn and SciPy; entities are counted as in gafreeze_jax, since seqeval is not needed for it.
"""

# pyright: reportMissingImports=false

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import tyro
from scipy import stats
from sklearn import metrics as sklearn

from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.scoring import score
from gafreeze_jax.metrics import label_sets, tags
from gafreeze_jax.models import checkpoints, pretrained
from gafreeze_jax.tasks import kinds, text

UNDEFINED: Any = {"zero_division": 0}
TASKS: dict[str, kinds.MetricName] = {"stsb": "spearman", "cola": "mcc", "goemotions": "macro-f1", "wnut17": "entity-f1"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare."""

    data: Path
    """Folder with a folder for each task."""
    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 3
    train_examples: int = 512
    test_examples: int = 1000
    """Score the first of the test split."""
    epochs: int = 4
    learning_rate: float = 2e-4
    model: str = "minilm"


def main(settings: Settings) -> None:
    print(f"| task | metric | gafreeze_jax | PyTorch | {settings.seeds} seeds each |\n| --- | --- | --- | --- | --- |")
    for task in settings.tasks:
        given = text.Options(
            model=settings.model,
            data=str(settings.data / task),
            metric=TASKS[task],
            train_examples=settings.train_examples,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            head="fresh",
        )
        data = text.load_data(given)
        data = data._replace(test=type(data.test)(*(part[: settings.test_examples] for part in data.test)))
        ours = [train_ours(given, data, seed) for seed in range(settings.seeds)]
        theirs = [train_pytorch(given, data, seed) for seed in range(settings.seeds)]
        shown = [f"{np.mean(values):.3f} ({np.std(values):.3f})" for values in (ours, theirs)]
        print(f"| {task} | {TASKS[task]} | {' | '.join(shown)} | {' '.join(f'{value:.3f}' for value in (*ours, *theirs))} |")


def train_ours(given: text.Options, data: Any, seed: int) -> float:
    """The test metric of gafreeze_jax's network, everything trained."""
    checkpoint = pretrained.read(checkpoints.find_model(given.model), text.FAMILIES)
    setup = text.prepare_classification(dataclasses.replace(given, seed=seed), checkpoint, data)
    problem, task = setup.problem, setup.problem.task
    replicate = problem.replicate(seed)
    rates = {"learning_rate": given.learning_rate, "head_learning_rate": given.head_learning_rate}
    population = problem.make_population(adamw_recipe(**rates, num_steps=replicate.num_steps))
    (member,) = population.evaluate([(0,) * len(problem.network.names)], replicate)
    params = {name: member.params[name] for name in member.params}
    metric = task.metric
    how = {"loss": task.loss, "metric": metric}
    if metric.settle is not None:
        metric = metric.settle(score(problem.network, params, problem.validation, **how).values)
    return metric.shown(float(metric.score(score(setup.network, setup.restore(params), setup.test, **how).values)))


class Encoder:
    """Texts and labels as transformers' models take them."""

    def __init__(self, given: text.Options, data: Any, folder: Path):
        self._tokenizer, self._kind = transformers.AutoTokenizer.from_pretrained(folder), data.kind
        self._scale = kinds.make_scale(data.kind, data.train.labels, head_is_kept=False, has_bias=True)
        self._limits = {"truncation": True, "max_length": given.max_tokens, "padding": True, "return_tensors": "pt"}

    def __call__(self, split: Any, rows: np.ndarray) -> dict[str, torch.Tensor]:
        texts = [split.texts[row] for row in rows]
        if self._kind == "tags":
            encoded = self._tokenizer([list(words) for words in texts], is_split_into_words=True, **self._limits)
            return {**encoded, "labels": self._tags(encoded, [split.labels[row] for row in rows])}
        values = self._scale.apply(split.labels[rows]) if self._kind == "number" else split.labels[rows]
        labels = torch.tensor(values).long() if self._kind == "label" else torch.tensor(values)
        return {**self._tokenizer(*map(list, zip(*texts, strict=True)), **self._limits), "labels": labels}

    def _tags(self, encoded: Any, values: list[np.ndarray]) -> torch.Tensor:
        """The tag of each word at its first token, else -100."""
        labels = torch.full(encoded["input_ids"].shape, -100)
        for place, of_text in enumerate(values):
            words = encoded.word_ids(place)
            for i, word in enumerate(words):
                if word is not None and word != words[i - 1]:
                    labels[place, i] = int(of_text[word])
        return labels


def train_pytorch(given: text.Options, data: Any, seed: int) -> float:
    """The test metric of a plain loop."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    folder = checkpoints.find_model(given.model)
    auto = (
        transformers.AutoModelForTokenClassification if data.kind == "tags" else transformers.AutoModelForSequenceClassification
    )
    how = {} if data.kind == "tags" else {"problem_type": kinds.PROBLEM_TYPES[data.kind]}
    model, encode = auto.from_pretrained(folder, num_labels=len(data.label_names), **how), Encoder(given, data, folder)
    is_head = {name: name.startswith(("bert.pooler", "classifier")) for name, _ in model.named_parameters()}
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if is_head[name] == head and (p.ndim > 1) == is_matrix],
            "lr": given.head_learning_rate if head else given.learning_rate,
            "weight_decay": 0.01 * is_matrix,
        }
        for head in (True, False)
        for is_matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups)
    rng, num = np.random.default_rng(seed), len(data.train.texts)
    cuts = range(given.batch_size, num, given.batch_size)
    batches = [rows for _ in range(given.epochs) for rows in np.split(rng.permutation(num), cuts)]
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, max(1, len(batches) // 10), len(batches))
    model.train()
    for rows in batches:
        optimizer.zero_grad()
        model(**encode(data.train, rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return of_outputs(data, outputs_of(model, encode, data.test), outputs_of(model, encode, data.validation))


@torch.inference_mode()
def outputs_of(model: Any, encode: Encoder, split: Any) -> tuple[np.ndarray, ...]:
    """Logits, labels and numbers of texts, of all texts or words."""
    model.eval()
    parts = []
    for rows in np.split(np.arange(len(split.texts)), range(64, len(split.texts), 64)):
        batch = encode(split, rows)
        logits, labels, texts = model(**batch).logits, batch["labels"], torch.tensor(rows)
        if logits.ndim == 3:
            known = labels != -100
            logits, labels, texts = logits[known], labels[known], texts[:, None].expand_as(known)[known]
        parts.append((logits, labels, texts))
    return tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True))


def of_outputs(data: Any, test: tuple[np.ndarray, ...], validation: tuple[np.ndarray, ...]) -> float:
    """The metric of PyTorch's outputs: logits, labels and numbers of texts."""
    logits, labels, rows = test
    if data.kind == "number":
        correlation: Any = stats.spearmanr(logits[:, 0], labels)
        return float(correlation.statistic)
    if data.kind == "label":
        return float(sklearn.matthews_corrcoef(labels, logits.argmax(-1)))
    if data.kind == "tags":
        return float(tags.entity_f1(data.label_names).score(np.stack([logits.argmax(-1), labels, rows])))

    def f1(of_split: tuple[np.ndarray, ...], threshold: float) -> float:
        chances = 1 / (1 + np.exp(-of_split[0]))
        return float(sklearn.f1_score(of_split[1], chances >= threshold, average="macro", **UNDEFINED))

    return f1(test, max(label_sets.THRESHOLDS, key=lambda threshold: f1(validation, threshold)))


if __name__ == "__main__":
    main(tyro.cli(Settings))
