//! An image's captions, and how a shard keeps them.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int32Array, ListArray, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Float32Type, Float64Type, Int32Type};

use crate::generation::FinishReason;
use crate::pipeline::Value;

/// One caption, as a table shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionText {
    /// As it stands in the table: detokenized, cleaned, without special tokens.
    pub text: String,
    /// Rounded to 4 decimals.
    pub logprob: f64,
    /// [SEP] included.
    pub num_tokens: i32,
    /// What ended it.
    pub finish_reason: FinishReason,
    /// Its number among the image's captions, from 0; captions that are left out leave gaps.
    pub index: i32,
    /// How well it fits the image, where that was asked for; rounded to 4 decimals.
    pub clip_score: Option<f32>,
}

/// The captions of an image, by caption_index.
#[derive(Debug, Clone, PartialEq)]
pub struct Captions {
    pub texts: Vec<CaptionText>,
    /// The image file is damaged.
    pub damaged: bool,
}

fn fields() -> Fields {
    Fields::from(vec![
        Field::new("caption", DataType::Utf8, false),
        Field::new("logprob", DataType::Float64, false),
        Field::new("num_tokens", DataType::Int32, false),
        Field::new("finish_reason", DataType::Utf8, false),
        Field::new("caption_index", DataType::Int32, false),
        Field::new("clip_score", DataType::Float32, true),
    ])
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(fields()), false))
}

fn both() -> Fields {
    let texts = Field::new("texts", DataType::List(item()), false);
    Fields::from(vec![texts, Field::new("damaged", DataType::Boolean, false)])
}

impl Value for Captions {
    const COLUMN: &'static str = "captions";

    fn is_damaged(&self) -> bool {
        self.damaged
    }

    fn data_type() -> DataType {
        DataType::Struct(both())
    }

    fn to_column(values: &[Option<&Self>]) -> ArrayRef {
        let all = || values.iter().flatten().flat_map(|captions| &captions.texts);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(all().map(|c| &c.text))),
            Arc::new(Float64Array::from_iter_values(all().map(|c| c.logprob))),
            Arc::new(Int32Array::from_iter_values(all().map(|c| c.num_tokens))),
            Arc::new(StringArray::from_iter_values(all().map(|c| c.finish_reason.as_str()))),
            Arc::new(Int32Array::from_iter_values(all().map(|c| c.index))),
            Arc::new(all().map(|c| c.clip_score).collect::<Float32Array>()),
        ];
        let offsets = OffsetBuffer::from_lengths(values.iter().map(|captions| captions.map_or(0, |c| c.texts.len())));
        let present = NullBuffer::from_iter(values.iter().map(Option::is_some));
        let lists = ListArray::new(item(), offsets, Arc::new(StructArray::new(fields(), columns, None)), None);
        let damaged: BooleanArray = values.iter().map(|captions| Some(captions.is_some_and(|c| c.damaged))).collect();
        Arc::new(StructArray::new(both(), vec![Arc::new(lists), Arc::new(damaged)], Some(present)))
    }

    fn from_column(column: &dyn Array) -> Option<Vec<Option<Self>>> {
        let both = column.as_struct_opt()?;
        let lists = both.column_by_name("texts")?.as_list_opt::<i32>()?;
        let damaged = both.column_by_name("damaged")?.as_boolean_opt()?;
        let read = |row: usize| -> Option<Option<Self>> {
            if both.is_null(row) {
                return Some(None);
            }
            let list = lists.value(row);
            let list = list.as_struct_opt()?;
            let texts = list.column_by_name("caption")?.as_string_opt::<i32>()?;
            let logprobs = list.column_by_name("logprob")?.as_primitive_opt::<Float64Type>()?;
            let num_tokens = list.column_by_name("num_tokens")?.as_primitive_opt::<Int32Type>()?;
            let reasons = list.column_by_name("finish_reason")?.as_string_opt::<i32>()?;
            let indexes = list.column_by_name("caption_index")?.as_primitive_opt::<Int32Type>()?;
            let scores = list.column_by_name("clip_score")?.as_primitive_opt::<Float32Type>()?;
            let captions = (0..list.len()).map(|i| {
                Some(CaptionText {
                    text: texts.value(i).into(),
                    logprob: logprobs.value(i),
                    num_tokens: num_tokens.value(i),
                    finish_reason: finish_reason(reasons.value(i))?,
                    index: indexes.value(i),
                    clip_score: scores.is_valid(i).then(|| scores.value(i)),
                })
            });
            captions.collect::<Option<Vec<_>>>().map(|texts| Some(Self { texts, damaged: damaged.value(row) }))
        };
        (0..both.len()).map(read).collect()
    }
}

/// The reason that a table spells so.
pub fn finish_reason(text: &str) -> Option<FinishReason> {
    [FinishReason::Eos, FinishReason::Length, FinishReason::Loop].into_iter().find(|reason| reason.as_str() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_come_back_from_a_column() {
        let caption = |text: &str, finish_reason| CaptionText {
            text: text.into(),
            logprob: -1.25,
            num_tokens: 3,
            finish_reason,
            index: 7,
            clip_score: (!text.is_empty()).then_some(0.25),
        };
        let two = vec![caption("一只狗", FinishReason::Eos), caption("", FinishReason::Loop)];
        let two = Captions { texts: two, damaged: false };
        let one = Captions { texts: vec![caption("猫", FinishReason::Length)], damaged: true };
        let values = [Some(&two), None, Some(&one)];
        let column = Captions::to_column(&values);
        assert_eq!(column.data_type(), &Captions::data_type());
        let back = Captions::from_column(&column).unwrap();
        assert_eq!(back, [Some(two.clone()), None, Some(one.clone())]);
        assert_eq!(Captions::from_column(&Captions::to_column(&[None])), Some(vec![None]));
        assert_eq!(Captions::from_column(&StringArray::from(vec!["x"])), None);
    }
}
