"""What Muon for the matrices adds to AdamW when a tiny student is distilled (`train_muon`, DEVIATIONS row 30).

`make replicate` first; then `python benchmarks/ablate_optimizer.py [family …]`. The students with Muon are those of
the run. Beside them the same base students are trained with AdamW alone on the same rows, in the same order, two side
by side with one thread each, and asked SentiBench as notebook 11a does.
Writes benchmarks/results/ablate_optimizer.json and .md.
"""
import os, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

def row(family: str, muon: float, log: dict, scores: list[dict]) -> dict:
    "One line of the table."
    by_task: dict[str, list[float]] = {}
    for x in scores: by_task.setdefault(x["task"], []).append(100 * x["score"])
    means = {t: sum(v) / len(v) for t, v in by_task.items()}
    return dict(
        family=family, train_muon=muon, precision=log["precision"], steps=log["steps"], final_loss=log["final_loss"],
        mean=round(sum(means.values()) / len(means), 1), **{t: round(v, 1) for t, v in means.items()})

def with_adamw(family: str) -> dict:
    "Train and score one student."
    import torch
    torch.set_num_threads(1)
    from compeffdist import evaluate, students
    from compeffdist.settings import load_settings
    from compeffdist.store import Store, derive_seed
    s = load_settings("tiny", train_muon=0, train_save_steps=0)
    store = Store(s)
    rows = store.rows("corpus", "corpus.parquet").select_columns(["id", "prompt", "answer"]).to_list()
    model, tokenizer = students.load_student(store.path(f"base-{family}"), s.student_dtype)
    with tempfile.TemporaryDirectory() as work:
        model, log = students.finetune(
            model, tokenizer, rows, s, Path(work), derive_seed(s.seed, "student", family), f"{family}, AdamW")
    asked = evaluate.evaluate((model, tokenizer), folder=store.path("benchmark", "benchmark"), settings=s)
    return row(family, 0.0, log, evaluate.summary(list(asked)))

def main() -> None:
    import pandas as pd
    from compeffdist.replicate import machine
    from compeffdist.settings import load_settings, project_root
    from compeffdist.store import Store, read_json, write_json
    os.environ["OMP_NUM_THREADS"] = "1"
    s, out = load_settings("tiny"), project_root()/"benchmarks/results"
    store, families = Store(s), sys.argv[1:] or s.families
    ours = [
        row(f, s.train_muon, read_json(store.path(f"student-{f}-distilled", "log.json")),
            store.rows(f"evaluation-{f}-distilled", "scores.parquet").to_list())
        for f in families]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool: results = list(pool.map(with_adamw, families)) + ours
    results.sort(key=lambda r: (r["family"], r["train_muon"]))
    write_json(out/"ablate_optimizer.json", dict(machine=machine(), results=results))
    (out/"ablate_optimizer.md").write_text(
        "# AdamW and Muon in distillation\n\n"
        f"`python benchmarks/ablate_optimizer.py {' '.join(families)}`, {machine()['cpu']}. Students of `tiny` on its "
        f"whole corpus ({s.corpus_size:,} rows, {s.train_epochs:g} epochs), learning rate {s.train_lr:g}. train_muon: "
        "that of the matrices under Muon, relative to it; 0: AdamW for all. Scores in percent, "
        f"{s.eval_limit} items a task, {len(s.eval_seeds)} seeds of demonstrations. One training run each, so a "
        "difference of a few points on a task means nothing.\n\n"
        + pd.DataFrame(results).to_markdown(index=False) + "\n")

if __name__ == "__main__": main()
