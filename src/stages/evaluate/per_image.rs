//! Scores by image as a Parquet table.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Float64Array, Int32Array, StringArray};
use arrow::record_batch::RecordBatch;

use super::levels::TableScores;
use super::{Evaluation, ScoredImage};
use crate::metrics::{CLIP_METRIC_NAMES, METRIC_NAMES};
use crate::table::ParquetSink;

/// What the table calls itself in its footer.
const FORMAT: &str = "image_scores/1";

/// Writes one row an image, level (`tokens`: char, word) and table (`source`: predictions, compared), in this order of columns: image_id,
/// tokens, source, caption_index, caption, num_references, num_tokens, bleu_1..bleu_4, rouge_l, cider, and clip_score and ref_clip_score
/// where a CLIP scored them. Rows are sorted by level, source and image_id.
pub(super) fn write(evaluation: &Evaluation, path: &Path) -> Result<()> {
    let mut sink: Option<ParquetSink> = None;
    for level in &evaluation.levels {
        let predictions = ("predictions", &level.predictions, (|image| &image.candidates) as fn(&ScoredImage) -> &Vec<String>);
        let compared = level
            .compared
            .as_ref()
            .map(|(table, _)| ("compared", table, (|image| &image.others) as fn(&ScoredImage) -> &Vec<String>));
        for (source, table, captions) in std::iter::once(predictions).chain(compared) {
            let batch = batch_of(evaluation, level.level.name(), source, table, captions)?;
            let sink = match &mut sink {
                Some(sink) => sink,
                empty => empty.insert(ParquetSink::create(path, batch.schema(), FORMAT)?),
            };
            sink.write(&batch)?;
        }
    }
    sink.context("no level was scored")?.finish()?;
    Ok(())
}

fn batch_of(
    evaluation: &Evaluation,
    tokens: &str,
    source: &str,
    table: &TableScores,
    captions: fn(&ScoredImage) -> &Vec<String>,
) -> Result<RecordBatch> {
    let images = &evaluation.images;
    let int32 = |values: Vec<usize>| -> Result<ArrayRef> {
        let values = values.into_iter().map(i32::try_from).collect::<Result<Vec<i32>, _>>()?;
        Ok(Arc::new(Int32Array::from(values)))
    };
    let text = |values: Vec<&str>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let chosen = images.iter().zip(&table.chosen).map(|(image, &chosen)| captions(image)[chosen].as_str());
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("image_id", text(images.iter().map(|image| image.id.as_str()).collect())),
        ("tokens", text(vec![tokens; images.len()])),
        ("source", text(vec![source; images.len()])),
        ("caption_index", int32(table.chosen.clone())?),
        ("caption", text(chosen.collect())),
        ("num_references", int32(images.iter().map(|image| image.references.len()).collect())?),
        ("num_tokens", int32(table.num_tokens.clone())?),
    ];
    let values: Vec<[f64; 6]> = table
        .scores
        .iter()
        .map(|score| {
            let [b1, b2, b3, b4] = score.bleu.scores();
            [b1, b2, b3, b4, score.rouge_l, score.cider]
        })
        .collect();
    for (m, name) in METRIC_NAMES.iter().enumerate() {
        columns.push((name, Arc::new(Float64Array::from(values.iter().map(|v| v[m]).collect::<Vec<_>>()))));
    }
    let clip = evaluation.clip.as_ref().and_then(|clip| match source {
        "predictions" => Some(&clip.predictions),
        _ => clip.compared.as_ref().map(|(table, _)| table),
    });
    if let Some(clip) = clip {
        for (m, name) in CLIP_METRIC_NAMES.iter().enumerate() {
            let values: Float64Array = clip.scores.iter().map(|scores| scores.map(|scores| scores.values()[m])).collect();
            columns.push((name, Arc::new(values)));
        }
    }
    // A column with nulls in it must not depend on whether there are any.
    let nullable = |name: &str| CLIP_METRIC_NAMES.contains(&name);
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, nullable(name))))?)
}
