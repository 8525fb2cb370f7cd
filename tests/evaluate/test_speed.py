"""`bench`: phases by a clock of the test's own, rows and their ratios, what is refused, memory by part."""

from __future__ import annotations

import pytest
import torch

from sharedllm.branch import WIDER
from sharedllm.errors import UsageError
from sharedllm.evaluate.speed import longest, memory, phases
from sharedllm.evaluate.speed.floor import Rates
from sharedllm.evaluate.speed.limits import Goal, break_even, compared, estimate, faster, kept, limits
from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases, Sample
from sharedllm.evaluate.stopping import endless
from sharedllm.methods import METHODS, create
from sharedllm.prompts import Prompt
from tests.conftest import tokens

NEW = 4
PHASES = Phases(tokenise=1, read=80, search=2, first_token=3, per_token=0.6, per_token_alone=0.5, bare_read=72)
MEMORY = Memory(weights=100, added_weights=10, kept=200, attended=64, reading=3200, working_peak=5000, peak=9000)
RATES = Rates(multiply_adds=1e6, bytes=1e9)
CONTRACT = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes", "model", "adapter",
    "device", "dtype", "seed",
}  # fmt: skip


@pytest.fixture
def llm(make):
    return make(max_position_embeddings=512)


def taken(llm, length: int) -> Sample:
    ids = tokens(length) % 26 + 97
    return Sample(llm.tokenizer.decode(ids), ids)


@pytest.fixture
def costs(llm, monkeypatch):
    """A clock that only work moves: tokenising 1, each of the lowest layers' batches 20, a search 300, a pass 4000."""
    passed = [0.0]

    def costing(function, seconds):
        def call(*args, **kwargs):
            passed[0] += seconds
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(llm.reader, "token_ids", costing(llm.reader.token_ids, 1))
    monkeypatch.setattr(llm.lower.module, "forward", costing(llm.lower.module.forward, 20))
    monkeypatch.setattr(llm, "recall", costing(llm.recall, 300))
    monkeypatch.setattr(llm.model, "forward", costing(llm.model.forward, 4000))
    return lambda: passed[0]


def timed(llm, name: str, length: int, now) -> Phases:
    return phases.measure(create(name, llm, 160), taken(llm, length), Prompt(llm.tokenizer, "Who?"), NEW, now)


def test_full_reads_a_text_once_and_then_the_question(llm, costs):
    found = timed(llm, "full", 200, costs)
    assert (found.tokenise, found.read, found.bare_read) == (1, 4000, None)
    assert found.first_token == found.per_token == found.per_token_alone == 4000


@pytest.mark.parametrize("name", ["truncate", "yarn", "encoder-decoder"])
def test_all_of_a_plain_pass_is_the_first_token(llm, costs, name):
    found = timed(llm, name, 200, costs)
    assert (found.tokenise, found.read, found.bare_read) == (1, 0, None)
    assert found.first_token == found.per_token == found.per_token_alone == 4000


def test_the_phases_of_shared(llm, costs):
    found = timed(llm, "shared", 200, costs)
    batches = 13  # one chunk of 16 at a time on a CPU, the last of 8
    assert found == Phases(1, 1 + 20 * batches, 300, 4000, 4000, 4000, 20 * batches), "and reading checks the ids"


def test_a_streamed_question_takes_several_passes_before_its_first_token(llm, costs, monkeypatch):
    monkeypatch.setattr("sharedllm.methods.streaming.BLOCK", 5)
    question = len(Prompt(llm.tokenizer, "Who?").alone())
    found = timed(llm, "streaming", 54, costs)
    assert found.read == 4000 * 11, "four sinks, then five at a time"
    assert found.first_token == 4000 * -(-question // 5) and found.per_token == 4000


def test_the_phases_add_up_and_the_model_is_left_as_it_was(llm, costs):
    ends = llm.model.generation_config.eos_token_id
    before = costs()
    found = timed(llm, "shared", 200, costs)
    nothing_read = NEW * 4000  # the question where there is no text is put too, and searches nothing
    told = found.tokenise + found.to_first_token + (NEW - 1) * found.per_token + found.bare_read
    assert told + nothing_read == costs() - before
    assert llm.model.generation_config.eos_token_id == ends
    assert not llm.model._forward_hooks and not llm.model._forward_pre_hooks and not llm.lower.module._forward_pre_hooks


def test_an_answer_has_its_length_whatever_token_comes(llm):
    method, prompt = create("full", llm, 64), Prompt(llm.tokenizer, "Who?")
    first = int(method.ask(tokens(20), prompt, 1)[0])
    llm.model.generation_config.eos_token_id = first
    assert len(method.ask(tokens(20), prompt, NEW)) == 1
    with endless(llm.model):
        assert len(method.ask(tokens(20), prompt, NEW)) == NEW


def test_limits_by_hand():
    slower = Phases(1, 100, 2, 3, 1.0, 0.5, 50)
    found = limits([PHASES, slower])
    assert {limit.metric: limit.ratios for limit in found} == {
        "read_speed_over_bare": [0.9, 0.5],
        "per_token_over_alone": [1.2, 2.0],
        "second_over_first": [5 / 85, 5 / 105],
    }
    met = [[limit.goal.met(ratio) for ratio in limit.ratios] for limit in found]
    assert met == [[True, False], [True, False], [False, True]]
    assert found[0].said() == {"ours": 90, "other": 61, "unit": "s", "goal": "at least 0.9", "met": False}
    plain = Phases(1, 0, 0, 3, 1.0, 0.5, None)
    assert [limit.metric for limit in limits([plain])] == ["per_token_over_alone", "second_over_first"]


def test_bytes_against_the_full_cache_by_hand():
    found = kept(MEMORY, full_cache=1920)
    assert [(size.metric, size.ratios, size.said()) for size in found] == [
        (
            "full_cache_over_attended", [30.0],
            {"ours": 64, "other": 1920, "unit": "bytes", "goal": "at least 30", "met": True},
        ),
        (
            "full_cache_over_kept", [9.6],
            {"ours": 200, "other": 1920, "unit": "bytes", "goal": "at least 10", "met": False},
        ),
    ]  # fmt: skip


def test_methods_are_compared_round_by_round():
    other = Phases(1, 0, 0, 170, 1.2, 0.5, None)
    found = compared([PHASES, PHASES], [other, PHASES], "full", Goal(5, True))
    assert {side.metric: side.ratios for side in found} == {
        "first_token_speed_over_full": [2, 1],
        "second_question_speed_over_full": [34, 1],
        "token_speed_over_full": [2, 1],
    }
    first, *rest = found
    assert first.said() == {"ours": 85, "other": 127.5, "unit": "s", "goal": "at least 5", "met": False}
    assert all("goal" not in side.said() for side in rest)


def test_the_goals_beside_other_methods():
    goals = {name: str(faster("shared", name, 32_768)) for name in ("full", "streaming", "encoder-decoder")}
    assert goals == {"full": "at least 5", "streaming": "at least 2", "encoder-decoder": "at least 3"}
    assert faster("shared", "truncate", 32_768) is faster("streaming", "full", 32_768) is None
    assert faster("shared", "full", 8192) is None


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(0.9, True), "at least 0.9"),
        (Goal(1e6, True, "tokens"), "at least 1,000,000 tokens"),
        (Goal(1.25, False), "at most 1.25"),
    ],
)
def test_goals_read_as_numbers_and_their_bound_meets_them(goal, said):
    assert str(goal) == said and goal.met(goal.value)
    assert goal.judged(goal.value - 0.1)["met"] is not goal.at_least


@pytest.mark.parametrize(
    ("measured", "quadratic", "expected"),
    [
        ({}, True, None),
        ({8: 9.0}, True, None),
        ({2: 3.0}, False, 6.0),
        ({2: 3.0}, True, 12.0),
        ({1: 1.5, 2: 5.0}, True, 18.0),  # n / 2 + n^2
        ({1: 2.0, 2: 3.0}, True, 6.0),  # less than in proportion: in proportion
        ({1: 0.1, 2: 4.0}, True, 16.0),  # more than the square: the square
    ],
)
def test_a_longer_text_is_estimated_from_shorter_ones(measured, quadratic, expected):
    assert estimate(measured, 4, quadratic) == (expected if expected is None else pytest.approx(expected))


def test_break_even_by_hand():
    # ours / theirs is 4 at 1,024 tokens and 1 / 4 at 4,096: equal halfway between, in logarithms
    assert break_even({1024: 4, 4096: 1}, {1024: 1, 4096: 4}).tokens == pytest.approx(2048)
    # 2 at 1,024 and 1 / 4 at 8,192: a third of the way
    assert break_even({1024: 2, 8192: 1, 99: 1}, {1024: 1, 8192: 4}).tokens == pytest.approx(2048)
    # faster, slower, faster: the last crossing counts
    assert break_even({1: 1, 2: 2, 8: 1}, {1: 2, 2: 1, 8: 2}).tokens == pytest.approx(4)
    assert "not faster at 4,096" in break_even({4096: 2}, {4096: 1}).reason
    assert "from 1,024" in break_even({1024: 1, 4096: 1}, {1024: 2, 4096: 2}).reason
    assert "no length" in break_even({1024: 1}, {}).reason


def test_the_longest_text_is_read_to_its_end(llm):
    ids, prompt = taken(llm, 1003).ids, Prompt(llm.tokenizer, "Who?")
    method = create("shared", llm, 160)
    found = longest.measure(method, ids, prompt, NEW)
    assert found.tokens == 1003 and found.kept == method.prepare(ids).nbytes
    assert found.answer == llm.tokenizer.decode(method.ask(method.prepare(ids), prompt, NEW)) != ""
    assert found.read > 0 and found.first_token > 0 and found.peak > 0
    with pytest.raises(UsageError, match="not with full"):
        longest.measure(create("full", llm, 160), ids, prompt, NEW)


@pytest.mark.parametrize("name", METHODS)
def test_memory_by_part(llm, name):
    method, prompt, ids = create(name, llm, 160), Prompt(llm.tokenizer, "Who?"), taken(llm, 200).ids
    found = memory.measure(method, ids, prompt, NEW)
    assert found.weights == sum(p.nbytes for p in llm.model.parameters()) and found.peak > 0
    assert 0 <= found.reading <= found.working_peak
    a_token = 2 * 4 * 2 * 8 * 4  # keys and values, layers, heads, dimensions, bytes
    frame = len(prompt.with_text(ids[:1])) - 1
    expected = {
        "full": 200 * a_token, "yarn": 200 * a_token, "dynamic-ntk": 200 * a_token, "encoder-decoder": 200 * a_token,
        "truncate": (160 - NEW - frame) * a_token, "streaming": (4 + 160 - NEW - len(prompt.alone())) * a_token,
    }  # fmt: skip
    if name == "retrieval":
        assert found.kept == method.prepare(ids).nbytes and found.added_weights == 0
        assert found.attended == (len(method.shown(method.prepare(ids), prompt, NEW)) - len(prompt.alone())) * a_token
    elif name.startswith("shared"):
        context = method.prepare(ids)
        assert found.kept == context.nbytes and found.added_weights > 0
        slots = 3 * 2 * 2 * context.slots * (8 + WIDER) * 4  # layers, keys and values, heads, dimensions: no padding
        assert found.attended == slots
    else:
        beside = frame - len(prompt.alone())  # what separates text and question
        assert abs(found.attended - expected[name]) <= beside * a_token
    past = method.prepare(torch.empty(0, dtype=torch.long))
    assert method.kept_bytes(past) == 0 == method.attended_bytes(past, prompt, NEW)
