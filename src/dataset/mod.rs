//! (dataset: see lib.rs)
