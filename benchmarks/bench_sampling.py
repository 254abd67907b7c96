"""Sampling from a million rows: seconds and peak memory of the whole process, each way in a process of its own.
One thread: CPU seconds are what a free machine takes.

    .venv/bin/python benchmarks/bench_sampling.py [--rows 1000000]

Targets: under 30 s and 1 GiB. Writes benchmarks/results/sampling.json and .md.
"""
import argparse, json, resource, subprocess, sys, time
from compeffdist.replicate import machine
from compeffdist.settings import project_root
from compeffdist.store import write_json

WAYS = {"soft, within 5,000 instructions": dict(method="soft"), "hard, within 5,000 instructions": dict(method="hard")}


def one(rows, way, kind):
    "Sample once and print seconds, rows kept and peak memory."
    import numpy as np, pandas as pd
    from compeffdist.sampling import sample_by_difficulty
    rng = np.random.default_rng(0)
    data = pd.DataFrame(dict(
        id=np.arange(rows).astype(str), instruction_id=rng.integers(0, 5000, rows).astype(str),
        rank_score=rng.random(rows).round(3),
    ))
    if kind == "datasets":
        from datasets import Dataset
        data = Dataset.from_pandas(data)
    before, begin, cpu = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    )
    kept = len(sample_by_difficulty(data, 0.1, **WAYS[way]))
    print(json.dumps(dict(
        seconds=round(time.perf_counter() - begin, 2), cpu_seconds=round(time.process_time() - cpu, 2),
        kept=kept, before_gib=round(before / 2**20, 2),
        peak_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--kind", default="pandas", choices=("pandas", "datasets"))
    a = parser.parse_args()
    if a.way: return one(a.rows, a.way, a.kind)
    results = {}
    for way, kind in [(w, "pandas") for w in WAYS] + [(next(iter(WAYS)), "datasets")]:
        done = subprocess.run(
            [sys.executable, __file__, "--rows", str(a.rows), "--way", way, "--kind", kind],
            capture_output=True, text=True, check=True,
        )
        results[f"{kind}: {way}"] = json.loads(done.stdout.strip().splitlines()[-1])
    m = machine()
    write_json(
        project_root()/"benchmarks/results/sampling.json",
        dict(machine=m, rows=a.rows, rate=0.1, results=results),
    )
    text = (
        "| way | CPU seconds | seconds | rows kept | GiB before | peak GiB |\n"
        "|---|---|---|---|---|---|\n"
        + "".join(
            f"| {k} | {v['cpu_seconds']:.1f} | {v['seconds']:.1f} | {v['kept']:,} "
            f"| {v['before_gib']:.2f} | {v['peak_gib']:.2f} |\n"
            for k, v in results.items()
        )
    )
    (project_root()/"benchmarks/results/sampling.md").write_text(
        text
        + f"\n{a.rows:,} rows at the rate 0.1, one thread "
        "(seconds beyond the CPU's are waiting for a busy machine); "
        "memory of the whole process, interpreter, libraries and data included. "
        f"{m['cpu']}, {m['cores']} cores. Made by `python benchmarks/bench_sampling.py`.\n"
    )
    print(text)


if __name__ == "__main__": main()
