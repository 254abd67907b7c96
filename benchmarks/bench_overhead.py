"""What the pipeline costs besides models: a cached tiny run, part by part.

Run `make replicate` first. Then `python benchmarks/bench_overhead.py` runs it again (every notebook opened, every
stage skipped), times an empty notebook beside it in the same session,
and writes benchmarks/results/overhead.json and .md.
"""
import json, statistics, tempfile, time
from pathlib import Path
import nbformat as nbf
from compeffdist.replicate import machine, replicate, run_notebook
from compeffdist.settings import load_settings, project_root
from compeffdist.store import Store, write_json

REPEATS = 3

def empty_notebook(folder: Path) -> float:
    "Seconds of papermill with a notebook that does nothing: start of a kernel, writing the copy."
    nb = nbf.v4.new_notebook(
        cells=[nbf.v4.new_code_cell("profile = 'tiny'", metadata={"tags": ["parameters"]})],
        metadata={"kernelspec": dict(name="python3", display_name="python3", language="python")},
    )
    nbf.write(nb, folder/"empty.ipynb")
    return run_notebook(folder/"empty.ipynb", folder/"out.ipynb", dict(profile="tiny"))

def main() -> None:
    store = Store(load_settings("tiny"))
    runs, empties = [], []
    begin = time.perf_counter()
    replicate("tiny")
    unopened = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            begin = time.perf_counter()
            replicate("tiny", rerun=True)
            runs.append(time.perf_counter() - begin)
            manifest = json.loads((store.root/"manifest.json").read_text())
            if manifest["stages_built"]:
                raise SystemExit(
                    f"Not a cached run: {manifest['stages_built']} were built. Run make replicate first."
                )
            empties.append(empty_notebook(Path(folder)))
    total, empty, n = statistics.median(runs), statistics.median(empties), len(manifest["notebooks"])
    work = sum(s["seconds"] for s in store.stages())
    result = dict(
        machine=machine(), repeats=REPEATS, notebooks=n, nothing_opened_s=round(unopened, 1),
        cached_run_s=[round(r, 1) for r in runs], empty_notebook_s=[round(e, 2) for e in empties],
        stage_work_when_built_s=round(work, 1), overhead_over_stage_work=round(total / work, 3),
        slowest=sorted(manifest["notebooks"].items(), key=lambda x: -x[1])[:5],
    )
    write_json(project_root()/"benchmarks/results/overhead.json", result)
    rows = [
        ("run in which nothing has changed: no notebook is opened", f"{unopened:.0f} s"),
        ("every notebook opened, every stage skipped (median)", f"{total:.0f} s"),
        ("for comparison: an empty notebook × number of notebooks, one after the other", f"{n * empty:.0f} s"),
        ("work of all stages when they were built", f"{work:.0f} s"),
        ("overhead of a cached run over that work", f"{total / work:.0%}"),
    ]
    text = (
        "| part | figure |\n|---|---|\n"
        + "".join(f"| {a} | {b} |\n" for a, b in rows)
        + f"\n{result['machine']['cpu']}, {result['machine']['cores']} cores; {REPEATS} repeats in one session. "
        "Made by `python benchmarks/bench_overhead.py`.\n"
    )
    (project_root()/"benchmarks/results/overhead.md").write_text(text)
    print(text)

if __name__ == "__main__": main()
