//! (html: see lib.rs)
