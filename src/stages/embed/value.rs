//! An image's embedding, and how a shard keeps it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Float32Type};

use crate::pipeline::Value;

/// An embedding [D], normalized where the run normalizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(pub Vec<f32>);

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

impl Value for Embedding {
    const COLUMN: &'static str = "embedding";

    fn data_type() -> DataType {
        DataType::List(item())
    }

    fn to_column(values: &[Option<&Self>]) -> ArrayRef {
        let all = Float32Array::from_iter_values(values.iter().flatten().flat_map(|embedding| embedding.0.iter().copied()));
        let offsets = OffsetBuffer::from_lengths(values.iter().map(|embedding| embedding.map_or(0, |e| e.0.len())));
        let present = NullBuffer::from_iter(values.iter().map(Option::is_some));
        Arc::new(ListArray::new(item(), offsets, Arc::new(all), Some(present)))
    }

    fn from_column(column: &dyn Array) -> Option<Vec<Option<Self>>> {
        let lists = column.as_list_opt::<i32>()?;
        let read = |row: usize| {
            if lists.is_null(row) {
                return Some(None);
            }
            let list = lists.value(row);
            Some(Some(Self(list.as_primitive_opt::<Float32Type>()?.values().to_vec())))
        };
        (0..lists.len()).map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_come_back_from_a_column() {
        let (a, b) = (Embedding(vec![1.0, -2.5]), Embedding(vec![0.0, 3.25]));
        let column = Embedding::to_column(&[Some(&a), None, Some(&b)]);
        assert_eq!(column.data_type(), &Embedding::data_type());
        assert_eq!(Embedding::from_column(&column), Some(vec![Some(a), None, Some(b)]));
        assert_eq!(Embedding::from_column(&Float32Array::from(vec![1.0])), None);
    }
}
