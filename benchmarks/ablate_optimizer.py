"""What Muon for the matrices adds to AdamW when a tiny student is distilled (`train_muon`, DEVIATIONS row 30).

`make replicate` first; then `python benchmarks/ablate_optimizer.py [family …]`. Trains the base students of `tiny`
on its whole corpus with each value of `train_muon`, one process and one thread each, everything else as `tiny` has
it, and asks SentiBench as notebook 11a does. Writes benchmarks/results/ablate_optimizer.json and .md.
"""
import os, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

VALUES = (0.0, 0.7)

def one(way: tuple[str, float]) -> dict:
    "Train and score one student."
    import torch
    torch.set_num_threads(1)
    from compeffdist import evaluate, students
    from compeffdist.settings import load_settings
    from compeffdist.store import Store, derive_seed
    family, muon = way
    s = load_settings("tiny", train_muon=muon)
    store = Store(s)
    rows = store.rows("corpus", "corpus.parquet").select_columns(["id", "prompt", "answer"]).to_list()
    model, tokenizer = students.load_student(store.path(f"base-{family}"), s.student_dtype)
    with tempfile.TemporaryDirectory() as work:
        model, log = students.finetune(
            model, tokenizer, rows, s, Path(work), derive_seed(s.seed, "student", family), f"{family} muon={muon:g}")
    asked = evaluate.evaluate((model, tokenizer), folder=store.path("benchmark", "benchmark"), settings=s)
    scores: dict[str, list[float]] = {}
    for x in evaluate.summary(list(asked)): scores.setdefault(x["task"], []).append(100 * x["score"])
    tasks = {t: round(sum(v) / len(v), 1) for t, v in scores.items()}
    return dict(
        family=family, train_muon=muon, precision=log["precision"], tokens_per_second=log["tokens_per_second"],
        final_loss=log["final_loss"], mean=round(sum(tasks.values()) / len(tasks), 1), **tasks)

def main() -> None:
    import pandas as pd
    from compeffdist.replicate import machine
    from compeffdist.settings import load_settings, project_root
    from compeffdist.store import write_json
    os.environ["OMP_NUM_THREADS"] = "1"
    ways = [(f, v) for v in VALUES for f in sys.argv[1:] or load_settings("tiny").families]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool: results = list(pool.map(one, ways))
    s, out = load_settings("tiny"), project_root()/"benchmarks/results"
    write_json(out/"ablate_optimizer.json", dict(machine=machine(), results=results))
    (out/"ablate_optimizer.md").write_text(
        "# AdamW and Muon in distillation\n\n"
        f"`python benchmarks/ablate_optimizer.py`, {machine()['cpu']}, {results[0]['precision']}. "
        "Students of `tiny` on its whole corpus, "
        f"learning rate {s.train_lr:g}; train_muon: that of the matrices relative to it, 0 = AdamW "
        f"for all. Scores in percent, {s.eval_limit} items a task, {len(s.eval_seeds)} seeds of demonstrations; one "
        "training run each. Two run side by side, so the speeds compare only within a pair.\n\n"
        + pd.DataFrame(results).to_markdown(index=False) + "\n")

if __name__ == "__main__": main()
