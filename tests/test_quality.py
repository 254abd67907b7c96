"Quality of an instruction set: every measure against a slow obvious twin, every finding with its reason."
import itertools, random
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from compeffdist import quality as Q
from compeffdist.instructions import TYPES
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, write_json, write_rows
from compeffdist.texts import jaccard, normalise, shingles


def task(
    id="p000-t0", type="closed classification", description="One of: good, bad.",
    outputs=("good", "bad", "good", "bad")
):
    return dict(
        id=id, name="T", type=type, description=description,
        demonstrations=[dict(input=f"{id} sample {i}", output=o) for i, o in enumerate(outputs)]
    )


def test_repeats_equal_the_slow_twin():
    rng = random.Random(1)
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(40)]
    for t in texts[:15]:
        w = t.split(); w[rng.randrange(30)] = "other"; texts.append(" ".join(w))
    texts += [texts[0].upper() + "!", texts[3]]
    found, slow, kept = Q.find_repeats(texts, 0.7), [], []
    for i, t in enumerate(texts):
        exact = [j for j in kept if normalise(texts[j]) == normalise(t)]
        near = [j for j in kept if jaccard(shingles(normalise(texts[j])), shingles(normalise(t))) >= 0.7]
        if exact: slow.append((i, exact[0], "exact"))
        elif near: slow.append((i, near[0], "near"))
        else: kept.append(i)
    assert [(r["position"], r["of"], r["reason"]) for r in found] == slow and len(slow) > 10
    assert Q.find_repeats([]) == [] and Q.find_repeats(["", ""])[0]["reason"] == "exact"


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), max_size=5), st.integers(1, 3))
def test_distinct_n(texts, n):
    grams = [tuple(t.split()[i:i + n]) for t in texts for i in range(len(t.split()) - n + 1)]
    got = Q.distinct_n(texts, n)
    assert got == len(set(grams)) / len(grams) if grams else np.isnan(got)


def test_dispersion_and_coverage_equal_slow_twins():
    rng = np.random.default_rng(0)
    unit = lambda n: (v := rng.normal(size=(n, 5))) / np.linalg.norm(v, axis=1, keepdims=True)
    a, i = unit(9), unit(6)
    assert (
        Q.dispersion(a) == pytest.approx(np.mean([1 - x @ y for x, y in itertools.permutations(a, 2)]))
        and np.isnan(Q.dispersion(a[:1]))
    )
    counts, home, owner = [9, 8, 7, 6, 5, 4, 3, 2, 1], list("001122334"), list("012345")
    got = Q.coverage(a, counts, home, i, owner)
    near = [max(range(6), key=lambda k: x @ i[k]) for x in a]
    own = [owner[k] == h for k, h in zip(near, home)]
    assert (
        got["own"] == pytest.approx(np.mean(own))
        and got["own_weighted"] == pytest.approx(sum(c for c, o in zip(counts, own) if o) / 45)
    )
    assert (
        got["nearest"] == pytest.approx(np.mean([x @ i[k] for x, k in zip(a, near)]))
        and got["own_chance"] == pytest.approx(1 / 6)
    )


@pytest.mark.parametrize("changes, reasons", [
    ({}, []),
    (dict(type="extraction", outputs=("[]",) * 4), []),
    (dict(outputs=("good",) * 4), ["fewer than two labels shown"]),
    (dict(outputs=("good", "Good", "bad", "bad")), ["label spelt in two ways"]),
    (dict(outputs=("good", "bad", "odd")), ["label not in the definition"]),
    (dict(description="One of: goodness, bad."), ["label not in the definition"]),
    (dict(outputs=("good",) * 19 + ("bad",)), ["one label in more than 90% of the demonstrations"])
])
def test_labels(changes, reasons):
    assert [r for r, _ in Q.label_faults(task(**changes))] == reasons


def test_formats_are_judged_beside_the_other_demonstrations():
    assert Q.format_faults(task()) == []
    assert Q.format_faults(
        task(type="scoring", description="From 1 to 5.", outputs=("1", "2", "high"))
    ) == [("demonstration: output is not a number", "p000-t0 sample 2")]
    assert [
        r for r, _ in Q.format_faults(task(type="extraction", outputs=("[]", "[]", "none")))
    ] == ["demonstration: output is not in the examples' format"]


def instructions():
    one = task()
    two = task("p001-t0", "scoring", "From 1 to 5.", ("1", "2", "3", "4"))
    bad = task("p001-t1", outputs=("good",) * 4)
    return {
        "0": dict(
            attribute="mood", attributes=["mood"],
            analysis=["How does this text feel to a reader?", "Which words carry it?"], tasks=[one]
        ),
        "1": dict(
            attribute="price", attributes=["price"],
            analysis=["How does this text feel, to a reader?"], tasks=[two, bad]
        )
    }


def test_findings_name_perspective_id_and_reason():
    value = instructions()
    value["1"]["tasks"][0]["demonstrations"][3] = dict(input="p000-t0 sample 0", output="4")
    faults = [(f["perspective"], f["id"], f["reason"]) for f in Q.find_faults(value)]
    assert (
        ("1", "p001-a0", "exact repeat of an instruction") in faults
        and ("1", "p001-t1", "fewer than two labels shown") in faults
        and ("1", "p001-t0", "exact repeat of a demonstration's input") in faults
    )
    assert not any(id == "p000-t0" for _, id, _ in faults)


def test_types_covered_needs_a_valid_task():
    assert Q.types_covered(instructions()) == (
        dict.fromkeys(TYPES, 0) | {"closed classification": 1, "scoring": 0.5, "analysis": 1}
    )
    assert Q.types_covered(instructions(), ["p001-t1"])["closed classification"] == 0.5
    with pytest.raises(UserError, match="empty"): Q.types_covered({})


def test_table_of_a_set():
    frame = pd.DataFrame(dict(attribute=["mood", "price"], count=[9, 1], perspective=[0, 1]))
    def embedder(texts):
        v = np.array([[1.0 + ("feel" in t), 1.0 + ("price" in t), len(t) % 7] for t in texts])
        return v / np.linalg.norm(v, axis=1, keepdims=True)
    rows = Q.quality_table(instructions(), frame, Q.find_faults(instructions()), embedder)
    value = {(r["part"], r["measure"]): r["value"] for r in rows}
    assert (
        value["diversity", "analysis: texts"] == 3
        and value["perspectives with a valid task", "closed classification"] == 0.5
        and value["findings", "fewer than two labels shown"] == 1
    )
    with pytest.raises(UserError, match="no prompt and no task"):
        Q.quality_table({"0": dict(analysis=[], tasks=[])}, frame, [], embedder)


def test_counts_at_each_step_add_up(tmp_path):
    store = Store(load_settings("tiny", outputs=str(tmp_path)))
    def attributes(out, work):
        write_rows(out/"malformed.parquet", [
            dict(text_id="1", reason=r, item="") for r in ["no fields"] * 3 + ["no list"]
        ])
        return dict(rows_in=5, rows_out=2, mentions=20, names=6, malformed=4, dead=1)
    def built(out, work):
        write_json(out/"instructions.json", instructions())
        write_rows(out/"dropped.parquet", [
            dict(perspective=0, step=s, reason=r, item="")
            for s, r in [
                ("tasks", "duplicate name"), ("definition", "no JSON"),
                *[("demonstration", f"reason {i}") for i in range(7)]
            ]
        ])
        return dict(rows_in=2, rows_out=3, analysis=3, demonstrations=12)
    store.stage("texts", lambda out, work: write_json(out/"x.json", 1) or dict(
        rows_in=12, rows_out=5, empty=1, duplicates=2, exact=0, near=1
    ))
    store.stage("attributes", attributes)
    store.stage("perspectives", lambda out, work: write_json(out/"x.json", 1) or dict(perspectives=2))
    store.stage("instructions", built)
    rows = {r["step"]: r for r in Q.step_counts(store)}
    assert rows["user texts"] == dict(
        step="user texts", rows=5, dropped=7,
        reasons="more than texts_total (3); said before (2); empty (1); nearly a test text (1)"
    )
    assert (
        rows["texts asked about"]["dropped"] == 1
        and rows["mentions read"] == dict(
            step="mentions read", rows=20, dropped=4, reasons="no fields (3); no list (1)"
        )
    )
    assert (
        rows["attributes after the threshold"]["dropped"] == 4
        and (
            rows["tasks proposed"]["rows"], rows["tasks proposed"]["dropped"],
            rows["tasks kept"]["rows"], rows["tasks kept"]["dropped"]
        ) == (4, 1, 3, 1)
    )
    assert (
        rows["demonstrations"]["dropped"] == 7
        and "2 other reasons (2)" in rows["demonstrations"]["reasons"]
        and rows["analysis prompts"]["reasons"] == "–"
    )


def test_valid_tasks_do_not_hang_on_the_wording_of_findings():
    frame = pd.DataFrame(dict(attribute=["mood", "price"], count=[9, 1], perspective=[0, 1]))
    def valid(faults):
        rows = Q.quality_table(instructions(), frame, faults, lambda texts: np.eye(3)[[len(x) % 3 for x in texts]])
        return {r["measure"]: r["value"] for r in rows if r["part"] == "perspectives with a valid task"}
    assert valid([]) == valid(Q.find_faults(instructions())) and valid([])["closed classification"] == 0.5
