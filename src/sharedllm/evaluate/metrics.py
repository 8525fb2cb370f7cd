"""Scores of an answer against the expected one, 0 to 1, that several benchmarks share.

ROUGE and Chinese words come from the packages that the benchmarks themselves use, and are asked for only where needed.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from sharedllm.errors import UsageError, to_install

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
"""What the Chinese scores leave out besides ASCII punctuation: LongBench's list, in which 《 is missing."""


def normalised(text: str) -> list[str]:
    """Words as SQuAD (arXiv 1606.05250) counts them: lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def normalised_chinese(text: str) -> str:
    """Lower case, without white space and punctuation, Chinese and ASCII."""
    return "".join(c for c in text.lower() if not c.isspace() and c not in string.punctuation + CHINESE_PUNCTUATION)


def f1(given: Iterable[str], expected: Iterable[str]) -> float:
    """Harmonic mean of precision and recall over parts, each counted as often as it occurs; 0 where none is shared."""
    a, b = Counter(given), Counter(expected)
    same = (a & b).total()
    return 2 * same / (a.total() + b.total()) if same else 0.0


def word_f1(given: str, expected: str) -> float:
    """F1 over normalised words, as LongBench and InfiniteBench count: 0 where neither has a word."""
    return f1(normalised(given), normalised(expected))


def token_f1(given: str, expected: str) -> float:
    """F1 over normalised words, as SQuAD counts: 1 where neither has a word."""
    a, b = normalised(given), normalised(expected)
    return f1(a, b) if a or b else 1.0


def best(score: Callable[[str, str], float], given: str, answers: Sequence[str]) -> float:
    """The best score over several right answers."""
    return max(score(given, answer) for answer in answers)


def edit_similarity(given: str, expected: str) -> float:
    """How alike two strings are, in hundredths: what `fuzz.ratio` of fuzzywuzzy says, divided by 100.

    That is `difflib`'s ratio, rounded. Packages that follow fuzzywuzzy count the longest common subsequence
    instead, and find more alike.
    """
    return round(100 * SequenceMatcher(None, given, expected).ratio()) / 100


def rouge_l(given: str, expected: str) -> float:
    """F of ROUGE-L as the package `rouge` computes it, over sentences that end with a point; words stand between spaces.

    0 where the package cannot compare: one of the two is empty, or too long for its recursion.
    """
    rouge = required("rouge").Rouge(metrics=["rouge-l"])
    try:
        return float(rouge.get_scores(given, expected)[0]["rouge-l"]["f"])
    except (ValueError, RecursionError):
        return 0.0


def rouge_lsum(given: str, expected: str) -> float:
    """F of ROUGE-Lsum as the package `rouge_score` computes it without stemming; each line is a sentence."""
    scorer = required("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"], use_stemmer=False)
    return float(scorer.score(expected, given)["rougeLsum"].fmeasure)


def chinese_words(text: str) -> list[str]:
    """The words that jieba finds, punctuation included."""
    return [str(word) for word in _jieba().cut(text, cut_all=False)]


@cache
def _jieba() -> Any:
    jieba = required("jieba")
    jieba.setLogLevel("WARNING")  # it reports on its dictionary otherwise
    return jieba


def required(module: str) -> Any:
    """A module of the packages that only scores need.

    Raises:
        UsageError: it is not installed; the sentence has the command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UsageError(f"this score needs {name}; {to_install('eval')}.") from error
