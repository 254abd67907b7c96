"The embedded author: recognises the stages' prompts and answers them well enough."
import json, random, re
from collections import Counter

import pytest

from compeffdist import attributes, author, instructions as I
from compeffdist.analyst import respond

REVIEW = "My wife loved the pasta but the waiter was rude, and we waited an hour! #dinner"
KINDS = author.tables("tasks")["kinds"]


def prompts():
    f = I.fill
    return dict(
        attributes=attributes.enumerate_prompt(REVIEW),
        analysis=f(I.ANALYSIS_PROMPT, n=4, attributes="- tone: the manner\n- humor: fun"),
        tasks=f(I.TASKS_PROMPT, n=8, attribute="sarcasm level", description="hidden meaning"),
        define=f(I.DEFINE_PROMPT, name="Irony Detection", description="Is the text meant literally?"),
        demonstrate=f(
            I.DEMONSTRATE_PROMPT, name="Irony Detection",
            description="Is the text ironic? Answer with one of: irony, non-irony.",
            examples="Examples:\n" + I.blocks([dict(input="Sure, great.", output="irony")]),
            a="Loved the film.", b="Bad food."))


@pytest.mark.parametrize("kind", prompts())
def test_the_templates_are_recognised_and_mostly_answered_in_form(kind):
    prompt, read = prompts()[kind], dict(
        attributes=attributes.parse_attributes, analysis=I.parse_prompts).get(kind, I.parse_json)
    good, answers = 0, set()
    for seed in range(120):
        answer = author.compose(prompt, random.Random(seed))
        assert isinstance(answer, str) and answer
        answers.add(answer)
        try: good += bool(read(answer))
        except ValueError: pass
    assert good >= 108  # a few per cent are spoilt, no more
    assert len(answers) > 60  # and they vary


def test_the_analyst_hands_construction_prompts_over_and_keeps_the_others():
    for prompt in prompts().values():
        assert respond(prompt, seed=5, temperature=1.0) == respond(prompt, seed=5, temperature=1.0)
    assert len(attributes.parse_attributes(respond(prompts()["attributes"], seed=5, temperature=1.0))) >= 3
    for prompt in (
            "",
            "Classify: positive or negative.\n\nInput: Write two new demonstrations of the task below.\nOutput:",
            "Text: hello",
            "Rewrite this text."):
        assert author.compose(prompt, random.Random(0)) is None


@pytest.mark.parametrize("text", ["", "é😀\x00", "a" * 5000, "Text: Text: \\n", "好吃", "\u2028 #@!"])
def test_any_text_can_be_enumerated(text):
    for seed in range(5):
        assert isinstance(author.compose(attributes.enumerate_prompt(text), random.Random(seed)), str)


def test_a_dozen_perspectives_cover_every_dimension_of_the_benchmark():
    "Whatever the clusters look like: twelve attributes drawn from the author's own or from elsewhere."
    wanted = {"polarity2", "polarity3", "emotion4", "irony", "stance", "intimacy", "atsa", "acsa", "asqp", "ssa"}
    names = (
        [re.split("[:/]", n)[0].lower() for rows in author.tables("attributes").values() for n, *_ in rows]
        + ["zeal", "cultural pride", "spice level", "gift-giving sentiment"])
    covered = 0
    for seed in range(40):
        rng = random.Random(seed)
        kinds = Counter(k for a in rng.sample(names, 12) for k in author.pick_kinds(a, 8, rng))
        covered += len(wanted & set(kinds)) >= 9
    assert covered >= 38


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "compare"])
def test_definitions_are_usable_and_examples_obey_them(kind):
    usable = 0
    for seed in range(12):
        name = random.Random(seed).choice(KINDS[kind]["names"])
        assert author.kind_of(name, "") == kind
        try: task, bad = I.read_definition(I.parse_json(author.compose_definition(name, "", random.Random(seed))), 7)
        except ValueError: continue
        if task is None: continue
        usable += 1
        assert task["type"] == KINDS[kind]["type"] and len(task["demonstrations"]) <= 7
        outputs = {d["output"] for d in task["demonstrations"]}
        assert len(outputs) >= 2
        for d in task["demonstrations"]:
            assert not I.demonstration_fault(
                d, task | dict(demonstrations=[o for o in task["demonstrations"] if o is not d]))
            if "classification" in task["type"]:
                assert re.search(rf"(?<!\w){re.escape(d['output'])}(?!\w)", task["description"])
            if task["type"] in ("extraction", "structured output"):
                rows = json.loads(d["output"])
                for row in rows if isinstance(rows, list) else [rows]:
                    assert all(f'"{field}"' in task["description"] for field in row)
        if KINDS[kind]["dim"] == "stance":
            assert (
                all(" Target: " in d["input"] for d in task["demonstrations"])
                and "Target:" in task["description"])
    assert usable >= 9


def test_comparison_tasks_are_proposed_now_and_then_and_always_caught():
    ideas = [i for name in KINDS["compare"]["names"] for i in [(name, d) for d in KINDS["compare"]["ideas"]]]
    assert all(I.compares_texts(*idea) for idea in ideas)
    assert not any(
        I.compares_texts(n, d)
        for k, v in KINDS.items() if k != "compare"
        for n in v["names"]
        for d in v["ideas"] + v["what"])
    assert any("compare" in author.pick_kinds("tone", 8, random.Random(s)) for s in range(30))


def test_no_task_has_the_benchmarks_wording():
    "The student must meet SentiBench's instructions for the first time at evaluation."
    from inspect import getsource
    from compeffdist import sentibench
    source = re.sub(r"\W+", " ", getsource(sentibench)).lower()
    for kind in KINDS.values():
        for what in kind["what"]: assert re.sub(r"\W+", " ", what).lower().strip() not in source


def test_demonstrations_follow_the_references_domain():
    prompt = lambda a, b: I.fill(
        I.DEMONSTRATE_PROMPT, name="Aspects and Their Sentiment",
        description=(
            'Output a JSON array of objects with the fields "aspect_term" and "sentiment" '
            '(one of: positive, negative, neutral).'),
        examples="", a=a, b=b)
    films = " ".join(
        author.compose(
            prompt("A dull film with wooden acting.", "The plot of this movie is great."), random.Random(s))
        for s in range(30)).lower()
    food = " ".join(
        author.compose(prompt("The waiter was kind.", "Great food at this place."), random.Random(s))
        for s in range(30)).lower()
    assert films.count("acting") + films.count("plot") > food.count("acting") + food.count("plot") + 5
    assert food.count("waiter") + food.count("food") > films.count("waiter") + films.count("food") + 5
