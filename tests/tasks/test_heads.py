"""Kept heads: classes are matched by name, a head may be frozen, and predictions before training are the checkpoint's."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import run_bert
import run_gpt2
import run_resnet
import small_models
import test_reuse
from PIL import Image
from test_bad_inputs import error_of
from test_reuse import gafreeze, read, write_mask, write_reviews  # noqa: F401, the fixture is used

from gafreeze_jax import masking
from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.optimizer import adamw_recipe
from gafreeze_jax.engine.population import Population
from gafreeze_jax.engine.scoring import each_batch
from gafreeze_jax.models import checkpoints, pretrained
from gafreeze_jax.tasks import heads

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Which head


def choose(asked, known, names, num_classes="as known"):
    """For a checkpoint that knows some classes; without a classifier if their number is None."""
    num_classes = len(known) if num_classes == "as known" else num_classes
    return heads.choose(
        asked, SimpleNamespace(path="model", num_classes=lambda kind: num_classes, label_names=tuple(known)), names
    )


@pytest.mark.parametrize("asked", ["auto", "keep"])
@pytest.mark.parametrize(
    ("known", "names", "places", "label_names"),
    [
        (["bad", "good"], ["bad", "good"], [0, 1], ["bad", "good"]),
        (["good", "bad"], ["bad", "good"], [1, 0], ["good", "bad"]),
        (["GOOD", "Bad"], ["bad", "good"], [1, 0], ["good", "bad"]),
        ([" bad", "good "], ["bad", "good"], [0, 1], ["bad", "good"]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"], [0, 1, 2], ["0", "1", "2"]),
        (["0", "1"], ["LABEL_1", "LABEL_0"], [1, 0], ["LABEL_0", "LABEL_1"]),
        (["a", "b", "c", "d"], ["d", "b"], [3, 1], ["a", "b", "c", "d"]),
        (["a", "A"], ["A", "a"], [1, 0], ["a", "A"]),
        (["A", "b", "B"], ["B", "a"], [2, 0], ["a", "b", "B"]),
        (["\u00c4PFEL", "birnen"], ["birnen", "\u00e4pfel"], [1, 0], ["\u00e4pfel", "birnen"]),
    ],
)
def test_classes_are_matched_by_name(asked, known, names, places, label_names):
    head = choose(asked, known, names)
    assert head.kept
    assert head.places.tolist() == places
    assert list(head.label_names) == label_names
    assert head.about.startswith("Head: kept from the model, the gene classifier")
    assert (" of its " in head.about) == (len(known) > len(names))


@pytest.mark.parametrize(
    ("known", "names", "num_classes", "said"),
    [
        (["bad", "good"], ["bad", "ugly"], 2, "the model's classes are bad, good, without ugly"),
        (["a", "b"], ["a", "b", "c"], 2, "the model's classes are a, b, without c"),
        (["LABEL_0", "LABEL_1"], ["no", "yes"], 2, "the model's classes are LABEL_0, LABEL_1, without no, yes"),
        (["x", "X"], ["x", "X", "y"], 2, "without y"),
        (["A", "b"], ["A", "a"], 2, "the model's classes are A, b, of which several of A, a are the same"),
        ([], ["a", "b", "c"], 2, "the model does not name its 2 classes, and the data have 3"),
        (["a", "b"], ["a", "b", "c"], 4, "the model does not name its 4 classes, and the data have 3"),
        ([], ["a", "b"], None, "the model has no classifier"),
        (["a", "b"], ["a", "b"], None, "the model has no classifier"),
    ],
)
def test_a_head_that_cannot_be_kept_is_fresh_unless_it_is_asked_for(known, names, num_classes, said):
    head = choose("auto", known, names, num_classes)
    assert (head.kept, list(head.label_names), head.places.tolist()) == (False, names, list(range(len(names))))
    assert head.about.startswith("Head: fresh, always trains (")
    assert said in head.about
    with pytest.raises(ValueError, match="--head keep: model: ") as error:
        choose("keep", known, names, num_classes)
    assert said in str(error.value)
    assert str(error.value).endswith("; rename the data's labels, or give --head fresh")


def test_classes_without_names_are_kept_only_if_asked_for():
    assert not choose("auto", [], ["no", "yes"], 2).kept
    head = choose("keep", [], ["no", "yes"], 2)
    assert (head.kept, head.places.tolist(), head.label_names) == (True, [0, 1], ("no", "yes"))
    assert "the model does not name its classes, taken as no, yes in this order" in head.about


def test_a_number_is_no_class_of_several():
    """Even if one of them has the number's name."""
    head = choose("auto", ["severe", "score", "threat"], ["score"], 3)
    assert head.about == "Head: fresh, always trains (the model gives 3 outputs, and the data have one number)"
    with pytest.raises(ValueError, match=r"--head keep: .*: the model gives 3 outputs, and the data have one number; rename"):
        choose("keep", ["severe", "score", "threat"], ["score"], 3)


@pytest.mark.parametrize(("known", "kept"), [(["Score"], True), (["LABEL_0"], True), ([], True), (["price"], False)])
def test_the_head_of_a_number_of_another_name_is_kept_only_if_asked_for(known, kept):
    head = choose("auto", known, ["score"], 1)
    assert head.kept == kept
    assert choose("keep", known, ["score"], 1).kept
    assert not choose("fresh", known, ["score"], 1).kept
    if kept:
        assert head.about == "Head: kept from the model, the gene classifier; it gives one number"
    else:
        assert head.about == "Head: fresh, always trains (the model gives the number price, and the data have score)"


def test_a_fresh_head_is_fresh_whatever_the_model_knows():
    head = choose("fresh", ["bad", "good"], ["good", "bad"])
    assert (head.kept, head.label_names, head.places.tolist()) == (False, ("good", "bad"), [0, 1])
    assert head.about == "Head: fresh, always trains"


def test_many_classes_make_one_short_line():
    known, names = [f"class {i}" for i in range(1000)], [f"kind {i}" for i in range(1000)]
    with pytest.raises(ValueError, match="--head keep") as error:
        choose("keep", known, names)
    assert len(str(error.value)) <= 600
    assert len(choose("auto", known, names).about) <= 600
    assert len(choose("keep", [], names, 1000).about) <= 600


# A model of each kind that knows the data's classes in another order


def name_classes(folder, label_names):
    """Writes a model anew with names of its classes."""
    loaded = pretrained.load(folder, num_classes=len(label_names), key=jax.random.key(5))
    params = loaded.params | {"head": jax.tree.map(lambda leaf: 10 * leaf, loaded.params["head"])}  # so that it decides
    loaded.save(folder, params, label_names=label_names)
    return folder


def make_texts(folder):
    """Data of the classes bad and good, and the texts of the test split without labels."""
    data = write_reviews(folder / "reviews.csv", 0, 80)
    return str(data), *test_reuse.write_test_texts(folder, test_reuse.text.load_text(str(data)))


def make_bert(folder):
    return run_bert, test_reuse.bert_task, name_classes(small_models.write_bert(folder), ("GOOD", "bad")), *make_texts(folder)


def make_gpt2(folder):
    (folder / "model").mkdir()
    model = name_classes(small_models.write_gpt2(folder / "model"), ("good", "neutral", "bad"))
    return run_gpt2, test_reuse.gpt2_task, model, *make_texts(folder)


def make_resnet(folder):
    """Its names of classes are in the header of its file, as it has no config.json."""
    rng, labels = np.random.default_rng(0), []
    for name, low in (("bright", 20), ("dark", 0)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(rng.integers(low, low + 200, (8, 8, 3), np.uint8)).save(folder / "photos" / name / f"{i}.png")
    (folder / "model").mkdir()
    model = name_classes(small_models.write_resnet(folder / "model"), ("cat", "dark", "dog", "Bright"))
    test = test_reuse.images.load_images(str(folder / "photos"), test_reuse.images.Frame(8)).test
    (folder / "test").mkdir()
    for i, (pixels, label) in enumerate(zip(test.images, test.labels, strict=True)):
        Image.fromarray(pixels).save(folder / "test" / f"{i:02}.png")
        labels.append(("bright", "dark")[label])
    return run_resnet, test_reuse.resnet_task, model, str(folder / "photos"), folder / "test", labels


MAKERS = {"bert": make_bert, "gpt2": make_gpt2, "resnet": make_resnet}
FURTHER = {"bert": {"max_tokens": 64}, "gpt2": {"max_tokens": 16, "task": "classify"}, "resnet": {}}


@dataclasses.dataclass
class Made:
    """A model, its data, and the test split as files without labels, and their labels."""

    kind: str
    script: object
    module: object
    model: object
    data: str
    test: object
    labels: list

    def options(self, **given):
        tiny = test_reuse.TINY | FURTHER[self.kind] | {"model": str(self.model), "data": self.data}
        return self.module.Options(**tiny | given)

    def prepare(self, options=None):
        """With all words, as the test split may have others than those that members know."""
        options = options or self.options()
        return self.module.prepare(options, trim=False) if self.kind == "bert" else self.module.prepare(options)

    @property
    def known(self):
        return self.known_by(self.model)

    def known_by(self, folder):
        if self.kind == "resnet":
            return checkpoints.read_label_names(folder)
        return tuple(json.loads((folder / "config.json").read_text())["id2label"].values())

    def right_by_checkpoint(self):
        """Share of the test split that the checkpoint labels as the data do, but for case."""
        loaded = self.module.load_unlabelled(self.options(), self.model, self.test, self.known)
        batches = each_batch(loaded.network, loaded.params, loaded.source, loaded.task.predict)
        places, predictions = zip(*batches, strict=True)
        table = loaded.task.write(np.concatenate(predictions)[np.argsort(np.concatenate(places))])
        return np.mean([a.lower() == b for a, b in zip(table["label"], self.labels, strict=True)])


@pytest.fixture(scope="module", params=MAKERS)
def made(request, tmp_path_factory, quick_compilation):
    return Made(request.param, *MAKERS[request.param](tmp_path_factory.mktemp(request.param)))


def test_what_trains_nothing_scores_what_the_checkpoint_scores(made):
    """Labels are in another order there, and it may know more classes than the data have."""
    setup = made.prepare()
    problem = setup.problem
    assert problem.network.names[-1] == problem.genes.names[-1] == heads.GENE
    assert any(line.startswith("Head: kept from the model") for line in setup.about)
    assert any("examples, 2 classes (b" in line for line in setup.about)  # those of the data
    space = problem.space(made.options())
    assert (space.head, space.describe(space.all_frozen)) == ("kept", "train nothing")
    recipe = adamw_recipe(learning_rate=0.1, head_learning_rate=0.1, num_steps=4)
    of_checkpoint = made.right_by_checkpoint()
    assert abs(of_checkpoint - 0.5) > 0.03  # or classes that are mistaken for each other would not show
    population = Population(
        problem.network, problem.params, recipe, problem.train, setup.test, loss=problem.task.loss, metric=problem.task.metric
    )
    for plan in (Plan(), Plan(2)):
        population.plan = plan
        for member in population.evaluate([space.all_frozen] * 2, problem.replicate(0)):
            assert member.score == pytest.approx(of_checkpoint)
            jax.tree.map(np.testing.assert_array_equal, dict(member.params), {**problem.params, "head": {}})


@pytest.fixture
def gpt2_of_three_classes(tmp_path):
    return name_classes(small_models.write_gpt2(tmp_path), ("good", "neutral", "bad"))


def write_splits(folder, **labels):
    """A folder of tables, each with texts of these labels."""
    folder.mkdir()
    for split, of_split in labels.items():
        rows = [f"text {i},{label}" for i, label in enumerate(of_split)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return str(folder)


def test_a_class_that_the_model_knows_needs_no_training_example(gpt2_of_three_classes, tmp_path):
    test = ["good", "Neutral", "Bad"]
    data = write_splits(tmp_path / "set", train=["Bad", "good"] * 8, validation=["Bad", "good"], test=test)
    given = {"model": str(gpt2_of_three_classes), "data": data, "max_tokens": 16, "task": "classify"}
    setup = test_reuse.gpt2_task.prepare(test_reuse.gpt2_task.Options(**given, train_examples=2))
    assert setup.facts["label_names"] == ("good", "Neutral", "Bad")
    assert setup.test.data.targets.tolist() == [0, 1, 2]
    assert sorted(setup.problem.train.data.targets) == [0, 2]
    assert any(line.endswith("examples: Bad 1/1/1, good 1/1/1, Neutral 0/0/1") for line in setup.about)
    with pytest.raises(ValueError, match="the test split has labels that are not in train: Neutral; train has Bad, good"):
        test_reuse.gpt2_task.prepare(test_reuse.gpt2_task.Options(**given, head="fresh"))


def test_few_training_examples_may_lack_a_class_that_the_model_knows(gpt2_of_three_classes, tmp_path):
    data = write_splits(tmp_path / "set", train=["bad", "good", "neutral"] * 8)
    given = {"model": str(gpt2_of_three_classes), "data": data, "max_tokens": 16, "task": "classify", "train_examples": 2}
    setup = test_reuse.gpt2_task.prepare(test_reuse.gpt2_task.Options(**given))
    assert (len(setup.problem.train.data.targets), sorted(set(setup.test.data.targets))) == (2, [0, 1, 2])
    with pytest.raises(ValueError, match="2 training examples leave none of class"):
        test_reuse.gpt2_task.prepare(test_reuse.gpt2_task.Options(**given, head="fresh"))


@pytest.mark.parametrize("labels", [["ugly"], ["GOOD", "good "]])
def test_other_classes_need_training_examples(gpt2_of_three_classes, tmp_path, labels):
    """Where one class is new to the model, or two are the same to it, the head is fresh."""
    data = write_splits(tmp_path / "set", train=["bad", "good"] * 8, test=["bad", "neutral", *labels])
    options = test_reuse.gpt2_task.Options(model=str(gpt2_of_three_classes), data=data, max_tokens=16, task="classify")
    with pytest.raises(ValueError, match="the test split has labels that are not in train: "):
        test_reuse.gpt2_task.prepare(options)


def test_a_class_of_images_that_the_model_knows_needs_no_training_example(tmp_path):
    _, task, model, *_ = make_resnet(tmp_path)
    data = tmp_path / "splits"
    for split, classes in (("train", ("bright", "dark")), ("test", ("bright", "dark", "dog"))):
        for name in classes:
            (data / split / name).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(data / split / name / f"{i}.png")
    setup = task.prepare(task.Options(model=str(model), data=str(data)))
    assert setup.facts["label_names"] == ("cat", "dark", "dog", "bright")
    assert sorted(set(setup.test.data.targets)) == [1, 2, 3]
    assert sorted(set(setup.problem.train.data.targets)) == [1, 3]
    with pytest.raises(ValueError, match="not in train: dog"):
        task.prepare(task.Options(model=str(model), data=str(data), head="fresh"))


def params_of(folder):
    return pretrained.load(folder).params


def assert_same_head(first, second):
    jax.tree.map(np.testing.assert_array_equal, params_of(first)["head"], params_of(second)["head"])


def test_a_run_whose_head_is_frozen(made, gafreeze, tmp_path):  # noqa: F811
    """The model that it leaves has the checkpoint's head to the bit, labels files, and may be trained again."""
    out = tmp_path / "run"
    first, *others = made.prepare().problem.network.names
    mask = write_mask(tmp_path / "mask.json", **{first: False}, **dict.fromkeys(others, True))
    made.script.main(made.options(mask=mask, out=out))
    result = json.loads((out / "result.json").read_text())
    assert result["head"] == "kept"
    found = json.loads((out / "mask.json").read_text())
    assert (found["head"], found["rates"][first], found["rates"][heads.GENE]) == ("kept", 1, 0)

    assert_same_head(out / "model", made.model)
    moved = zip(*(jax.tree.leaves(params_of(folder)[first]) for folder in (out / "model", made.model)), strict=True)
    assert not all(np.array_equal(*pair) for pair in moved)
    spelt = [name.lower() for name in made.known]  # as in the data
    assert list(made.known_by(out / "model")) == result["label_names"] == spelt

    code, printed, _ = gafreeze("predict", out, "--data", made.test)
    assert code == 0
    right = np.mean([row["label"] == label for row, label in zip(read(printed), made.labels, strict=True)])
    assert right == pytest.approx(result["model"]["test_accuracy"])

    code, printed, _ = gafreeze("apply", out, "--data", made.data, "--seeds", 1, "--out", tmp_path / "applied")
    assert code == 0
    assert "Head: kept from the model" in printed
    assert json.loads((tmp_path / "applied" / "mask.json").read_text())["rates"] == found["rates"]
    assert_same_head(tmp_path / "applied" / "model", made.model)

    again = made.prepare(made.options(model=str(out / "model"), head="keep")).problem  # a second run goes on from the first
    jax.tree.map(np.testing.assert_array_equal, again.params[heads.GENE], params_of(made.model)["head"])


def test_errors_of_heads_are_one_line(made, capsys, tmp_path):
    name_classes(model := test_reuse.shutil.copytree(made.model, tmp_path / "model"), ("x", "y"))
    given = dataclasses.asdict(made.options(model=str(model), head="keep", out=tmp_path / "run"))
    line = error_of(made.script, given, capsys)
    assert line.startswith(f"error: --head keep: {model}: the model's classes are x, y, without ")
    assert len(line) <= 600
    assert not (tmp_path / "run").exists()
    mask = write_mask(tmp_path / "mask.json", **dict.fromkeys(made.prepare().problem.network.names[:-1], False))
    line = error_of(made.script, dataclasses.asdict(made.options(mask=mask, out=tmp_path / "run")), capsys)
    assert line == f"error: {mask}: the mask is for a fresh head, and this run keeps the model's; give --head fresh"
    problem = made.prepare().problem
    masking.write_mask(mask, problem.genes, [0] * len(problem.genes), head="kept")
    line = error_of(made.script, dataclasses.asdict(made.options(mask=mask, head="fresh", out=tmp_path / "run")), capsys)
    assert line == f"error: {mask}: the mask is for the model's own head, and this run has a fresh one; give --head keep"


def rename_classes(path, names):
    """A copy of a table of reviews with other names of the classes bad and good."""
    target = path.with_name("renamed.csv")
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[1:], start=1):
        text, _, label = line.rpartition(",")
        lines[number] = f"{text},{names[label]}"
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_apply_has_the_head_that_the_run_had(kept, gafreeze, tmp_path):  # noqa: F811
    """Although by default it would be the other one, as the model knows the classes of the other data, or doesn't."""
    script, _, model, data, *_ = make_bert(tmp_path)
    other = str(rename_classes(tmp_path / "reviews.csv", {"bad": "no", "good": "yes"}))
    first, second = (data, other) if kept else (other, data)
    genes = {"embeddings": True, "layer_0": False, "layer_1": False} | ({heads.GENE: True} if kept else {})
    mask, out = write_mask(tmp_path / "mask.json", **genes), tmp_path / "run"
    script.main(script.Options(**test_reuse.TINY | {"model": str(model), "data": first, "mask": mask, "out": out}))
    assert json.loads((out / "result.json").read_text())["head"] == ("kept" if kept else "fresh")
    code, printed, failed = gafreeze("apply", out, "--data", second, "--out", tmp_path / "applied")
    if kept:
        assert (code, printed) == (2, "")
        assert failed.startswith(f"error: --head keep: {model}: the model's classes are GOOD, bad, without ")
    else:
        assert (code, failed) == (0, "")
        assert "Head: fresh, always trains\n" in printed
