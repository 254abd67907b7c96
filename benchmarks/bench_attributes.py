"""Parsing, normalising and counting the answers about 20,000 texts, 20 attributes each, one after the other:
one core's seconds, and memory.

`python benchmarks/bench_attributes.py` needs nothing but the package. Answers are made on the fly in several layouts
and dropped once read; names and descriptions come from a stock of 2,000 and 5,000 and are paired at random, so nearly
every mention is a new pair; the counter keeps 64 descriptions a name.
Writes benchmarks/results/attributes.json and .md.
"""
import random, resource, time
from compeffdist.attributes import count_attributes, mentions_of
from compeffdist.replicate import machine
from compeffdist.settings import project_root
from compeffdist.store import write_json

TEXTS, EACH = 20_000, 20
LAYOUTS = [
    "{n}. **{a}**: Attribute Description - {d} Attribute Value - {v}",
    "{n}. {a}\n   - **Attribute Description:** {d}\n   - **Attribute Value:** {v}",
    "{n}) {a}: Attribute Description: {d}\nAttribute Value: {v}",
]

def answers(texts: int):
    "Pairs of text id and answer, made on the fly."
    rng = random.Random(1)
    word = lambda: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7))
    stock = [word() for _ in range(400)]
    names = [" ".join(rng.sample(stock, 2)).title() + rng.choice(["", "", "/Tone", ": overall"]) for _ in range(2_000)]
    described = [" ".join(rng.choices(stock, k=14)) + "." for _ in range(5_000)]
    for i in range(texts):
        layout = rng.choice(LAYOUTS)
        yield str(i), "Here is the list:\n\n" + "\n".join(
            layout.format(n=n + 1, a=a, d=rng.choice(described), v=" ".join(rng.choices(stock, k=5)))
            for n, a in enumerate(rng.sample(names, EACH))
        )

def read(texts: int) -> dict:
    """Stream the answers through parser, normaliser and counter;
    seconds of this process's CPU without those of making the answers."""
    spent, mentions, lost = 0.0, 0, 0
    def rows():
        nonlocal spent, mentions, lost
        made = answers(texts)
        while True:
            begin = time.process_time()
            item = next(made, None)
            spent += time.process_time() - begin
            if item is None: return
            found, malformed = mentions_of(*item)
            mentions, lost = mentions + len(found), lost + len(malformed)
            yield from found
    begin = time.process_time()
    table = count_attributes(rows(), 10)
    cpu = time.process_time() - begin - spent
    return dict(
        texts=texts, mentions=mentions, malformed=lost, attributes=len(table), cpu_s=round(cpu, 1),
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    )

def main() -> None:
    results = [read(n) for n in (TEXTS // 4, TEXTS)] # the peak of the second is the larger, so growth shows
    assert all(r["mentions"] >= r["texts"] * EACH and not r["malformed"] for r in results), results
    m = machine()
    write_json(project_root()/"benchmarks/results/attributes.json", dict(machine=m, each=EACH, results=results))
    text = (
        "| texts | mentions | malformed | attributes | CPU s, one core | peak, MiB |\n"
        "|---|---|---|---|---|---|\n"
        + "".join(
            f"| {r['texts']:,} | {r['mentions']:,} | {r['malformed']} | {r['attributes']:,} "
            f"| {r['cpu_s']} | {r['peak_mib']} |\n"
            for r in results
        )
    )
    text += (
        f"\n{EACH} attributes a text, streamed; CPU seconds of parsing, normalising and counting, "
        "other work ran beside it. The counter holds the names, their spellings and at most 64 descriptions of each "
        "(random pairs here, so nearly every mention brings a new one); texts and answers are not kept. "
        f"{m['cpu']}, {m['cores']} cores. Made by `python benchmarks/bench_attributes.py`.\n"
    )
    (project_root()/"benchmarks/results/attributes.md").write_text(text)
    print(text)

if __name__ == "__main__": main()
