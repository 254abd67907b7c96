"The report: complete, self-contained, well-formed, honest about what is missing."
import html, html.parser, io, json, os, re, shutil, subprocess, unicodedata
from pathlib import Path
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image
from compeffdist.figures import (
    count_range, markdown_table, only_about, save_figure, save_table, set_style, whole_caption,
)
from compeffdist.report import UNLINKED, page_digest, write_report
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.store import Store

ROOT = project_root(Path(__file__))
VOID = {"meta", "img", "br", "hr", "link", "input", "col"}

class Tree(html.parser.HTMLParser):
    "Checks that every element is closed in order, and gathers ids, links, sources and headings."
    def __init__(self):
        super().__init__()
        self.open, self.faults, self.ids, self.links, self.sources, self.order = [], [], [], [], [], []
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID: self.open.append(tag)
        if attrs.get("id"): self.ids.append(attrs["id"])
        if tag == "a" and "href" in attrs: self.links.append(attrs["href"])
        if tag == "img":
            self.sources.append(attrs["src"][:22])
            self.faults += [] if attrs.get("alt") else ["img without alt"]
        if tag in ("script", "link", "iframe"): self.faults.append(tag)
    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag: self.faults.append(f"</{tag}>")

def parse(page):
    tree = Tree(); tree.feed(page); tree.close()
    return tree

@pytest.fixture
def store(tmp_path):
    set_style()
    s = Store(load_settings("tiny", outputs=str(tmp_path)))
    for name in ("fig-main", "fig-claims", "other"):
        save_figure(s, name, plt.figure(figsize=(2, 1)), f"Caption <of> {name} & more.")
    for name in ("tab-main", "tab-claims"):
        save_table(s, name, pd.DataFrame(dict(a=["<script>alert(1)</script>"], b=[1.5])), f"Caption of {name}.")
    plt.close("all")
    return s

def test_no_text_ends_a_cell_of_a_table_and_numbers_stay_as_they_are(store):
    frame = pd.DataFrame(dict(text=["one | two", "a line\nand another", "plain"], f1=[67.0, 0.25, float("nan")]))
    save_table(store, "tab-texts", frame, "Texts.")
    written = (store.tables/"tab-texts.md").read_text(encoding="utf-8").splitlines()
    assert written[2:5] == markdown_table(frame).splitlines()[2:] and written[5:] == ["", whole_caption("Texts.")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in written[2:5]]
    assert cells == [["one \\| two", "67.0"], ["a line and another", "0.25"], ["plain", "nan"]]
    assert frame.text.iloc[1] == "a line\nand another" # the caller's table is left alone

def tex(store, cell, caption="Signs."):
    save_table(store, "tab-signs", pd.DataFrame(dict(a=[cell])), caption)
    return (store.tables/"tab-signs.tex").read_text(encoding="utf-8")

@pytest.mark.parametrize("sign, command", [
    ("†", r"$^\dagger$"), ("‡", r"$^\ddagger$"), ("±", r"$\pm$"), ("−", "$-$"), ("→", r"$\rightarrow$"),
    ("≤", r"$\leq$"), ("×", r"$\times$"), ("·", r"$\cdot$"), ("\xa0", "~"), ("\u202f", r"\,"),
    ("<", "$<$"), ("|", r"\textbar{}"), ("ρ", r"$\rho$"), ("§", "§"), ("–", "–"), ("%", r"\%"),
    ("😊", "[smiling face with smiling eyes]")])
def test_latex_knows_the_signs_of_our_tables(store, sign, command):
    assert f"1{command}2" in tex(store, f"1{sign}2") and f"Signs 1{command}2." in tex(store, "", f"Signs 1{sign}2.")

def test_no_sign_of_a_committed_table_ends_as_a_name_in_brackets(store):
    "Smileys in texts of users do: pdflatex has none."
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT/"outputs").glob("*/tables/*.md"))
    signs = sorted(c for c in set(text) if c > "~" and unicodedata.category(c) not in ("So", "Sk"))
    assert {"†", "−", "≤", "\xa0"} <= set(signs)
    for sign in signs: assert f"[{unicodedata.name(sign).lower()}]" not in tex(store, sign, f"About {sign}."), sign
    assert r"\textbf{61.7 $\pm$ 0.4}$^\dagger$" in tex(store, "**61.7 ± 0.4**†")

@pytest.mark.parametrize("caption, whole", [
    ("Figure 4 of the paper, drawn anew: x.", True), ("The paper's appendix map, drawn anew.", True),
    ("Score per task.", False), ("Rows selected by the paper's definition.", False)])
def test_captions_say_that_the_papers_numbering_was_not_available(store, caption, whole):
    said = caption if whole else f"{caption} Our own name: the paper's numbering was not available."
    save_table(store, "tab-x", pd.DataFrame(dict(a=[1])), caption)
    save_figure(store, "fig-x", plt.figure(figsize=(2, 1)), caption)
    plt.close("all")
    assert all(json.loads((f/n).read_text(encoding="utf-8"))["caption"] == said
               for f, n in ((store.tables, "tab-x.json"), (store.figures, "fig-x.json")))
    assert (store.tables/"tab-x.md").read_text(encoding="utf-8").endswith(said + "\n")

@pytest.mark.parametrize("changed", [dict(), dict(lineage_rate=.025), dict(base_shots=4), dict(lineage=False)])
def test_captions_speak_of_no_system_that_the_table_does_not_show(changed):
    from compeffdist.systems import systems, unlike
    settings = load_settings("tiny", **changed)
    names, said = {s.name for s in systems(settings)}, unlike(settings)
    lineage = [s.name for s in systems(settings) if s.part == "lineage"]
    shots = [s.name for s in systems(settings) if s.shots is not None]
    assert only_about(said, names) == said and only_about(said, ["base", "distilled"]) == ""
    assert not any(n in only_about(said, lineage) for n in shots)
    assert not any(n in only_about(said, shots) for n in lineage)

def test_the_page_is_whole_and_asks_nothing_of_the_network(store):
    page = write_report(store, "A <note>.", dict(seed=1)).read_text(encoding="utf-8")
    tree = parse(page)
    assert tree.faults == [] and tree.open == [] and len(tree.ids) == len(set(tree.ids))
    assert {"fig-main", "fig-claims", "other", "tab-main", "tab-claims", "claims", "deviations"} <= set(tree.ids)
    assert (
        set(tree.sources) == {"data:image/png;base64,"}
        and not re.search(r'(?:src|href)="https?:|url\(|@import', page)
    )
    assert (
        all(l[1:] in tree.ids for l in tree.links if l.startswith("#"))
        and "<script>" not in page
        and "A &lt;note&gt;." in page
    )

def test_claims_come_first_and_the_main_results_next(store):
    ids = parse(write_report(store, "", {}).read_text(encoding="utf-8")).ids
    assert (
        ids.index("tab-claims") < ids.index("fig-claims") < ids.index("fig-main")
        < ids.index("other") < ids.index("tab-main") < ids.index("deviations")
    )

def test_what_the_profile_does_not_run_is_listed(tmp_path):
    page = write_report(Store(load_settings("tiny", outputs=str(tmp_path))), "", {}).read_text(encoding="utf-8")
    from compeffdist.plan import left_out
    assert (
        all(x in html.unescape(page) for x in left_out(load_settings("tiny")))
        and "(ablations, or MATRIX=full)" in page
    )

def test_what_is_missing_is_said(tmp_path):
    page = write_report(Store(load_settings("tiny", outputs=str(tmp_path))), "", {}).read_text(encoding="utf-8")
    assert "No ledger yet" in page and page.count("None yet") == 2 and parse(page).faults == []

def test_the_manifest_is_summed_up(store):
    (store.root/"manifest.json").write_text(
        (ROOT/"outputs/tiny/manifest.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    page = write_report(store, "", {}).read_text(encoding="utf-8")
    manifest = json.loads((ROOT/"outputs/tiny/manifest.json").read_text(encoding="utf-8"))
    assert (
        all(f"<td>{s}</td>" in page or f">{s}<" in page for s in manifest["stages"])
        and "Planned and actual" in page
        and parse(page).faults == []
    )

def links_of(store):
    tree = parse(write_report(store, "", {}).read_text(encoding="utf-8"))
    assert tree.faults == []
    return [l for l in tree.links if not l.startswith("#")]

def with_notebooks(root, names=("00_settings.ipynb", "28_claims.ipynb")):
    (root/"notebooks").mkdir(parents=True, exist_ok=True)
    for n in names: (root/"notebooks"/n).write_text("{}")

def test_a_link_leads_to_a_file_that_is_there(store):
    with_notebooks(store.root)
    before = links_of(store)
    assert {"notebooks/28_claims.ipynb", "tables/tab-main.csv"} <= set(before) and "manifest.json" not in before
    gone = {"notebooks/28_claims.ipynb", "tables/tab-main.csv", "figures/fig-main.svg"}
    for file in gone: (store.root/file).unlink()
    after = links_of(store)
    assert set(before) - set(after) == gone
    assert all((store.root/l).is_file() for l in after) and "notebooks/00_settings.ipynb" in after

def test_notebooks_that_git_does_not_keep_are_named_and_not_linked(tmp_path):
    mini = Store(load_settings("mini", outputs=str(tmp_path)))
    with_notebooks(mini.root)
    page = write_report(mini, "", {}).read_text(encoding="utf-8")
    assert "<li>28_claims.ipynb</li>" in page and not [l for l in parse(page).links if "notebooks/" in l]
    kept = re.findall("^!outputs/(.*)/notebooks/", (ROOT/".gitignore").read_text(), re.M)
    pages = [p.parent.name for p in ROOT.glob("outputs/*/index.html") if p.parent.name in ("tiny", "mini")]
    assert sorted(UNLINKED) == sorted(set(pages) - set(kept))
    own = Store(load_settings("gpu", outputs=str(tmp_path)))
    with_notebooks(own.root)
    assert "notebooks/28_claims.ipynb" in parse(write_report(own, "", {}).read_text(encoding="utf-8")).links

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_the_committed_page_is_well_formed_and_shows_what_is_there(profile):
    root = ROOT/"outputs"/profile
    tree = parse((root/"index.html").read_text(encoding="utf-8"))
    assert (
        tree.faults == []
        and {p.stem for p in [*(root/"figures").glob("*.png"), *(root/"tables").glob("*.md")]} <= set(tree.ids)
    )
    assert [l for l in tree.links if not l.startswith("#") and not (root/l).is_file()] == []

def staged(name):
    """A file as git has it staged or committed, so that a run in the working tree is not held against it;
    the working tree's outside a checkout."""
    found = subprocess.run(["git", "-C", str(ROOT), "show", f":{name}"], capture_output=True)
    return found.stdout if found.returncode == 0 else (ROOT/name).read_bytes()

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_the_committed_picture_is_of_the_committed_page(profile):
    taken = Image.open(io.BytesIO(staged(f"outputs/{profile}/screenshot.png"))).info.get("index.html")
    assert taken == page_digest(staged(f"outputs/{profile}/index.html")), (
        f"outputs/{profile}/screenshot.png shows another page. "
        "Run: REPORT_SCREENSHOTS=1 python -m pytest tests/test_report.py -k browser_shows; add both files to git.")

WATCH = """<script>const faults=[];\
addEventListener("error",e=>faults.push(e.message||"not loaded: "+e.target.tagName),true);\
console.error=console.warn=(...a)=>faults.push(a.join(" "));
addEventListener("load",()=>parent.postMessage({\
width:innerWidth,scroll:document.documentElement.scrollWidth,height:document.documentElement.scrollHeight,\
images:document.images.length,blank:[...document.images].filter(i=>!i.naturalWidth).length,\
faults},"*"))</script>"""

def browse(page, tmp_path):
    "What headless Chromium sees at phone and desktop width, by width, and a screenshot of both side by side."
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not chromium: pytest.skip("no chromium or chrome on this machine: the report was not looked at")
    (tmp_path/"page.html").write_text(page.replace("<head>", "<head>" + WATCH, 1), encoding="utf-8")
    frames = "".join(
        f'<iframe src="page.html" width="{w}" height="900" style="border:0"></iframe>' for w in (390, 1280)
    )
    (tmp_path/"frames.html").write_text(
        f'<!doctype html><body style="margin:0;white-space:nowrap">{frames}<pre></pre>'
        '<script>onmessage=e=>document.querySelector("pre").append(JSON.stringify(e.data)+"\\n")</script>',
        encoding="utf-8"
    )
    run = lambda *a: subprocess.run(
        [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--hide-scrollbars", "--virtual-time-budget=15000", "--window-size=1700,950",
            f"--user-data-dir={tmp_path/'browser'}", *a, (tmp_path/"frames.html").as_uri()
        ],
        capture_output=True, text=True, timeout=120
    )
    seen = re.search(r"<pre>(.*?)</pre>", run("--dump-dom").stdout, re.S)[1]
    run(f"--screenshot={tmp_path/'seen.png'}")
    return {s["width"]: s for s in map(json.loads, html.unescape(seen).splitlines())}, tmp_path/"seen.png"

def take_picture(page, picture, folder):
    "A screenshot that carries the digest of the page that it shows."
    shown = page.read_bytes()
    pixels = plt.imread(browse(shown.decode("utf-8"), folder)[1])[:900, :1670]
    plt.imsave(picture, pixels, metadata={"index.html": page_digest(shown)})

def test_a_picture_says_of_which_page_it_is(store, tmp_path):
    page = write_report(store, "", {})
    take_picture(page, tmp_path/"screenshot.png", tmp_path)
    taken = Image.open(tmp_path/"screenshot.png").info["index.html"]
    assert taken == page_digest(page.read_bytes()) != page_digest(page.read_bytes() + b" ")

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_a_browser_shows_the_report_whole_on_a_desk_and_on_a_phone(profile, tmp_path):
    source = ROOT/"outputs"/profile
    for part in ("figures", "tables"): shutil.copytree(source/part, tmp_path/profile/part)
    shutil.copy(source/"manifest.json", tmp_path/profile)
    page = write_report(
        Store(load_settings(profile, outputs=str(tmp_path))), "A note.", dict(seed=1)
    ).read_text(encoding="utf-8")
    seen, picture = browse(page, tmp_path)
    assert set(seen) == {390, 1280}
    for s in seen.values():
        assert (
            s["scroll"] <= s["width"]
            and s["blank"] == 0
            and s["images"] == len(list((source/"figures").glob("*.png")))
            and s["faults"] == []
            and s["height"] > 5000
        )
    pixels = plt.imread(picture)[:, :, :3]
    for left, right in ((0, 390), (390, 1660)):
        assert .02 < (pixels[:900, left:right].mean(2) < .6).mean() < .5, (
            "text on white, not blank and not black"
        )
    if os.environ.get("REPORT_SCREENSHOTS"): # renews the committed pictures of the committed pages
        (tmp_path/"committed").mkdir()
        take_picture(source/"index.html", source/"screenshot.png", tmp_path/"committed")

def test_the_browser_test_sees_a_broken_page(store, tmp_path):
    broken = (
        '<div style="width:2000px">wide</div>'
        '<img alt="x" src="data:image/png;base64,AAAA">'
        '<script>missing()</script></body>'
    )
    seen, _ = browse(
        write_report(store, "", {}).read_text(encoding="utf-8").replace("</body>", broken), tmp_path
    )
    assert len(seen) == 2 and all(
        s["scroll"] > s["width"] and s["blank"] == 1 and len(s["faults"]) == 2 for s in seen.values()
    )

def test_a_caption_counts_the_items_of_all_tasks():
    assert count_range(pd.Series([500, 396, 499])) == "396 to 500" and count_range([40, 40]) == "40"
    with pytest.raises(UserError, match="nothing to count"): count_range([])
