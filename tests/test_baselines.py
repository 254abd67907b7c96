"Baselines without a language model."
import pytest
from compeffdist.baselines import BASELINES, Baseline, fit_baseline
from compeffdist.evaluate import evaluate, summary
from compeffdist.sentibench import TASKS, gold, judge, render
from compeffdist.settings import UserError, load_settings
from compeffdist.texts import write_benchmark

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    write_benchmark(path, 60, 20, 3)
    return path

@pytest.mark.parametrize("name", BASELINES)
def test_every_task_gets_a_judgeable_answer(folder, name):
    rows = list(evaluate(
        Baseline(name, folder), shots=0, seeds=[1], limit=20, folder=folder, settings=load_settings("tiny")))
    assert len(rows) == 12 * 20 and {r["status"] for r in rows} <= {"json", "label"}
    assert {s["task"] for s in summary(rows)} == set(TASKS)

def test_majority_is_the_most_frequent_answer_and_no_empty_array(folder):
    from compeffdist.sentibench import read_split
    for task in TASKS.values():
        train = read_split(folder, task, "train")
        answers = [render(task, r) for r in train if gold(task, r)]
        got, = set(fit_baseline("majority", task, train)(train))
        assert answers.count(got) == max(map(answers.count, answers))
        assert task.labels or judge(task, train[0], got)["n_pred"] # a prediction, not an empty array nor one of NULLs

def test_bag_of_words_learns_a_word_and_the_nearest_text(folder):
    from compeffdist.sentibench import read_split
    task = TASKS["sst2"]
    train = read_split(folder, task, "train")
    right = [a == render(task, r) for a, r in zip(fit_baseline("bag-of-words", task, train)(train), train)]
    assert sum(right) / len(right) > 0.9
    task = TASKS["atsa_rest16"]
    train = read_split(folder, task, "train")
    assert fit_baseline("bag-of-words", task, train)(train[:5]) == [render(task, r) for r in train[:5]]

def test_one_class_unknown_words_and_refusals(folder):
    from compeffdist.sentibench import read_split
    train = read_split(folder, TASKS["sst2"], "train")
    same = [r for r in train if render(TASKS["sst2"], r) == render(TASKS["sst2"], train[0])]
    assert set(fit_baseline("bag-of-words", TASKS["sst2"], same)(train)) == {render(TASKS["sst2"], train[0])}
    assert len(fit_baseline("bag-of-words", TASKS["sst2"], train)([dict(train[0], sentence="zzz qqq")])) == 1
    with pytest.raises(UserError, match="majority, bag-of-words"): fit_baseline("svm", TASKS["sst2"], train)
    with pytest.raises(UserError, match="sst2 has no train records"): fit_baseline("majority", TASKS["sst2"], [])
