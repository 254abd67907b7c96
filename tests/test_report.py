"The report: complete, self-contained, well-formed, honest about what is missing."
import html, html.parser, json, os, re, shutil, subprocess
from pathlib import Path
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from compeffdist.figures import count_range, markdown_table, save_figure, save_table, set_style
from compeffdist.report import write_report
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
    assert written[2:5] == markdown_table(frame).splitlines()[2:] and written[5:] == ["", "Texts."]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in written[2:5]]
    assert cells == [["one \\| two", "67.0"], ["a line and another", "0.25"], ["plain", "nan"]]
    assert frame.text.iloc[1] == "a line\nand another" # the caller's table is left alone

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

@pytest.mark.parametrize("profile", ["tiny", "mini"])
def test_the_committed_page_is_well_formed_and_shows_what_is_there(profile):
    root = ROOT/"outputs"/profile
    tree = parse((root/"index.html").read_text(encoding="utf-8"))
    assert (
        tree.faults == []
        and {p.stem for p in [*(root/"figures").glob("*.png"), *(root/"tables").glob("*.md")]} <= set(tree.ids)
    )
    # git keeps the executed notebooks of tiny only
    assert all(
        (root/l).is_file()
        for l in tree.links
        if not l.startswith(("#", "notebooks/") if profile == "mini" else "#")
    )

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
        plt.imsave(
            source/"screenshot.png",
            plt.imread(
                browse((source/"index.html").read_text(encoding="utf-8"), tmp_path/"committed")[1]
            )[:900, :1670]
        )

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
