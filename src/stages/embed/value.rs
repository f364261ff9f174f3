//! An image's embedding, and how a shard keeps it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float32Array, ListArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Float32Type};

use crate::pipeline::Value;

/// An embedding [D], normalized where the run normalizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    pub values: Vec<f32>,
    /// The image file is damaged.
    pub damaged: bool,
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

fn fields() -> Fields {
    let values = Field::new("values", DataType::List(item()), false);
    Fields::from(vec![values, Field::new("damaged", DataType::Boolean, false)])
}

impl Value for Embedding {
    const COLUMN: &'static str = "embedding";

    fn is_damaged(&self) -> bool {
        self.damaged
    }

    fn data_type() -> DataType {
        DataType::Struct(fields())
    }

    fn to_column(values: &[Option<&Self>]) -> ArrayRef {
        let all = Float32Array::from_iter_values(values.iter().flatten().flat_map(|embedding| embedding.values.iter().copied()));
        let offsets = OffsetBuffer::from_lengths(values.iter().map(|embedding| embedding.map_or(0, |e| e.values.len())));
        let lists: ArrayRef = Arc::new(ListArray::new(item(), offsets, Arc::new(all), None));
        let damaged: BooleanArray = values.iter().map(|embedding| Some(embedding.is_some_and(|e| e.damaged))).collect();
        let present = NullBuffer::from_iter(values.iter().map(Option::is_some));
        Arc::new(StructArray::new(fields(), vec![lists, Arc::new(damaged)], Some(present)))
    }

    fn from_column(column: &dyn Array) -> Option<Vec<Option<Self>>> {
        let both = column.as_struct_opt()?;
        let lists = both.column_by_name("values")?.as_list_opt::<i32>()?;
        let damaged = both.column_by_name("damaged")?.as_boolean_opt()?;
        let read = |row: usize| {
            if both.is_null(row) {
                return Some(None);
            }
            let values = lists.value(row).as_primitive_opt::<Float32Type>()?.values().to_vec();
            Some(Some(Self { values, damaged: damaged.value(row) }))
        };
        (0..both.len()).map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_come_back_from_a_column() {
        let (a, b) =
            (Embedding { values: vec![1.0, -2.5], damaged: false }, Embedding { values: vec![0.0, 3.25], damaged: true });
        let column = Embedding::to_column(&[Some(&a), None, Some(&b)]);
        assert_eq!(column.data_type(), &Embedding::data_type());
        assert_eq!(Embedding::from_column(&column), Some(vec![Some(a), None, Some(b)]));
        assert_eq!(Embedding::from_column(&Float32Array::from(vec![1.0])), None);
    }
}
