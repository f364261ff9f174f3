//! Self-contained HTML pages: no script, no network, light and dark by the reader's choice, narrow and wide.
//!
//! Everything that comes from data goes through [`escape`]; [`Page`] and the parts in [`chart`] do so themselves.

pub mod chart;
mod page;

pub use page::{Page, Table, escape};
