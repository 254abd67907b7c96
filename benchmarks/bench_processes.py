"""One student trained by one process and by two, in turn, one thread each.

`python benchmarks/bench_processes.py` needs nothing but the package: the rows are those of bench_training.py, twice, for the shipped Llama and for one of
the width of profile mini. Writes benchmarks/results/processes.json and .md.
"""
import statistics, tempfile, time
from pathlib import Path
import torch
from bench_training import rows
from compeffdist import students
from compeffdist.base import new_model, students_folder
from compeffdist.replicate import machine
from compeffdist.settings import load_settings, project_root
from compeffdist.store import Store, write_json, write_rows
from compeffdist.workers import run_group

EPOCHS, REPEATS = 4, 3

def main() -> None:
    torch.set_num_threads(1)
    data, found = rows(), []
    with tempfile.TemporaryDirectory() as d:
        s = load_settings("tiny", outputs=d, train_epochs=EPOCHS)
        Store(s).stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", data))
        shipped, tok = students.load_student(students_folder()/"llama")
        for name, model in (("shipped", shipped), ("of mini's width", new_model("llama", len(tok), 160, 4, 2, tokenizer=tok))):
            folder = Path(d)/name; model.save_pretrained(folder); tok.save_pretrained(folder)
            times = {1: [], 2: []}
            for i in range(REPEATS):
                for n in times:
                    begin = time.perf_counter()
                    log = run_group(n, "students", "_trained", (s, folder, "corpus", Path(d)/"out", Path(d)/f"work-{name}-{i}-{n}", 1, name))
                    times[n].append((log["counts"]["tokens"] * EPOCHS / log["tokens_per_second"], time.perf_counter() - begin))
            middle = {n: [statistics.median(x) for x in zip(*t)] for n, t in times.items()}
            found.append(dict(student=name, parameters=model.num_parameters(), seconds={n: [[round(x, 2) for x in y] for y in t] for n, t in times.items()}, training=round(middle[1][0] / middle[2][0], 2), whole_call=round(middle[1][1] / middle[2][1], 2)))
    m = machine()
    write_json(project_root()/"benchmarks/results/processes.json", dict(machine=m, rows=len(data), epochs=EPOCHS, repeats=REPEATS, found=found))
    text = "| Llama | parameters | speed of two processes against one, in training | over the whole call |\n|---|---|---|---|\n" + "".join(f"| {f['student']} | {f['parameters']:,} | {f['training']:.2f} | {f['whole_call']:.2f} |\n" for f in found)
    (project_root()/"benchmarks/results/processes.md").write_text(text + f"\n{len(data)} rows, {EPOCHS} epochs, batch {s.train_batch} (so {s.train_batch // 2} rows a process), one thread a process; medians of {REPEATS} interleaved repeats. The whole call includes the start of the processes and what they import; one process was running already. {m['cpu']}, {m['cores']} cores. Made by `python benchmarks/bench_processes.py`.\n")
    print(text)

if __name__ == "__main__": main()
