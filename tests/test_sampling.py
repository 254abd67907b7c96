"The curve, the draws and the sampler: integrals, expectations, permutation invariance, bad input."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from compeffdist.sampling import (
    METHODS, difficulty_quantiles, keep_probability, row_draws, sample_by_difficulty, selection
)
from compeffdist.settings import UserError


def slow_keep(x, a, rate):
    if rate == 0: return 0.0
    b = 1 / rate - 1
    if x == a: return 1.0
    return (x / a)**b if x < a else ((1 - x) / (1 - a))**b


def corpus(n=400, groups=7, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(
        id=[f"{i:05}" for i in range(n)],
        instruction_id=rng.integers(0, groups, n).astype(str),
        rank_score=rng.random(n).round(2)
    ))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1))
@hyp(max_examples=300, deadline=None)
def test_curve_equals_the_formula(x, a, rate):
    assert keep_probability(x, a, rate) == pytest.approx(slow_keep(x, a, rate), rel=1e-9, abs=1e-300)


@given(st.floats(0, 1), st.floats(0.005, 1))
@hyp(max_examples=60, deadline=None)
def test_area_is_the_rate_for_every_a(a, rate):
    x = (np.arange(100_000) + .5) / 100_000
    F = keep_probability(x, a, rate)
    assert F.mean() == pytest.approx(rate, rel=5e-3) and ((0 <= F) & (F <= 1)).all()
    if 0 < a < 1 and rate < 0.9: assert abs(x[F.argmax()] - a) < 1e-4
    if a == 1: assert (np.diff(F) >= 0).all()


@pytest.mark.parametrize("bad", [-.1, 1.1, float("nan"), None, "0.1", True])
def test_values_outside_the_unit_interval(bad):
    with pytest.raises(UserError, match="rate"): keep_probability(.5, 1, bad)
    with pytest.raises(UserError, match="a must"): keep_probability(.5, bad, .1)
    with pytest.raises(UserError, match="rate"): sample_by_difficulty(corpus(), bad)
    with pytest.raises(UserError, match="a must"): sample_by_difficulty(corpus(), .1, a=bad)
    if isinstance(bad, float):
        with pytest.raises(UserError, match="Quantiles"): keep_probability(np.array([.2, bad]), 1, .1)


def test_quantiles_equal_the_slow_twin():
    d = corpus(200, 9)
    codes = pd.factorize(d.instruction_id, sort=True)[0]
    fast, ties = difficulty_quantiles(d.rank_score, d.id, 5, codes), row_draws(d.id, 5, "tie")
    for g in set(codes):
        member = sorted(np.flatnonzero(codes == g), key=lambda i: (d.rank_score[i], ties[i]))
        for place, i in enumerate(member): assert fast[i] == (place + .5) / len(member)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("by", ["instruction", None])
def test_order_of_rows_does_not_matter(method, exact, by):
    d = corpus()
    p = np.random.default_rng(2).permutation(len(d))
    a, b = (
        sample_by_difficulty(d, .3, method, .8, by, exact=exact),
        sample_by_difficulty(d.iloc[p], .3, method, .8, by, exact=exact)
    )
    assert set(a.id) == set(b.id) and 60 < len(a) < 180
    assert a.id.is_monotonic_increasing  # rows stay in their order
    assert (
        set(sample_by_difficulty(d, .3, method, .8, by, seed=1, exact=exact).id) != set(a.id)
        or method == "hard"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exact", [False, True])
def test_rate_0_and_1_no_rows_and_one_row(method, exact):
    d = corpus()
    assert len(sample_by_difficulty(d, 0, method, exact=exact)) == 0
    assert len(sample_by_difficulty(d, 1, method, exact=exact)) == len(d)
    assert len(sample_by_difficulty(d[:0], .5, method, exact=exact)) == 0
    assert len(sample_by_difficulty(d[:1], .5, method, exact=exact)) in (0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_expected_size_and_shape_over_seeds(method):
    d = corpus(300, 3).assign(rank_score=lambda x: np.arange(300) / 300, instruction_id="one")
    tables = [selection(d, .2, method, .7, seed=s) for s in range(300)]
    share = np.mean([t.kept for t in tables], axis=0)
    assert share.mean() == pytest.approx(.2, abs=.01)
    if method == "soft":
        p = keep_probability((np.arange(300) + .5) / 300, .7, .2)
        assert np.abs(share - p).max() < 4.5 * np.sqrt(.25 / 300) and np.allclose(tables[0].probability, p)
    if method == "hard": assert share[-60:].all() and not share[:-60].any()


@pytest.mark.parametrize("method", METHODS)
def test_exact_sizes_are_the_expectation_rounded(method):
    d = corpus(900, 40)
    t = selection(d, .13, method, .9, exact=True).assign(g=d.instruction_id.to_numpy())
    for _, part in t.groupby("g"):
        expected = part.probability.sum() if method == "soft" else .13 * len(part)
        assert abs(part.kept.sum() - expected) < 1


def test_exact_soft_keeps_each_rows_probability():
    d = corpus(12, 1)
    kept = np.mean([selection(d, .25, a=.8, exact=True, seed=s).kept for s in range(3000)], axis=0)
    # ties are broken anew by each seed, so compare means over equal difficulty by quantile order
    p = np.mean([selection(d, .25, a=.8, exact=True, seed=s).probability for s in range(3000)], axis=0)
    assert np.abs(kept - p).max() < .04


def test_hard_keeps_the_fractional_row_with_the_right_probability_and_small_groups_may_vanish():
    d = pd.DataFrame(dict(
        id=[f"{i}" for i in range(3000)],
        instruction_id=[f"{i // 3}" for i in range(3000)],
        rank_score=[.1, .5, .9] * 1000
    ))
    t = selection(d, .1, "hard")
    assert t.kept.sum() == pytest.approx(300, abs=50) and set(t[t.kept].difficulty) == {.9}
    assert np.allclose(t.probability, [0, 0, .3] * 1000)


def test_equal_difficulties_leave_it_to_the_ids():
    d = corpus(2000, 1).assign(rank_score=.5)
    kept = selection(d, .25).kept.to_numpy()
    assert kept.mean() == pytest.approx(.25, abs=.04) and abs(kept[:1000].mean() - kept[1000:].mean()) < .08


def test_rows_without_difficulty_are_left_out_and_do_not_shift_the_others():
    d = corpus(200)
    hole = pd.concat([
        d, pd.DataFrame(dict(id=["x", "y"], instruction_id=["0", "new"], rank_score=[np.nan, np.nan]))
    ], ignore_index=True)
    with pytest.warns(UserWarning, match="2 of 202 rows"): got = sample_by_difficulty(hole, .4)
    assert set(got.id) == set(sample_by_difficulty(d, .4).id)
    with pytest.warns(UserWarning): assert len(sample_by_difficulty(hole[200:], .4)) == 0


def test_datasets_and_pandas_agree_and_by_takes_columns():
    from datasets import Dataset
    d = corpus().assign(kind=lambda x: np.where(x.index % 2, "a", "b"))
    for by in ("instruction", "instruction_id", "kind", ["kind", "instruction_id"], None):
        a, b = sample_by_difficulty(d, .3, by=by), sample_by_difficulty(Dataset.from_pandas(d), .3, by=by)
        assert isinstance(b, Dataset) and list(b["id"]) == a.id.tolist()


def test_nested_rates():
    d = corpus(3000, 1)
    few, many = set(sample_by_difficulty(d, .1).id), set(sample_by_difficulty(d, .5).id)
    assert few < many  # F grows with the rate and a row keeps its draw


@pytest.mark.parametrize("change, arguments, message", [
    (lambda d: d.drop(columns="rank_score"), {}, "no column 'rank_score'"),
    (lambda d: d.drop(columns="instruction_id"), {}, "no column 'instruction_id'"),
    (lambda d: d.drop(columns="id"), {}, "no column 'id'"),
    (lambda d: d.assign(id="same"), {}, "more than once"),
    (lambda d: d.assign(rank_score="hard"), {}, "must hold numbers"),
    (lambda d: d, dict(method="softly"), "Unknown method"),
    (lambda d: d, dict(by="topic"), "no column 'topic'")
])
def test_bad_input(change, arguments, message):
    with pytest.raises(UserError, match=message): sample_by_difficulty(change(corpus()), .1, **arguments)


def test_a_hundred_thousand_rows_in_seconds():
    import time
    d = corpus(100_000, 500)
    begin = time.process_time()
    n = len(sample_by_difficulty(d, .1))
    assert 9_000 < n < 11_000 and time.process_time() - begin < 15


@given(
    st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1),
    st.sampled_from(METHODS), st.booleans(), st.sampled_from([1, 3, 1000])
)
@hyp(max_examples=120, deadline=None)
def test_any_selection_is_independent_of_order_and_well_formed(seed, n, groups, rate, a, method, exact, levels):
    "Groups of one row, ties (few levels of difficulty) and every rate and a, drawn together."
    rng = np.random.default_rng(seed)
    d = pd.DataFrame(dict(
        id=[f"r{i}" for i in range(n)],
        instruction_id=rng.integers(0, groups, n).astype(str),
        rank_score=rng.integers(0, levels, n) / levels
    ))
    t = selection(d, rate, method, a, seed=seed, exact=exact)
    p = rng.permutation(n)
    again = selection(d.iloc[p], rate, method, a, seed=seed, exact=exact)
    assert again.kept.to_numpy().tolist() == t.kept.to_numpy()[p].tolist()
    assert (
        t.probability.between(0, 1).all()
        and not t.kept[t.probability == 0].any()
        and (exact or t.kept[t.probability == 1].all())
    )
    sizes = d.groupby("instruction_id")["id"].transform("size")
    if method != "random":
        assert (
            np.allclose(t["quantile"][sizes == 1], .5)
            and t["quantile"].between(0, 1, inclusive="neither").all()
        )
    if method == "hard":
        for _, part in t.assign(g=d.instruction_id).groupby("g"):
            assert (
                part.difficulty[part.kept].min() >= part.difficulty[~part.kept].max()
                or not 0 < part.kept.sum() < len(part)
            )
    if method == "soft" and not exact: assert (t.kept == (t.draw < t.probability)).all()


def test_another_measure_is_another_column_and_a_missing_one_is_named():
    d = corpus().rename(columns=dict(rank_score="ifd_score"))
    assert 80 < len(sample_by_difficulty(d, .3, column="ifd_score")) < 160
    with pytest.raises(UserError, match="no column 'perplexity_score'.*ifd_score"):
        sample_by_difficulty(d, .3, column="perplexity_score")


def test_a_familys_sample_goes_by_its_own_students_difficulty(tmp_path, smallest_students):
    "The twin: a run in which that family is the first."
    from compeffdist.difficulty import difficulty_stage
    from compeffdist.sampling import sampling_stage, system_sample
    from compeffdist.settings import load_settings
    from compeffdist.store import Store, write_rows
    from compeffdist.systems import System
    rows = corpus(60, 3).drop(columns="rank_score").assign(
        prompt=[f"Judge text {i}. Output:" for i in range(60)], answer=["lovely", "a dull film"] * 30)
    def store_of(families, name):
        s = load_settings("tiny", outputs=str(tmp_path/name), families=families, workers=1, sampling_rate=0.5)
        store = Store(s)
        store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", rows) or {})
        difficulty_stage(s, store)
        return s, store
    s, store = store_of("llama, qwen3", "both")
    own = dict(method="soft", rate=0.5)
    theirs = system_sample(s, store, System("qwen3", "difficulty-50", scored_by="qwen3", **own))
    first = system_sample(s, store, System("llama", "difficulty-50", **own))
    twin_settings, twin = store_of("qwen3", "alone")
    alone = sampling_stage(twin_settings, twin, "difficulty-50", 0.5, "soft")
    read = lambda store, name: store.rows(name, "sample.parquet").to_pandas()
    assert (theirs.name, first.name) == ("sample-difficulty-50-qwen3", "sample-difficulty-50")
    assert read(store, theirs.name).equals(read(twin, alone.name))
    assert not read(store, theirs.name).rank_score.equals(read(store, first.name).rank_score)
    assert store.has("difficulty-qwen3") and system_sample(
        s, store, System("qwen3", "difficulty-50", scored_by="qwen3", **own)).cached
