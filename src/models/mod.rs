//! (models: see lib.rs)
