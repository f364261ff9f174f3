//! (generation: see lib.rs)
