"The older systems: their corpora, and a whole small run of both stages."
import json
import pytest
from compeffdist import base, lineage, texts
from compeffdist.lineage import ICL_HEADERS, KNOWDIST_PROMPTS, icl_prompts, icldist_rows, knowdist_rows
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, read_json
from compeffdist.students import student_stage
from compeffdist.systems import systems, unlike
from compeffdist.teacher import load_teacher

TEXTS = [
    dict(id=f"x{i}", text=t)
    for i, t in enumerate([
        "The soup was lovely.", "A dull film.", "Great, another delay. Just what I needed.",
        "I miss you so much.", "The shop opens at nine.", "Terrible service!"] * 6)]

def test_knowdist_uses_every_instruction_and_no_pair_twice():
    rows = knowdist_rows(TEXTS, len(TEXTS) * len(KNOWDIST_PROMPTS))
    assert (
        len({(r["instruction_id"], r["text_id"]) for r in rows}) == len(rows)
        and len({r["instruction_id"] for r in rows}) == len(KNOWDIST_PROMPTS))
    assert rows != knowdist_rows(TEXTS, len(rows), seed=7) and all(r["prompt"].endswith("Output:") for r in rows)
    with pytest.raises(UserError, match="6 instructions and 36 texts"): knowdist_rows(TEXTS, 217)

def test_icl_prompts_vary_and_leave_sentibenchs_headers_alone():
    prompts = icl_prompts(400)
    assert (
        {p["headers"] for p in prompts} == set(ICL_HEADERS)
        and not set(ICL_HEADERS) & {("Sentence", "Label"), ("Sentence", "Output")})
    assert (
        {p["type"] for p in prompts} == {"extraction", "closed classification"}
        and len({p["instruction"] for p in prompts}) > 100)

def test_demonstrations_are_the_teachers_own_answers(tmp_path):
    s = load_settings("tiny", outputs=str(tmp_path))
    store = Store(s)
    rows = icldist_rows(TEXTS, 60, s, load_teacher(s), store.record, prompts=12, pool=6)
    prompts, texts_of = icl_prompts(12, s.seed), {t["text"] for t in TEXTS}
    assert (
        len({(r["instruction_id"], r["text_id"]) for r in rows}) == len(rows)
        and {r["demonstrations"] for r in rows} >= {0, 1, 2})
    for r in rows:
        p = prompts[r["perspective"]]
        head, tail = p["headers"]
        blocks = r["prompt"].split("\n\n")[1:]
        assert len(blocks) == r["demonstrations"] + 1 and blocks[-1].endswith(f"\n{tail}:")
        for b in blocks[:-1]:
            text, answer = b.removeprefix(f"{head}: ").split(f"\n{tail}: ")
            assert text in texts_of and (
                isinstance(json.loads(answer), list) if p["type"] == "extraction"
                else 0 < len(answer.split()) <= 3)
    with pytest.raises(UserError, match="only 3 user texts"):
        icldist_rows(TEXTS[:3], 5, s, load_teacher(s), store.record)

def test_captions_say_what_the_earlier_systems_were_trained_on():
    said = unlike(load_settings("tiny", lineage=True, lineage_rate=.25, shots=1, base_shots=0))
    assert (
        "base-0-shot: the base student asked with no demonstrations." in said
        and "knowdist-25, icldist-25: trained on 25% as many rows as distilled; "
        "two-stage-25 goes on from knowdist-25" in said)
    assert (
        "icldist: trained on as many rows as distilled" in unlike(load_settings("paper"))
        and unlike(load_settings("tiny", lineage=False, base_shots="none")) == "")

def test_both_stages_train_on_their_share_of_rows(tmp_path, monkeypatch):
    shipped = tmp_path/"shipped"
    base.build_base(
        "llama", [f"{t['text']} {t['id']}" for t in TEXTS], shipped/"llama",
        steps=1, batch=2, vocab=420, hidden=16, layers=1, heads=2)
    base.seal(shipped/"llama", family="llama")
    monkeypatch.setattr(base, "students_folder", lambda: shipped)
    s = load_settings(
        "tiny", outputs=str(tmp_path/"out"), lineage=True, lineage_rate=.5, families="llama",
        texts_total=40, benchmark_train=8, benchmark_test=4, corpus_size=60, train_epochs=1, train_lr=1e-2,
        eval_limit=1, eval_seeds="42", shots=1, shots_reduce=True,
        eval_max_new_tokens=4, eval_max_new_tokens_opener=4, workers=1, curve_rates="1.0", sampling_rate=1.0)
    store = Store(s)
    texts.benchmark_stage(s, store); texts.texts_stage(s, store)
    made = lineage.lineage_corpora(s, store)
    assert (
        [r.name for r in made] == ["corpus-knowdist-50", "corpus-icldist-50"]
        and all(r.counts["wanted"] == 30 and 0 < r.counts["rows_out"] <= 30 for r in made))
    older = [x for x in systems(s) if x.part == "lineage"]
    assert [(x.name, x.sample_stage, x.start, x.rate) for x in older] == [
        ("knowdist-50", "corpus-knowdist-50", "", .5),
        ("icldist-50", "corpus-icldist-50", "", .5),
        ("two-stage-50", "corpus-icldist-50", "knowdist-50", .5)]
    done = {
        x.name: student_stage(
            s, store, x.family, x.name, x.sample_stage, x.start and f"student-{x.family}-{x.start}")
        for x in older}
    assert len({(r.path/"model.safetensors").read_bytes() for r in done.values()}) == 3
    assert read_json(done["two-stage-50"].path/"stage.json")["inputs"].keys() == {
        "student-llama-knowdist-50", "corpus-icldist-50"}
    assert all(r.cached for r in lineage.lineage_corpora(s, store))
    whole = lineage.lineage_corpus_stage(s, store, "knowdist") # an ablation's, whatever lineage_rate is
    assert (
        (whole.name, whole.counts["wanted"]) == ("corpus-knowdist", 60)
        and [
            x.name for x in systems(s.model_copy(update=dict(lineage_rate=1.0)))
            if x.part == "lineage"] == ["knowdist", "icldist", "two-stage"])
    assert not any(x.part == "lineage" for x in systems(load_settings("tiny", lineage=False)))
    assert lineage.lineage_corpora(load_settings("tiny", outputs=str(tmp_path/"other"), lineage=False), store) == []
    with pytest.raises(UserError, match="knowdist, icldist"): lineage.lineage_corpus_stage(s, store, "knowledge")

@pytest.mark.parametrize("prompts", [11, 12]) # 36 texts, steps of 18 and 19: with and without a common divisor
def test_icldist_gives_as_many_rows_as_asked_for_or_says_that_it_cannot(tmp_path, prompts):
    s = load_settings("tiny", outputs=str(tmp_path))
    make = lambda size: icldist_rows(
        TEXTS, size, s, load_teacher(s), Store(s).record, prompts=prompts, pool=6)
    whole = make(prompts * 30)
    assert len({(r["instruction_id"], r["text_id"]) for r in whole}) == len(whole) == prompts * 30
    assert make(60) == whole[:60]
    with pytest.raises(UserError, match=f"the 30 texts .* only {prompts * 30} pairs"): make(prompts * 30 + 1)
    with pytest.raises(UserError, match="217 rows of KnowDist are wanted"): knowdist_rows(TEXTS, 217)
