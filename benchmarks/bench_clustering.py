"""Clustering the released 1,786 attributes: ways, weights, seeds, embeddings, time,
and the memory plan against what was used.

`python benchmarks/bench_clustering.py [attributes.tsv]` (attribute, count; default
../shared/data/attributes/attributes.tsv). Each row of the first table is a process of its own, so that its peak
memory is its own. Writes benchmarks/results/clustering.json and .md.
"""
import json, resource, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np, pandas as pd
from compeffdist.perspectives import (
    NotConverged, agreement, cluster_attributes, count_weights, describe_perspectives,
    embed, memory_plan, net_similarity, preference_of, similarities,
)
from compeffdist.perspectives import _Packaged as MINILM
from compeffdist.replicate import machine
from compeffdist.settings import UserError, project_root
from compeffdist.store import write_json

COUNT = 180  # perspectives in the release
WAYS = {
    "affinity": {},
    "affinity, weighted": dict(weighted=True),
    "k-means": dict(method="kmeans", n_clusters=COUNT),
    "k-means, weighted": dict(method="kmeans", n_clusters=COUNT, weighted=True),
    "agglomerative (Ward)": dict(method="agglomerative", n_clusters=COUNT),
}
SCALE = [(5_000, "affinity"), (10_000, "affinity"), (20_000, "affinity"), (20_000, "kmeans"), (5_000, "agglomerative")]

def peak() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

def lexical(names) -> np.ndarray:
    "A second embedding, of spelling only: character n-grams, TF-IDF, 256 singular vectors."
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    x = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit_transform(names)
    v = TruncatedSVD(256, random_state=0).fit_transform(x)
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)

def one_way(name: str, path: str) -> dict:
    """Embed and cluster once; processor time (of all threads, so that other work on the machine counts less)
    and peak of this process."""
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    imported, start = peak(), time.process_time()
    embed(table["attribute"][:1], MINILM) # imports sentence-transformers, loads the encoder
    begin = time.process_time()
    vectors = embed(table["attribute"], MINILM)
    embedded = time.process_time()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = cluster_attributes(table, vectors=vectors, **WAYS[name])
    done = time.process_time()
    rows = pd.Series(range(len(table)), table["attribute"])[found.attribute].to_numpy()
    at, S, w = (
        pd.Series(range(len(table)), table["attribute"]),
        similarities(vectors),
        count_weights(table["count"]) if "weighted" in name else None,
    )
    used = peak()
    score = (
        net_similarity(S, at[found.exemplar.unique()].to_numpy(), preference_of(S, 0.5, w), w)
        if name.startswith("affinity") else None
    )
    return dict(
        way=name, **describe_perspectives(found, vectors[rows]),
        net_similarity=score, converged=not any(x.category is NotConverged for x in seen),
        load_s=round(begin - start, 2), embed_s=round(embedded - begin, 2), cluster_s=round(done - embedded, 2),
        imports_gib=round(imported, 2), peak_gib=round(used, 2),
    )

def one_size(n: int, method: str) -> dict:
    "Random unit vectors, as many iterations as show the memory (3 for affinity propagation, 20 for k-means)."
    v = np.random.default_rng(0).normal(size=(n, 384)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    table = pd.DataFrame(dict(attribute=[f"a{i:05}" for i in range(n)], count=n - np.arange(n)))
    before, begin, outcome = peak(), time.perf_counter(), "done"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cluster_attributes(
                table, vectors=v, method=method, n_clusters=None if method == "affinity" else COUNT,
                max_iter=3 if method == "affinity" else 20, memory_gib=8,
            )
        except UserError as e:
            outcome = "refused, nothing allocated" if "cluster_memory_gib" in str(e) else "done"
    return dict(
        attributes=n, method=method,
        plan_gib=round(memory_plan(n, method) / 2**30, 2), used_gib=round(peak() - before, 2),
        seconds=round(time.perf_counter() - begin, 1), outcome=outcome,
    )

def stability(table: pd.DataFrame) -> list[dict]:
    "Agreement over seeds, weighting, method and embedding."
    minilm, spelling = embed(table["attribute"], MINILM), lexical(table["attribute"])
    base, out = cluster_attributes(table, vectors=minilm), []
    for name, way in WAYS.items():
        if "agglomerative" in name: continue # has no seed
        pairs = agreement({str(s): cluster_attributes(table, vectors=minilm, seed=s, **way) for s in (42, 1, 2)})
        out.append(dict(
            compared=f"{name}: seeds 42, 1, 2 (mean of 3 pairs)", ari=pairs.ari.mean(), nmi=pairs.nmi.mean()
        ))
    others = {
        name: cluster_attributes(table, vectors=minilm, **way) for name, way in WAYS.items() if name != "affinity"
    } | {
        "affinity on spelling (character n-grams)": cluster_attributes(table, vectors=spelling)
    }
    rng = np.random.default_rng(0)
    half = np.sort(rng.choice(len(table), len(table) // 2, replace=False))
    others["affinity on a random half of the attributes"] = cluster_attributes(table.iloc[half], vectors=minilm[half])
    shuffled = base.assign(perspective=rng.permutation(base.perspective))
    for name, found in (others | {"affinity, perspectives dealt at random (chance)": shuffled}).items():
        pair = agreement({"a": base, "b": found})
        out.append(dict(compared=f"affinity against {name}", ari=pair.ari.item(), nmi=pair.nmi.item()))
    return out

def _ask(*words) -> dict:
    return json.loads(subprocess.run(
        [sys.executable, __file__, *map(str, words)], check=True, capture_output=True, text=True
    ).stdout.splitlines()[-1])

def _markdown(rows, columns) -> str:
    cell = lambda v: (
        "–" if v is None
        else f"{v:.3f}" if isinstance(v, float) and abs(v) < 1
        else f"{v:,.0f}" if isinstance(v, float) and abs(v) >= 100
        else f"{v:g}" if isinstance(v, float)
        else f"{v:,}" if isinstance(v, int) and not isinstance(v, bool)
        else str(v)
    )
    return (
        "| " + " | ".join(columns.values()) + " |\n"
        "|" + "---|" * len(columns) + "\n"
        + "".join("| " + " | ".join(cell(r[k]) for k in columns) + " |\n" for r in rows)
    )

def main(path: Path) -> None:
    if not path.is_file():
        return print(
            f"{path} is not here: nothing was measured. Name a table with the columns attribute and count."
        )
    ways, sizes = [_ask("way", name, path) for name in WAYS], [_ask("size", *s) for s in SCALE]
    stable, m = stability(pd.read_csv(path, sep="\t", keep_default_na=False)), machine()
    write_json(
        project_root()/"benchmarks/results/clustering.json",
        dict(machine=m, ways=ways, stability=stable, memory=sizes),
    )
    text = (
        "# Clustering the released attribute inventory\n\n"
        f"{ways[0]['attributes']:,} attributes, {ways[0]['mentions']:,} mentions; all-MiniLM-L6-v2. "
        "One process each; its peak holds Python, torch and the encoder.\n\n"
        + _markdown(ways, dict(
            way="way", perspectives="perspectives", singletons="singletons",
            median_size="median size", largest_size="largest", share_of_largest="mentions in the 10 largest",
            silhouette="silhouette", converged="converged",
            load_s="loading the encoder, CPU s", embed_s="embedding, CPU s", cluster_s="clustering, CPU s",
            peak_gib="peak, GiB",
        ))
        + "\nAgreement: adjusted Rand index, normalised mutual information (1: the same groups). "
        "Mutual information is not corrected for chance; the last row shows what chance gives.\n\n"
        + _markdown(stable, dict(compared="compared", ari="ARI", nmi="NMI"))
        + "\nMemory above that of the vectors, random unit vectors of 384 dimensions, cluster_memory_gib = 8; "
        "3 iterations of affinity propagation, 10 starts of 20 iterations of k-means "
        "(memory does not grow with iterations, the result is not used).\n\n"
        + _markdown(sizes, dict(
            attributes="attributes", method="method",
            plan_gib="plan, GiB", used_gib="used, GiB", seconds="s", outcome="outcome",
        ))
        + f"\n{m['cpu']}, {m['cores']} cores, shared with other work. "
        "Made by `python benchmarks/bench_clustering.py`.\n"
    )
    (project_root()/"benchmarks/results/clustering.md").write_text(text)
    print(text)

if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]: print(json.dumps(one_way(*sys.argv[2:])))
    elif sys.argv[1:2] == ["size"]: print(json.dumps(one_size(int(sys.argv[2]), sys.argv[3])))
    else: main(Path(sys.argv[1]) if sys.argv[1:] else project_root().parent/"shared/data/attributes/attributes.tsv")
