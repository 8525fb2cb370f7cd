"""What a person is shown of a row."""

from __future__ import annotations

from sharedllm.cli.evaluate.show import print_row

ROW = {"method": "shared", "length": 8192, "metric": "nll", "task": "perplexity", "value": 2.5}


def test_an_interval_is_shown_where_there_is_one(capsys):
    print_row({**ROW, "low": 2.25, "high": 2.75, "samples": 4})
    assert capsys.readouterr().out.endswith(" 2.5000 [2.2500, 2.7500]\n")
    print_row({**ROW, "low": 2.5, "high": 2.5, "samples": 1})
    assert capsys.readouterr().out.endswith(" 2.5000 (one sample: no interval)\n")
    print_row({**ROW, "low": 0.2065, "high": 1.0, "value": 1.0, "samples": 1})
    assert "[0.2065, 1.0000]" in capsys.readouterr().out, "a share has one, whatever the number of tries"


def test_an_average_says_over_how_many_data_sets_it_is(capsys):
    average = {**ROW, "dataset": "average-en", "low": 2.25, "high": 2.75, "samples": 4, "datasets": ["a", "b"]}
    print_row({**average, "datasets_of": 16})
    assert capsys.readouterr().out.endswith(" 2.5000 [2.2500, 2.7500] over 2 of 16 data sets\n")
    print_row(average)
    assert capsys.readouterr().out.endswith("[2.2500, 2.7500]\n"), "a row from before"
