"The embedded grammar: exact gold, disjoint splits, official formats."
import re
from collections import Counter

import pytest

from compeffdist import grammar as g, phrases
from compeffdist.settings import UserError

KINDS = list(g.DECKS)


@pytest.fixture(scope="module")
def texts():
    "Sixty texts of each kind and split (ten of the small val)."
    return {
        split: [i for kind in KINDS for i in g.generate(60 if split != "val" else 10, kind, 42, split)]
        for split in g.SPLITS}


def words(text): return re.findall(r"[a-z0-9#@']+", text.lower())


def test_spans_are_exact_and_no_border_is_left(texts):
    for item in texts["train"]:
        assert not re.search("[\ue000-\uf8ff{}<>~^=\\[\\]]", item.text), item.text
        for o in item.opinions:
            for text, span in (
                    (o.target, o.target_span), (o.expression, o.expression_span),
                    (o.full, o.full_span), (o.holder, o.holder_span)):
                assert (text is None) == (span is None) and (text is None or item.text[slice(*span)] == text), item
            assert o.full_span[0] <= o.expression_span[0] and o.expression_span[1] <= o.full_span[1]
            assert o.polarity in ("positive", "negative", "neutral") and "#" in o.category


def test_reviews_carry_opinions_of_their_label(texts):
    "The verdict has the label's polarity, and a contrast is recorded whenever both polarities occur."
    for item in texts["test"]:
        seen = {o.polarity for o in item.opinions} - {"neutral"}
        if item.kind in ("imdb", "yelp2", "product", "sst2"):
            assert item.polarity in seen, item.text
            assert (len(seen) == 2) == bool(item.knobs["contrast"]), item.text
        if item.kind == "asqp": assert item.opinions
        assert 3 <= item.knobs["words"] == len(item.text.split()) <= g.MAX_WORDS


def test_no_text_occurs_in_two_splits(texts):
    for a in g.SPLITS:
        keys = [g.content_key(i.text) for i in texts[a]]
        for b in g.SPLITS:
            if a < b: assert not set(keys) & {g.content_key(i.text) for i in texts[b]}, (a, b)


def test_neighbouring_phrases_keep_to_their_side():
    "Structural guarantee: every pair of phrases that met in a text is on the text's side."
    import random
    for test in (True, False):
        for n in range(150):
            w = g.Writer(random.Random(n), test)
            try: g.write_review(w, "imdb", "pos") if n % 2 else g.write_tweet(w, "pstance", "against")
            except g.Stuck: continue
            assert w.keys and all(phrases.on_test_side(a, b) == test for a, b in zip(w.keys, w.keys[1:]))


def test_test_texts_share_words_but_not_clauses(texts):
    grams = lambda split, n: {
        tuple(w[j:j + n])
        for i in texts[split] for w in [words(i.text)]
        for j in range(len(w) - n + 1)}
    share = {n: len(grams("test", n) & grams("user", n)) / len(grams("test", n)) for n in (1, 8)}
    assert share[1] > 0.6 and share[8] < 0.02


def test_labels_are_dealt_in_real_proportions():
    labels = Counter(i.emotion for i in g.generate(100, "tweeteval", 5, "train"))
    assert labels == dict(anger=42, sadness=26, joy=22, optimism=10)


def test_same_seed_same_texts_and_prefix():
    assert g.generate(12, "business", 3, "user") == g.generate(20, "business", 3, "user")[:12]
    assert g.generate(5, "tweet", 3, "user") != g.generate(5, "tweet", 4, "user")


def test_vocabulary_is_moderate_and_texts_are_many(texts):
    every = [i for rows in texts.values() for i in rows]
    for kind in KINDS:
        for split, rows in texts.items():
            mine = [g.content_key(i.text) for i in rows if i.kind == kind]
            assert len(set(mine)) == len(mine) >= 10, (kind, split)
    assert 1000 < len({w for i in every for w in words(i.text)}) < 2200


@pytest.mark.parametrize("kind, split, word", [("novel", "user", "novel"), ("imdb", "dev", "dev")])
def test_unknown_kind_or_split(kind, split, word):
    with pytest.raises(UserError, match=word): g.generate(1, kind, 1, split)


def test_exhausted_grammar_says_what_to_do(monkeypatch):
    monkeypatch.setitem(phrases.tables()["tweets"]["intimacy"], "highly", ["I love you"])
    monkeypatch.setitem(g.DECKS, "intimacy", {"highly": 1})
    with pytest.raises(UserError, match="Ask for fewer"): g.generate(500, "intimacy", 1, "train")


def test_official_formats():
    for task, kind in g.KIND_OF.items():
        items = g.generate(30, kind, 9, "test")
        for item, r in zip(items, g.to_sentibench(task, items)):
            assert r["sentence"] == item.text
            for a in r.get("aspects", []):
                assert a["target"] == (
                    "NULL" if a["from"] == a["to"] == "0" else r["sentence"][int(a["from"]):int(a["to"])])
            for q in r.get("quards", []):
                assert (
                    q["opinion"] in r["sentence"]
                    and q["aspect"] in ("NULL", r["sentence"][r["sentence"].find(q["aspect"]):][:len(q["aspect"])])
                    and q["category"].islower())
            for o in r.get("opinions", []):
                for key in ("Source", "Target", "Polar_expression"):
                    for text, span in zip(*o[key]):
                        begin, end = map(int, span.split(":"))
                        assert r["sentence"][begin:end] == text
    assert {r["label"] for r in g.to_sentibench("pstance", g.generate(30, "pstance", 1, "test"))} == {
        "AGAINST", "FAVOR"}
    assert {r["label"] for r in g.to_sentibench("intimacy", g.generate(60, "intimacy", 1, "test"))} == {
        "Not Intimate", "Moderately Intimate", "Highly Intimate"}


def test_format_of_the_wrong_kind():
    with pytest.raises(UserError, match="needs kind 'opener'"):
        g.to_sentibench("opener", g.generate(1, "imdb", 1, "test"))
    with pytest.raises(UserError, match="no SentiBench task"): g.to_sentibench("imdb2", [])


def test_contractions_keep_borders():
    w = g.Writer(__import__("random").Random(0), False)
    text = "the soup was " + w.mark("O", "not very good", n="1") + " and I am here"
    clean, spans = g._spans(g._contract(text))
    assert clean == "the soup wasn't very good and I'm here" and clean[slice(*spans[0])] == "wasn't very good"
