//! The report in a browser: headless Chromium loads the page from the disk and is asked what came of it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::report::{HOSTILE, HOSTILE_NAME, small, write_table};
use crate::common::{clipcap, run};

/// Chromium where systems put it, or `CLIPCAP_CHROMIUM`. Absent, the test that asked skips loudly; with CLIPCAP_NO_SKIP that is a failure.
fn chromium() -> Option<PathBuf> {
    const PLACES: [&str; 3] = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];
    let named = std::env::var_os("CLIPCAP_CHROMIUM").map(PathBuf::from);
    let found = named.into_iter().chain(PLACES.map(PathBuf::from)).find(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("CLIPCAP_NO_SKIP").is_none(),
            "no Chromium (scripts/setup.sh --chromium), and CLIPCAP_NO_SKIP makes that a failure"
        );
        eprintln!("SKIPPED: no Chromium (scripts/setup.sh --chromium, or set CLIPCAP_CHROMIUM)");
    }
    found
}

/// The page as it is once its script has run. `view` is what stands behind `#`.
fn opened(chromium: &Path, page: &Path, view: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(chromium);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args([
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,900",
            "--virtual-time-budget=5000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}#{view}", page.display()));
    String::from_utf8(run(&mut command, 0).stdout).unwrap()
}

/// What the script has made: everything in the report's element.
fn made(dom: &str) -> &str {
    let start = dom.find("<div id=\"report\">").expect("the page has the element");
    &dom[start..start + dom[start..].find("<noscript>").expect("which ends before this one")]
}

/// A server that counts who comes, and its address.
fn trap() -> (Arc<AtomicUsize>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (visits, address) = (Arc::new(AtomicUsize::new(0)), listener.local_addr().unwrap());
    let counted = visits.clone();
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (visits, format!("http://{address}"))
}

fn report(folder: &Path, args: &[&str], status: i32) -> PathBuf {
    run(clipcap().current_dir(folder).arg("report").args(args).args(["--quiet", "--out", "r.html"]), status);
    folder.join("r.html")
}

#[test]
fn the_script_shows_every_image_and_hostile_text_stays_text() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let page = report(folder.path(), &["captions.parquet", "--images", "pictures"], 3);
    let dom = opened(&chromium, &page, "");
    assert!(dom.contains("data-ready=\"5\""), "the script did not come to its end");
    let shown = made(&dom);
    assert_eq!(shown.matches("<article").count(), 5);
    assert_eq!(shown.matches("src=\"data:image/jpeg;base64,/9j/").count(), 3);
    assert_eq!(shown.matches("class=\"picture none\"").count(), 2);
    assert_eq!(shown.matches("<img").count(), 3);
    // As the browser writes text back: whatever could be markup is escaped.
    let written = HOSTILE.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    assert!(shown.contains(&format!(">{written}</p>")), "{shown}");
    assert!(shown.contains(&HOSTILE_NAME.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")));
    assert!(!shown.contains("<script") && !shown.contains("<b>&") && dom.contains("<title>Captions: captions.parquet</title>"));

    // The address says what is shown.
    let cards = |view: &str| made(&opened(&chromium, &page, view)).matches("<article").count();
    assert_eq!(
        ["q=%E8%B7%91%E6%AD%A5", "view=repetitions", "finish=loop", "only=missing", "q=nothing"].map(cards),
        [1, 1, 1, 2, 0]
    );
    assert_eq!(
        ["only=empty", "only=alike", "same=%E4%B8%A4%E5%8F%AA%E7%8C%AB", "only=unmarked", "only=n"].map(cards),
        [1, 0, 1, 5, 0]
    );
    let failures = opened(&chromium, &page, "view=failures");
    assert!(made(&failures).contains("empty &lt;i&gt;.jpg</td><td>empty</td>") && made(&failures).matches("<tr>").count() == 3);
    // The first letters of the images' names, in order.
    let order = |view: &str| -> String {
        let dom = opened(&chromium, &page, view);
        let name = |card: &str| card.split_once("aria-label=\"").and_then(|(_, name)| name.chars().next());
        made(&dom).split("<article").skip(1).filter_map(name).collect()
    };
    assert_eq!((order("").as_str(), order("sort=name").as_str()), ("gcdas", "acdgs"));
    assert_eq!(order("sort=logprob"), "gdsac");
    assert_eq!(order("sort=logprob&reverse=1"), "casdg");
}

#[test]
fn two_tables_stand_side_by_side() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("refs.txt"), "a#0\t一只黑狗在草地上跑\nb#0\t两个男人在下棋\n").unwrap();
    fs::write(folder.path().join("one.tsv"), "a.jpg\t一只黑狗在草地上跑\nb.jpg\t两个人\n").unwrap();
    fs::write(folder.path().join("two.tsv"), "a.jpg\t黑狗\nb.jpg\t两个男人在下棋\nc.jpg\t猫\n").unwrap();
    let page = report(folder.path(), &["one.tsv", "two.tsv", "--references", "refs.txt"], 0);
    let dom = opened(&chromium, &page, "sort=difference");
    let shown = made(&dom);
    assert_eq!(
        (shown.matches("<article").count(), shown.matches("A: one.tsv").count(), shown.matches("not in this table").count()),
        (3, 3, 1)
    );
    let place = |text: &str| shown.find(text).unwrap_or_else(|| panic!("no {text}"));
    // B gains most on b, loses on a, and c has no score.
    assert!(
        place("aria-label=\"b.jpg\"") < place("aria-label=\"a.jpg\"")
            && place("aria-label=\"a.jpg\"") < place("aria-label=\"c.jpg\"")
    );
    assert!(shown.contains("class=\"references\"") && !shown.contains("<img"));
}

#[test]
fn nothing_leaves_the_page_and_the_policy_holds_even_against_markup() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (visits, address) = trap();
    let markup = format!("<img src=\"{address}/a\"><script>document.documentElement.dataset.ran = '1'</script>");
    let name = format!("{address}/b.jpg");
    write_table(&folder.path().join("t.parquet"), &[("a.jpg", &markup, -1.0, 2, "eos"), (&name, &markup, -1.0, 2, "eos")]);
    let page = report(folder.path(), &["t.parquet"], 0);
    let dom = opened(&chromium, &page, "");
    assert!(dom.contains("data-ready=\"2\"") && !dom.contains("data-ran") && visits.load(Ordering::SeqCst) == 0);

    // Even if a fault of ours let it through as markup, the page's policy would stop it; and without the policy this test would see it.
    let html = fs::read_to_string(&page).unwrap();
    let broken = html.replace("</main>", &format!("{markup}</main>"));
    fs::write(&page, &broken).unwrap();
    let dom = opened(&chromium, &page, "");
    assert!(
        dom.contains(&format!("<img src=\"{address}/a\">")) && !dom.contains("data-ran") && visits.load(Ordering::SeqCst) == 0
    );
    fs::write(&page, broken.replace("Content-Security-Policy", "X-Nothing")).unwrap();
    let dom = opened(&chromium, &page, "");
    assert!(dom.contains("data-ran=\"1\"") && visits.load(Ordering::SeqCst) > 0);
}

/// The page with another script, which runs where the policy is gone.
fn scripted(page: &Path, script: &str) {
    let html = fs::read_to_string(page).unwrap();
    let with = format!("<script>{script}</script></body>");
    fs::write(page, html.replace("Content-Security-Policy", "X-Nothing").replace("</body>", &with)).unwrap();
}

#[test]
fn marks_are_kept_shown_and_exported() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let page = report(folder.path(), &["captions.parquet", "--images", "pictures"], 3);
    scripted(
        &page,
        r#"
        const press = key => (document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
        // The first key finds no image in focus and goes to the first; a mark goes on to the next; the same mark again takes it away.
        for (const key of ['n', 'n', 'y', 'n', 'k', 'n', 'j', 'y', 'k', 'u']) press(key);
        const cards = [...document.querySelectorAll('article')].map(card => card.dataset.mark || '-').join('');
        HTMLAnchorElement.prototype.click = function () { document.documentElement.dataset.file = this.download; };
        URL.createObjectURL = blob => { blob.text().then(text => { document.documentElement.dataset.list = JSON.stringify(text); }); return '#'; };
        [...document.querySelectorAll('button')].find(button => button.textContent.startsWith('Export marks (2)')).click();
        const parse = id => JSON.parse(document.getElementById(id).textContent);
        // Another page of the report, or this one again, has them too; where captions are others, they are gone.
        const again = openMarks(parse('facts'), parse('images'), () => {});
        const others = parse('images').map(image => ({ ...image, tables: [[['别的']]] }));
        const changed = openMarks(parse('facts'), others, () => {});
        const elsewhere = openMarks({ identity: 'another' }, parse('images'), () => {});
        document.documentElement.dataset.said = [cards, again.count(), changed.count(), elsewhere.count()].join(' ');
        "#,
    );
    let dom = opened(&chromium, &page, "");
    let said =
        |name: &str| dom.split_once(&format!("data-{name}=\"")).map(|(_, rest)| rest.split('"').next().unwrap().to_string());
    assert_eq!(said("said").as_deref(), Some("ny--- 2 0 0"));
    assert_eq!(said("file").as_deref(), Some("r.marks.tsv"));
    let list = said("list").expect("a list was exported");
    assert!(
        list.contains("image_id\\timage_path\\tmark\\tcaption\\nc\\tc.png\\ty\\t")
            && list.contains("\\ngone\\tgone.jpg\\tn\\t\\n"),
        "{list}"
    );
}

#[test]
fn three_tables_stand_side_by_side_and_a_clip_score_decides_the_order() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("refs.txt"), "a#0\t一只黑狗在草地上跑\nb#0\t两个男人在下棋\n").unwrap();
    fs::write(folder.path().join("one.csv"), "image_path,caption,clip_score\na.jpg,一只黑狗在草地上跑,0.1\nb.jpg,两个人,0.4\n")
        .unwrap();
    for name in ["two.csv", "three.csv"] {
        fs::write(folder.path().join(name), "image_path,caption\na.jpg,黑狗\nb.jpg,两个男人在下棋\n").unwrap();
    }
    let page = report(folder.path(), &["one.csv", "two.csv", "three.csv", "--references", "refs.txt"], 0);
    let dom = opened(&chromium, &page, "");
    let shown = made(&dom);
    assert_eq!((shown.matches("A: one.csv").count(), shown.matches("C: three.csv").count()), (2, 2));
    let place = |text: &str| shown.find(text).unwrap_or_else(|| panic!("no {text}"));
    assert!(place("aria-label=\"a.jpg\"") < place("aria-label=\"b.jpg\"") && shown.contains("CLIP score 0.100"));
    // By CIDEr it is the other way round for C.
    let dom = opened(&chromium, &page, "sort=difference-c");
    assert!(made(&dom).find("aria-label=\"b.jpg\"").unwrap() < made(&dom).find("aria-label=\"a.jpg\"").unwrap());
    assert!(made(&dom).contains("best: A") && !made(&dom).contains("best: C"));
}

#[test]
fn keys_lead_from_image_to_image() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let page = report(folder.path(), &["captions.parquet", "--images", "pictures"], 3);
    // Another script can only press keys where the policy is gone.
    let script = "<script>
        const press = (key, target = document.activeElement) => target.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
        const said = [];
        const say = () => said.push(document.activeElement.getAttribute('aria-label')?.slice(0, 6) ?? document.activeElement.tagName);
        for (const key of ['j', 'j', 'j', 'k', 'ArrowLeft', 'Enter']) { press(key); say(); }
        said.push(document.activeElement.className);
        press('/'); say();
        press('j'); say();
        document.activeElement.value = 'x';
        press('Escape'); say();
        press('3');
        said.push(location.hash);
        press('1'); press('r');
        said.push(location.hash, document.querySelector('article').getAttribute('aria-label').slice(0, 3));
        press('?');
        said.push(document.querySelector('dialog').open);
        document.documentElement.dataset.said = said.join(' ');
        </script></body>";
    let html = fs::read_to_string(&page).unwrap();
    fs::write(&page, html.replace("Content-Security-Policy", "X-Nothing").replace("</body>", script)).unwrap();
    let dom = opened(&chromium, &page, "");
    let said = dom.split_once("data-said=\"").expect("the keys were pressed").1.split('"').next().unwrap();
    // The worst come first: an empty caption, then by log-probability per token.
    assert!(said.starts_with("gone.j c.png d.jpg c.png gone.j gone.j"), "{said}");
    assert!(said.ends_with("#view=failures #reverse=1 a&quot;b true"), "{said}");
    assert!(said.contains("card large Search Search BODY"), "{said}");
}
