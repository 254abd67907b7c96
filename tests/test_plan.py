"""The plan: counts from the settings, prices that are never invented,
and planned tokens against what the committed runs really read."""
import json
from pathlib import Path
import pytest
from compeffdist.evaluate import pick_items
from compeffdist.plan import (
    actual, describe, hours, left_out, main, memory, money, parameters, plan, smallest_effect, student_lines,
    teacher_lines, test_items as items_of, totals
)
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.stats import paired

ROOT, PROFILES = project_root(Path(__file__)), ["tiny", "mini", "gpu", "paper"]

@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_plan(profile):
    s = load_settings(profile)
    table = plan(s)
    assert (
        (table.hours >= 0).all()
        and table.stage.is_unique
        and (table[table.who == "teacher"].tokens_out <= table[table.who == "teacher"].tokens_out_most).all()
    )
    assert (
        set(s.families) <= set(table.who)
        and table.stage.iloc[0] == "attributes"
        and describe(s).startswith(f"Plan of profile {profile}")
        and max(map(len, describe(s).splitlines())) <= 100
    )

def test_requests_follow_the_settings():
    s = load_settings("paper")
    n = {l["stage"]: l["requests"] for l in teacher_lines(s)}
    assert (
        (n["attributes"], n["corpus"]) == (20000, 50000)
        and n["instructions: demonstrations"] == 180*8*16
        and n["evaluation: teacher"] == 3*(1000*3 + 1821 + 784 + 1421 + 2157 + 396 + 676*2 + 544 + 499)
    )
    assert (
        "corpus: knowdist" in n
        and "corpus: knowdist" not in {l["stage"] for l in teacher_lines(load_settings("paper", lineage=False))}
    )

def test_answers_that_are_not_kept_are_asked_for_too():
    for factor in (1, 2):
        assert {
            l["stage"]: l["requests"]
            for l in teacher_lines(load_settings("tiny", corpus_size=12000, corpus_oversample=factor))
        }["corpus"] == 12000*factor

@pytest.mark.parametrize("profile, limit, want", [
    ("tiny", None, 40*12), ("tiny", 0, 100*12),
    ("mini", None, 200*12),
    ("paper", 500, 10*500 + 396 + 499)
])
def test_items_are_what_an_evaluation_asks(profile, limit, want):
    s = load_settings(profile, eval_limit=limit)
    assert sum(items_of(s).values()) == want == sum(
        len(pick_items(n, s.eval_limit, 1, t))
        for t, n in items_of(load_settings(profile, eval_limit=0)).items()
    )

def test_training_tokens_are_epochs_of_each_systems_share():
    one, two = (
        load_settings("paper", train_epochs=1, families="qwen3"),
        load_settings("paper", train_epochs=2, families="qwen3")
    )
    tokens = lambda s: next(l["tokens_in"] for l in student_lines(s) if l["stage"] == "training: qwen3")
    assert tokens(two) == pytest.approx(2*tokens(one), rel=1e-6)
    once = dict(train_epochs=1, curve_rates="0.1, 1.0", curve_draws=1, lineage=False, all_families=False)
    more = load_settings("paper", families="qwen3", **once)
    # the second family trains on everything only
    assert tokens(more)/tokens(
        load_settings("paper", families="llama, qwen3", **once)) == pytest.approx(1.2)

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_planned_tokens_are_near_what_the_committed_run_read(profile):
    manifest = json.loads((ROOT/f"outputs/{profile}/manifest.json").read_text(encoding="utf-8"))
    s, stages = load_settings(profile), manifest["stages"]
    got = stages["student-llama-distilled"]["counts"]["tokens"]
    row = next(l["tokens_in"] for l in student_lines(s) if l["stage"] == "difficulty")
    assert 2/3 < row/got < 3/2
    table = actual(s, manifest)
    assert (
        {"attributes", "corpus", "training: llama", "evaluation: llama"} <= set(table.stage)
        and table.ratio.between(1/20, 20).all()
    )

def test_a_price_that_is_not_set_is_not_zero():
    s = load_settings("paper")
    assert totals(plan(s), s)["money"] is None and "unknown: set plan_device_price" in describe(s)
    priced = load_settings("paper", plan_device_price=2.0)
    t = totals(plan(priced), priced)
    assert t["money"] == pytest.approx(2*t["hours"])

def test_an_api_costs_tokens_and_no_hours():
    line = dict(stage="corpus", who="teacher", requests=10, tokens_in=2_000_000, tokens_out=1_000_000)
    s = load_settings("gpu", teacher_backend="openai", plan_price_in=0.5, plan_price_out=1.5)
    assert hours(line, s) == 0 and money(line, s) == 2.5 and memory(line, s) is None
    assert money(line, load_settings("gpu", teacher_backend="openai", plan_price_in=0.5)) is None

def test_a_run_with_an_apis_teacher_is_compared_in_what_took_device_hours():
    s = load_settings("gpu", teacher_backend="openai")
    stage = dict(seconds_when_built=3600.0, counts=dict(rows_out=5))
    names = ("attributes", "corpus", "difficulty", "evaluation-teacher-teacher")
    table = actual(s, dict(stages=dict.fromkeys(names, stage)))
    assert list(table.stage) == ["difficulty"] and table.ratio.notna().all()

def test_a_student_and_a_teacher_read_at_shares_of_their_own():
    s = load_settings("paper")
    for key, line in (
        ("plan_share_read", dict(stage="corpus", who="teacher", tokens_in=10**6, tokens_out=0)),
        ("plan_share_score", dict(stage="difficulty", who="llama", tokens_in=10**6))
    ):
        half = s.model_copy(update={key: getattr(s, key)/2})
        assert hours(line, half) == pytest.approx(2*hours(line, s))
        assert plan(half).hours.sum() < 2*plan(s).hours.sum()

def test_hours_of_a_gpu_are_operations_over_speed():
    s = load_settings("paper", plan_device_tflops=100, plan_share_train=0.5)
    assert hours(dict(stage="training: llama", who="llama", tokens_in=10**9), s) == pytest.approx(
        6*3e9*1e9/(0.5*100e12)/3600
    )
    assert (
        memory(dict(stage="training: llama", who="llama"), s) == 48
        and memory(dict(stage="training: llama", who="llama"), load_settings("paper", train_lora_r=8)) == 6
    )

@pytest.mark.parametrize("name, size", [
    ("Qwen/Qwen3-0.6B", 0.6e9), ("google/gemma-3-4b-it", 4e9), ("Qwen/Qwen3-0.6B@0c12b9ff7b", 0.6e9),
    ("a/pythia-160m", 160e6), ("meta-llama/Llama-3.2-3B-Instruct", 3e9),
    ("gpt-4o", None), ("x/bert-base", None)
])
def test_sizes_are_read_from_names(name, size): assert parameters(name) == size

def test_a_model_whose_name_hides_its_size_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("COMPEFFDIST_TEACHER_MODEL", "x/secret")
    assert main(["--profile", "paper"]) == 2 and "'x/secret'" in capsys.readouterr().err

def test_planning_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPEFFDIST_OUTPUTS", str(tmp_path/"new"))
    assert (
        main(["--profile", "paper"]) == 0
        and not (tmp_path/"new").exists()
        and "GPU hours" in capsys.readouterr().out
    )

def test_what_is_left_out_fits_the_screen_and_loses_no_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPEFFDIST_OUTPUTS", str(tmp_path/"new"))
    assert main(["--profile", "tiny"]) == 0
    printed = capsys.readouterr().out
    listed, wanted = printed.split("Left out of this profile:\n")[1], left_out(load_settings("tiny"))
    assert max(map(len, printed.splitlines())) <= 100 < max(map(len, wanted))
    assert listed.split() == [w for part in wanted for w in ["-", *part.split()]]

def test_the_smallest_effect_is_that_of_the_paired_test():
    import numpy as np
    rng, n, got = np.random.default_rng(0), 1000, []
    labels = np.array(["negative", "positive"])
    for k in range(5):
        truth, other = rng.integers(0, 2, n), rng.random(n)
        # each alone wrong on 15 %: they disagree on 30 %
        a = np.where(other < .15, 1 - truth, truth); b = np.where(other > .85, 1 - truth, truth)
        rows = lambda said: [
            dict(item=i, seed=42, gold=labels[t], parsed=labels[s]) for i, (t, s) in enumerate(zip(truth, said))
        ]
        got.append(paired("sst2", rows(a), rows(b), 2000)["detectable"])
    assert np.mean(got) == pytest.approx(smallest_effect(dict(sst2=n))[0], rel=.1)
    assert smallest_effect({t: 100 for t in "abcd"})[1] == pytest.approx(smallest_effect(dict(a=100))[0]/2)

@pytest.mark.parametrize("profile", ("tiny", "mini", "gpu", "paper"))
def test_what_is_left_out_names_settings_that_exist(profile):
    import re
    from compeffdist.plan import left_out
    from compeffdist.settings import Settings
    named = [
        n
        for text in left_out(load_settings(profile))
        for n in re.search(r"\(([^()]*)\)", text)[1].replace("or MATRIX=full", "").replace(" ", "").split(",")
        if n
    ]
    assert len(named) >= 8 - 2*(profile == "paper") and set(named) <= set(Settings.model_fields)

def test_what_is_run_is_not_left_out():
    from compeffdist.plan import left_out
    before, after = (
        left_out(load_settings("mini", lineage=False, fsa="none")),
        left_out(load_settings(
            "mini", lineage=True, lineage_rate=1, families="llama, qwen3, gemma3", fsa="embedded",
            curve_rates="0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0"
        ))
    )
    assert len(before) == len(after) + 2 and not any("only the first family" in t for t in before)
    gaps = lambda **kw: " ".join(left_out(load_settings("tiny", **kw)))
    assert "only the first family has them (all_families, or MATRIX=full)" in gaps()
    assert "only the first family" not in gaps(all_families=True)
    assert "other clusterings" in gaps() and "other clusterings" not in gaps(ablations=True)

def test_the_whole_matrix_is_planned():
    from compeffdist.plan import hours, left_out, memory
    from compeffdist.systems import systems
    s = load_settings("tiny", ablations=True, all_families=True)
    asked = {l["stage"]: l["requests"] for l in teacher_lines(s)}
    # two clusterings of the planned number, and 4 + 8 + 32 perspectives
    assert asked["constructions: tasks"] == 2*s.plan_perspectives + 44
    assert asked["constructions: corpora"] == 5*round(s.ablation_rate*s.corpus_size)*s.corpus_oversample
    big = load_settings("paper", ablations=True)
    lines = {l["stage"]: l for l in teacher_lines(big)}
    other = lines["constructions: answers by google/gemma-3-27b-it"]
    assert other["requests"] == round(big.ablation_rate*big.corpus_size)
    assert memory(other, big) == 2*27 and hours(other, big) == pytest.approx(
        27/70*hours(other | dict(who="teacher"), big))
    assert "answers of other teachers" in " ".join(left_out(load_settings("gpu")))
    read = {l["stage"]: l for l in student_lines(s)}
    assert {"difficulty", "difficulty: qwen3", "difficulty: gemma3"} <= set(read)
    assert read["constructions: answers by qwen3"]["who"] == "qwen3"
    for f in s.families:
        assert read[f"training: {f}"]["runs"] == sum(x.family == f and x.trained for x in systems(s))
    stages = {
        n: dict(seconds_when_built=60, counts=dict(rows_in=1))
        for n in ("difficulty", "difficulty-qwen3", "corpus", "corpus-kmeans-30", "corpus-of-another-run")}
    table = actual(s, dict(stages=stages)).set_index("stage")
    assert set(table.index) == {"difficulty", "difficulty: qwen3", "corpus"} and table.rows["corpus"] == 1

def test_work_is_compared_in_the_plans_unit():
    s = load_settings("tiny")
    stages = {
        "corpus": dict(seconds_when_built=9, counts=dict(rows_in=24_000, rows_out=12_000)),
        "student-llama-distilled": dict(seconds_when_built=9, counts=dict(rows_in=10, tokens=1000)),
        "student-llama-random-10": dict(seconds_when_built=9, counts=dict(rows_in=1, tokens=100)),
        "difficulty": dict(seconds_when_built=9, counts=dict(rows_in=5, tokens=7))}
    table = actual(s, dict(stages=stages)).set_index("stage")
    planned = {l["stage"]: l for l in teacher_lines(s) + student_lines(s)}
    assert table.actual_work["corpus"] == 24_000 and table.unit["corpus"] == "requests"
    assert table.planned_work["corpus"] == sum(
        l["requests"] for k, l in planned.items() if k.startswith("corpus"))
    assert table.actual_work["training: llama"] == 1100*s.train_epochs and table.unit["training: llama"] == "tokens"
    assert table.planned_work["training: llama"] == planned["training: llama"]["tokens_in"]
    assert table[["planned_work", "actual_work"]].loc["difficulty"].isna().all() and table.unit["difficulty"] == ""

def test_actual_hours_are_those_of_all_devices_of_a_stage():
    manifest = dict(stages={
        "difficulty": dict(seconds_when_built=3600, counts=dict(rows_in=1)),
        "student-llama-distilled": dict(seconds_when_built=3600, counts=dict(rows_in=1))
    })
    took = lambda **over: actual(load_settings("tiny", **over), manifest).set_index("stage").actual_hours.to_dict()
    assert (
        took(workers=3) == {"difficulty": 3, "training: llama": 1}
        and took(workers=0, plan_devices=2)["difficulty"] == 2
    )
    many = actual(
        load_settings("paper", train_processes=8, families="llama"), manifest
    ).set_index("stage").actual_hours
    assert many["training: llama"] == 8

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_calibration_measures_what_the_plan_then_uses(profile, capsys):
    from compeffdist.plan import calibrate
    s = load_settings(profile, families="llama")
    got = calibrate(s, steps=2, requests=3)
    assert (
        set(got) == {"plan_train_speed", "plan_read_speed", "plan_embedded_speed"}
        and all(v > 10 for v in got.values())
    )
    total = lambda **kw: float(plan(load_settings(profile, families="llama", **kw)).hours.sum())
    assert total(**got | dict(plan_train_speed=got["plan_train_speed"]/2)) > total(**got)

def test_calibration_prints_lines_for_settings_ini(monkeypatch, capsys):
    from compeffdist import plan as module
    monkeypatch.setattr(module, "calibrate", lambda s: dict(plan_train_speed=123456, plan_share_write=0.0123))
    assert main(["--profile", "tiny", "--calibrate"]) == 0
    out = capsys.readouterr().out
    assert "section [tiny]:\nplan_train_speed = 123456\nplan_share_write = 0.0123\n" in out
    slow, quick = (plan(load_settings("tiny", plan_train_speed=v)).hours.sum() for v in (3000, 123456))
    assert f"{quick:,.1f} core hours" in out and quick < slow

@pytest.mark.filterwarnings("ignore")
def test_calibration_of_a_checkpoint_gives_shares(tmp_path):
    import shutil
    from compeffdist.base import students_folder
    from compeffdist.plan import calibrate
    shutil.copytree(students_folder()/"qwen3", where := tmp_path/"tiny-2m")
    s = load_settings(
        "gpu", student_model_qwen3=str(where), student_dtype="float32",
        teacher_backend="transformers", teacher_model=str(where), teacher_dtype="float32",
        plan_device_tflops=200, plan_text_words=30, plan_answer_tokens=8,
        train_batch=2, train_accumulation=2, train_max_length=256, train_packing=False
    )
    got = calibrate(s, steps=2, requests=3)
    assert (
        set(got) == {"plan_share_train", "plan_share_score", "plan_share_read", "plan_share_write"}
        and all(0 < v < 0.1 for v in got.values())
    )
    with pytest.raises(UserError, match="more than the device can do: plan_device_tflops = 1e-06"):
        calibrate(s.model_copy(update=dict(plan_device_tflops=1e-6)), steps=2, requests=3)
    with pytest.raises(UserError, match="nowhere-1b"):
        calibrate(
            s.model_copy(update=dict(student_model_qwen3=str(tmp_path/"nowhere-1b"))), steps=1, requests=1
        )

def test_a_noisy_clock_makes_no_rate_out_of_nothing(monkeypatch):
    from types import SimpleNamespace
    import compeffdist.plan as module
    ticks = iter([0, 1, 1, 3, 3, 5]) # loading 1 s, reading 2 s, reading and writing 2 s
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rate, read, write = module._teacher_speed(load_settings("tiny"), 10)
    assert rate == 5 and read > 0 and 10/2 <= write <= 10*load_settings("tiny").plan_answer_tokens*10/2

@pytest.mark.parametrize("profile, stage, kind, who, devices", [
    ("gpu", "training: qwen3", "train", "qwen3", 1),
    ("paper", "difficulty", "score", "llama", 1),
    ("paper", "corpus", "read", "teacher", 8),
    ("gpu", "corpus", "write", "teacher", 1)
])
def test_a_share_gives_back_the_speed_it_came_from(profile, stage, kind, who, devices):
    from compeffdist.plan import _shares, _size
    s, speed = load_settings(profile), 1234.0 # tokens a second of all devices together
    planned = load_settings(profile, **_shares(s, _size(who, s), devices, **{kind: speed}))
    line = dict(
        stage=stage, who=who, requests=1,
        tokens_in=0 if kind == "write" else 10**6, tokens_out=10**6 if kind == "write" else 0
    )
    assert hours(line, planned)*3600 == pytest.approx(devices*10**6/speed, rel=0.01) # device hours

def test_no_prompt_is_asked_twice_in_a_calibration(monkeypatch):
    from compeffdist import teacher as module
    from compeffdist.plan import _teacher_speed
    asked = []
    class Watched(module.EmbeddedTeacher):
        def generate(self, requests, seeds):
            asked.append([r.prompt for r in requests])
            return super().generate(requests, seeds)
    monkeypatch.setattr(module, "load_teacher", lambda s: Watched())
    rate, *_ = _teacher_speed(load_settings("tiny"), 10)
    assert (
        [len(a) for a in asked] == [10, 10, 10]
        and len(set(sum(asked, []))) == 30
        and sum("Input:" in p for p in asked[2]) == 8
        and rate > 0
    )
    assert _teacher_speed(load_settings("gpu", teacher_backend="openai"), 10) is None

def test_a_measurement_apart_sees_one_device(monkeypatch):
    import os
    from compeffdist.plan import _apart
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert (
        _apart(os.getenv, "CUDA_VISIBLE_DEVICES") == "3"
        and os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
        and _apart(os.getpid) != os.getpid()
    )

def test_what_the_t5_leaves_and_takes():
    from compeffdist.plan import _devices, disk
    s = load_settings("paper")
    assert _devices("training: t5", s) == 1 and _devices("training: llama", s) == 8
    assert disk(next(l for l in student_lines(s) if l["who"] == "t5"), s) == pytest.approx(2*220e6*4/1e9)

def test_knowdists_corpus_is_planned_where_it_is_asked_for():
    stages = lambda **kw: {
        l["stage"]: l["requests"] for l in teacher_lines(load_settings("tiny", corpus_size=12000, **kw))
    }
    new = lambda **kw: {
        k: n for k, n in stages(**kw).items() if k not in stages(lineage=False) and k.startswith("corpus")}
    shown = {"corpus: icldist's demonstrations": 960}
    assert (
        new(ablations=True, lineage=False) == {"corpus: knowdist": 12000}
        and new(lineage=True, lineage_rate=.1)
            == shown | {"corpus: knowdist-10": 1200, "corpus: icldist-10": 1200}
    )
    assert (
        new(lineage=True, lineage_rate=1)
        == new(lineage=True, lineage_rate=1, ablations=True)
        == shown | {"corpus: knowdist": 12000, "corpus: icldist": 12000}
    )
    assert (
        new(lineage=True, lineage_rate=.1, ablations=True).keys() - new(lineage=True, lineage_rate=.1).keys()
        == {"corpus: knowdist"}
    )

def test_a_system_asked_without_demonstrations_is_asked_once():
    read = lambda **kw: next(
        l["tokens_in"]
        for l in student_lines(load_settings("tiny", shots=1, **kw))
        if l["stage"] == "evaluation: llama"
    )
    s = load_settings("tiny")
    assert read(base_shots=0) - read(base_shots="none") == pytest.approx(
        12 * s.eval_limit * (40 + s.plan_text_words) * s.plan_tokens_per_word, abs=2
    )
    assert read(base_shots=2) - read(base_shots="none") == pytest.approx(
        3 * 12 * s.eval_limit * (40 + 3 * s.plan_text_words) * s.plan_tokens_per_word, abs=2
    )

def test_a_proxy_from_the_hub_is_planned_at_its_size():
    s = load_settings("tiny", ablations=True, difficulty_proxies="Qwen/Qwen3-0.6B, package:qwen3")
    lines = {l["stage"]: l for l in student_lines(s)}
    assert hours(lines["scores: Qwen/Qwen3-0.6B"], s) == pytest.approx(
        2*0.6e9*lines["scores: Qwen/Qwen3-0.6B"]["tokens_in"]/(s.plan_share_score*s.plan_device_tflops*1e12)/3600
    ) != hours(lines["scores: package:qwen3"], s)

def test_built_students_and_the_t5_are_planned():
    stages = lambda p, **kw: {l["stage"]: l for l in student_lines(load_settings(p, **kw))}
    assert (
        "building: llama" in stages("mini") and "building: llama" not in stages("tiny")
        and "training: t5" in stages("mini") and "training: t5" not in stages("mini", fsa="none")
    )
    one, two = stages("paper", fsa_seeds="1")["training: t5"], stages("paper", fsa_seeds="1, 2")["training: t5"]
    # pre-training is not repeated
    assert (one["runs"], two["runs"]) == (9, 17) and one["tokens_in"] < two["tokens_in"] < 2*one["tokens_in"]
    assert hours(one, load_settings("paper", plan_device_tflops=100, plan_share_train=0.5)) == pytest.approx(
        6*220e6*one["tokens_in"]/(0.5*100e12)/3600
    )

def test_train_splits_are_as_long_as_the_real_ones():
    from compeffdist.plan import FSA_TRAIN
    folder = ROOT.parent/"shared/data/fsa"
    if not folder.is_dir(): pytest.skip("../shared/data/fsa is not here")
    from compeffdist.fsa import read_fsa
    assert {n: len(read_fsa(folder, n, "train")) for n in FSA_TRAIN} == FSA_TRAIN

def test_ablations_are_planned_where_they_are_run():
    on, off = ({l["stage"]: l for l in student_lines(load_settings("paper", ablations=v))} for v in (True, False))
    assert (
        {"scores: perplexity, IFD", f"scores: {load_settings('paper').difficulty_proxies[0]}"} <= set(on) - set(off)
        and on["training: llama"]["runs"] > off["training: llama"]["runs"] + 15
    )
    assert (
        describe(load_settings("paper", ablations=True))
        and describe(load_settings("tiny", ablations=True, lineage_rate=1, lineage=True))
    )

@pytest.mark.parametrize("hours, words", [
    (0, "0 s"), (99/3600, "99 s"),
    (0.5, "30 min"), (1.5, "90 min"),
    (2, "2.0 h"), (1234, "1,234.0 h")
])
def test_times_are_said_in_fitting_units(hours, words):
    from compeffdist.plan import _duration
    assert _duration(hours) == words
