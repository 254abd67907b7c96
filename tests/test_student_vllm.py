"A student from the first step to the last: trained, saved, exported, read by vLLM, evaluated there as here."
import json, subprocess, sys
import pytest
from conftest import NEEDS_VLLM, VLLM_ENV
from compeffdist.backends import TransformersTeacher
from compeffdist.evaluate import Student, VLLMStudent, build_prompt, evaluate, labels_by_token, summary
from compeffdist.predict import export_student
from compeffdist.sentibench import TASKS, read_split, render, score
from compeffdist.settings import UserError, load_settings
from compeffdist.store import ResponseRecord, Store, write_rows
from compeffdist.students import student_stage
from compeffdist.texts import write_benchmark

pytestmark = NEEDS_VLLM
ASKED = ["sst2", "irony18", "atsa_rest16"]
RULED = ["imdb", "sst2", "irony18", "tweeteval", "pstance", "atsa_rest16", "asqp_rest16"]
# labels that share a first token, or begin with one another
PROMPTS = [[1, 40 + n, 41, 300 + 7*n] for n in range(24)]
ALIKE = {"a b": [70, 71, 2], "a c": [70, 72, 2], "a": [70, 2], "d": [73, 2]}
OVER = dict(
    shots=1, eval_seeds=[42], eval_limit=12, eval_max_new_tokens=48,
    train_epochs=2, train_batch=8, train_lr=1e-3, train_precision="fp32",
    student_source="package", families=["llama"],
)

# written freely (as a teacher), and by a student's rules
SCRIPT = f"""
import json, sys
from compeffdist.evaluate import VLLMStudent, evaluate, labels_by_token
from compeffdist.settings import load_settings
from compeffdist.store import ResponseRecord
checkpoint, folder, record = sys.argv[1:]
student = VLLMStudent(checkpoint, load_settings("tiny", **{OVER}), chat_template=False, batch=16)
teacher = student.engine # one engine serves both
out = dict(free=evaluate(teacher, {ASKED}, folder=folder, \
settings=load_settings("tiny", **{OVER}), record=ResponseRecord(record)).to_list())
for rule in ("first token", "whole label"):
    student.settings = load_settings("tiny", eval_label_rule=rule, **{OVER})
    out[rule] = evaluate(student, {RULED}, folder=folder, settings=student.settings).to_list()
out["alike"] = labels_by_token({PROMPTS}, {ALIKE}, student._best)
out["logprobs"] = student._logprobs({PROMPTS}, {[ALIKE["a b"]] * len(PROMPTS)})
print("RESULT" + json.dumps(out))
"""

@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """An exported student, trained for some steps from the shipped Llama on train records
    without demonstrations, and its benchmark."""
    root = tmp_path_factory.mktemp("student")
    write_benchmark(root/"bench", 80, 24, 1)
    rows = [
        dict(id=f"{t}/{i}", prompt=build_prompt(TASKS[t], r, ()), answer=render(TASKS[t], r))
        for t in ASKED
        for i, r in enumerate(read_split(root/"bench", t, "train"))
    ]
    store = Store(load_settings("tiny", outputs=str(root), **OVER))
    store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", rows))
    made = student_stage(store.settings, store, "llama", "distilled")
    log = json.loads((made.path/"log.json").read_text())
    assert log["curve"][-1]["loss"] < log["curve"][0]["loss"]
    return export_student(made.path, root/"exported"), root/"bench"

@pytest.fixture(scope="module")
def vllm(student, tmp_path_factory):
    "What one engine made of the student."
    p = subprocess.run(
        [sys.executable, "-c", SCRIPT, *student, tmp_path_factory.mktemp("record")/"there"],
        env={k: v for k, v in VLLM_ENV.items() if k != "VLLM_CPU_KVCACHE_SPACE"}, # the student limits its cache itself
        capture_output=True, text=True, timeout=700,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    return json.loads(p.stdout.split("RESULT")[1])

@pytest.mark.parametrize("rule", ["first token", "whole label"])
def test_by_a_students_rules_vllm_gives_the_same_answers(student, vllm, rule):
    checkpoint, bench = student
    here = evaluate(
        checkpoint, RULED, folder=bench, settings=load_settings("tiny", eval_label_rule=rule, **OVER)
    ).to_list()
    assert vllm[rule] == here and len(here) == 12 * len(RULED)
    assert all(len({r["parsed"] for r in here if r["task"] == t}) > 1 for t in ("sst2", "atsa_rest16"))

def test_labels_that_begin_alike_are_told_apart_as_in_transformers(student, vllm):
    model = Student.from_pretrained(student[0], load_settings("tiny", **OVER))
    assert vllm["alike"] == labels_by_token(PROMPTS, ALIKE, model._best) and set(vllm["alike"]) <= set(ALIKE)
    assert len(set(vllm["alike"])) > 1
    for there, here in zip(vllm["logprobs"], model._logprobs(PROMPTS, [ALIKE["a b"]] * len(PROMPTS)), strict=True):
        assert there == pytest.approx(here, abs=1e-3) and len(there) == 3

def test_a_folder_without_a_checkpoint_starts_no_engine(tmp_path):
    with pytest.raises(UserError, match=f"No model could be loaded from {tmp_path}"): VLLMStudent(tmp_path)

def test_without_vllm_the_error_says_what_to_install(student, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="pip install"):
        evaluate(VLLMStudent(student[0], load_settings("tiny", **OVER)), ["sst2"], folder=student[1],
                 settings=load_settings("tiny", **OVER))

def test_other_settings_than_the_students_are_refused(student):
    asked = load_settings("tiny", eval_label_rule="whole label", **OVER)
    with pytest.raises(UserError, match="eval_label_rule = 'first token'.*'whole label'"):
        evaluate(VLLMStudent(student[0], load_settings("tiny", **OVER)), ["sst2"], folder=student[1], settings=asked)

def test_a_trained_student_answers_in_vllm_as_in_transformers(student, vllm, tmp_path):
    checkpoint, bench = student
    s, there = load_settings("tiny", **OVER), vllm["free"]
    same_way = evaluate(
        TransformersTeacher(str(checkpoint), dtype="float32", chat_template=False), ASKED,
        folder=bench, settings=s, record=ResponseRecord(tmp_path/"here"),
    ).to_list()
    assert [r["output"] for r in there] == [r["output"] for r in same_way] and len(there) == 36
    fast = evaluate(checkpoint, ASKED, folder=bench, settings=s).to_list()
    key = lambda r: (r["task"], r["item"], r["prompt_hash"], r["parsed"], r["correct"])
    labels = [(a, b) for a, b in zip(there, fast) if a["status"] == "label"]
    assert len(labels) > 18 and [key(a) for a, _ in labels] == [key(b) for _, b in labels]
    arrays = [(a, b) for a, b in zip(there, fast) if a["status"] == "json"]
    assert arrays and [key(a) for a, _ in arrays] == [key(b) for _, b in arrays]
    for table in summary(there):
        rows = [r for r in same_way if r["task"] == table["task"]]
        gold = [read_split(bench, table["task"], "test")[r["item"]] for r in rows]
        assert score(table["task"], gold, [r["output"] for r in rows])["f1"] == pytest.approx(table["score"])
