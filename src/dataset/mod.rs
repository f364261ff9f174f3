//! (dataset: see lib.rs)

pub mod listing;
