"The microscope agrees with scorer and sampler, and says what it cannot explain."
import math
import numpy as np, pytest, torch
from compeffdist.difficulty import score, token_rank_scores, token_ranks
from compeffdist.microscope import decide, explain, nucleus_sizes, read_answer
from compeffdist.sampling import keep_probability, sample_by_difficulty
from compeffdist.settings import UserError


@pytest.fixture(scope="module")
def pair(tiny_checkpoint):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval(), AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def samples():
    words = "soup staff film ending battery superb dull friendly negative clever".split()
    rng = np.random.default_rng(0)
    pick = lambda n: " ".join(rng.choice(words, n))
    return [
        dict(id=f"s{i}", instruction_id=f"i{i % 3}", prompt=pick(6) + "\nOutput:", answer=pick(1 + i % 5))
        for i in range(24)]


def slow_size(logits, top_p):
    mass, size = 0.0, 0
    for p in sorted(torch.softmax(logits.double(), -1).tolist(), reverse=True):
        mass += p; size += 1
        if mass >= top_p * (1 - 1e-9): return size
    return size


@pytest.mark.parametrize("scale", [0.0, 0.3, 3, 20])
@pytest.mark.parametrize("top_p", [0.1, 0.95])
def test_nucleus_sizes_equal_the_slow_twin_and_fit_the_scores(scale, top_p):
    x = torch.randn(8, 700, generator=torch.Generator().manual_seed(1)) * scale
    sizes = nucleus_sizes(x, top_p)
    assert sizes.tolist() == [slow_size(r, top_p) for r in x]
    targets = torch.arange(8) * 80
    scores, ranks = token_rank_scores(x, targets, top_p), token_ranks(x, targets)
    assert torch.allclose(scores, torch.where(ranks < sizes, ranks / sizes, 1.0))


def test_nucleus_of_everything_and_unusable_logits():
    assert nucleus_sizes(torch.tensor([[0., -math.inf, 1.]]), 1.0).tolist() == [2]
    assert nucleus_sizes(torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(UserError, match="position 1"): nucleus_sizes(torch.tensor([[0., 1.], [math.nan, 0.]]))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_contributions_add_up_to_the_scorers_score(pair, samples, skip, chat):
    keywords = dict(skip_top_rank=skip, separator=" ", chat_template=chat)
    scored = score(*pair, samples, per_token=True, **keywords).to_list()
    for s, row in zip(samples, scored):
        r = read_answer("m", *pair, s, **keywords)
        assert (
            r.score == row["rank_score"]
            and math.isclose(sum(t.contribution for t in r.tokens), r.score, abs_tol=1e-9))
        assert [t.rank for t in r.tokens] == row["token_ranks"] and [t.score for t in r.tokens] == row["token_values"]
        assert (
            all((t.rank == 0) == (t.text == t.expected) or t.rank for t in r.tokens)
            and all(0 <= t.probability <= 1 for t in r.tokens))
    assert len({row["rank_score"] for row in scored}) > 10


@pytest.mark.parametrize("method", ["soft", "hard", "random"])
@pytest.mark.parametrize("by", ["instruction", "instruction_id", None])
def test_decisions_are_the_samplers(pair, samples, method, by):
    table = score(*pair, samples, separator=" ").to_pandas()
    kept = set(sample_by_difficulty(table, 0.4, method, by=by, seed=7).id)
    said = [explain(s, {"m": pair}, {"m": table}, 0.4, method, by=by, seed=7).readings[0].decision for s in samples]
    assert {s["id"] for s, d in zip(samples, said) if d.kept} == kept and 0 < len(kept) < 24
    assert all(not d.note for d in said)
    if method == "soft":
        for s, d in zip(samples, said):
            rivals = table if by is None else table[table.instruction_id == s["instruction_id"]]
            harder = int((rivals.rank_score > float(table.rank_score[table.id == s["id"]].iloc[0])).sum())
            assert (
                d.size == len(rivals)
                and d.place >= harder + 1
                and d.quantile == pytest.approx((d.size - d.place + 0.5) / d.size))
            assert (
                d.probability == pytest.approx(keep_probability(d.quantile, 1.0, 0.4))
                and d.kept == (d.draw < d.probability))


def test_text_and_html_show_every_token_and_every_model(pair, samples):
    table = score(*pair, samples, separator=" ").to_pandas()
    sample = dict(samples[4], answer="<b>soup</b>\n& dull", id="s4")
    e = explain(sample, {"student": pair, "proxy": pair}, {"student": table})
    html, wide, narrow = e._repr_html_(), e.text(160), e.text(70)
    assert (
        html.count("<span title=") == sum(len(r.tokens) for r in e.readings)
        and "<b>soup</b>" not in html and "&amp;" in html)
    assert "student" in wide and "proxy" in wide and "│" in wide and "│" not in narrow
    assert max(map(len, wide.splitlines())) <= 160 and max(map(len, narrow.splitlines())) <= 70
    assert "differs from the one read here" in html  # the table's score is of another answer
    assert html.count("<div") == html.count("</div>") and html.count("<table") == html.count("</table>")
    assert str(e) == e.text() and e.readings[1].decision is None


def test_what_cannot_be_explained(pair, samples):
    table = score(*pair, samples, separator=" ").to_pandas()
    for change, message in (
            (dict(answer=" "), "'s0'.*empty"),
            (dict(prompt="soup " * 600), "'s0'.*cut away entirely")):
        with pytest.raises(UserError, match=message): explain(dict(samples[0], **change), {"m": pair})
    with pytest.raises(UserError, match="lacks prompt"): explain(dict(id="x", answer="a"), {"m": pair})
    with pytest.raises(UserError, match="no such model"): explain(samples[0], {"m": pair}, {"other": table})
    with pytest.raises(UserError, match="'new' occurs 0 times"):
        explain(dict(samples[0], id="new"), {"m": pair}, {"m": table})
    with pytest.raises(UserError, match="no column 'rank_score'"):
        explain(samples[0], {"m": pair}, {"m": table.drop(columns="rank_score")})
    with pytest.raises(UserError, match="rate"): explain(samples[0], {"m": pair}, {"m": table}, rate=10)


def test_a_rate_of_zero_and_of_one(pair, samples):
    table = score(*pair, samples, separator=" ").to_pandas()
    none, whole = (decide(samples[0], table, read_answer("m", *pair, samples[0]), r) for r in (0, 1))
    assert not none.kept and "rate 0" in str(none) and whole.kept and whole.probability == 1


def test_a_stored_row_without_score_has_no_decision(pair, samples):
    table, reading = score(*pair, samples, separator=" ").to_pandas(), read_answer("m", *pair, samples[0])
    table.loc[0, "rank_score"] = math.nan
    with pytest.raises(UserError, match="'s0' has no rank_score among the scored rows"):
        decide(samples[0], table, reading, 0.5)
    assert "whatever the difficulty" in str(decide(samples[0], table, reading, 0.5, "random"))
