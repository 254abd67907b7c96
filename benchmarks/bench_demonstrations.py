"""What demonstrations in the prompt do to small students: the same checkpoints asked with none, one and two.

`python benchmarks/bench_demonstrations.py SENTIBENCH NAME=CHECKPOINT ...`, run in a checkout whose `mini` made the
checkpoints; texts are cut as in `mini`. Tasks with labels only, one seed of demonstrations. Writes
benchmarks/results/demonstrations.json and .md. Without arguments: `mini`'s own student, if it is there.
"""
import os, sys
from compeffdist.evaluate import evaluate, summary
from compeffdist.replicate import machine
from compeffdist.sentibench import TASKS
from compeffdist.settings import load_settings, project_root
from compeffdist.store import read_json, write_json

SHOTS, SEED, ITEMS = (0, 1, 2), 42, 200
OWN = project_root()/"outputs/mini/artifacts/student-llama-distilled"
SAID = project_root()/"benchmarks/results/demonstrations.json"

def main(folder: str, *named: str) -> None:
    settings = load_settings("mini", sentibench=folder)
    names = [t.name for t in TASKS.values() if t.labels]
    given = [n.split("=", 1)[0] for n in named]
    # of students measured before
    rows = [r for r in (read_json(SAID)["rows"] if SAID.is_file() else []) if r["student"] not in given]
    for name, path in (n.split("=", 1) for n in named):
        for shots in SHOTS:
            items = evaluate(path, names, shots, (SEED,), ITEMS, folder=folder, settings=settings)
            rows.append(dict(
                student=name, shots=shots, items=ITEMS, seed=SEED,
                scores={s["task"]: round(100 * s["score"], 1) for s in summary(items)},
            ))
            print(rows[-1], flush=True)
    write_json(SAID, dict(machine=machine(), rows=rows))
    head = "| student | shots | " + " | ".join(names) + " | mean |\n|" + "---|" * (len(names) + 3) + "\n"
    body = "".join(
        f"| {r['student']} | {r['shots']} | "
        + " | ".join(str(r["scores"][n]) for n in names)
        + f" | {sum(r['scores'].values()) / len(names):.1f} |\n"
        for r in rows
    )
    text = (
        "# Demonstrations and small students\n\n"
        "Distilled Llamas of `mini` that were trained with different numbers of demonstrations in their prompts, "
        f"each asked with {', '.join(map(str, SHOTS))}. "
        f"Macro F1 in percent, {ITEMS} real test items a task, seed {SEED}, tasks with labels, "
        f"texts cut to {settings.max_words} words. One training run each. "
        "How each was made: `COMPEFFDIST_CORPUS_MAX_DEMONSTRATIONS` = 2, 1, 0 and `COMPEFFDIST_CORPUS_SIZE` as named, "
        "everything else as `mini`'s section of settings.ini was at 717e362 (AdamW, a learning rate of 1.5e-3), "
        "`make replicate PROFILE=mini SENTIBENCH=<folder>` up to notebook 10.\n\n"
        + head + body
        + "\nMade by `python benchmarks/bench_demonstrations.py`; its first lines say how.\n"
    )
    SAID.with_suffix(".md").write_text(text)
    print(text)

if __name__ == "__main__":
    given = sys.argv[1:] or (
        [os.environ["COMPEFFDIST_SENTIBENCH"], f"mini={OWN}"]
        if OWN.is_dir() and os.environ.get("COMPEFFDIST_SENTIBENCH") else []
    )
    if len(given) >= 2: main(*given)
    else: # no failure: make bench goes on with the next one
        print(
            "Nothing was measured: name a SentiBench folder and checkpoints (NAME=FOLDER), "
            f"or run make replicate PROFILE=mini SENTIBENCH=<folder> first, so that {OWN} is there."
        )
