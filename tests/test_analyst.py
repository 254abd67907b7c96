import json, random, re, time
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from compeffdist import analyst
from compeffdist.analyst import DIMENSIONS, analyse, answer, map_labels, parse_prompt, plan, respond

SENTIBENCH = Path(__file__).parents[1].parent / "shared/data/sentibench"
GOOD = [
    "The pasta was delicious and the waiter was very friendly.",
    "I absolutely love this phone, it is amazing!",
    "A gripping, moving film with superb performances."]
BAD = [
    "The pasta was bland and the waiter was very rude.",
    "I hate this phone, it is useless and it broke.",
    "A dull, lifeless film with wooden dialogue."]
FIRST_LINES = "Classify the sentiment. Answer with one of: {}."


def shot(instruction, demos, text, keys=("Input", "Output"), target=""):
    blocks = [f"{keys[0]}: {a}\n{keys[1]}: {b}\n\n" for a, b in demos]
    return (
        f"{instruction}\n\n"
        + "".join(blocks)
        + f"{keys[0]}: {text}\n"
        + (f"Target: {target}\n" if target else "")
        + f"{keys[1]}:")


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(analyst, "MALFORMED", 0.0)


@pytest.mark.parametrize("good,bad", [
    ("positive", "negative"), ("good", "bad"), ("Favourable", "Unfavourable"), ("pro", "con"),
    ("recommended", "not recommended"), ("👍 happy", "👎 unhappy")])
@pytest.mark.parametrize("keys", [
    ("Input", "Output"), ("Sentence", "Label"), ("Text", "Answer"), ("Review", "Sentiment")])
def test_label_names_and_prompt_shapes_do_not_change_the_answer(clean, good, bad, keys):
    instruction = FIRST_LINES.format(f"{good}, {bad}")
    assert [respond(shot(instruction, [], t, keys)) for t in GOOD + BAD] == [good] * 3 + [bad] * 3


def test_the_label_set_may_come_from_the_demonstrations_alone(clean):
    demos = [("What a joy.", "thumbs-up"), ("Utter rubbish.", "thumbs-down")]
    assert [respond(shot("Judge the text.", demos, t)) for t in (GOOD[0], BAD[0])] == ["thumbs-up", "thumbs-down"]


def test_two_label_tasks_never_answer_neutral(clean):
    for text in ("It is a table.", "", "qwxz", "See you at 5 pm."):
        assert respond(shot(FIRST_LINES.format("positive, negative"), [], text)) in ("positive", "negative")


def test_unknown_labels_are_answered_from_the_set(clean):
    assert respond(shot(
        "Assign the text to one of these classes: zorp, blick, quux.",
        [("abc", "zorp"), ("def", "blick")],
        "hello")) in ("zorp", "blick", "quux")


def test_every_dimension_can_be_asked_for_by_every_of_its_names(clean):
    for dimension, spec in DIMENSIONS.items():
        names = list(spec["labels"])
        asked = f"Determine the {spec['keywords'][0]}. Answer with one of: {', '.join(names)}."
        assert respond(shot(asked, [], GOOD[0])) in names, dimension
        assert map_labels(tuple(names), asked)[0] == dimension


def test_stance_follows_the_target(clean):
    instruction = "What is the stance towards the target? Answer with one of: against, favor."
    tweet = "Jane Doe fights for working families. Never vote for that liar Roe! #TeamDoe #NeverRoe"
    got = [respond(shot(instruction, [], tweet, ("Sentence", "Label"), t)) for t in ("Jane Doe", "Richard Roe")]
    assert got == ["favor", "against"]
    assert answer(instruction, (), tweet + " Target: Jane Doe", random.Random(0)) == "favor"


@pytest.mark.parametrize("scale,low,high", [
    ("from 1 to 5", 1, 5), ("on a 0-10 scale", 0, 10), ("between -5 and 5", -5, 5), ("from 0 to 100", 0, 100)])
def test_scores_stay_in_range_and_keep_the_order(clean, scale, low, high):
    bad, good = (float(respond(shot(f"Rate the sentiment {scale}.", [], t))) for t in (BAD[1], GOOD[1]))
    assert low <= bad < (low + high) / 2 < good <= high


def test_extraction_gives_exactly_the_fields_and_literal_spans(clean):
    fields = ["aspect_term", "aspect_category", "opinion", "sentiment"]
    instruction = (
        "Find every quadruple. Answer with a JSON array of objects that have the fields "
        + "; ".join(
            f'"{f}" (one of: food quality, service general, restaurant general)'
            if f == "aspect_category" else f'"{f}"'
            for f in fields))
    for text in GOOD[:1] + BAD[:1]:
        rows = json.loads(respond(shot(instruction, [], text)))
        assert [list(r) for r in rows] == [fields] * 2
        assert {r["aspect_term"]: r["aspect_category"] for r in rows} == {
            "pasta": "food quality", "waiter": "service general"}
        assert all(
            r["opinion"] in text and r["sentiment"] == ("positive" if text in GOOD else "negative")
            for r in rows)


def test_fields_and_order_come_from_the_demonstrations(clean):
    demos = [
        ("Nice soup.", '[{"polarity": "good", "target": "soup"}]'),
        ("Cold rice.", '[{"polarity": "bad", "target": "rice"}]')]
    assert json.loads(respond(shot("Do as in the examples.", demos, "The bread was stale."))) == [
        {"polarity": "bad", "target": "bread"}]


def test_no_opinion_gives_an_empty_array_and_null_holders_an_all_null_row(clean):
    text = "We sat by the window at noon."
    assert respond(shot(
        'Find every aspect term. Answer with a JSON array of objects with "aspect_term" and "sentiment".',
        [], text)) == "[]"
    rows = json.loads(respond(shot(
        'Answer with a JSON array of objects with the fields '
        '"holder", "target", "sentiment_expression", "sentiment_polarity".',
        [], text)))
    assert rows == [dict.fromkeys(("holder", "target", "sentiment_expression", "sentiment_polarity"), "NULL")]


def test_an_object_is_filled_by_the_meaning_of_its_fields(clean):
    got = json.loads(respond(shot(
        'Return a JSON object {"sentiment": "...", "emotion": "...", "confidence": 0.0, "explanation": "..."}.',
        [], BAD[1])))
    assert (
        got["sentiment"] == "negative"
        and got["emotion"] in DIMENSIONS["emotion"]["labels"]
        and 0 <= got["confidence"] <= 1
        and got["explanation"])


def test_prose_quotes_the_text_and_varies_with_the_seed_only_when_warm(clean):
    prompt = shot("Discuss how the writer feels and why.", [], GOOD[1])
    cold, warm = {respond(prompt, s, 0.0) for s in range(20)}, {respond(prompt, s, 1.0) for s in range(20)}
    assert len(cold) == 1 and len(warm) > 3
    assert all(q in GOOD[1] for said in warm for q in re.findall(r'"([^"]+)"', said))
    assert respond(prompt, 7, 1.0) == respond(prompt, 7, 1.0)


def test_about_two_per_cent_are_malformed():
    instruction = FIRST_LINES.format("positive, negative")
    spoilt = sum(respond(shot(instruction, [], f"Text {i}.")) not in ("positive", "negative") for i in range(4000))
    assert 0.01 < spoilt / 4000 < 0.03


def test_spoilt_json_is_told_from_good():
    good = '[{"term": "soup", "sentiment": "positive"}]'
    spoilt = {analyst.garble(good, random.Random(s)) for s in range(60)}
    assert good not in spoilt and any(s.startswith("[") for s in spoilt) and any(not s.startswith("[") for s in spoilt)


@pytest.mark.parametrize("prompt", [
    "", " ", "\n\n", ":", "Input:", "Output:", "Input:\nOutput:", "{", "[]",
    "Label: x\n\nSentence: y", "\x00\ud800", "😀" * 50, "Answer with one of: .", 'JSON "": , [{',
    "from 5 to 1", "labels: a, a, a\n\nInput: b\nOutput:"])
def test_odd_prompts_are_answered(prompt):
    assert isinstance(respond(prompt), str) and isinstance(respond(prompt, 3, 1.0), str)


WORDS = st.sampled_from([
    "Input:", "Output:", "Label:", "Sentence:", "Target:", "\n", "\n\n", "one of:", "JSON",
    "[", "{", "}", "]", '"', "a", "not good", "from 1 to 5", "positive", ",", "or", "the food", "and", "never",
    "\t", "'", "#NeverDoe", "😀", "|", "(", ")"])


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(max_size=300), st.lists(WORDS, max_size=40).map(" ".join)),
    st.integers(0, 2**31 - 1),
    st.sampled_from([0.0, 1.0]))
def test_no_prompt_raises(prompt, seed, temperature):
    assert respond(prompt, seed, temperature) == respond(prompt, seed, temperature)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=400))
def test_spans_of_the_facts_are_literal(text):
    facts = analyse(text)
    for a in facts.aspects:
        assert (
            a.term in facts.text and a.opinion in facts.text
            and a.holder in facts.text and a.expression in facts.text)
    assert -1 <= facts.valence <= 1


@pytest.mark.parametrize("huge", [
    "a " * 50_000, "\n" * 100_000, " " * 100_000, "good, " * 16_000, '"x" ' * 25_000, "(" * 100_000,
    "Input: x\n" * 11_000, "the food was great and " * 4_000, "{" * 50_000 + '"a": ', "!" * 100_000,
    "one of: " * 12_000])
def test_a_huge_prompt_takes_no_huge_time(huge):
    start = time.process_time()
    for prompt in (huge, shot(FIRST_LINES.format("good, bad"), [], huge), shot(huge, [("a", "b")], "hm")):
        assert isinstance(respond(prompt), str)
    assert time.process_time() - start < 6


def test_a_prompt_takes_less_than_two_milliseconds():
    instruction = FIRST_LINES.format("positive, negative, neutral")
    prompts = [
        shot(
            instruction,
            [(GOOD[i % 3], "positive"), (BAD[i % 3], "negative")],
            f"The dish number {i} was not very good, but the owner is a friendly man who made us laugh. #food")
        for i in range(500)]
    respond(prompts[0])
    start = time.process_time()
    for p in prompts: respond(p)
    # twice the promise: other processes share this machine
    assert (time.process_time() - start) / len(prompts) < 0.004


def test_parsing_keeps_multi_line_outputs_and_targets():
    p = parse_prompt("Do it.\n\nInput: one\nOutput: {\n \"a\": 1\n}\n\nInput: two\nTarget: T\nOutput:")
    assert p.demos == (("one", '{\n "a": 1\n}'),) and p.text == "two" and p.target == "T" and p.instruction == "Do it."


@pytest.mark.parametrize("instruction,kind", [
    ("Explain the tone of the text in two sentences.", "prose"),
    ("Score the intensity from 1 to 10.", "score"),
    ("Return JSON with the keys \"emotion\" and \"evidence\".", "json"),
    ("Is the remark sarcastic? Answer with yes or no.", "labels")])
def test_the_kind_of_answer(instruction, kind):
    assert plan(instruction).kind == kind


REAL = {
    "imdb": 0.55, "yelp2": 0.65, "sst2": 0.65, "twitter": 0.45, "irony18": 0.45, "tweeteval": 0.5,
    "pstance": 0.55, "intimacy": 0.4, "atsa_rest16": 0.35, "acsa_rest16": 0.4, "asqp_rest16": 0.2, "opener": 0.25}


@pytest.mark.parametrize("task", list(REAL))
def test_it_works_on_real_texts(task):
    if not SENTIBENCH.is_dir(): pytest.skip("../shared/data/sentibench is not here: real texts cannot be tried")
    from compeffdist import sentibench as S
    spec, records = S.TASKS[task], S.read_split(SENTIBENCH, task, "train")[-150:]
    keys = ("Sentence", "Label" if spec.labels else "Output")
    cut = lambda text: " ".join(text.split()[:36] if spec.labels else text.split())
    outputs = [respond(shot(spec.instruction, [], cut(r["sentence"]), keys, r.get("target", ""))) for r in records]
    assert S.score(task, records, outputs)["f1"] > REAL[task]
