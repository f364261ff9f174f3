//! What stages share: where they report to, and (see the submodules) work folders, ledgers, locks and fingerprints.

pub mod reporter;

pub use reporter::{Interrupt, Reporter, Silent, Tick};
