"Instructions: reading JSON, filters, retry, drops, loading, the stage."
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from compeffdist import instructions as I
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, write_rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=4), c, max_size=3),
    max_leaves=8)


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.lists(JSON, max_size=5), st.data())
def test_a_cut_array_yields_complete_elements_only(value, data):
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2])))
    cut = data.draw(st.integers(0, len(text)))
    try: found = I.parse_json(text[:cut])
    except ValueError: return
    whole, last = found[:-1], found[-1:]
    assert whole == value[:len(whole)]
    # only an inner array may have been closed early
    if last and last[0] != value[len(whole)]: assert isinstance(last[0], (list, dict))


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["input", "output"]), st.text(max_size=6), min_size=2),
        min_size=1, max_size=5),
    st.integers(0, 400))
def test_cut_lists_of_flat_objects_are_prefixes(rows, cut):
    text = json.dumps(rows)
    try: found = I.parse_json(text[:cut])
    except ValueError: found = []
    assert found == rows[:len(found)]
    assert I.parse_json("Sure:\n```json\n" + text + "\n```\nBye [1].") == rows


@given(st.text(max_size=300))
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text):
    for answer in (text, "[" + text, '{"a": [' + text, "[" * 5000 + text):
        try: I.parse_json(answer)
        except ValueError: pass


@pytest.mark.parametrize(
    "answer", [None, "", "no", "[1}", "{'a': 1}", '{"a": "b', "[" * 100_000],
    ids=["none", "empty", "prose", "mismatch", "quotes", "cut", "deep"])
def test_unreadable_json_is_a_value_error(answer):
    with pytest.raises(ValueError): I.parse_json(answer)


def test_outputs_given_as_json_become_text():
    good, bad = I.read_list([
        dict(input="a\nb", output=[dict(x=1)]), dict(input="c", output=0), dict(input="d"),
        dict(input="", output="e"), "f", dict(text="g", label="h")], I.Demonstration)
    assert [(g.input, g.output) for g in good] == [("a b", '[{"x": 1}]'), ("c", "0"), ("g", "h")]
    assert len(bad) == 3 and all(reason for reason, _ in bad)


def task(**changes):
    return dict(
        name="T", type="closed classification", description="One of: good, bad.",
        demonstrations=[dict(input="x", output="good"), dict(input="y", output="bad")]) | changes


@pytest.mark.parametrize("row, changes, fault", [
    (("z", "good"), {}, ""),
    (("z", "Good"), {}, ""),
    (("x", "bad"), {}, "input seen before"),
    (("z", "goodness"), {}, "output is not a label of the task"),
    (("z", '["good"]'), {}, "output is not in the examples' format"),
    (("z", "good"), dict(type="extraction", demonstrations=[dict(input="x", output="[]")]),
     "output is not in the examples' format"),
    (("z", "four"), dict(type="scoring", demonstrations=[dict(input="x", output="4")]), "output is not a number"),
    (("z", "-4.5"), dict(type="scoring", demonstrations=[dict(input="x", output="4")]), ""),
    (("Text 1: a Text 2: b", "good"), {}, "compares two texts"),
    (("Like the reference texts, fine.", "good"), {}, "mentions the reference texts"),
    (("It is a nice reference book.", "good"), {}, ""),
    (("well, ONE two three four five six seven indeed", "good"), {}, "copies a reference text")])
def test_demonstration_filters(row, changes, fault):
    reference = "One two three four five six seven."
    assert I.demonstration_fault(dict(input=row[0], output=row[1]), task(**changes), [reference, ""]) == fault


def teacher_of(answers):
    "An asker that looks answers up by the start of the request id and keeps what it was asked."
    def asker(requests):
        asker.ids += [r.id for r in requests]
        out = []
        for r in requests:
            found = next((a for start, a in answers.items() if r.id.startswith(start)), None)
            out.append(SimpleNamespace(
                text=found(r) if callable(found) else found,
                error=None if found is not None else "down"))
        return out
    asker.ids = []
    return asker


DEFINITION = json.dumps(dict(
    name="Mood", type="classification", description="Answer with one of: good, bad.",
    examples=[dict(input=f"sample {i}", output=["good", "bad"][i % 2]) for i in range(9)]))
GOOD = {
    "analysis": "1. What does this text show?\n2. Why does this text sound so?",
    "tasks": (
        '[{"task_name": "Mood", "task_description": "Find the mood."}, '
        '{"task_name": "Pairs", "task_description": "Compare two texts."}]'),
    "define": DEFINITION,
    "demo": lambda r: json.dumps([
        dict(input=f"new one {r.id}", output="good"), dict(input="sample 1", output="bad")])}
GROUPS = {
    0: [dict(attribute="mood", count=9, description="how it feels")],
    1: [dict(attribute="price", count=5, description="what it costs")]}
TEXTS = ["first text here", "second text here", "third text here"]


def small(**changes): return load_settings("tiny", **(dict(instructions_demo_calls=3) | changes))


def test_schemas_are_sent_where_json_is_asked_for_and_their_answers_are_read():
    wrapped = {"tasks": f'{{"tasks": {GOOD["tasks"]}}}', "demo": lambda r: f'{{"examples": {GOOD["demo"](r)}}}'}
    asked, plain = [], teacher_of(GOOD | wrapped)
    def asker(requests): asked.extend(requests); return plain(requests)
    value = I.Builder(asker, small(construct_schema=True), TEXTS).build(GROUPS)
    kinds = {r.id.split("/")[0]: r.json_schema for r in asked}
    assert kinds == dict(
        analysis=None, tasks=I.SCHEMAS["tasks"], define=I.SCHEMAS["definition"], demo=I.SCHEMAS["examples"])
    assert value == I.Builder(teacher_of(GOOD), small(), TEXTS).build(GROUPS)
    from jsonschema import Draft202012Validator
    for key, answer in dict(tasks=wrapped["tasks"], examples=wrapped["demo"](asked[-1])).items():
        Draft202012Validator(json.loads(I.SCHEMAS[key])).validate(json.loads(answer))


def test_the_builder_lists_what_it_drops():
    builder = I.Builder(teacher_of(GOOD), small(), TEXTS)
    value = builder.build(GROUPS)
    assert [len(v["tasks"]) for v in value.values()] == [1, 1] and value["0"]["attribute"] == "mood"
    demonstrations = value["0"]["tasks"][0]["demonstrations"]
    assert len(demonstrations) == 7 + 3  # at most seven examples, one good demonstration a call
    reasons = [(d["step"], d["reason"]) for d in builder.dropped if d["perspective"] == 0]
    assert (
        reasons.count(("tasks", "compares two texts")) == 1
        and reasons.count(("demonstration", "input seen before")) == 3)


def test_a_useless_perspective_is_a_listed_drop_and_nothing_else_is_lost():
    answers = {"tasks/1": "no idea", "analysis/1": "no idea"} | GOOD
    asker = teacher_of(answers)
    builder = I.Builder(asker, small(), TEXTS)
    value = builder.build(GROUPS)
    assert value["1"]["tasks"] == [] and value["1"]["analysis"] == [] and len(value["0"]["tasks"]) == 1
    assert {d["reason"] for d in builder.dropped if d["perspective"] == 1} == {
        "no JSON", "no numbered list", "no usable task", "no usable analysis prompt"}
    # asked once more, and only those
    assert [i for i in asker.ids if i.endswith("/retry")] == ["analysis/1/retry", "tasks/1/retry"]


def test_dead_requests_are_listed_too():
    builder = I.Builder(teacher_of({k: v for k, v in GOOD.items() if k != "demo"}), small(), TEXTS)
    assert len(builder.build(GROUPS)["0"]["tasks"][0]["demonstrations"]) == 7
    assert sum(d["reason"].startswith("no answer: down") for d in builder.dropped) == 2 * 3


def test_a_useless_teacher_or_too_few_texts_is_an_error():
    with pytest.raises(UserError, match="nothing usable"):
        I.Builder(teacher_of({"": "no idea"}), small(), TEXTS).build(GROUPS)
    with pytest.raises(UserError, match="two are needed"):
        I.Builder(teacher_of(GOOD), small(), TEXTS[:1]).build(GROUPS)


def test_order_of_perspectives_changes_nothing():
    one = I.Builder(teacher_of(GOOD), small(), TEXTS).build(GROUPS)
    two = I.Builder(teacher_of(GOOD), small(), TEXTS).build(dict(reversed(GROUPS.items())))
    assert one == {k: two[k] for k in one}


def test_definitions_need_examples_and_a_single_text():
    # one example nine times
    assert I.read_definition(
        json.loads(DEFINITION) | dict(examples=[dict(input="a", output="good")] * 9), 7)[0] is None
    assert I.read_definition(
        json.loads(DEFINITION) | dict(description="Compare both texts."), 7) == (
            None, [("compares two texts", "Mood")])
    assert I.read_definition([json.loads(DEFINITION)], 3)[0]["demonstrations"][2]["input"] == "sample 2"
    assert I.read_definition("nothing", 7)[0] is None


@pytest.mark.parametrize("content, message", [
    ("[]", "JSON object"), ("{}", "JSON object"), ('{"0": {"attribute": "a"}}', "0|attributes"),
    ("{", "cannot be read"), ('{"0": 3}', "0")])
def test_a_damaged_instruction_file_is_one_clear_error(tmp_path, content, message):
    (tmp_path/"instructions.json").write_text(content)
    with pytest.raises(UserError, match=message): I.load_instructions(tmp_path)
    with pytest.raises(UserError, match="cannot be read"): I.load_instructions(tmp_path/"none.json")


@pytest.mark.parametrize("text, target", [
    ("We need Governor Hale, now! Hale is honest, Governor Hale works.", "Governor Hale"),
    ("So tired of #Brexit", "#Brexit"), ("@sam is great", "@sam"), ("The battery is bad", "the battery"),
    ("loved it", "the subject"), ("", "the subject"), ("I think We Never", "the subject")])
def test_targets(text, target):
    assert I.find_target(text) == target


def test_only_target_tasks_get_a_target():
    stance = dict(description='For or against what stands after "Target:"?')
    assert I.task_input(stance, "Vote\nfor Hale") == "Vote for Hale Target: Hale"
    assert I.task_input(stance, "Vote. Target: Roe") == "Vote. Target: Roe"
    assert I.task_input(dict(description="Is it good?"), "Vote for Hale") == "Vote for Hale"


def test_stage_on_the_embedded_teacher(tmp_path):
    settings = load_settings("tiny", outputs=str(tmp_path), instructions_demo_calls=2, instructions_max_tasks=4)
    store = Store(settings)
    store.stage("texts", lambda out, work: write_rows(
        out/"texts.parquet",
        [dict(id=str(i), text=t, domain="product") for i, t in enumerate(TEXTS)]))
    names = ["tone", "sarcasm", "food quality"]
    store.stage("attributes", lambda out, work: write_rows(
        out/"attributes.parquet",
        [dict(attribute=a, count=20, description="d", raw_names=[a], raw_counts=[20]) for a in names]))
    store.stage("perspectives", lambda out, work: write_rows(
        out/"perspectives.parquet",
        [dict(attribute=a, count=20, perspective=i, exemplar=a) for i, a in enumerate(names)]))
    result = I.instructions_stage(settings, store)
    value = I.load_instructions(result.path)
    assert (
        list(value) == ["0", "1", "2"]
        and result.counts["rows_out"] == sum(len(v["tasks"]) for v in value.values()) >= 8)
    assert result.counts["malformed"] == len(store.rows("instructions", "dropped.parquet"))
    ids = [t["id"] for v in value.values() for t in v["tasks"]]
    assert len(set(ids)) == len(ids)
    for v in value.values():
        assert 1 <= len(v["analysis"]) <= settings.instructions_analysis_prompts
        for t in v["tasks"]:
            assert (
                t["type"] in I.TYPES
                and len(t["demonstrations"]) >= 4
                and I.render_task(t, t["demonstrations"][:2]).count("\nOutput: ") == 2)
    assert I.instructions_stage(settings, store).cached


RELEASED = {"12": {
    "analysis": ["What does this text show?"],
    "extraction": [dict(
        task_name="Spans", description="Extract the words of praise as a JSON array.",
        demonstrations=[dict(input="So good!", output=["good"])])],
    "classification": [
        dict(
            task_name="Mood", description="One of: good, bad.",
            demonstrations=[dict(input="x", output="good")]),
        dict(task_name="Cause", description="Name the cause.", demonstrations=[])],
    "scoring": []}}


def test_the_releases_layout_is_read(tmp_path):
    (tmp_path/"instructions.json").write_text(json.dumps(RELEASED))
    value = I.load_instructions(tmp_path)
    tasks = value["12"]["tasks"]
    assert [(t["id"], t["name"], t["type"]) for t in tasks] == [
        ("p012-t0", "Spans", "extraction"),
        ("p012-t1", "Mood", "closed classification"),
        ("p012-t2", "Cause", "closed classification")]
    assert (
        tasks[0]["demonstrations"] == [dict(input="So good!", output='["good"]')]
        and value["12"]["analysis"] == ["What does this text show?"]
        and value["12"]["attributes"] == [])
    (tmp_path/"ours.json").write_text(json.dumps(value))
    assert I.load_instructions(tmp_path/"ours.json") == value  # what was read is a set like any other
    assert I.render_task(tasks[1], tasks[1]["demonstrations"]).startswith("Mood\nOne of: good, bad.")


@pytest.mark.parametrize("change, message", [
    (dict(classification="none"), "12.classification: a list of tasks"),
    (dict(classification=[dict(task_name="A", demonstrations=[])]), "12.classification.0.description"),
    (dict(extraction=[dict(task_name="A", description="d", demonstrations=[dict(input="x")])]),
     "12.extraction.0.demonstrations.0.output"),
    (dict(analysis="one"), "12.analysis")])
def test_a_damaged_release_is_one_clear_error(tmp_path, change, message):
    (tmp_path/"r.json").write_text(json.dumps({"12": RELEASED["12"] | change}))
    with pytest.raises(UserError, match=message): I.load_instructions(tmp_path/"r.json")


def test_instructions_from_texts_in_one_call(tmp_path):
    from compeffdist import grammar
    from compeffdist.teacher import load_teacher
    s = small(attributes_min_count=6, instructions_max_tasks=2, instructions_demo_calls=1)
    texts = [i.text for i in grammar.generate(30, "product", 3, "pretrain")]
    made = I.build_instructions(texts, load_teacher(s), s, tmp_path)
    assert I.load_instructions(tmp_path) == made.instructions
    assert (
        {a for v in made.instructions.values() for a in v["attributes"]}
        == {a["attribute"] for a in made.attributes}
        == set(made.perspectives.attribute))
    assert (
        all(d["reason"] and d["step"] for d in made.dropped)
        and {d["perspective"] for d in made.dropped if d["step"] == "enumeration"} <= {-1})
    # nothing kept, the same made
    assert I.build_instructions(texts, load_teacher(s), s).instructions == made.instructions
    with pytest.raises(UserError, match="No attribute was seen more than 500 times in 30 texts"):
        I.build_instructions(texts, load_teacher(s), small(attributes_min_count=500))


@pytest.mark.parametrize("texts, message", [
    ([], "0 texts are not enough"), (["a"], "1 texts"), (["a", 3], "got 3"), (["a", "  "], "non-empty")])
def test_bad_texts(texts, message):
    with pytest.raises(UserError, match=message): I.build_instructions(texts, None, small())

def test_one_odd_example_is_dropped_alone_and_ordinary_inputs_are_no_pairs():
    examples = (
        [dict(input=f"sample {i}", output="[]") for i in range(7)]
        + [dict(input="My parents love each other.", output="none")])
    answers = GOOD | {"define": json.dumps(dict(
        name="Terms", type="extraction", description="Extract the terms as a JSON array.",
        examples=examples[:3] + examples[7:] + examples[3:7]))}
    builder = I.Builder(teacher_of(answers), small(instructions_max_tasks=1, instructions_examples=8), TEXTS)
    (_, task), = builder.define_tasks(builder.propose_tasks({0: GROUPS[0]})).values()
    assert [d["output"] for d in task["demonstrations"]] == ["[]"] * 7
    assert [d["reason"] for d in builder.dropped if d["step"] == "example"] == [
        "output is not in the examples' format"]
    few = answers | {"define": json.dumps(dict(
        name="Terms", type="extraction", description="Extract.",
        examples=examples[:3] + [dict(input=f"odd {i}", output="none") for i in range(2)]))}
    builder = I.Builder(teacher_of(few), builder.settings, TEXTS)
    assert (
        not builder.define_tasks(builder.propose_tasks({0: GROUPS[0]}))
        and "3 usable examples, 4 needed" in {d["reason"] for d in builder.dropped})

