//! `clipcap completions` and `clipcap man`.

use std::fs;

use crate::common::{clipcap, run};

#[test]
fn shells_complete_commands_and_flags() {
    for (shell, start) in [("bash", "_clipcap() {"), ("zsh", "#compdef clipcap"), ("fish", "complete -c clipcap")] {
        let script = String::from_utf8(run(clipcap().args(["completions", shell]), 0).stdout).unwrap();
        assert!(script.contains(start) && script.contains("max-new-tokens") && script.contains("quantize"), "{shell}");
    }
    run(clipcap().args(["completions", "abacus"]), 2);
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = String::from_utf8(run(clipcap().arg("man"), 0).stdout).unwrap();
    assert!(page.contains(".TH clipcap 1") && page.contains("clipcap\\-caption(1)"), "{page}");
    run(clipcap().args(["man", "--out"]).arg(folder.path()), 0);
    let mut names: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in ["clipcap.1", "clipcap-caption.1", "clipcap-model-import.1", "clipcap-report.1", "clipcap-run.1"] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    let caption = fs::read_to_string(folder.path().join("clipcap-caption.1")).unwrap();
    assert!(caption.contains(".TH clipcap-caption 1") && caption.contains("\\-\\-top\\-p"));
    assert_eq!(fs::read(folder.path().join("clipcap.1")).unwrap(), page.into_bytes());
}
