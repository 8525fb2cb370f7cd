"""Recipes: what is read, what is refused and in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sharedllm
from sharedllm import SharedConfig, UsageError
from sharedllm.train.limits import check_lengths
from sharedllm.train.recipe import read_recipe
from sharedllm.train.start import _check_settings

RECIPES = Path(sharedllm.__path__[0]) / "recipes"
DOCS = Path(__file__).parents[2] / "docs"
SHIPPED = sorted(file.stem for file in RECIPES.glob("*.yaml") if not file.stem.startswith("data-"))


def write(tmp_path, text):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    return file


def test_values_and_overrides(tmp_path):
    file = write(tmp_path, "output: a\nlearning_rate: 1e-4\nconfig:\n  injected_layers: 4\n")
    recipe = read_recipe(file, ["steps=7", "config.positions=sequence", "output=b"])
    assert (recipe.output, recipe.learning_rate, recipe.steps) == ("b", 1e-4, 7)
    assert (recipe.config.injected_layers, recipe.config.positions) == (4, "sequence")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name):
    recipe = read_recipe(name)
    assert recipe.output
    check_lengths(recipe, 8192)  # the default model's positions


def steps_to(name: str) -> list[str]:
    """Recipes to be trained one after the other, as each says what it starts from."""
    start = read_recipe(name).start
    return [*(steps_to(Path(start).parent.name) if start else []), name]


def test_documents_name_the_recipes_that_the_shipped_one_starts_from():
    steps, trained = steps_to("default"), r"sharedllm train ([\w-]+)"
    assert steps[0] != "default" and all(read_recipe(name).output == f"runs/{name}" for name in steps)
    for name in steps:
        header = "".join(re.findall(r"^#.*\n", (RECIPES / f"{name}.yaml").read_text(), re.MULTILINE))
        assert re.findall(trained, header) == steps_to(name), name
    training, distributed = ((DOCS / page).read_text() for page in ("training.md", "distributed/train.md"))
    card = (RECIPES.parent / "adapters/smollm2-135m-instruct/README.md").read_text()
    for page in (training, card):
        assert re.findall(rf"^ *{trained}$", page, re.MULTILINE)[: len(steps)] == steps
    *first, last = (f"`{name}`" for name in steps[:-1])
    assert f"without it `default` starts from that of {last}" in training
    assert f"`default` starts from the adapter of {last}: train {', '.join(first)} and {last} first" in distributed


def goes_on_from(shipped: SharedConfig, name: str) -> bool:
    try:
        _check_settings(shipped, read_recipe(name).config, RECIPES)
    except UsageError:
        return False
    return True


def test_documents_say_which_recipes_go_on_from_the_shipped_adapter():
    described = json.loads((RECIPES.parent / "adapters/smollm2-135m-instruct/adapter_config.json").read_text())
    fitting = [name for name in SHIPPED if goes_on_from(SharedConfig.from_dict(described["config"]), name)]
    for page, said in (
        ("../README.md", r"; (.*) go on from the adapter that ships with `start=default`"),
        ("training.md", r"So `start=default` is for (.*)\."),
    ):
        (names,) = re.findall(said, (DOCS / page).read_text())
        assert sorted(re.findall(r"`([\w-]+)`", names)) == fitting


def test_an_own_adapter_is_trained_under_the_shipped_settings():
    own, shipped = read_recipe("own-data"), read_recipe("default")
    assert own.config == shipped.config and own.quoted == shipped.quoted


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("output: a\nstepz: 3\n", [], ["stepz", "Did you mean steps"]),
        ("output: a\nconfig:\n  injected_layer: 3\n", [], ["injected_layer", "Did you mean injected_layers"]),
        ("output: a\n", ["lr=0.001"], ["no setting named 'lr'", "Did you mean learning_rate?"]),
        ("output: a\n", ["batch=4"], ["no setting named 'batch'", "Did you mean "]),
        ("output: a\n", ["rank=64"], ["no setting named 'rank'", "Did you mean config.rank?"]),
        ("output: a\n", ["config.r=64"], ["no setting named 'r'", "Did you mean rank?"]),
        ("output: a\nsteps: many\n", [], ["steps", "'many'", "a whole number"]),
        ("output: a\nsteps: 2.5\n", [], ["steps", "a whole number"]),
        ("output: a\nsteps: true\n", [], ["steps", "a whole number"]),
        ("output: a\n", ["learning_rate=fast"], ["learning_rate", "a number"]),
        ("output: a\n", ["steps"], ["key=value"]),
        ("output: a\n", ["steps.x=1"], ["steps"]),
        ("output: a\n", ["steps=0"], ["steps", "at least 1"]),
        ("output: a\n", ["steps=[1"], ["'steps=[1'", "no YAML"]),
        ("output: a\n", ["window_tokens=1"], ["window_tokens is 1", "at least 2"]),
        ("output: a\n", ["seed=-1"], ["seed is -1", "at least 0"]),
        ("output: a\n", ["warmup_steps=-2"], ["warmup_steps is -2"]),
        ("output: a\n", ["validate_samples=-1"], ["validate_samples is -1"]),
        ("output: a\n", ["weight_decay=.nan"], ["weight_decay is nan"]),
        ("output: a\n", ["minutes=-1"], ["minutes is -1", "at least 0"]),
        ("output: a\n", ["learning_rate=.inf"], ["learning_rate is inf", "a number above 0"]),
        ("output: a\n", ["final_rate=1.5"], ["final_rate is 1.5", "between 0 and 1"]),
        ("output: a\nconfig:\n  positions: chunks\n", [], ["positions", "Did you mean chunk"]),
        ("output: a\ncontext_chunks: [7, 4]\n", [], ["context_chunks"]),
        ("output: a\n", ["hops=0.7", "counts=0.4"], ["hops and counts", "between 0 and 1"]),
        ("output: a\n", ["parallel=chunk"], ["parallel", "Did you mean chunks"]),
        ("output: a\n", ["whole_answers=2"], ["whole_answers is 2"]),
        ("output: a\n", ["distracted=-0.1"], ["distracted is -0.1"]),
        ("output: a\n", ["warm=0.5"], ["warm", "warm_tokens of at least 1"]),
        ("output: a\n", ["warm=0.5", "warm_tokens=700"], ["window_tokens and warm_tokens are 384 and 700"]),
        ("output: a\n", ["warm_tokens=64"], ["warm_tokens is 64", "warm is 0"]),
        ("output: a\n", ["quoted=0.5", "config.quoted_tokens=8"], ["quoted is 0.5", "no sample asks", "quoted=0"]),
        (
            "output: a\n",
            ["quoted=0.5", "config.quoted_tokens=8", "needles=1", "method=encoder-decoder"],
            ["quoted is 0.5", "encoder-decoder quotes nothing"],
        ),
        ("output: a\n", ["distill=0.5", "needles=1"], ["distill is 0.5", "all samples ask"]),
        (
            "output: a\n",
            ["needles=0.5", "needle_windows=64", "reuse=16"],
            ["needle_windows * reuse is 1024", "at most 256"],
        ),
        ("output: a\nsteps: 3\nsteps: 4\n", [], ["'steps' is given twice"]),
        ("output: a\nconfig:\n  rank: 3\n  rank: 4\n", [], ["'rank' is given twice"]),
        ("steps: 3\n", [], ["output"]),
        ("- a\n", [], ["mapping"]),
        ("a: [\n", [], ["cannot be read"]),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, text, overrides, words):
    with pytest.raises(UsageError) as caught:
        read_recipe(write(tmp_path, text), overrides)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_of_facts_need_no_facts():
    """So that a shipped recipe can be trained without any by one setting."""
    assert read_recipe("default", ["needles=0"]).pairs > 0
    assert read_recipe("default", ["needles=0", "questions=0", "quoted=0", "distill=0.5"]).distill == 0.5


def test_no_such_recipe():
    with pytest.raises(UsageError, match="nowhere"):
        read_recipe("nowhere")
