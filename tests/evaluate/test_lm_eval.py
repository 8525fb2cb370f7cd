"""The harness' model: short requests equal its own `hf` model, longer ones a plain definition. Run with lm_eval 0.4.13."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sharedllm import SharedLLM, UsageError
from sharedllm.cli import main
from sharedllm.evaluate.lm_eval import HarnessModel
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model

W = 20
LONG = "".join(f"Item {i} is blue. " for i in range(12))  # 200 bytes, as many tokens; the window is 64
SHORT = "The sky is"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["blue", "red"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model and an adapter."""
    folder = tmp_path_factory.mktemp("harness")
    model, tokenizer = tiny_model(), byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    llm = randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer))
    llm.save_adapter(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def ours(home):
    return HarnessModel(
        pretrained=str(home / "model"),
        adapter=str(home / "adapter"),
        window=W,
        device="cpu",
        dtype="float32",
        batch_size=2,
    )


def asked(*requests):
    """Requests as the harness makes them."""
    return [SimpleNamespace(args=request, task_name="tiny") for request in requests]


def ids_of(text):
    return torch.tensor(byte_tokenizer().encode(text))


def plain(llm, text, scored, seen, search="query"):
    """Nats of the last `scored` tokens of a text whose tokens before `scored` are compressed but for `seen`."""
    ids = ids_of(text)
    end = len(ids) - scored
    context = llm.reader.new_context()
    context.ids = ids[: end - seen].int()
    window = ids[None, end - seen : end]
    memory = llm.recall(context, window, search=search)
    with llm.injection.reading(memory), torch.no_grad():
        logits = llm.model(ids[None, end - seen : -1]).logits[0, seen - 1 :].log_softmax(-1)
    return logits.gather(1, ids[end:, None]).sum().item()


def test_requests_that_fit_are_scored_and_answered_as_by_the_harness_own_model(home, ours):
    theirs = HFLM(pretrained=str(home / "model"), device="cpu", dtype="float32", batch_size=2)
    pairs = asked((SHORT, " blue"), (SHORT, " red"), ("", "Green"), ("It is ", "a"))
    assert ours.loglikelihood(pairs, disable_tqdm=True) == theirs.loglikelihood(pairs, disable_tqdm=True)
    texts = asked((SHORT,), ("A",))
    assert ours.loglikelihood_rolling(texts, disable_tqdm=True) == theirs.loglikelihood_rolling(
        texts, disable_tqdm=True
    )
    prompts = asked((SHORT, {"until": ["\n"], "max_gen_toks": 5}), ("A", {"until": [], "max_gen_toks": 5}))
    assert ours.generate_until(prompts, disable_tqdm=True) == theirs.generate_until(prompts, disable_tqdm=True)


def test_a_longer_context_is_compressed_and_every_continuation_searched_by_the_context_alone(ours):
    pairs = [
        (LONG + "So it", " is blue."),
        (SHORT, " blue"),
        (LONG + "So it", " is"),
        (LONG, " Thus"),
        (LONG + "So it", " was red"),
    ]
    given = [nats for nats, _ in ours.loglikelihood(asked(*pairs), disable_tqdm=True)]
    for i in (0, 2, 3, 4):
        context, continuation = pairs[i]
        if context.endswith(" "):  # the harness moves it, so that words stay whole
            context, continuation = context[:-1], " " + continuation
        assert given[i] == pytest.approx(plain(ours.llm, context + continuation, len(continuation), W), abs=1e-3)


def test_continuations_that_are_compared_are_scored_in_one_way_where_one_of_them_does_not_fit(ours):
    context = LONG[:60]  # of 64 positions
    pairs = [(context, "blue"), (context, "red and green"), (SHORT, " blue")]
    given = [nats for nats, _ in ours.loglikelihood(asked(*pairs), disable_tqdm=True)]
    room = 64 + 1 - len("red and green")
    for i in (0, 1):
        whole = plain(ours.llm, context + pairs[i][1], len(pairs[i][1]), min(W, room))
        assert given[i] == pytest.approx(whole, abs=1e-3)


def test_a_continuation_gets_the_room_it_needs_and_a_longer_one_is_refused(ours):
    continuation = " it is" + " so" * 17  # 57 tokens of 64 positions
    ((nats, _),) = ours.loglikelihood(asked((LONG + "Yes", continuation)), disable_tqdm=True)
    assert nats == pytest.approx(plain(ours.llm, LONG + "Yes" + continuation, 57, 64 + 1 - 57), abs=1e-3)
    with pytest.raises(UsageError, match="leaves no room for its context"):
        ours.loglikelihood(asked((LONG, "x" * 65)), disable_tqdm=True)


def test_rolling_predicts_every_token_once_with_all_before_it(ours):
    (given,) = ours.loglikelihood_rolling(asked((LONG,)), disable_tqdm=True)
    ids, window = ids_of(LONG), ours.llm.window
    with torch.no_grad():
        first = ours.llm.model(torch.cat([torch.tensor([256]), ids[: window - 1]])[None]).logits[0].log_softmax(-1)
    expected = first.gather(1, ids[:window, None]).sum().item()
    for start in range(window, len(ids), W):
        end = min(start + W, len(ids))
        expected += plain(ours.llm, LONG[:end], end - start, 1, search="later")
    assert given == pytest.approx(expected, abs=1e-2)


def test_a_longer_prompt_is_continued_with_its_past_compressed(ours):
    prompt = LONG + "Which colour?"
    stop = {"until": ["\n\n"], "max_gen_toks": 6}
    (given,) = ours.generate_until(asked((prompt, stop)), disable_tqdm=True)
    ids = ids_of(prompt)
    context = ours.llm.read(ids[:-W])
    out = ours.llm.generate(ids[None, -W:], context=context, max_new_tokens=6, do_sample=False, pad_token_id=258)
    assert given == ours.tok_decode(out[0, W:].tolist()).split("\n\n")[0]


def test_texts_that_begin_alike_are_read_once(ours, monkeypatch):
    read, encode = [], ours.llm.lower.encode
    monkeypatch.setattr(
        ours.llm.lower, "encode", lambda rows, *rest: (read.append(rows.numel()), encode(rows, *rest))[1]
    )
    document = "Z" + LONG
    questions = [(document + f"Question {i}?", {"until": [], "max_gen_toks": 2}) for i in range(4)]
    ours.generate_until(asked(*questions), disable_tqdm=True)
    assert sum(read) < len(document) + 4 * 2 * CONFIG.chunk_length


def test_mistakes_in_model_args_are_named(home):
    where = {"model": str(home / "model"), "adapter": str(home / "adapter"), "device": "cpu"}
    with pytest.raises(UsageError, match="Did you mean window"):
        HarnessModel(**where, wndow=8)
    with pytest.raises(UsageError, match="window is 65"):
        HarnessModel(**where, window=65)


@pytest.mark.parametrize("template", [False, True])
def test_the_harness_runs_a_task_by_the_models_name(home, ours, tmp_path, monkeypatch, template):
    rows = [{"text": LONG + "Item 3 is", "label": 0}, {"text": SHORT, "label": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = simple_evaluate(
        model="sharedllm",
        model_args=f"model={home / 'model'},adapter={home / 'adapter'},window={W},dtype=float32",
        device="cpu",
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=template,
        bootstrap_iters=0,
    )
    samples = found["samples"]["tiny_choice"]
    right = []
    for row, sample in zip(rows, sorted(samples, key=lambda sample: sample["doc_id"]), strict=True):
        nats = [nats for nats, _ in ours.loglikelihood(asked(*sample["arguments"]), disable_tqdm=True)]
        right.append(nats.index(max(nats)) == row["label"])
    assert found["results"]["tiny_choice"]["acc,none"] == sum(right) / len(rows)
    about = found["config"]["sharedllm"]
    assert (about["window"], about["quoted_tokens"], about["searched_by"]) == (W, 0, 64)
    assert ("<user>" in str(samples[0]["arguments"])) == template


def test_the_command_hands_its_arguments_to_the_harness_which_knows_the_model(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["sharedllm"])
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append((sys.argv, get_model("sharedllm"))))
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", "--model", "sharedllm", "--tasks", "ruler", "--help"])
    assert not ended.value.code
    assert seen == [(["lm_eval", "--model", "sharedllm", "--tasks", "ruler", "--help"], HarnessModel)]
