"""What a tiny student needs before polarity can be distilled into it on real texts: random or lexical embeddings,
with or without language modelling while it is taught (DEVIATIONS, rows 17 and 18).

`make replicate PROFILE=mini SENTIBENCH=<folder>` first; then `python benchmarks/ablate_start.py`. It takes the
polarity samples of mini's corpus and mini's tokenizer, trains a student of mini's size from scratch in each of the
four ways, with the same samples in the same order, and scores it on mini's benchmark: 100 items a task, one seed of
demonstrations. Writes benchmarks/results/ablate_start.json and .md.
"""
import os, tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

SAMPLES, TASKS = 12_000, ("imdb", "yelp2", "sst2", "twitter")
ANSWERS = {
    "positive", "negative", "neutral", "good", "bad", "pos", "neg",
    "favorable", "unfavorable", "indifferent", "mixed", "ambivalent",
}
WAYS = [(lexical, lm) for lexical in (False, True) for lm in (0.0, 0.3)]

def one(way: tuple[bool, float]) -> dict:
    "Train and score one student."
    import torch
    torch.set_num_threads(1)
    from transformers import AutoTokenizer
    from compeffdist import base, evaluate, students
    from compeffdist.perspectives import embed
    from compeffdist.settings import load_settings
    from compeffdist.store import Store
    (lexical, lm), s = way, load_settings(
        "mini", sentibench="unused", train_epochs=1, train_lm_weight=way[1], eval_limit=100, eval_seeds="42"
    )
    store = Store(s)
    tok = AutoTokenizer.from_pretrained(store.path("base-llama"))
    rows = [
        r for r in store.rows("corpus", "corpus.parquet").to_list()
        if r["task_type"] == "closed classification" and r["answer"].lower() in ANSWERS
    ][:SAMPLES]
    model = base.new_model("llama", len(tok), s.base_hidden, s.base_layers, s.base_heads, 0, tok)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(
            base.lexical_embeddings(tok, s.base_hidden, (lambda w: embed(w, s)) if lexical else None)
        )
    with tempfile.TemporaryDirectory() as work:
        model, log = students.finetune(model, tok, rows, s, Path(work), name=f"lexical={lexical} lm={lm}")
    scores = evaluate.summary(list(
        evaluate.evaluate((model, tok), TASKS, folder=store.path("benchmark", "benchmark"), settings=s)
    ))
    return dict(
        lexical=lexical, lm_weight=lm, samples=log["counts"]["rows_out"], steps=log["steps"],
        **{x["task"]: round(100 * x["score"], 1) for x in scores},
    )

def main() -> None:
    from compeffdist.replicate import machine
    from compeffdist.settings import project_root
    from compeffdist.store import write_json
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool: results = list(pool.map(one, WAYS))
    out = project_root()/"benchmarks/results"
    write_json(out/"ablate_start.json", dict(machine=machine(), results=results))
    head = "| embeddings | language modelling | " + " | ".join(TASKS) + " |\n|---|---|" + "---|" * len(TASKS) + "\n"
    body = "".join(
        f"| {'lexical' if r['lexical'] else 'random'} | {r['lm_weight']:g} | "
        + " | ".join(f"{r[t]:.1f}" for t in TASKS) + " |\n"
        for r in results
    )
    note = (
        "\nMacro F1 in percent, 100 real test items a task, one run each: "
        f"{results[0]['samples']:,} polarity samples, {results[0]['steps']} steps from scratch. "
        "Made by `python benchmarks/ablate_start.py`.\n"
    )
    (out/"ablate_start.md").write_text(head + body + note)
    print(head + body + note)

if __name__ == "__main__": main()
