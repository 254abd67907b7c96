"Correlations and overlaps against slow twins; proxies; what a text search finds."
import math
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from compeffdist.measures import compared_rows, load_proxy, measures_stage, overlap, searched, spearman
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store


def slow_spearman(x, y):
    from scipy.stats import spearmanr
    return spearmanr(x, y).statistic


@given(st.integers(0, 10**6), st.integers(5, 60), st.booleans())
@hyp(max_examples=40, deadline=None)
def test_rho_equals_scipy(seed, n, ties):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=n)
    if ties: x, y = x.round(), y.round()
    expected, got = slow_spearman(x, y), spearman(x, y, samples=5)["rho"]
    assert math.isnan(got) if math.isnan(expected) else got == pytest.approx(expected, abs=1e-9)


def test_interval_equals_a_bootstrap_that_ranks_again():
    rng = np.random.default_rng(0)
    x = rng.normal(size=300); y = x + rng.normal(size=300)
    drawn = [slow_spearman(x[i], y[i]) for i in (rng.integers(0, 300, 300) for _ in range(800))]
    got = spearman(x, y, samples=2000)
    assert (
        np.allclose([got["low"], got["high"]], np.quantile(drawn, [.025, .975]), atol=.015)
        and got["low"] < got["rho"] < got["high"])


def test_groups_take_out_their_means_and_single_rows_say_nothing():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(20), 15)
    x, y = rng.normal(size=300) + 5 * g, rng.normal(size=300) + 5 * g
    assert spearman(x, y)["low"] > .9 and abs(spearman(x, y, g)["rho"]) < .25
    assert spearman(x, 2 * x, g)["rho"] == pytest.approx(1)
    assert math.isnan(spearman([1, 2, 3], [3, 1, 2], ["a", "b", "c"])["rho"])


def test_repeated_rows_widen_the_interval_only_if_they_are_one_cluster():
    rng = np.random.default_rng(2)
    x = rng.normal(size=60); y = x + rng.normal(size=60)
    width = lambda r: r["high"] - r["low"]
    once, copied = spearman(x, y), np.repeat(np.arange(60), 9)
    blind, known = spearman(x[copied], y[copied]), spearman(x[copied], y[copied], clusters=copied)
    assert width(blind) < width(once) / 2 and width(known) == pytest.approx(width(once), rel=.2)


def test_correlation_of_what_cannot_be_correlated():
    with pytest.raises(UserError, match="at least 3"): spearman([1, 2], [1, 2])
    with pytest.raises(UserError, match="at least 3"): spearman([1, 2, 3], [1, 2])
    with pytest.raises(UserError, match="1 of 3 pairs have no value"): spearman([1, 2, math.nan], [1, 2, 3])


def test_overlap_counts_what_both_select():
    rng = np.random.default_rng(0)
    d = pd.DataFrame(dict(id=[f"{i}" for i in range(200)], x=rng.normal(size=200), y=rng.normal(size=200), zero=0.0))
    top = lambda c, k: set(d.nlargest(k, c).id)
    for rate in (.1, .5):
        assert overlap(d, "x", "y", rate) == pytest.approx(
            len(top("x", int(200 * rate)) & top("y", int(200 * rate))) / (200 * rate))
    assert overlap(d, "x", "x", .1) == overlap(d, "zero", "zero", .1) == overlap(d, "x", "y", 1) == 1
    assert overlap(d, "x", "zero", .5) == pytest.approx(.5, abs=.12)
    with pytest.raises(UserError, match="nothing of 200 rows"): overlap(d, "x", "y", 0)
    with pytest.raises(UserError, match="no column 'z'"): overlap(d, "x", "z", .1)


@pytest.mark.parametrize("prompt, answer, seen", [
    ("one of: good, bad\nOutput:", "good", "one of:"), ("one of: good, bad\nOutput:", "fine", None),
    ("good", "good", ""), ("say\nOutput:", "Output", "say\n")])
def test_search_from_the_front(prompt, answer, seen):
    assert searched(prompt, answer) == (prompt if seen is None else seen)


def test_proxies_that_are_not_there():
    s = load_settings("tiny"); store = Store(s)
    with pytest.raises(UserError, match="not a student family"): load_proxy("package:bert", s, store)
    with pytest.raises(UserError, match="no model could be loaded"): load_proxy("/nowhere/at/all", s, store)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A store with a corpus of 30 rows, scored by the shipped student."
    from compeffdist.difficulty import difficulty_stage
    from compeffdist.store import write_rows
    s = load_settings(
        "tiny", outputs=str(tmp_path_factory.mktemp("run")),
        difficulty_compare_rows=12, difficulty_proxies=["package:qwen3"], families=["llama"])
    store = Store(s)
    rows = [
        dict(
            id=f"r{i}", instruction_id=f"i{i % 2}", text_id=f"t{i}",
            prompt=(
                "Name the label: yes, no, perhaps.\n\n"
                f"Input: the soup number {i} was {'fine' if i % 3 else 'cold'}\nOutput:"),
            answer=["yes", "no", "perhaps it is"][i % 3])
        for i in range(30)]
    store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", rows))
    difficulty_stage(s, store)
    return s, store


def test_the_stage_scores_a_part_and_is_not_run_twice(run):
    from compeffdist.difficulty import load_scorer, score
    s, store = run
    done = measures_stage(s, store)
    assert (
        done.counts == dict(rows=12, proxies=1, found_in_prompt=done.counts["found_in_prompt"])
        and not done.cached
        and measures_stage(s, store).cached)
    table, got = compared_rows(s, store), store.rows("measures", "measures.parquet").to_pandas()
    assert got["id"].tolist() == table["id"].tolist() and len(got) == 12
    model, tokenizer, _ = load_scorer(s, store)
    for metric in ("perplexity", "ifd", "length"):
        twin = score(model, tokenizer, table[["id", "prompt", "answer"]], metric, separator=" ")[f"{metric}_score"]
        assert np.allclose(got[f"{metric}_score"], twin, rtol=1e-4)
    proxy = store.rows("measures", "proxies.parquet").to_pandas()
    twin = score(
        *load_proxy("package:qwen3", s, store), table[["id", "prompt", "answer"]], separator=" ")["rank_score"]
    assert np.allclose(proxy.rank_score, twin, atol=1e-5) and set(proxy.proxy) == {"package:qwen3"}
    moved = table.answer.isin(["yes", "no"]).to_numpy()  # the instruction names them
    assert (
        done.counts["found_in_prompt"] == moved.sum()
        and np.array_equal(got.searched_score[~moved], table.rank_score[~moved]))


def test_more_rows_add_to_the_same_ones(run):
    s, store = run
    few, many = (
        set(compared_rows(s.model_copy(update=dict(difficulty_compare_rows=n)), store)["id"])
        for n in (5, 20))
    assert (
        few < many and len(few) == 5
        and len(compared_rows(s.model_copy(update=dict(difficulty_compare_rows=99)), store)) == 30)

def test_a_proxys_folder_may_have_an_at_sign_in_its_path(tiny_checkpoint, tmp_path):
    folder = tmp_path/"run@2"/"checkpoint"
    folder.parent.mkdir()
    folder.symlink_to(tiny_checkpoint)
    s = load_settings("tiny")
    assert load_proxy(str(folder), s, Store(s))[0].num_parameters() > 0
