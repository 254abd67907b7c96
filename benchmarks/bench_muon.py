"""Seconds of one optimizer step for the shipped Llama: our Muon beside AdamW, torch's Muon, and AdamW alone.

`python benchmarks/bench_muon.py`: one thread, the same gradients, steps taken in turn; medians and ratios of 30.
Writes benchmarks/results/muon.json and .md.
"""
import statistics, time

STEPS = 30

def optimizers(model):
    "Three ways to move the same weights, as lists of optimizers."
    import torch
    from compeffdist.base import muon_adamw
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in ends]
    inside = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in inside]
    return {
        "ours": [muon_adamw(model, 1e-9)],
        "torch's Muon": [
            torch.optim.Muon(matrices, lr=1e-9, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(rest, lr=1e-9)],
        "AdamW": [torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)]}

def main() -> None:
    import torch
    torch.set_num_threads(1)
    from compeffdist.base import students_folder
    from compeffdist.replicate import machine
    from compeffdist.settings import project_root
    from compeffdist.store import write_json
    from compeffdist.students import load_student
    model, _ = load_student(students_folder()/"llama")
    grads = [torch.randn_like(p) for p in model.parameters()]
    ways, took = optimizers(model), {}
    for step in range(STEPS + 3):
        for name, group in ways.items():
            for p, g in zip(model.parameters(), grads): p.grad = g.clone()
            begin = time.perf_counter()
            for o in group: o.step()
            if step > 2: took.setdefault(name, []).append(time.perf_counter() - begin)
    rows = [dict(optimizer=n, milliseconds=round(1000 * statistics.median(t), 1)) for n, t in took.items()]
    for r in rows: r["ratio"] = round(r["milliseconds"] / rows[0]["milliseconds"], 2)
    out = project_root()/"benchmarks/results"
    write_json(out/"muon.json", dict(machine=machine(), results=rows))
    lines = ["| optimizer | ms a step | of ours |", "|---|---|---|"]
    lines += [f"| {r['optimizer']} | {r['milliseconds']} | {r['ratio']} |" for r in rows]
    (out/"muon.md").write_text(
        f"# One optimizer step\n\n`python benchmarks/bench_muon.py`, {machine()['cpu']}, "
        f"one thread, the shipped Llama ({sum(p.numel() for p in model.parameters()):,} weights). "
        f"Medians of {STEPS} steps taken in turn.\n\n"
        + "\n".join(lines) + "\n")
    print("\n".join(lines))

if __name__ == "__main__": main()
