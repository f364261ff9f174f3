//! Pipelines: stages in a TOML file, and what their inputs hash to. `stages/run.rs` runs them.

mod content;
mod spec;

pub(crate) use content::ContentHashes;
pub use spec::{Spec, SpecError, StageSpec};
