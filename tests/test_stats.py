"Fast statistics against slow, obvious twins."
import math
import random
import numpy as np
import pytest
from compeffdist.sentibench import TASKS, judge, summarise
from compeffdist.settings import UserError
from compeffdist.stats import (
    by_task, compare, detectable, fold, interval, mcnemar,
    mean_interval, mean_sd, paired, resamples, vectors,
)

LABELS = TASKS["twitter"].labels


def classified(n, accuracy, seed, seeds=(42,)):
    rng = random.Random(seed)
    truth = [random.Random(i).choice(LABELS) for i in range(n)]
    return [
        dict(
            task="twitter", item=i, seed=s,
            gold=t, parsed=t if rng.random() < accuracy else rng.choice([*LABELS, None]),
        )
        for s in seeds
        for i, t in enumerate(truth)
    ]


def extracted(n, seed, task="atsa_rest16"):
    rng, rows = random.Random(seed), []
    for i in range(n):
        g, p = rng.randrange(4), rng.randrange(4)
        rows.append(dict(
            task=task, item=i, seed=42,
            n_gold=float(g), n_pred=float(p),
            gold_hits=float(min(g, p)), pred_hits=float(min(g, p)),
        ))
    return rows


def test_fold_is_the_scorers_f1():
    from sklearn.metrics import f1_score
    rows = classified(80, .6, 1)
    want = f1_score(
        [r["gold"] for r in rows],
        [r["parsed"] or "none" for r in rows],
        labels=list(LABELS), average="macro",
    )
    assert fold("twitter", vectors("twitter", rows)[0].sum(0))[0] == pytest.approx(want)
    record = dict(
        sentence="The soup .",
        aspects=[{"target": "soup", "category": "FOOD#QUALITY", "polarity": "positive"}],
    )
    outputs = ['[{"aspect_term": "soup", "sentiment": "positive"}, {"x": 1}]', "[]", ""]
    judged = [judge("atsa_rest16", record, o) for o in outputs]
    rows = [dict(j, item=i, seed=1) for i, j in enumerate(judged)]
    for rules in ("official", "strict"):
        for part in (rows, rows[1:]):
            assert fold("atsa_rest16", vectors("atsa_rest16", part)[0].sum(0), rules)[0] == pytest.approx(
                summarise("atsa_rest16", part, rules)["f1"]
            )


@pytest.mark.parametrize("task, rows", [
    ("twitter", classified(150, .7, 2, (42, 52))),
    ("atsa_rest16", extracted(150, 3)),
    ("opener", extracted(150, 4, "opener")),
])
def test_interval_equals_a_slow_bootstrap(task, rows):
    table, items = vectors(task, rows)
    rng, slow = np.random.default_rng(0), []
    for _ in range(4000):
        drawn = rng.integers(0, len(items), len(items))
        slow.append(np.mean([fold(task, table[drawn, s].sum(0)) for s in range(table.shape[1])]))
    fast = interval(task, rows, 20_000)
    for name, q in (("low", .025), ("high", .975)): assert fast[name] == pytest.approx(np.quantile(slow, q), abs=.008)
    assert fast == interval(task, rows, 20_000) and fast != interval(task, rows, 20_000, seed=7)


def test_resamples_have_the_right_size_and_mean():
    table = np.arange(60, dtype=float).reshape(20, 1, 3)
    sums = np.concatenate(list(resamples(np.concatenate([table, np.ones((20, 1, 1))], -1), 5000)))
    assert sums.shape == (5000, 1, 4) and (sums[..., 3] == 20).all()
    assert sums[..., 0].mean() == pytest.approx(table[..., 0].sum(), rel=.01)


def test_paired_is_sharper_than_unpaired_and_knows_no_difference():
    a = classified(300, .75, 5)
    b = [dict(r, parsed=r["gold"] if r["item"] % 25 == 0 else r["parsed"]) for r in a] # A, and a few more right
    r = paired("twitter", b, a, 4000)
    alone = interval("twitter", a, 4000)
    assert (
        r["difference"] > 0
        and 0 <= r["low"]
        and r["high"] - r["low"] < (alone["high"] - alone["low"])/2
        and r["p"] < .1
    )
    assert paired("twitter", a, b, 4000)["difference"] == pytest.approx(-r["difference"])
    same = paired("twitter", a, a, 500)
    assert (same["difference"], same["p"], same["low"], same["high"]) == (0, 1, 0, 0)


def test_false_alarms_are_rare():
    hits = sum(
        paired("twitter", classified(120, .7, 100 + i), classified(120, .7, 900 + i), 400)["p"] < .05
        for i in range(60)
    )
    assert hits <= 9 # expected 3


def test_mcnemar_by_hand_and_by_scipy():
    from scipy.stats import binomtest
    assert mcnemar([1]*5 + [0], [0]*5 + [1]) == dict(only_a=5, only_b=1, p=2*7/64)
    assert mcnemar([True, False], [True, False])["p"] == 1
    rng = random.Random(0)
    a, b = [[rng.random() < q for _ in range(4000)] for q in (.7, .68)]
    r = mcnemar(a, b)
    assert r["p"] == pytest.approx(binomtest(r["only_a"], r["only_a"] + r["only_b"]).pvalue)


def test_mean_sd_and_detectable():
    assert mean_sd([2, 4, 9])[:2] == (5, pytest.approx(math.sqrt(13))) and math.isnan(mean_sd([.5])[1])
    from scipy.stats import norm
    assert detectable(.02) == pytest.approx((norm.ppf(.975) + norm.ppf(.8))*.02, rel=1e-6)


def test_mean_interval_weighs_tasks_equally():
    rows = classified(200, .9, 1) + extracted(30, 2)
    r = mean_interval(rows, 2000)
    parts = [interval(t, p, 2000) for t, p in by_task(rows).items()]
    assert r["f1"] == pytest.approx(sum(p["f1"] for p in parts)/2) and r["low"] < r["f1"] < r["high"]
    assert r["high"] - r["low"] < max(p["high"] - p["low"] for p in parts)
    assert [c["task"] for c in compare(rows, rows, 50)] == ["twitter", "atsa_rest16"]


def test_bad_input():
    for bad in ([], [float("nan")], [.5, float("inf")]):
        with pytest.raises(UserError, match="finite"): mean_sd(bad)
    with pytest.raises(UserError, match=r"got \[nan\]"): mean_sd([.5]*7 + [float("nan")])
    rows = classified(10, .5, 1, (42, 52))
    with pytest.raises(UserError, match="do not cover"): vectors("twitter", rows[:-1])
    with pytest.raises(UserError, match="do not cover"): vectors("twitter", [])
    with pytest.raises(UserError, match="different items"):
        paired("twitter", rows, [dict(r, item=r["item"] + 1) for r in rows])
    with pytest.raises(UserError, match="same items"): mcnemar([1], [1, 0])


def test_ten_thousand_resamples_of_two_thousand_items_are_fast():
    import time
    rows = classified(2000, .7, 1, (42, 52, 62))
    begin = time.process_time() # not the clock: other tests run beside this one
    interval("twitter", rows, 10_000)
    assert time.process_time() - begin < 5
