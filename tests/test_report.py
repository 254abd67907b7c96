"The report: complete, self-contained, well-formed, honest about what is missing."
import html.parser, json, re
from pathlib import Path
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from compeffdist.figures import save_figure, save_table, set_style
from compeffdist.report import write_report
from compeffdist.settings import load_settings, project_root
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
        if tag == "img": self.sources.append(attrs["src"][:22]); self.faults += [] if attrs.get("alt") else ["img without alt"]
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
    for name in ("fig-main", "fig-claims", "other"): save_figure(s, name, plt.figure(figsize=(2, 1)), f"Caption <of> {name} & more.")
    for name in ("tab-main", "tab-claims"): save_table(s, name, pd.DataFrame(dict(a=["<script>alert(1)</script>"], b=[1.5])), f"Caption of {name}.")
    plt.close("all")
    return s

def test_the_page_is_whole_and_asks_nothing_of_the_network(store):
    page = write_report(store, "A <note>.", dict(seed=1)).read_text(encoding="utf-8")
    tree = parse(page)
    assert tree.faults == [] and tree.open == [] and len(tree.ids) == len(set(tree.ids))
    assert {"fig-main", "fig-claims", "other", "tab-main", "tab-claims", "claims", "deviations"} <= set(tree.ids)
    assert set(tree.sources) == {"data:image/png;base64,"} and not re.search(r'(?:src|href)="https?:|url\(|@import', page)
    assert all(l[1:] in tree.ids for l in tree.links if l.startswith("#")) and "<script>" not in page and "A &lt;note&gt;." in page

def test_claims_come_first_and_the_main_results_next(store):
    ids = parse(write_report(store, "", {}).read_text(encoding="utf-8")).ids
    assert ids.index("tab-claims") < ids.index("fig-claims") < ids.index("fig-main") < ids.index("other") < ids.index("tab-main") < ids.index("deviations")

def test_what_is_missing_is_said(tmp_path):
    page = write_report(Store(load_settings("tiny", outputs=str(tmp_path))), "", {}).read_text(encoding="utf-8")
    assert "No ledger yet" in page and page.count("None yet") == 2 and parse(page).faults == []

def test_the_manifest_is_summed_up(store):
    (store.root/"manifest.json").write_text((ROOT/"outputs/tiny/manifest.json").read_text(encoding="utf-8"), encoding="utf-8")
    page = write_report(store, "", {}).read_text(encoding="utf-8")
    manifest = json.loads((ROOT/"outputs/tiny/manifest.json").read_text(encoding="utf-8"))
    assert all(f"<td>{s}</td>" in page or f">{s}<" in page for s in manifest["stages"]) and "Planned and actual" in page and parse(page).faults == []

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_the_committed_page_is_well_formed_and_shows_what_is_there(profile):
    root = ROOT/"outputs"/profile
    tree = parse((root/"index.html").read_text(encoding="utf-8"))
    assert tree.faults == [] and {p.stem for p in [*(root/"figures").glob("*.png"), *(root/"tables").glob("*.md")]} <= set(tree.ids)
    assert all((root/l).is_file() for l in tree.links if not l.startswith(("#", "notebooks/")))
