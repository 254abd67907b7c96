"""The benchmark: bad files end in one clear message,
gold and scores equal a slow second implementation and numbers worked out by hand."""
import json
import random
from pathlib import Path
import pytest
from compeffdist.sentibench import (
    CATEGORIES, MAX_OUTPUT, TASKS, first_array, gold, judge, parse_array, parse_label, predictions, read_split,
    render, score
)
from compeffdist.settings import UserError

REAL = Path(__file__).parents[1].parent/"shared"/"data"/"sentibench"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real SentiBench is not at {REAL}")


def put(root, task, data, split="test"):
    path = root/TASKS[task].folder/f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode("utf-8-sig"))
    return path


def opinion(source="", target="", expression="", polarity="Positive", text=""):
    "An OpeNER opinion whose spans are found in the text."
    span = lambda s: [[s], [f"{text.index(s)}:{text.index(s) + len(s)}"]] if s else [[], []]
    return dict(
        Source=span(source), Target=span(target), Polar_expression=span(expression),
        Polarity=polarity, Intensity="Standard"
    )


GOOD = dict(sentence="a joy .", label="positive")
ASPECT = {"target": "soup", "category": "FOOD#QUALITY", "polarity": "positive", "from": "4", "to": "8"}


@pytest.mark.parametrize("task, data, parts", [
    (
        "sst2", b"\xef\xbb\xbf[{\"sentence\": \"caf\xe9\", \"label\": \"positive\"}]",
        ["UTF-8", "0xe9 at offset 21", "iconv"],
    ),
    ("sst2", b'[{"sentence": "a", "label": ]', ["line 1", "column 29"]),
    ("sst2", b"[" * 200_000, ["nested too deeply"]),
    ("sst2", {"sentence": "a"}, ["dict", "array"]),
    ("sst2", [], ["no records"]),
    ("sst2", [GOOD, "text"], ["record 1", "str", "object"]),
    ("sst2", [GOOD, {"label": "positive"}], ["record 1", "'sentence'", "label"]),
    ("sst2", [dict(GOOD, sentence=7)], ["record 0", "'7'", "int"]),
    ("sst2", [GOOD, GOOD, dict(GOOD, sentence=" \n")], ["record 2", "empty"]),
    ("sst2", [dict(GOOD, label="neutral")], ["'neutral'", "negative, positive"]),
    ("pstance", [dict(sentence="x", label="FAVOR")], ["'target'"]),
    ("pstance", [dict(sentence="x", label="FAVOR", target=" ")], ["target", "empty"]),
    (
        "atsa_rest16", [dict(sentence="The soup.", aspects=[dict(ASPECT, polarity="mixed")])],
        ["aspects[0]", "'mixed'", "conflict"],
    ),
    ("atsa_rest16", [dict(sentence="The soup.", aspects=[dict(ASPECT, to="end")])], ["to = 'end'"]),
    (
        "acsa_rest16", [dict(sentence="The soup.", aspects=[{"target": "soup", "polarity": "positive"}])],
        ["'category'"],
    ),
    ("atsa_rest16", [dict(sentence="The soup.", aspects=["soup"])], ["aspects[0]", "object"]),
    (
        "asqp_rest16",
        [dict(sentence="The soup.", quards=[dict(aspect="soup", category="food quality", opinion="hot")])],
        ["quards[0]", "'sentiment'"],
    ),
    (
        "opener",
        [dict(sentence="So nice .", opinions=[
            dict(Source=[[], []], Target=[[], []], Polar_expression=[["nice"], ["3:70"]], Polarity="Positive"),
        ])],
        ["Polar_expression", "0 to 9"],
    ),
    (
        "opener",
        [dict(sentence="So nice .", opinions=[
            dict(Source=[[], []], Target=[[], []], Polar_expression=[["nice"], ["3:²"]], Polarity="Positive"),
        ])],
        ["Polar_expression", "0 to 9"],
    ),
    (
        "atsa_rest16",
        [dict(sentence="The soup.", aspects=[
            {"target": "soup", "category": "FOOD#QUALITY", "polarity": "positive", "from": "4", "to": "8²"},
        ])],
        ["to = '8²'", "whole number"],
    ),
])
def test_a_wrong_file_says_what_is_wrong(tmp_path, task, data, parts):
    path = put(tmp_path, task, data)
    with pytest.raises(UserError) as e: read_split(tmp_path, task, "test")
    assert str(path) in str(e.value) and all(p in str(e.value) for p in parts), str(e.value)


def test_missing_empty_and_unknown(tmp_path):
    with pytest.raises(UserError, match="does not exist"): read_split(tmp_path/"nowhere", "sst2", "test")
    with pytest.raises(UserError, match="is empty"): read_split(tmp_path, "sst2", "test")
    put(tmp_path, "sst2", [GOOD])
    with pytest.raises(UserError, match="train.json is missing"): read_split(tmp_path, "sst2", "train")
    with pytest.raises(UserError, match="Allowed: imdb, yelp2"): read_split(tmp_path, "sst5", "test")
    with pytest.raises(UserError, match="is not a folder"): read_split(put(tmp_path, "sst2", [GOOD]), "sst2", "test")


@pytest.mark.parametrize("bom", [True, False])
def test_both_encodings_of_the_release_are_read(tmp_path, bom):
    put(
        tmp_path, "intimacy",
        json.dumps([dict(sentence="né", label="Not Intimate")], ensure_ascii=False)
        .encode("utf-8-sig" if bom else "utf-8")
    )
    assert gold("intimacy", read_split(tmp_path, "intimacy", "test")[0]) == "not intimate"


def test_instructions_name_all_labels_and_fields():
    for t in TASKS.values():
        assert all(x in t.instruction for x in (*t.labels, *t.fields))
        if t.name in ("acsa_rest16", "asqp_rest16"): assert all(c in t.instruction for c in CATEGORIES)
    assert {t.metric for t in TASKS.values() if t.fields} == {"micro_f1", "graph_f1"}


# ---- gold

def test_gold_of_the_structured_task():
    text = "They tried to keep us happy ."
    split = dict(
        Source=[["us"], ["19:21"]], Target=[[], []],
        Polar_expression=[["to keep", "happy"], ["11:18", "22:27"]],
        Polarity="Positive", Intensity="Strong"
    )
    record = dict(sentence=text, opinions=[split])
    assert gold("opener", record) == [dict(
        holder="us", target="NULL", sentiment_expression="to keep AND happy", sentiment_polarity="positive"
    )]
    nothing = dict(sentence=text, opinions=[])
    assert (
        gold("opener", nothing) == []
        and json.loads(render("opener", nothing)) == [dict.fromkeys(TASKS["opener"].fields, "NULL")]
    )


def test_atsa_gold_orders_spans_as_numbers_and_keeps_equal_pairs_at_other_places():
    aspects = [
        dict(ASPECT, **{"from": "30", "to": "34"}),
        dict(ASPECT),
        dict(ASPECT, category="FOOD#PRICES"),
        dict(ASPECT, target="tea", **{"from": "12", "to": "15"})
    ]
    assert [
        g["aspect_term"] for g in gold("atsa_rest16", dict(sentence="", aspects=aspects))
    ] == ["soup", "tea", "soup"]


# ---- parsing

@pytest.mark.parametrize("text", [
    "", None, "   ", "no", "[", "]", "][", "{}", '{"a": 1}', "null", "5", '"x"',
    "[" * 100_000, "[" * 30_000 + "]" * 30_000, '[{"a":' * 20_000, "[" + "1" * 60_000 + "]",
    "x" * 1_000_000, "[" + "1," * MAX_OUTPUT + "1]", "\ud800[", "\x00[\x00]"
])
def test_hopeless_text_is_no_prediction(text):
    items, status = parse_array(text)
    assert (items, status) == ([], "none")
    first_array(text or "")
    for task in TASKS.values():
        record = dict(
            sentence="The soup .", label=(task.labels or ("",))[0], target="x",
            aspects=[ASPECT], quards=[], opinions=[]
        )
        assert not judge(task, record, text)["n_pred"]


@pytest.mark.parametrize("items", [
    [1, None, "x", [], {}],
    [{"aspect_term": None, "sentiment": 3}],
    [{"aspect_term": ["soup"], "sentiment": "positive"}],
    [[["deep"]]],
    [{"holder": {}, "target": 1, "sentiment_expression": [], "sentiment_polarity": True}]
])
def test_items_of_any_shape_are_judged(items):
    for task in TASKS.values():
        record = dict(
            sentence="The soup .", label=(task.labels or ("",))[0],
            aspects=[ASPECT], quards=[], opinions=[opinion(expression="soup", text="The soup .")]
        )
        assert judge(task, record, json.dumps(items))["pred_hits"] == 0


def test_first_array_follows_strings_and_closes_what_was_cut():
    assert first_array(' [{"t": "a ] b"}] [{"t": "c"}]') == '[{"t": "a ] b"}]'
    assert first_array('[{"t": "a"}, {"t": "b') == '[{"t": "a"}]'
    assert first_array('[{"t": "a') == '[{"t": "a'
    assert first_array("[]") == "[]" and first_array("none") == "none"
    assert parse_array(first_array('[{"t": oops}] [{"t": 1}]')) == ([], "none")


def test_labels_in_free_text():
    irony, stance = TASKS["irony18"], TASKS["pstance"]
    assert parse_label(irony, "NON-IRONY") == ("non-irony", "label")
    assert parse_label(irony, "There is no irony; non-irony fits.")[0] == "irony"
    assert parse_label(irony, "ironyx")[0] is None
    assert (
        parse_label(stance, "I would say: Favor!")[0] == "favor"
        and parse_label(stance, "I would say: Favor!", "strict")[0] is None
    )


# ---- scores by hand

TWO = [
    dict(sentence="The soup was hot , the tea cold .", aspects=[
        dict(ASPECT, target="soup", polarity="positive"),
        dict(ASPECT, target="tea", polarity="negative", category="DRINKS#QUALITY", **{"from": "23", "to": "26"})
    ]),
    dict(sentence="We left .", aspects=[])
]


def answer(*pairs, key="aspect_term"): return json.dumps([{key: a, "sentiment": s} for a, s in pairs])


def test_micro_f1_by_hand():
    outputs = [
        answer(
            ("soup", "positive"), ("soup", "positive"), ("tea", "positive"), ("fish", "negative"), ("tea", "angry")
        ),
        answer()
    ]
    # 5 predictions, 2 of them (the repeated one) are gold; 1 of 2 gold tuples found
    s = score("atsa_rest16", TWO, outputs)
    assert (s["precision"], s["recall"]) == (2/5, 1/2) and s["f1"] == pytest.approx(2*.4*.5/.9)
    # as sets: soup, tea, and one for the two that cannot be right
    s = score("atsa_rest16", TWO, outputs, "strict")
    assert (s["precision"], s["recall"]) == (1/3, 1/2)


def test_no_prediction_and_no_gold():
    s = score("atsa_rest16", TWO, ["", ""])
    assert (s["precision"], s["recall"], s["f1"], s["invalid"]) == (1, 0, 0, 2)
    assert (
        score("atsa_rest16", TWO[1:], ["[]"])["f1"] == 1
        and score("atsa_rest16", TWO[1:], ["[]"], "strict")["f1"] == 0
    )
    assert score("opener", [dict(sentence="We left .", opinions=[])], ["[]"])["f1"] == 0


def test_acsa_repeats_in_the_gold_count():
    record = dict(sentence="x", aspects=[dict(ASPECT), dict(ASPECT), dict(ASPECT, category="SERVICE#GENERAL")])
    one = [answer(("food quality", "positive"), key="aspect_category")]
    assert (
        score("acsa_rest16", [record], one)["recall"] == pytest.approx(2/3)
        and score("acsa_rest16", [record], one, "strict")["recall"] == 1/2
    )
    assert predictions(
        TASKS["acsa_rest16"], record, [{"aspect_category": " food quality ", "sentiment": "conflict"}]
    ) == [None]


def test_asqp_drops_what_has_not_exactly_four_fields():
    quad = dict(aspect_term="soup", aspect_category="food quality", opinion="hot", sentiment="positive")
    record = dict(
        sentence="hot soup",
        quards=[dict(aspect="soup", category="food quality", opinion="hot", sentiment="positive")]
    )
    s = score("asqp_rest16", [record], [json.dumps([
        quad, dict(quad, extra=1), {"aspect_term": "soup"}, dict(quad, sentiment="odd")
    ])])
    assert (s["precision"], s["recall"]) == (1/2, 1)


def graph(text, golds, preds):
    fields = TASKS["opener"].fields
    return score("opener", [dict(sentence=text, opinions=golds)], [json.dumps([dict(zip(fields, p)) for p in preds])])


def test_an_empty_part_covers_nothing():
    golds = [dict(
        Source=[["We"], ["0:2"]], Target=[[], []], Polar_expression=[["friendly"], ["8:16"]], Polarity="Positive"
    )]
    assert graph("We like friendly people .", golds, [("NULL", "", "", "positive")])["f1"] == 0


def test_graph_f1_by_hand():
    text = "We loved the very friendly staff of this old hotel ."
    golds = [opinion("We", "staff", "very friendly", "Positive", text), opinion("", "hotel", "old", "Negative", text)]
    # prediction 1: holder 1/1, target "the very friendly staff" 1/4, expression 1/1 -> 3/4;
    # prediction 2: holder differs -> no match
    s = graph(text, golds, [
        ("We", "the very friendly staff", "friendly", "positive"), ("We", "hotel", "old", "negative")
    ])
    assert s["precision"] == pytest.approx((3/4)/2) and s["recall"] == pytest.approx((1 + 1 + 1/2)/3/2)
    # polarity must be equal; a part that the sentence lacks is left out; AND splits a target
    assert graph(text, golds, [("We", "staff", "very friendly", "negative")])["f1"] == 0
    assert graph(text, golds, [("NULL", "hotel AND castle", "old", "negative")])["precision"] == 1
    assert graph(text, golds, [("NULL", "NULL", "NULL", "positive")])["f1"] == 0


def test_graph_f1_keeps_the_published_corners():
    text = "The staff was friendly and the room tiny ."
    g = [opinion("", "staff", "friendly", "Positive", text)]
    # ends inside a token: runs to the end of the sentence (6 tokens from "friendly" on), so the expression weighs 1/6
    assert graph(text, g, [("NULL", "staff", "friend", "positive")])["precision"] == pytest.approx((1 + 1 + 1/6)/3)
    # begins inside a token: covers nothing
    assert graph(text, g, [("NULL", "staff", "riendly", "positive")])["precision"] == 0
    # the weight may come from a better match of another polarity
    two = [opinion("", "staff", "friendly and", "Negative", text), opinion("", "staff", "friendly", "Positive", text)]
    assert graph(text, two, [("NULL", "staff", "friendly and", "positive")])["precision"] == 1


def slow_micro(golds, preds):
    "Pairs of (record number, tuple) searched in flat lists."
    g = [(i, t) for i, ts in enumerate(golds) for t in ts]
    p = [(i, t) for i, ts in enumerate(preds) for t in ts]
    precision = sum(x in g for x in p)/len(p) if p else 1
    recall = sum(x in p for x in g)/len(g) if g else 1
    return precision, recall, 2*precision*recall/(precision + recall) if precision + recall else 0


@pytest.mark.parametrize("seed", range(20))
def test_micro_f1_equals_a_slow_twin(seed):
    rng = random.Random(seed)
    terms, polarities = ["soup", "tea", "fish", "rice"], ["positive", "negative", "neutral", "angry"]
    records = [
        dict(sentence="soup tea rice", aspects=[
            dict(
                ASPECT, target=rng.choice(terms[:2] + ["NULL"]), polarity=rng.choice(polarities[:3]),
                **{"from": str(j), "to": str(j + 1)}
            )
            for j in range(rng.randrange(4))
        ])
        for _ in range(12)
    ]
    said = [[(rng.choice(terms), rng.choice(polarities)) for _ in range(rng.randrange(4))] for _ in records]
    golds = [[(a["target"], a["polarity"]) for a in r["aspects"] if a["target"] != "NULL"] for r in records]
    valid = [[t if t[0] != "fish" and t[1] != "angry" else "wrong" for t in ts] for ts in said]
    s = score("atsa_rest16", records, [answer(*ts) for ts in said])
    assert (s["precision"], s["recall"], s["f1"]) == pytest.approx(slow_micro(golds, valid))


def slow_graph(text, golds, preds):
    "Token sets as sets of characters' words; golds and preds as phrases that are whole words of the sentence."
    words = text.split(" ")
    place = lambda phrase: {words.index(w) for w in phrase.split()} if phrase else {"_"}
    side = lambda ts: [(place(h), place(t), place(e), p) for h, t, e, p in ts]

    def total(a, b):
        weight = 0
        for x in a:
            hits = [y for y in b if all(x[k] & y[k] for k in range(3))]
            if any(y[3] == x[3] for y in hits):
                weight += max(sum(len(x[k] & y[k])/len(x[k]) for k in range(3))/3 for y in hits)
        return weight/len(a) if a else 0
    p, r = total(side(preds), side(golds)), total(side(golds), side(preds))
    return p, r, 2*p*r/(p + r) if p + r else 0


@pytest.mark.parametrize("seed", range(20))
def test_graph_f1_equals_a_slow_twin(seed):
    rng, words = random.Random(seed), "alpha bravo charlie delta echo foxtrot golf hotel".split(" ")
    text = " ".join(words)

    def phrase(empty):
        if empty and rng.random() < .4: return ""
        b = rng.randrange(8); return " ".join(words[b:b + rng.randint(1, 3)])
    draw = lambda: [
        (phrase(1), phrase(1), phrase(0), rng.choice(["positive", "negative"])) for _ in range(rng.randrange(5))
    ]
    golds, preds = draw(), draw()
    s = graph(
        text,
        [opinion(h, t, e, p.title(), text) for h, t, e, p in golds],
        [(h or "NULL", t or "NULL", e, p) for h, t, e, p in preds]
    )
    assert (s["precision"], s["recall"], s["f1"]) == pytest.approx(slow_graph(text, golds, preds))


@pytest.mark.parametrize("task", [t for t in TASKS if TASKS[t].labels])
def test_macro_f1_equals_sklearn_over_the_full_label_set(task):
    from sklearn.metrics import f1_score, precision_score, recall_score
    rng, labels = random.Random(task), TASKS[task].labels
    true = [rng.choice(labels[:2]) for _ in range(60)] # of three labels, one never occurs
    said = [t if rng.random() < .6 else rng.choice([*labels, "rubbish"]) for t in true]
    s = score(task, [dict(sentence="x", label=t.upper()) for t in true], said)
    for name, f in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert s[name] == pytest.approx(f(true, said, labels=list(labels), average="macro", zero_division=0))
    assert s["accuracy"] == sum(a == b for a, b in zip(true, said))/60 and s["invalid"] == said.count("rubbish")


def test_score_refuses_what_does_not_pair_up():
    with pytest.raises(UserError, match="do not pair up"): score("sst2", [GOOD], [])
    with pytest.raises(UserError, match="do not pair up"): score("sst2", [], [])
    with pytest.raises(UserError, match="1 gold records and 3 outputs"): score("sst2", [GOOD], ["positive"] * 3)
    with pytest.raises(UserError, match="3 gold records and 1 outputs"):
        score("atsa_rest16", [dict(sentence="a", aspects=[])] * 3, ["[]"])
    with pytest.raises(UserError, match="official, strict"): score("sst2", [GOOD], ["positive"], "lenient")


@pytest.mark.parametrize("task, bad, says", [
    (
        "sst2", dict(sentence="a", label="meh"),
        "label = 'meh' is not allowed. Allowed .any case.: negative, positive"
    ),
    ("sst2", dict(sentence="a"), "no field 'label'"),
    (
        "atsa_rest16", dict(sentence="The soup", aspects=[dict(ASPECT, polarity="mixed")]),
        r"aspects\[0\]: polarity = 'mixed'"
    ),
    ("sst2", "positive", "not an object")
])
def test_gold_outside_the_set_is_named_by_its_index(task, bad, says):
    good = GOOD if task == "sst2" else dict(sentence="The soup", aspects=[ASPECT])
    with pytest.raises(UserError, match=f"gold record 2.*{says}"): score(task, [good, good, bad], ["[]"] * 3)


# ---- real records

@needs_real
@pytest.mark.parametrize("task", list(TASKS))
def test_real_gold_as_output(task):
    """Gold written as an answer is perfect but for two tasks:
    ASQP has gold with a stray blank, which is stripped from answers only;
    in the structured task a predicted span is put at its first occurrence and may end inside a token."""
    records = read_split(REAL, task, "test")
    s = score(task, records, [render(task, r) for r in records])
    assert s["n_items"] == len(records) and s["invalid"] == 0
    assert s["f1"] == pytest.approx({"asqp_rest16": 0.9962453066, "opener": 0.9418967910}.get(task, 1))
    if not TASKS[task].labels:
        assert score(
            task, [r for r in records if gold(task, r)],
            [render(task, r) for r in records if gold(task, r)], "strict"
        )["f1"] == 1
    cut = (
        score(task, records, [first_array(render(task, r)[:-2] + "\n\nSentence: more [") for r in records])
        if not TASKS[task].labels
        else s
    )
    assert cut["precision"] > .9


@needs_real
def test_real_sizes_and_categories():
    assert [len(read_split(REAL, t, "test")) for t in TASKS] == [
        1000, 1000, 1821, 1000, 784, 1421, 2157, 396, 676, 676, 544, 499
    ]
    seen = {
        g["aspect_category"]
        for s in ("train", "test")
        for r in read_split(REAL, "acsa_rest16", s)
        for g in gold("acsa_rest16", r)
    }
    assert seen == set(CATEGORIES)

@pytest.mark.parametrize("outputs, said", [
    (["positive", 1], "output 1 is int: '1'"), ([{"label": "positive"}, None], "output 0 is dict"),
    ([b"positive", "negative"], "output 0 is bytes"), ("ab", "outputs is one text: 'ab'")])
def test_answers_that_are_no_texts_are_refused(outputs, said):
    records = [dict(sentence="a", label="positive"), dict(sentence="b", label="negative")]
    with pytest.raises(UserError, match=said): score("sst2", records, outputs)
    assert score("sst2", records, ["positive", None])["invalid"] == 1

@pytest.mark.parametrize("said", ["I think positive " + "x" * 100_000, "positive" + " " * 70_000 + "negative"])
def test_an_endless_answer_names_no_label(said):
    assert score("sst2", [dict(sentence="a", label="positive")], [said])["invalid"] == 1
