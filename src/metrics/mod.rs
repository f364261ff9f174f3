//! (metrics: see lib.rs)
