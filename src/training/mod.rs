//! (training: see lib.rs)
