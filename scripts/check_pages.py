#!/usr/bin/env python3
"""Looks at pages in headless Chromium; scripts/check_pages.sh makes them and calls this.

    check_pages.py BROWSER AXE.js CLIPCAP SHOTS PAGE...        SHOTS: a folder for screenshots, or an empty text
"""

import html
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = [400, 800, 1600]
# Blink's numbers of the colour schemes.
SCHEMES = {"light": 1, "dark": 0}
LONG_ROWS, MOST_SECONDS = 2000, 1.0

# The page's own policy lets no other script run, so that copies of the pages are looked at in which it does not hold.
LOOK = """
<script>%s</script>
<script>
addEventListener('load', () => setTimeout(async () => {
  const found = await axe.run(document, { resultTypes: ['violations'] });
  const told = found.violations.map(v => [v.impact, v.id, v.help, v.nodes.length, v.nodes[0].target.join(' ')]);
  const root = document.documentElement;
  document.documentElement.dataset.look = JSON.stringify({ told, wide: root.scrollWidth - root.clientWidth });
}, 300));
</script></body>"""
CLOCK = """<script>document.documentElement.dataset.look = JSON.stringify({ ready: performance.now() });</script></body>"""

# A window that is narrower than Chromium lets one be.
FRAME = """<!doctype html><html lang="en"><title>frame</title><body style="margin:0"><iframe title="page" src="%(page)s"
style="border:0;width:%(width)spx;height:1600px"></iframe><script>
const wait = setInterval(() => {
  const look = document.querySelector('iframe').contentDocument?.documentElement?.dataset?.look;
  if (look) { document.documentElement.dataset.look = look; clearInterval(wait); }
}, 100);</script></body></html>"""


def changed(page, target, script, printed=False):
    """A copy of a page with another script at its end; `printed`: as paper has it."""
    text = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "X-Nothing")
    if printed:
        text = text.replace("@media print", "@media all")
    head, _, tail = text.rpartition("</body>")
    target.write_text(head + script + tail, encoding="utf-8")
    return target


def browse(browser, page, width, scheme, more, height=900):
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", *more, f"file://{page}",
        ]
        # Headless Chromium now and then hangs where the machine is busy.
        for _ in range(3):
            try:
                return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=100).stdout
            except subprocess.TimeoutExpired:
                continue
        sys.exit(f"{page}: the browser does not come to an end")


def looked(browser, page, width, scheme, more):
    dom = browse(browser, page, width, scheme, [*more, "--dump-dom"])
    found = re.search(r'data-look="([^"]*)"', dom)
    if not found:
        sys.exit(f"{page.name}: the script in it came to no end")
    return json.loads(html.unescape(found[1]))


def check(browser, axe, page, shots, folder):
    name = page.parent.name + "-index" if page.name == "index.html" else page.stem
    faults, seen = [], set()
    for printed in [False, True]:
        copy = changed(page, folder / f"{name}{'-print' if printed else ''}.html", LOOK % axe, printed)
        for width in [794] if printed else WIDTHS:
            for scheme in ["light"] if printed else SCHEMES:
                # Headless windows are no narrower than 500 pixels; a frame may be.
                narrow = copy
                if width < 500:
                    narrow = folder / f"{name}-narrow.html"
                    narrow.write_text(FRAME % {"width": width, "page": copy.name}, encoding="utf-8")
                kind = "print" if printed else f"{width}-{scheme}"
                result = looked(browser, narrow, width, scheme, ["--virtual-time-budget=20000", "--allow-file-access-from-files"])
                for impact, rule, words, count, target in result["told"]:
                    line = f"{name} {kind}: {impact}: {rule}: {words} ({count} places, such as {target})"
                    if impact in ("serious", "critical"):
                        faults.append(line)
                    elif (rule, target) not in seen:
                        seen.add((rule, target))
                        print(line)
                if result["wide"] > 0:
                    faults.append(f"{name} {kind}: {result['wide']} pixels wider than the screen")
                if shots:
                    shot = Path(shots).resolve() / f"{name}-{kind}.png"
                    browse(browser, narrow, width, scheme, ["--virtual-time-budget=5000", "--allow-file-access-from-files", f"--screenshot={shot}"], 1600)
    print(f"{name}: looked at")
    return faults


def long_report(clipcap, folder):
    """A report of many rows with pictures."""
    draw = random.Random(7)
    rows = ["image_path,caption,logprob,num_tokens,finish_reason"]
    for number in range(LONG_ROWS):
        words = "".join(draw.choice("一只黑狗在草地上跑两个人红色的圆形猫") for _ in range(14))
        rows.append(f"{number:05}.jpg,{words},{-draw.random() * 20:.4f},15,eos")
    (folder / "long.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    pictures = sorted((folder / "scenes/images").glob("scene-*.jpg"))
    many = folder / "many"
    many.mkdir()
    for number in range(LONG_ROWS):
        (many / f"{number:05}.jpg").symlink_to(pictures[number % len(pictures)])
    run = [clipcap, "report", "long.csv", "--images", "many", "--out", "long.html", "--quiet"]
    subprocess.run(run, cwd=folder, check=True)
    return folder / "long.html"


def main():
    browser, axe, clipcap, shots, *pages = sys.argv[1:]
    axe = Path(axe).read_text(encoding="utf-8").replace("</script", "<\\/script")
    if shots:
        Path(shots).mkdir(parents=True, exist_ok=True)
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for page in pages:
            faults += check(browser, axe, Path(page).resolve(), shots, Path(folder))
        page = long_report(clipcap, Path.cwd())
        copy = changed(page, Path(folder) / "long.html", CLOCK)
        ready = min(looked(browser, copy, 1600, "light", ["--timeout=20000"])["ready"] for _ in range(3)) / 1000
        print(f"{LONG_ROWS} rows ({page.stat().st_size / 1e6:.1f} MB) are there after {ready:.2f} s")
        if ready > MOST_SECONDS:
            faults.append(f"{LONG_ROWS} rows open in {ready:.2f} s, which is more than {MOST_SECONDS}")
    if faults:
        sys.exit("\n".join(faults))
    print("nothing serious, and nothing wider than the screen")


if __name__ == "__main__":
    main()
