"Reading, normalising and counting attributes."
import random, time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from compeffdist import attributes as A
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, write_rows

WORD = st.text(
    alphabet="abcdefghijklmnopqrstuvwxyzéüABCDEFG0123456789'", min_size=1, max_size=9
).filter(
    lambda w: w.strip("'")
    and w.lower() not in ("attribute", "description", "value", "note", "overall", "these")
)
PHRASE = st.lists(WORD, min_size=1, max_size=6).map(" ".join).filter(lambda p: p[0].isalpha() and p[-1].isalnum())
NAME = st.lists(WORD, min_size=1, max_size=3).map(" ".join).filter(
    lambda p: p[0].isalpha() and p[-1].isalnum() and len(p) <= A._LONGEST_NAME
)
VALUE = st.one_of(
    PHRASE,
    PHRASE.map(lambda p: f'{p} ("{p}")'),
    PHRASE.map(lambda p: f"[{p}]"),
    PHRASE.map(lambda p: f"{p} (3/5), see [2]"),
    st.just("-0.8"),
)


@st.composite
def answers(draw):
    "Known triples and one of the many ways to write them down."
    triples = draw(st.lists(st.tuples(NAME, PHRASE.map(lambda p: p + "."), VALUE), min_size=1, max_size=6))
    bold, sep, number = (
        draw(st.booleans()),
        draw(st.sampled_from([" - ", ": ", " – ", " — ", "- ", " : "])),
        draw(st.sampled_from([".", ")", ":"])),
    )
    labels = draw(st.sampled_from([
        ("Attribute Description", "Attribute Value"),
        ("**Attribute Description**", "**Attribute Value**"),
        ("attribute description", "attribute value"),
        ("*Attribute Description*", "*Attribute Value*"),
        ("[Attribute Description]", "[Attribute Value]"),
    ]))
    breaks = draw(st.sampled_from([
        (": ", " "), ("\n   ", "\n   "), (":\n   - ", "\n   - "), (":\n   * ", "\n   * "),
        ("\n", "\n"), (":\n\n     ", "\n\n     "), (" - ", " "), (":\t", "\n\t• "),
    ]))
    item = lambda n, t: (
        f"{n}{number} {'**' if bold else ''}{t[0]}{'**' if bold else ''}"
        f"{breaks[0]}{labels[0]}{sep}{t[1]}{breaks[1]}{labels[1]}{sep}{t[2]}"
    )
    text = draw(st.sampled_from(["\n", "\n\n"])).join(item(n, t) for n, t in enumerate(triples, 1))
    before, after = (
        draw(st.sampled_from(["", "Sure, here is the list:\n\n", "### Attributes\n"])),
        draw(st.sampled_from(["", "\n\nI hope this helps!", "\n\nThese are all attributes (5 in total)."])),
    )
    text = before + text + after
    return triples, draw(st.sampled_from([text, text.replace("\n", "\r\n")]))


@hypothesis_settings(max_examples=150, deadline=None)
@given(answers())
def test_renderings_of_known_triples_are_read_back(case):
    triples, text = case
    found, malformed = A.parse_response(text)
    assert malformed == []
    assert found == triples
    assert A.parse_attributes(text) == triples


BASE = """Preamble (with 2.5 stars):

1. **Tone**: Attribute Description - how it sounds. Attribute Value - warm ("so kind" [1])
2) Price
   - **Attribute Description:** whether it was fair
   - **Attribute Value:** -0.8
3. **Irony/Sarcasm** Attribute Description – hidden meaning Attribute Value – none

Closing words."""


def test_ten_thousand_mutations_never_raise():
    rng, pieces = random.Random(7), [
        "**", "\n", "\n\n", ":", " - ", "Attribute Value", "Attribute Description - ", "4. ",
        "[", ")", "\\", "\u2028", "\x00", "é", "😀", "Value:",
    ]
    outcomes = Counter()
    for _ in range(10_000):
        text = BASE
        for _ in range(rng.randint(1, 6)):
            i, j = rng.randrange(len(text) + 1), rng.randint(0, 30)
            text = (
                text[:i]
                + (rng.choice(pieces) if rng.random() < 0.6 else "")
                + text[i + (j if rng.random() < 0.6 else 0):]
            )
        triples, malformed = A.parse_response(text)
        assert all(len(t) == 3 and all(isinstance(x, str) and x and "\n" not in x for x in t) for t in triples)
        assert all(reason for reason, _ in malformed)
        outcomes[len(triples), bool(malformed)] += 1
    assert len(outcomes) > 5  # the mutations did bite


@pytest.mark.parametrize("text", [
    "*" * 60_000,
    "1. " + "Attribute " * 8_000,
    "1. **" + "[" * 30_000,
    "\n1. a" * 10_000,
    "1. x " + "Attribute Value - " * 4_000,
    " \n" * 30_000,
    "1. n: Attribute Description - d Attribute Value - v" + "\n " * 30_000 + "x",
], ids=["stars", "labels", "brackets", "items", "values", "blank lines", "long gap"])
def test_hostile_answers_take_no_longer_than_they_are_long(text):
    begin = time.process_time()
    A.parse_response(text)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("item, reason", [
    ("1. **Tone**: Attribute Description - how it sounds. Attribute Val", "no value (cut off?)"),
    ("1. **Tone**: how it sounds, warm", "no fields"),
    ("1. Attribute Description - how it sounds. Attribute Value - warm", "no name"),
    ("1. **Tone**: Attribute Description - how it sounds. Attribute Value -", "empty value"),
    ("1. **Tone**: Attribute Value - warm", "no description"),
    ("", "empty answer"), ("   \n", "empty answer"), (None, "empty answer"),
    ("I cannot analyse this text.", "no list"),
    ("1. " + "very " * 30 + "long: Attribute Description - d. Attribute Value - v", "name too long"),
])
def test_what_cannot_be_read_has_a_reason(item, reason):
    triples, malformed = A.parse_response(item)
    assert triples == [] and malformed[0][0] == reason


@pytest.mark.parametrize("text, triple", [
    # the description's label was forgotten
    ("1. Tone: how it sounds. Attribute Value: warm", ("Tone", "how it sounds.", "warm")),
    # short labels
    ("1. Tone\nDescription: how it sounds\nValue: warm", ("Tone", "how it sounds", "warm")),
    # a name like a label
    (
        "1. **Value**: Attribute Description - what it is worth. Attribute Value - high",
        ("Value", "what it is worth.", "high"),
    ),
    # bullets
    (
        "- **Tone**: Attribute Description - how it sounds. Attribute Value - warm",
        ("Tone", "how it sounds.", "warm"),
    ),
    (
        "1. Attribute Name: Tone\n Attribute Description: how it sounds\n Attribute Value:\n  warm",
        ("Tone", "how it sounds", "warm"),
    ),
    # the other order
    (
        "**1. Tone** Attribute Value - warm. Attribute Description - how it sounds",
        ("Tone", "how it sounds", "warm."),
    ),
    (
        "1. Tone: Attribute Description - the self-value: a matter of taste. Attribute Value - 4.5\nof 5",
        ("Tone", "the self-value: a matter of taste.", "4.5 of 5"),
    ),
])
def test_free_variation(text, triple):
    assert A.parse_response(text) == ([triple], [])


@pytest.mark.parametrize("raw, names", [
    ("ATTRIBUTE :  Tone", ["tone"]), ("Tone: Warmth/Cold", ["tone"]), ("Joy/ Joy", ["joy"]),
    ("Use of Use", ["use"]), ("Misuse of Power", ["misuse of power"]),
    ("Attribute: Use of Irony/Sarcasm", ["irony", "sarcasm"]), (" : ", []), ("/", []),
    ("Expectation vs. Reality", ["expectation vs. reality"]), ("Attribute Quality", ["attribute quality"]),
])
def test_normalisation_as_in_the_paper(raw, names):
    assert A.normalise_name(raw) == names


def test_counts_agree_with_a_slow_twin():
    rng = random.Random(3)
    mentions = [
        dict(
            attribute=a,
            raw_name=rng.choice([a, a.upper()]),
            description=rng.choice(["short", "a longer one"]),
        )
        for a in rng.choices("abcdef", weights=[40, 20, 11, 10, 3, 1], k=400)
    ]
    rows = A.count_attributes(iter(mentions), min_count=10)
    slow = {a: [m for m in mentions if m["attribute"] == a] for a in set("abcdef")}
    assert {r["attribute"]: r["count"] for r in rows} == {a: len(ms) for a, ms in slow.items() if len(ms) > 10}
    assert [r["count"] for r in rows] == sorted((r["count"] for r in rows), reverse=True)
    for r in rows:
        assert dict(zip(r["raw_names"], r["raw_counts"])) == Counter(m["raw_name"] for m in slow[r["attribute"]])
        most = Counter(m["description"] for m in slow[r["attribute"]])
        assert most[r["description"]] == max(most.values())


def test_the_threshold_is_exclusive():
    mentions = [dict(attribute=a, raw_name=a, description="d") for a in "a" * 10 + "b" * 11]
    assert [r["attribute"] for r in A.count_attributes(mentions, min_count=10)] == ["b"]
    with pytest.raises(UserError, match="attributes_min_count"): A.count_attributes(mentions, min_count=-1)


def small_store(tmp_path, texts, **overrides):
    settings = load_settings("tiny", outputs=str(tmp_path), **overrides)
    store = Store(settings)
    def build(out, work):
        write_rows(
            out/"texts.parquet",
            [dict(id=f"t{i}", text=t, domain="product") for i, t in enumerate(texts)],
        )
    store.stage("texts", build)
    return settings, store


def test_stage_counts_everything_and_is_skipped_the_second_time(tmp_path):
    texts = [
        "The food was great but the waiter was rude.",
        "I love this lamp!",
        "The film was dull {n}.\nReally.",
    ] * 12
    settings, store = small_store(tmp_path, texts, attributes_min_count=3)
    result = A.attributes_stage(settings, store)
    mentions, table = (
        store.rows("attributes", "mentions.parquet").to_pandas(),
        store.rows("attributes", "attributes.parquet").to_pandas(),
    )
    assert (
        result.counts["rows_in"] == 36
        and result.counts["mentions"] == len(mentions)
        and result.counts["malformed"] == len(store.rows("attributes", "malformed.parquet"))
    )
    assert (table["count"] > 3).all() and table["count"].sum() <= len(mentions)
    assert set(mentions.columns) == {"text_id", "raw_name", "attribute", "description", "value"}
    assert A.attributes_stage(settings, store).cached
    other = load_settings("tiny", outputs=str(tmp_path), attributes_min_count=5)
    again = A.attributes_stage(other, Store(other))
    assert not again.cached and again.counts["rows_out"] <= result.counts["rows_out"]


def test_stage_says_what_to_do_when_no_attribute_is_left(tmp_path):
    settings, store = small_store(tmp_path, ["I love it."], attributes_min_count=500)
    with pytest.raises(UserError, match="Lower attributes_min_count"): A.attributes_stage(settings, store)


def test_real_inventory_is_a_fixed_point_of_normalisation():
    path = Path(__file__).parents[2]/"shared/data/attributes/attributes.tsv"
    if not path.is_file(): pytest.skip("../shared/data/attributes/attributes.tsv is not here")
    names = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    kept = sum(A.normalise_name(n) == [n] for n in names)
    assert len(names) == 1786 and kept >= 0.98 * len(names)

def test_only_so_many_descriptions_of_a_name_are_held():
    late = [dict(attribute="tone", raw_name="tone", description=f"d{i:03}") for i in range(500)]
    often = (
        [dict(attribute="tone", raw_name="tone", description="d000")] * 3
        + [dict(attribute="tone", raw_name="tone", description="d400")] * 5
    )
    (row,) = A.count_attributes(iter(late + often), 10)
    assert row["count"] == 508 and row["description"] == "d000" # d400 came after 64 others and is not counted
