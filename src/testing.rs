//! For unit tests only: golden files, of the repository and beside the checkout.

use std::path::{Path, PathBuf};

/// `../shared/PATH` beside the checkout. Absent, the test that asked skips loudly; with CLIPCAP_NO_SKIP that is a failure.
pub fn shared(path: &str) -> Option<PathBuf> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if full.exists() {
        return Some(full);
    }
    assert!(
        std::env::var_os("CLIPCAP_NO_SKIP").is_none(),
        "{} is absent, and CLIPCAP_NO_SKIP makes that a failure",
        full.display()
    );
    eprintln!("SKIPPED: {} is absent", full.display());
    None
}

/// Folders of golden models: the repository's own, `tests/golden/models`, and `../shared/NAME` where it is there.
pub fn golden(name: &str) -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    [Some(own), shared(name)].into_iter().flatten().collect()
}
