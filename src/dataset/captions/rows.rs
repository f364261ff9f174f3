//! Captions as columns, as Parquet tables have them.

use arrow::array::{Array, ArrayAccessor, Float64Array, Int64Array, StringArray, StringBuilder};

use super::Translation;
use super::batch::{Bad, Batch, Details, Fields, Reason, Take};

/// Rows of a row group as text columns; those that the table lacks are missing.
#[derive(Debug, Clone)]
pub struct CaptionRows {
    pub(super) caption: StringArray,
    /// In step with the captions.
    pub(super) raw: Option<StringArray>,
    pub(super) image: Option<StringArray>,
    pub(super) file: Option<StringArray>,
    pub(super) split: Option<StringArray>,
    pub(super) source: Option<StringArray>,
    pub(super) translation: Option<StringArray>,
    pub(super) sha256: Option<StringArray>,
    pub(super) finish_reason: Option<StringArray>,
    pub(super) number: Option<Int64Array>,
    pub(super) num_tokens: Option<Int64Array>,
    pub(super) logprob: Option<Float64Array>,
    pub(super) clip_score: Option<Float64Array>,
    pub(super) rank: Option<Int64Array>,
}

/// One caption and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionRow<'a> {
    pub caption: &'a str,
    /// The image's file, or its id where no file is named.
    pub image: Option<&'a str>,
    pub split: Option<&'a str>,
    pub source: Option<&'a str>,
}

/// A cell; none where the table lacks the column, or the row a value.
fn cell<'a, A>(column: &'a Option<A>, at: usize) -> Option<<&'a A as ArrayAccessor>::Item>
where
    &'a A: ArrayAccessor,
{
    column.as_ref().filter(|column| column.is_valid(at)).map(|column| column.value(at))
}

impl CaptionRows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.caption.len()
    }

    /// None where the caption is null.
    pub fn get(&self, at: usize) -> Option<CaptionRow<'_>> {
        let caption = self.caption.is_valid(at).then(|| self.caption.value(at))?;
        let image = cell(&self.file, at).or_else(|| cell(&self.image, at));
        Some(CaptionRow { caption, image, split: cell(&self.split, at), source: cell(&self.source, at) })
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = CaptionRow<'_>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// The rows as text layouts leave theirs.
    pub fn into_batch(self, translation: Translation, take: Take) -> Batch {
        let mut batch = Batch::default();
        batch.reserve(self.caption.value_data().len());
        for at in 0..self.len() {
            batch.lines += 1;
            let line = at as u64 + 1;
            let pushed = if self.caption.is_null(at) {
                Err(Bad::new(Reason::NullCaption, "its caption is null or an empty list"))
            } else {
                let file = cell(&self.file, at).filter(|file| !file.is_empty());
                let details = take.details.then(|| Details {
                    logprob: cell(&self.logprob, at),
                    clip_score: cell(&self.clip_score, at),
                    rank: cell(&self.rank, at),
                    num_tokens: cell(&self.num_tokens, at),
                    finish_reason: cell(&self.finish_reason, at).map(str::to_string),
                    sha256: cell(&self.sha256, at).map(str::to_string),
                    raw: cell(&self.raw, at).map(str::to_string),
                });
                let caption = self.caption.value(at);
                let raw = cell(&self.raw, at).filter(|_| !take.details);
                let fields = Fields {
                    image: cell(&self.image, at).or(file).unwrap_or_default(),
                    file,
                    raw: raw.unwrap_or(caption),
                    text: raw.map(|_| caption),
                    number: cell(&self.number, at).and_then(|number| u32::try_from(number).ok()),
                    split: cell(&self.split, at).unwrap_or_default(),
                    translation: Some(cell(&self.translation, at).and_then(|t| t.parse().ok()).unwrap_or(translation)),
                    details: details.as_ref(),
                    ..Fields::default()
                };
                batch.push("", line, fields, take)
            };
            if let Err(bad) = pushed {
                batch.bad.push((line, bad));
            }
        }
        batch
    }
}

impl<'a> FromIterator<(&'a str, &'a str, &'a str)> for CaptionRows {
    /// From image, caption and source.
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str, &'a str)>>(rows: I) -> Self {
        let (mut image, mut caption, mut source) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
        for row in rows {
            image.append_value(row.0);
            caption.append_value(row.1);
            source.append_value(row.2);
        }
        Self {
            caption: caption.finish(),
            raw: None,
            image: Some(image.finish()),
            source: Some(source.finish()),
            file: None,
            split: None,
            translation: None,
            sha256: None,
            finish_reason: None,
            number: None,
            num_tokens: None,
            logprob: None,
            clip_score: None,
            rank: None,
        }
    }
}
