//! What is known of one image: where it was, what its content hashes to, and what was made of it or why nothing was.

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;

use crate::files::{ContentHash, Stat};
use crate::pipeline::artifact::Failure;

/// One image's result, as shards keep it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<V> {
    /// Relative, percent-encoded, `/` between parts: the image's name in every table.
    pub image_path: String,
    /// Absent where the file must be read again to know whether it changed.
    pub stat: Option<Stat>,
    /// Absent where the content could not be read.
    pub sha256: Option<ContentHash>,
    pub result: Result<V, Failure>,
}

/// What a stage makes of an image, and how a column of a shard holds it.
pub trait Value: Clone + Send + Sync + 'static {
    /// The shard column's name.
    const COLUMN: &'static str;

    /// The column's type.
    fn data_type() -> DataType;

    /// One element for each value; null for `None` (an image that failed).
    fn to_column(values: &[Option<&Self>]) -> ArrayRef;

    /// Whether the image's file is damaged, and its result of what there is of it.
    fn is_damaged(&self) -> bool {
        false
    }

    /// The column's elements, or `None` where it does not look as [`to_column`](Self::to_column) writes it.
    fn from_column(column: &dyn Array) -> Option<Vec<Option<Self>>>;
}
