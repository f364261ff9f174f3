//! (text: see lib.rs)
