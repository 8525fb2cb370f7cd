"""Needle in a haystack: what counts as found, where the needles lie, what each method is shown, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sharedllm import SharedLLM, UsageError
from sharedllm.cli import main
from sharedllm.data.needles import draw_needles
from sharedllm.evaluate.needle import CEILING_TOKENS, around, build_haystacks, by_depth, is_found, run, spread_depths
from sharedllm.methods import create
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model, tokens

ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes",
    "model", "adapter", "device", "dtype", "seed",
}  # fmt: skip
OWN_FIELDS = {
    "low", "high", "depths", "found", "kinds", "answers", "values", "encode_seconds", "ask_seconds",
    "window", "beyond_window", "haystacks", "sources", "max_new_tokens",
}  # fmt: skip
TEXT = " ".join(f"Item {i} is kept in a box of its own." for i in range(60))


def encode(statement: str) -> torch.Tensor:
    return torch.tensor(list(statement.encode()))


def haystacks(length: int = 600, samples: int = 7, needles_per_text: int = 3, seed: int = 0):
    texts = [("a", tokens(900, 1)), ("b", tokens(1200, 2))]
    return build_haystacks(texts, length, samples, needles_per_text, seed, encode)


@pytest.mark.parametrize(
    ("value", "answer", "found"),
    [
        ("4711", "The access code is 4711.", True),
        ("4711", "4711", True),
        ("4711", "It is (4711), or so I think", True),
        ("4711", "code:4711!", True),
        ("4711", "", False),
        ("4711", "47110", False),
        ("4711", "The number is 84711.", False),
        ("4711", "4711234", False),
        ("4711", "1,4711", False),
        ("4711", "4711.5", False),
        ("4711", "555-4711", False),
        ("4711", "47 11", False),
        ("4711", "code4711", False),
        ("4711", "not 84711 but 4711", True),
        ("0471", "471", False),
        ("red", "The door was painted Red.", True),
        ("red", "It was covered.", False),
        ("red", "reddish", False),
        ("Ada Keller", "the keeper is ADA  \n KELLER, of course", True),
        ("Ada Keller", "Ada Keller's", True),
        ("Ada Keller", "Ada", False),
        ("Ada Keller", "Ada Kellerman", False),
        ("a.c", "abc", False),
    ],
)
def test_what_counts_as_found(value, answer, found):
    assert is_found(value, answer) is found


def test_needles_are_in_the_haystack_where_it_says():
    made = haystacks()
    assert [len(h.hidden) for h in made] == [3, 2, 2]
    for haystack in made:
        assert len(haystack.ids) == 600
        for spot in haystack.hidden:
            inside = haystack.ids[spot.start : spot.start + spot.tokens]
            assert bytes(inside.tolist()).decode() == f"\n{spot.needle.statement}\n"
            assert spot.depth == spot.start / (600 - spot.tokens)
        assert len({spot.needle.question for spot in haystack.hidden}) == len(haystack.hidden)


def test_the_rest_of_a_haystack_is_its_text():
    text = tokens(900, 1)
    haystack = build_haystacks([("a", text)], 600, 3, 3, 0, encode)[0]
    kept = torch.ones(600, dtype=torch.bool)
    for spot in haystack.hidden:
        kept[spot.start : spot.start + spot.tokens] = False
    assert torch.equal(haystack.ids[kept], text[150 : 150 + int(kept.sum())])


@pytest.mark.parametrize(("samples", "per_haystack"), [(1, 1), (8, 8), (20, 7), (24, 8), (5, 1)])
def test_depths_are_spread_evenly_over_all_questions_and_within_a_haystack(samples, per_haystack):
    count = -(-samples // per_haystack)
    dealt = spread_depths(samples, count, seed=3)
    everything = sorted(depth for depths in dealt for depth in depths)
    assert [int(depth * samples) for depth in everything] == list(range(samples))
    assert {len(d) for d in dealt} <= {samples // count, -(-samples // count)}
    for depths in dealt:
        assert depths == sorted(depths)
        assert all(b - a < 3 * count / samples for a, b in zip(depths, depths[1:], strict=False))


def test_a_needle_may_be_the_first_or_the_last_thing():
    from sharedllm.evaluate.needle import hide

    needles = draw_needles(np.random.default_rng(0), 2)
    haystack = hide("a", tokens(300), needles, [0.0, 1.0], encode)
    first, last = haystack.hidden
    assert (first.start, first.depth) == (0, 0.0)
    assert (last.start + last.tokens, last.depth) == (300, 1.0)


def test_a_needle_knows_its_kind():
    for needle in draw_needles(np.random.default_rng(0), 60):
        assert needle.kind in ("number", "name", "colour") and needle.value.isdigit() == (needle.kind == "number")


def test_seed_and_length():
    def said(made):
        return [[spot.needle for spot in h.hidden] for h in made]

    first, again, other, longer = haystacks(), haystacks(), haystacks(seed=1), haystacks(length=800)
    assert all(torch.equal(a.ids, b.ids) and a.hidden == b.hidden for a, b in zip(first, again, strict=True))
    assert said(first) != said(other)
    assert said(first) == said(longer), "needles are the same at every length"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 5000}, "5,000 tokens"),
        ({"length": 100}, "--needles-per-text"),
        ({"samples": 900, "needles_per_text": 500}, "at most 192"),
    ],
)
def test_haystacks_that_cannot_be(change, words):
    with pytest.raises(UsageError, match=words):
        haystacks(**change)


def test_the_ceiling_is_shown_the_tokens_around_the_needle():
    made = haystacks()
    for haystack in made:
        for spot in haystack.hidden:
            cut = around(haystack, spot, 200)
            (inside,) = cut.hidden
            assert len(cut.ids) == 200 and inside.depth == spot.depth
            statement = bytes(cut.ids[inside.start : inside.start + inside.tokens].tolist()).decode()
            assert statement == f"\n{spot.needle.statement}\n"
            whole = around(haystack, spot, CEILING_TOKENS)
            assert torch.equal(whole.ids, haystack.ids) and whole.hidden == [spot]


@pytest.fixture
def llm(make):
    return make(max_position_embeddings=2048)


def plain_greedy(llm, ids: list[int], new: int) -> list[int]:
    """One token after the other from a whole forward pass, as far as the model goes without its end token."""
    given = list(ids)
    for _ in range(new):
        given.append(int(llm.model(input_ids=torch.tensor([given])).logits[0, -1].argmax()))
        if given[-1] == llm.model.config.eos_token_id:
            break
    return given[len(ids) :]


def test_full_is_shown_all_of_it(llm):
    past, prompt = tokens(300), Prompt(llm.tokenizer, "Where is it?")
    method = create("full", llm, 16)
    assert method.shown(method.prepare(past), prompt, 5) == prompt.with_text(past)
    new = method.ask(method.prepare(past), prompt, 5)
    assert new.tolist() == plain_greedy(llm, prompt.with_text(past), 5)


@pytest.mark.parametrize("window", [30, 100, 1000])
def test_truncate_is_shown_the_newest_that_fits(llm, window):
    past, prompt = tokens(300), Prompt(llm.tokenizer, "Where is it?")
    method = create("truncate", llm, window)
    frame = llm.tokenizer("\n\nWhere is it?\n\nAnswer:")["input_ids"]
    kept = min(300, window - len(frame) - 5)
    shown = method.shown(method.prepare(past), prompt, 5)
    assert shown == [*past[300 - kept :].tolist(), *frame]
    assert len(shown) + 5 <= window
    assert method.ask(method.prepare(past), prompt, 5).tolist() == plain_greedy(llm, shown, 5)


def test_truncate_without_room_for_text_is_shown_the_question_alone(llm):
    prompt = Prompt(llm.tokenizer, "Where is it?")
    frame = len("\n\nWhere is it?\n\nAnswer:")
    assert create("truncate", llm, frame + 5).shown(tokens(300), prompt, 5) == prompt.alone()
    with pytest.raises(UsageError, match=f"window of {frame + 4} tokens.*--window"):
        create("truncate", llm, frame + 4).ask(tokens(300), prompt, 5)


def test_shared_answers_as_the_library_does(make):
    llm = make()
    past, question = tokens(300), "Where is it?"
    prompt, method = Prompt(llm.tokenizer, question), create("shared", llm, 16)
    context = method.prepare(past)
    assert method.shown(context, prompt, 5) == prompt.alone()
    new = method.ask(context, prompt, 5)
    assert llm.tokenizer.decode(new, skip_special_tokens=True).strip() == llm.ask(context, question, 5)
    assert new.tolist() != plain_greedy(llm, prompt.alone(), 5), "the context has no influence"


def test_all_methods_are_asked_the_same_about_the_same(llm, monkeypatch):
    made, asked = haystacks(), {}
    methods = [create(name, llm, 200) for name in ("shared", "truncate", "full")]
    for method in methods:
        seen = asked.setdefault(method.name, [])

        def prepare(past, seen=seen):
            seen.append(past.tolist())
            return past

        def ask(past, prompt, max_new_tokens, seen=seen):
            seen.append(prompt.question)
            return torch.tensor(llm.tokenizer(f"It is {answers[prompt.question]}.")["input_ids"])

        monkeypatch.setattr(method, "prepare", prepare)
        monkeypatch.setattr(method, "ask", ask)
    answers = {spot.needle.question: spot.needle.value for h in made for spot in h.hidden}
    rows = list(run(llm, methods, made, 4, 0, lambda line: None))
    assert asked["shared"] == asked["truncate"] == asked["full"]
    assert len(asked["full"]) == 3 + 7, "a haystack is read once"
    for row in rows:
        assert row.keys() >= ROW_FIELDS | OWN_FIELDS
        assert row["value"] == row["low"] == row["high"] == 1.0 and row["found"] == [1] * 7
        assert row["answers"] == [f"It is {value}." for value in row["values"]]
        assert row["depths"] == rows[0]["depths"] and 0 <= min(row["depths"]) <= max(row["depths"]) <= 1
    windows = {row["method"]: row["window"] for row in rows}
    assert windows["shared"] < windows["truncate"] == 200 < 600 < windows["full"]


def test_rows_repeat_and_say_what_is_beyond_the_window(make):
    llm = make(max_position_embeddings=512)
    methods = [create(name, llm, 300) for name in ("shared", "truncate", "full")]
    lines: list[str] = []
    first, again = (list(run(llm, methods, haystacks(), 4, 0, lines.append, ceiling=True)) for _ in range(2))
    costs = {"seconds", "encode_seconds", "ask_seconds", "peak_memory_bytes"}
    assert [{k: v for k, v in row.items() if k not in costs} for row in first] == [
        {k: v for k, v in row.items() if k not in costs} for row in again
    ]
    assert [row["method"] for row in first] == ["shared", "truncate", "full", "passage"]
    assert [row["beyond_window"] for row in first] == [False, False, True, True]
    assert first[0]["chunk_length"] == CONFIG.chunk_length
    assert lines[6] == f"shared at 600: question 7 of 7, {sum(first[0]['found'])} found"


def test_found_by_depth():
    assert by_depth([0.0, 0.1, 0.5, 0.99, 1.0], [1, 0, 1, 0, 0], 4) == [0.5, None, 1.0, 0.0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, an adapter for it, and a text."""
    folder = tmp_path_factory.mktemp("home")
    model, tokenizer = tiny_model(max_position_embeddings=512), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer)).save_adapter(
        folder / "adapter"
    )
    (folder / "long.txt").write_text(TEXT)
    return folder


@pytest.fixture
def command(home, monkeypatch, capsys):
    """Run `eval needle` in `home`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str, str]:
        model = ("--model", "model", "--adapter", "adapter", "--dtype", "float32")
        with pytest.raises(SystemExit) as ended:
            main(["eval", "needle", "--text", "long.txt", "-o", "rows.jsonl", *model, *arguments])
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    yield call
    torch.set_num_threads(threads)


SMALL = ("--samples", "3", "--needles-per-text", "2", "--max-new-tokens", "4", "--window", "200")


def test_the_command_writes_rows(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command("--methods", "shared,truncate,full", "--lengths", "300,600", "--ceiling", *SMALL)
    assert code == 0, err
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert [(r["method"], r["length"]) for r in rows] == [
        (method, length) for length in (300, 600) for method in ("shared", "truncate", "full", "passage")
    ]
    for row in rows:
        assert row.keys() >= ROW_FIELDS | OWN_FIELDS
        assert (row["task"], row["metric"], row["samples"], row["haystacks"]) == ("needle", "found", 3, 2)
        assert row["value"] == sum(row["found"]) / 3 and len(row["answers"]) == 3
        assert row["sources"] == ["long.txt"] * 2
    assert out.count("0-20 %") == 8 and "80-100 %" in out and "shared at 300: question 3 of 3" in err


def test_json_ends_with_one_object(command):
    code, out, _ = command("--methods", "truncate", "--lengths", "300", "--json", *SMALL)
    figures = json.loads(out)
    assert code == 0 and figures["results"] == "rows.jsonl" and figures["last"]["metric"] == "found"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--lengths", "99999"), "99,999"),
        (("--methods", "shard"), "Did you mean shared?"),
        (("--methods", "passage"), "shared, truncate, full"),
        (("--needles-per-text", "0"), "--needles-per-text is 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--lengths", "100", "--samples", "8"), "lower --needles-per-text"),
        (("--lengths", "300", "--samples", "1", "--methods", "truncate", "--window", "16"), "raise --window"),
    ],
)
def test_mistakes_are_one_sentence(command, home, arguments, word):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command(*arguments)
    assert code == 2 and word in err and "Traceback" not in err and out == ""
    assert not (home / "rows.jsonl").exists(), "something was written"
