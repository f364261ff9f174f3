//! (image: see lib.rs)
