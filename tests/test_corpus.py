"Planning pairs, rendering prompts, joining answers."
from types import SimpleNamespace
import pandas as pd, pytest
from compeffdist import corpus
from hypothesis import given, settings as hyp, strategies as st
from compeffdist.corpus import cut, distribution, join_answers, plan_corpus, render_prompt
from compeffdist.settings import UserError, load_settings
from compeffdist.teacher import load_teacher


def instructions(analysis, tasks):
    return {
        str(p): dict(
            attribute="a", attributes=["a"],
            analysis=[f"Analyse {p}.{i}" for i in range(a)],
            tasks=[
                dict(
                    id=f"t{p}.{i}", name=f"Name {p}.{i}", type="scoring", description="Rate it from 1 to 5.",
                    demonstrations=[dict(input=f"one two three four {j}", output=str(j)) for j in range(4)])
                for i in range(t)])
        for p, (a, t) in enumerate(zip(analysis, tasks))}

def texts(n): return [dict(id=f"x{i}", text=f"text {i}\nwith two lines") for i in range(n)]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
@hyp(max_examples=60, deadline=None)
def test_pairs_are_unique_and_balanced(counts, n, share, seed):
    value = instructions(*zip(*counts))
    a, t = sum(x for x, _ in counts), sum(x for _, x in counts)
    size = min(max(0, (a + t) * n // 3), 150)
    try: rows = plan_corpus(value, texts(n), size, share, 2, None, seed)
    except UserError: assert a + t == 0 or round(size * share) > a * n or size - round(size * share) > t * n; return
    assert (
        len(rows) == size
        and len({(r["instruction_id"], r["text_id"]) for r in rows}) == size == len({r["id"] for r in rows}))
    if a and t: assert sum(r["kind"] == "analysis" for r in rows) == round(size * share)
    assert rows == plan_corpus(value, texts(n), size, share, 2, None, seed)


def test_every_pair_can_be_used_up():
    rows = plan_corpus(instructions([2, 1], [1, 3]), texts(9), 63, 27 / 63)
    assert len({r["id"] for r in rows}) == 63
    with pytest.raises(UserError, match="different pairs"):
        plan_corpus(instructions([2, 1], [1, 3]), texts(9), 64, 27 / 64)


def test_perspectives_and_texts_take_turns():
    rows = pd.DataFrame(plan_corpus(instructions([1, 5, 2], [9, 1, 1]), texts(200), 400, .25))
    for _, part in rows.groupby("kind"):
        assert part.perspective.value_counts().max() - part.perspective.value_counts().min() <= 1
    assert set(rows.text_id.value_counts()) == {2}
    assert not rows.equals(pd.DataFrame(plan_corpus(instructions([1, 5, 2], [9, 1, 1]), texts(200), 400, .25, seed=1)))


def test_one_kind_missing_gives_all_to_the_other():
    assert {r["kind"] for r in plan_corpus(instructions([2], [0]), texts(20), 30, .1)} == {"analysis"}
    assert {r["kind"] for r in plan_corpus(instructions([0], [2]), texts(20), 30, .9)} == {"task"}


def test_demonstrations_vary_up_to_the_maximum_and_never_show_the_text():
    value = instructions([0], [3])
    rows = plan_corpus(value, texts(60), 150, 0, 3)
    assert {r["demonstrations"] for r in rows} == {0, 1, 2, 3}
    assert all(r["prompt"].count("Input: ") == r["demonstrations"] + 1 == r["prompt"].count("Output:") for r in rows)
    assert all(r["demonstrations"] == 0 for r in plan_corpus(value, texts(60), 50, 0, 0))
    same = [dict(id=f"y{j}", text=f"one two three  four {j}") for j in range(4)]
    assert all(
        r["prompt"].count(same[int(r["text_id"][1])]["text"].replace("  ", " ")) == 1
        for r in plan_corpus(value, same, 12, 0, 9))


def test_prompt_contract():
    assert (
        render_prompt("analysis", "Say how\nit sounds.", "Line one\nline two", max_words=3)
        == "Say how it sounds.\n\nInput: Line one line\nOutput:")
    task = dict(name="N", description="D", demonstrations=[])
    assert (
        render_prompt("task", task, "a b c d", [dict(input="e f g h", output="low")], 2)
        == "N\nD\n\nInput: e f\nOutput: low\n\nInput: a b\nOutput:")
    assert cut("a b c Target: d e", 2) == "a b Target: d e" and cut("a  b\nc", None) == "a b c"


def test_nothing_to_combine():
    with pytest.raises(UserError, match="no user texts"): plan_corpus(instructions([1], [1]), [], 1)
    with pytest.raises(UserError, match="no analysis prompts and no tasks"):
        plan_corpus(instructions([0], [0]), texts(3), 1)
    with pytest.raises(UserError, match="'x1' is empty"):
        plan_corpus(instructions([1], [1]), [dict(id="x0", text="a"), dict(id="x1", text=" \n")], 1)


def test_unusable_answers_are_listed():
    rows = [dict(id=i) for i in "abcd"]
    kept, dropped = join_answers(rows, [
        SimpleNamespace(text=t, finish_reason=f, error="down")
        for t, f in ((" fine ", "stop"), ("", "stop"), (None, "error"), ("cut", "length"))])
    assert kept == [dict(id="a", answer="fine")] and [(d["id"], d["reason"]) for d in dropped] == [
        ("b", "empty answer"), ("c", "no answer: down"), ("d", "cut off at answer_max_tokens")]
    with pytest.raises(ValueError): join_answers(rows, [])


def test_distribution_counts():
    rows = [
        dict(r, answer=f"answer {i % 3}")
        for i, r in enumerate(plan_corpus(instructions([1, 1], [2, 2]), texts(40), 100, .4))]
    table = distribution(pd.DataFrame(rows))
    assert (
        table.samples.to_dict() == {("analysis", "analysis"): 40, ("task", "scoring"): 60}
        and table.distinct_answers.eq(3).all())

def test_nearby_texts_are_those_that_mention_the_nearest_attributes():
    import numpy as np, pandas as pd
    vectors = {
        "irony": [1, 0, 0], "sarcasm": [0.9, 0.1, 0], "price": [0, 1, 0], "tone": [0, 0, 1],
        "Spot the irony. Is it meant": [1, 0.05, 0], "Prices. What does it cost?": [0, 1, 0]}
    mentions = pd.DataFrame(
        [("a", "irony"), ("b", "sarcasm"), ("c", "price"), ("d", "tone"), ("a", "tone")],
        columns=["text_id", "attribute"])
    task = lambda id, name, description: dict(
        id=id, name=name, type="closed classification", description=description, demonstrations=[])
    instructions = {
        "0": dict(
            attributes=["tone", "unseen"], analysis=["How does it sound?"],
            tasks=[task("t0", "Spot the irony", "Is it meant. One of: yes, no.")]),
        "1": dict(attributes=[], analysis=[], tasks=[task("t1", "Prices", "What does it cost?")])}
    near = corpus.nearby_texts(instructions, mentions, lambda names: np.array([vectors[n] for n in names], float), 2)
    assert near["0/analysis/0"] == ["a", "d"] and near["0/task/t0"] == ["a", "b"] and near["1/task/t1"][-1] == "c"

def test_the_nearby_share_is_kept_and_no_pair_comes_twice():
    texts = [dict(id=f"x{i}", text=f"text number {i}") for i in range(200)]
    instructions = {"0": dict(attributes=["tone"], analysis=["How does it sound?", "What is the tone?"], tasks=[])}
    near = {f"0/analysis/{i}": [f"x{j}" for j in range(60)] for i in (0, 1)}
    plan = corpus.plan_corpus(instructions, texts, 160, nearby=near, nearby_share=0.5)
    assert len({(r["instruction_id"], r["text_id"]) for r in plan}) == 160
    assert 0.4 < sum(r["nearby"] for r in plan) / 160 < 0.6
    assert all(r["text_id"] in near[r["instruction_id"]] for r in plan if r["nearby"])
    everything = corpus.plan_corpus(instructions, texts, 200, nearby=near, nearby_share=1.0)
    assert sum(r["nearby"] for r in everything) == 120 and len(everything) == 200
    plain = [{k: v for k, v in r.items()} for r in corpus.plan_corpus(instructions, texts, 160)]
    assert (
        plain == corpus.plan_corpus(instructions, texts, 160, nearby=near, nearby_share=0.0)
        and not any(r["nearby"] for r in plain))


def slow_even(counts, total):
    "One at a time, to whichever answer has the fewest so far and some left."
    out = [0] * len(counts)
    for _ in range(min(total, sum(counts))):
        out[min((i for i in range(len(counts)) if out[i] < counts[i]), key=lambda i: out[i])] += 1
    return out


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 150))
def test_quotas_are_as_even_as_one_at_a_time(counts, total):
    fast, slow = corpus.even_quotas(counts, total), slow_even(counts, total)
    assert sum(fast) == sum(slow) == min(total, sum(counts)) and all(f <= c for f, c in zip(fast, counts))
    assert sorted(fast) == sorted(slow)


def test_even_answers_keep_each_instructions_share_and_do_not_favour_malformed_ones():
    rows = [
        dict(id=f"{k}{i}", instruction_id=k, task_type=t, answer=a)
        for k, t, answers in (
            ("emotion", "closed classification",
             ["joy"] * 140 + ["anger"] * 40 + ["fear"] * 17 + ["Sure! joy", "I think fear", "Hm"]),
            ("open", "open classification", ["joy"] * 90 + ["fear"] * 10))
        for i, a in enumerate(answers)]
    kept = pd.DataFrame(corpus.even_answers(rows, 100))
    assert len(kept) == 100 and kept.instruction_id.value_counts().to_dict() == dict(emotion=67, open=33)
    emotion = kept[kept.instruction_id == "emotion"].answer.value_counts()
    assert (
        emotion["fear"] == 17
        and abs(emotion["joy"] - emotion["anger"]) <= 1
        and emotion.drop(["joy", "anger", "fear"]).sum() <= 2)
    assert (kept[kept.instruction_id == "open"].answer == "joy").all(), "other instructions keep their first rows"
    assert corpus.even_answers(rows, 1000) == rows


def test_an_instruction_that_has_met_every_text_gets_none_and_the_deck_does_not_grow():
    import random
    deck = corpus._Deck(texts(5), random.Random(1))
    assert len({deck.deal("i")["id"] for _ in range(5)}) == 5
    assert [deck.deal("i") for _ in range(9)] == [None] * 9 and deck.deck == []
    assert len({deck.deal("j")["id"] for _ in range(5)}) == 5


def test_too_few_pairs_are_counted_as_the_settings_make_them():
    message = r"^64 samples \(corpus_size times corpus_oversample\) need .*Lower corpus_size or corpus_oversample"
    with pytest.raises(UserError, match=message): plan_corpus(instructions([2, 1], [1, 3]), texts(9), 64, 27 / 64)

def test_the_stage_tells_the_teachers_revision_from_the_encoders():
    def params(**kw):
        settings, seen = load_settings("tiny", embedding_revision="abc", **kw), {}
        corpus.corpus_stage(settings, SimpleNamespace(stage=lambda name, build, params, **_: seen.update(params)))
        assert seen["revision"] == load_teacher(settings).revision != "abc"
        return seen
    assert params(corpus_nearby_share=0.5)["embedding_revision"] == "abc"
    assert "embedding_revision" not in params(corpus_nearby_share=0.0)
