"User texts, benchmark stage, decontamination and bad input."
import json
import random
import shutil
from pathlib import Path

import pytest

from compeffdist import texts as t
from compeffdist.sentibench import TASKS, get_task, read_split
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store

REAL = Path(__file__).parents[2]/"shared/data/sentibench"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    "A small embedded benchmark on disk."
    folder = tmp_path_factory.mktemp("bench")
    t.write_benchmark(folder, 6, 6, 1)
    return folder


def settings_of(tmp_path, **changes):
    return load_settings(
        "tiny", outputs=str(tmp_path/"out"),
        **{**dict(benchmark_train=6, benchmark_test=6, texts_total=40), **changes},
    )


def test_embedded_stages_cache_and_leave_labels_out(tmp_path):
    s = settings_of(tmp_path)
    store = Store(s)
    first = t.benchmark_stage(s, store)
    texts = t.texts_stage(s, store)
    rows = store.rows("texts", "texts.parquet")
    assert rows.column_names == ["id", "text", "domain"] and len(rows) == 40
    assert set(rows["domain"]) == {"product", "business", "film", "tweet", "political"}
    assert [r["id"] for r in store.rows("texts", "knobs.parquet")] == list(rows["id"])
    assert texts.counts["exact"] == texts.counts["near"] == 0 and first.counts["test"] == 72
    assert t.benchmark_stage(s, Store(s)).cached and t.texts_stage(s, Store(s)).cached
    assert all(read_split(store.path("benchmark", "benchmark"), task, "test") for task in TASKS)


def test_folder_stage_reads_the_users_folder_and_notices_a_change(tmp_path, bench):
    folder = tmp_path/"sb"
    shutil.copytree(bench, folder)
    s = settings_of(tmp_path, sentibench=str(folder), texts_source="sentibench")
    t.benchmark_stage(s, Store(s))
    out = t.texts_stage(s, Store(s))
    assert out.counts["rows_in"] == 72 and out.counts["duplicates"] >= 6 and out.counts["rows_out"] == 40
    path = folder/"sc/imdb/test.json"
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    train = json.loads((folder/"sc/imdb/train.json").read_text(encoding="utf-8-sig"))
    path.write_text(
        json.dumps(rows + [dict(sentence=train[0]["sentence"].upper(), label="positive")]),
        encoding="utf-8-sig",
    )
    assert not t.benchmark_stage(s, Store(s)).cached
    again = t.texts_stage(s, Store(s))
    assert again.counts["exact"] == 1 and train[0]["sentence"] not in Store(s).rows("texts", "texts.parquet")["text"]


def slow_decontaminate(rows, tests, n, threshold):
    "The obvious twin: every pair compared."
    sets = {t.normalise(x): t.shingles(t.normalise(x), n) for x in tests}
    return [
        r for r in rows
        if t.normalise(r["text"]) not in sets
        and max(t.jaccard(t.shingles(t.normalise(r["text"]), n), s) for s in sets.values()) < threshold
    ]


def test_decontaminate_agrees_with_all_pairs():
    rng = random.Random(1)
    vocab = [f"w{i}" for i in range(300)]
    tests = [" ".join(rng.choices(vocab, k=rng.randint(3, 30))) for _ in range(150)]
    rows = []
    for i, text in enumerate(tests):
        words = text.split()
        for _ in range(rng.randint(0, 3) if i % 2 else 0): words[rng.randrange(len(words))] = rng.choice(vocab)
        rows.append(dict(id=str(i), text=" ".join(words) if i % 3 else " ".join(rng.choices(vocab, k=12))))
    kept, dropped = t.decontaminate(rows, tests)
    slow = slow_decontaminate(rows, tests, t.NGRAM, t.THRESHOLD)
    assert {r["id"] for r in slow} <= {r["id"] for r in kept}          # nothing is dropped wrongly
    assert len(kept) - len(slow) <= 2 and len(dropped) > 60            # hardly anything is missed
    assert all(d["similarity"] >= t.THRESHOLD and d["match"] in tests for d in dropped)


def test_decontaminate_short_and_empty_inputs():
    rows = [dict(id="1", text="Great!"), dict(id="2", text="great film"), dict(id="3", text="😀")]
    kept, dropped = t.decontaminate(rows, ["great", "😀 "])
    assert [r["id"] for r in kept] == ["2"] and {d["reason"] for d in dropped} == {"exact"}
    assert t.decontaminate([], ["x"]) == ([], []) and t.decontaminate(rows, [])[0] == rows


def test_clean_keeps_the_first_and_counts():
    kept, counts = t.clean([
        dict(text="A b."), dict(text=""), dict(text=None),
        dict(text="a  B"), dict(text="!!!"), dict(text="!!!"),
    ])
    assert [r["text"] for r in kept] == ["A b.", "!!!"] and counts == dict(empty=2, duplicates=2)


def broken(bench, tmp_path, change):
    folder = tmp_path/"sb"
    shutil.copytree(bench, folder)
    change(folder)
    s = settings_of(tmp_path, sentibench=str(folder))
    with pytest.raises(UserError) as e: t.benchmark_stage(s, Store(s))
    assert not (Store(s).artifacts/"benchmark").exists()
    return str(e.value)


def edit(folder, place, change):
    path = folder/place
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    change(rows)
    path.write_text(json.dumps(rows), encoding="utf-8-sig")


CASES = {
    "missing file": (
        lambda f: (f/"sc/sst2/test.json").unlink(),
        ["sst2", "test.json"],
    ),
    "bad JSON": (
        lambda f: (f/"sc/sst2/test.json").write_text('[{"sentence": "a",', encoding="utf-8"),
        ["sst2", "test.json"],
    ),
    "not UTF-8": (
        lambda f: (f/"sc/sst2/test.json").write_bytes(b'[{"sentence": "caf\xe9", "label": "positive"}]'),
        ["test.json", "UTF-8"],
    ),
    "missing field": (
        lambda f: edit(f, "sc/sst2/train.json", lambda r: r[2].pop("sentence")),
        ["sst2", "record 2", "sentence"],
    ),
    "unknown label": (
        lambda f: edit(f, "multifaced/irony18/test.json", lambda r: r[3].update(label="sarcasm")),
        ["irony18", "record 3", "sarcasm"],
    ),
    "empty text": (
        lambda f: edit(f, "sc/imdb/train.json", lambda r: r[1].update(sentence="  ")),
        ["imdb", "record 1"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_benchmark_ends_in_one_clear_error(bench, tmp_path, case):
    change, words = CASES[case]
    message = broken(bench, tmp_path, change)
    assert all(w in message for w in words), message


@pytest.mark.parametrize("make", [False, True])
def test_missing_or_empty_folder(tmp_path, make):
    folder = tmp_path/"none"
    if make: folder.mkdir()
    s = settings_of(tmp_path, sentibench=str(folder))
    with pytest.raises(UserError, match="empty" if make else "does not exist"): t.benchmark_stage(s, Store(s))


def test_unreadable_folder(tmp_path, bench, monkeypatch):
    def refuse(*a, **k): raise PermissionError(13, "Permission denied", str(bench/"sc"))
    monkeypatch.setattr(t, "read_split", refuse)
    with pytest.raises(UserError, match="chmod"): t.copy_benchmark(bench, tmp_path/"copy")


def test_texts_source_needs_a_folder(tmp_path):
    s = settings_of(tmp_path, texts_source="sentibench")
    t.benchmark_stage(s, Store(s))
    with pytest.raises(UserError, match="SENTIBENCH"): t.texts_stage(s, Store(s))


@pytest.mark.parametrize("entry", ["imdb", "a/b", "a/b:", "a/b:text@", "a b/c:text"])
def test_malformed_hub_entry(entry):
    with pytest.raises(UserError, match="texts_hub"): t.hub_source(entry)


def test_hub_texts_draws_equally_and_checks_the_column(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    def load(path, config, split, revision):
        asked.append((path, config, split, revision))
        return datasets.Dataset.from_dict(dict(text=[f"{path} {i}" for i in range(30)]))
    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = t._hub_texts(["a/b:text@v1", "c/d/e:text", "c/d/f:text"], 30, 1) # two configurations of one data set
    assert asked == [("a/b", None, "train", "v1"), ("c/d", "e", "train", None), ("c/d", "f", "train", None)]
    assert (
        len(rows) == 30
        and [sum(r["domain"] == d for r in rows) for d in ("a/b", "c/d/e", "c/d/f")] == [10, 10, 10]
        and len({r["id"] for r in rows}) == 30
    )
    assert [r["text"] for r in rows[10:20]] != [r["text"] for r in rows[20:]]
    with pytest.raises(UserError, match="no column 'body'"): t._hub_texts(["a/b:body"], 5, 1)
    with pytest.raises(UserError, match="texts_hub"): t._hub_texts([], 5, 1)


def test_real_sentibench_texts():
    if not REAL.is_dir(): pytest.skip("no ../shared/data/sentibench on this machine")
    rows = t.user_texts(load_settings("mini", sentibench=str(REAL)))
    assert len(rows) == 29295 and {r["domain"] for r in rows} == {"film", "business", "tweet", "political"}
    kept, counts = t.clean(rows)
    assert counts["empty"] == 0 and 3000 < counts["duplicates"] < 3500
    short = [r for r in kept if r["id"].startswith(("opener", "asqp_rest16"))]
    tests = [
        r["sentence"]
        for task in ("opener", "asqp_rest16", "atsa_rest16")
        for r in read_split(REAL, task, "test")
    ]
    left, dropped = t.decontaminate(short, tests)
    assert len(left) + len(dropped) == len(short) and dropped and get_task("opener").folder == "absa/opener"


def test_two_columns_of_one_data_set_have_ids_of_their_own(monkeypatch):
    datasets = pytest.importorskip("datasets")
    columns = {c: [f"{c} {i}" for i in range(9)] for c in ("title", "body")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_dict(columns))
    rows = t._hub_texts(["a/b:title", "a/b:body", "a/b:body@v1"], 27, 1)
    assert len({r["id"] for r in rows}) == 27 and {r["domain"] for r in rows} == {"a/b"}
