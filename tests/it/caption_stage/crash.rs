//! A run that dies at any of its writes, and the run after it.
//!
//! The reporter is told of every write just after it happened. A child process ends itself there with `abort`, which runs no
//! destructor and flushes nothing, as a kill does.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::fake::{AbortAt, Fake, bytes, caption, caption_told, pictures, settings, with};

/// Not a test of its own: what the child processes run.
#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn child() {
    let get = |name: &str| std::env::var(name).unwrap();
    let abort = AbortAt::new(&get("CRASH_AT"));
    // An update takes its images from another folder here than the table did.
    let settings = with(settings(Path::new(&get("CRASH_IMAGES")), Path::new(&get("CRASH_OUT"))), |run| run.prune = true);
    let fake = Fake { window_shows: true, ..Fake::new(4) };
    caption_told(&settings, &fake, &abort).unwrap();
}

/// Runs until the n-th write; true where the run got to its end before.
fn run_until(at: usize, images: &Path, out: &Path) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "caption_stage::crash::child", "--ignored", "--nocapture"]);
    child.env("CRASH_AT", at.to_string()).env("CRASH_IMAGES", images).env("CRASH_OUT", out);
    let output = child.output().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(6);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    !killed
}

fn dies_at_every_write(out_name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 200);
    fs::copy(images.join("a/0001.png"), images.join("b/copy.png")).unwrap();
    fs::write(images.join("b/bad.jpg"), "bad").unwrap();
    let wanted = folder.path().join("wanted");
    caption(&settings(&images, &wanted.join(out_name)), &Fake { window_shows: true, ..Fake::new(4) }).unwrap();
    let wanted = bytes(&wanted);

    // Killed once, at each write.
    let mut writes = 1;
    loop {
        let place = folder.path().join(format!("once-{writes}"));
        let ended = run_until(writes, &images, &place.join(out_name));
        assert!(run_until(usize::MAX, &images, &place.join(out_name)));
        assert!(bytes(&place) == wanted, "{out_name}: other bytes after a kill at write {writes}");
        if ended {
            break;
        }
        writes += 1;
    }
    assert!(writes > 8, "{writes}");

    // Killed again and again, each time after the first new write.
    let place = folder.path().join("often");
    let mut runs = 0;
    while !run_until(1, &images, &place.join(out_name)) {
        runs += 1;
        // From the last shard on, the first write is where the output is complete.
        if runs > 6 {
            assert!(run_until(usize::MAX, &images, &place.join(out_name)));
            break;
        }
    }
    assert!(bytes(&place) == wanted, "{out_name}: other bytes after many kills");
}

#[test]
fn a_table_is_the_same_after_a_kill_at_any_write() {
    dies_at_every_write("out.parquet");
}

#[test]
fn a_folder_of_parts_is_the_same_after_a_kill_at_any_write() {
    dies_at_every_write("captions");
}

#[test]
fn an_update_that_is_killed_at_any_write_ends_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (folder.path().join("before"), folder.path().join("after"));
    pictures(&before, 40);
    pictures(&after, 40);
    fs::remove_file(after.join("a/0004.png")).unwrap();
    super::fake::picture(&after.join("a/new.png"), 1000);
    let wanted = folder.path().join("wanted/out.parquet");
    caption(&settings(&before, &wanted), &Fake { window_shows: true, ..Fake::new(4) }).unwrap();
    let update = with(settings(&after, &wanted), |run| run.prune = true);
    caption(&update, &Fake { window_shows: true, ..Fake::new(4) }).unwrap();
    for at in 1.. {
        let out = folder.path().join(format!("{at}/out.parquet"));
        caption(&settings(&before, &out), &Fake { window_shows: true, ..Fake::new(4) }).unwrap();
        let ended = run_until(at, &after, &out);
        assert!(run_until(usize::MAX, &after, &out));
        assert!(bytes(out.parent().unwrap()) == bytes(wanted.parent().unwrap()), "other bytes after a kill at write {at}");
        if ended {
            assert!(at > 4, "{at}");
            break;
        }
    }
}
