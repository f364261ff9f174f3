//! (autodiff: see lib.rs)
