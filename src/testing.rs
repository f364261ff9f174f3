//! For unit tests only: the golden files beside the checkout.

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
