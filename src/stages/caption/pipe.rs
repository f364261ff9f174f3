//! `caption --stdin arrow --stdout arrow`: images in and captions out as Arrow streams, for engines that hand over bytes.
//!
//! In: a column `id` (or `image_id`) and one `bytes` (or `image`: bytes, or Hugging Face's struct<bytes, path>). Out, a batch for each batch and in its
//! order: a row for each caption, and a row with `reason` and `message` for each image that failed.

use std::io::{BufReader, Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use rayon::prelude::*;

use super::value::CaptionText;
use super::{CaptionSettings, Captioner, ModelInfo, preparations};
use crate::files::ContentHash;
use crate::image::Reason;
use crate::pipeline::{Content, Entry, Failure, Interrupt, Prepare, Prepared};

/// What was piped through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Piped {
    pub captioned: u64,
    pub failed: u64,
    /// False where an interrupt came first.
    pub complete: bool,
}

const IDS: [&str; 2] = ["id", "image_id"];
const CONTENTS: [&str; 2] = ["bytes", "image"];

/// Captions every image that comes in. The model is loaded before the first; memory holds one batch.
///
/// # Errors
/// A stream that is none, or lacks a column; nobody reads what comes out.
pub fn pipe<C: Captioner>(
    settings: &CaptionSettings,
    model: &ModelInfo,
    load: impl FnOnce() -> Result<C>,
    input: impl Read,
    output: impl Write,
    interrupt: &Interrupt,
) -> Result<Piped> {
    let mut captioner = load()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.run.threads).build().context("cannot start threads")?;
    let stream = StreamReader::try_new(BufReader::new(input), None).context("stdin: not an Arrow stream")?;
    let mut writer = StreamWriter::try_new(output, &schema()).context("stdout: cannot write")?;
    let mut piped = Piped { complete: true, ..Piped::default() };
    for batch in stream {
        if interrupt.is_set() {
            piped.complete = false;
            break;
        }
        let batch = batch.context("stdin: the Arrow stream is damaged")?;
        let answers = answers(&batch, settings, model, &pool, &mut captioner)?;
        piped.failed += answers.iter().filter(|answer| answer.result.is_err()).count() as u64;
        piped.captioned += answers.iter().filter(|answer| answer.result.is_ok()).count() as u64;
        writer.write(&rows(&answers)?).context("stdout: cannot write")?;
        writer.flush().context("stdout: cannot write")?;
    }
    writer.finish().context("stdout: cannot write")?;
    Ok(piped)
}

/// What became of an image.
struct Answer {
    id: String,
    sha256: Option<ContentHash>,
    damaged: bool,
    result: Result<Vec<CaptionText>, Failure>,
}

fn answers<C: Captioner>(
    batch: &RecordBatch,
    settings: &CaptionSettings,
    model: &ModelInfo,
    pool: &rayon::ThreadPool,
    captioner: &mut C,
) -> Result<Vec<Answer>> {
    let (decode, _) = preparations(settings, model);
    let entries = entries(batch)?;
    let prepare = |entry: &Entry| match &entry.content {
        Content::Failed(failure) => Prepared::Failed { sha256: None, failure: failure.clone() },
        _ => decode.prepare(entry, &mut |_| false),
    };
    let prepared: Vec<Prepared> = pool.install(|| entries.par_iter().map(prepare).collect());
    let mut answers = Vec::with_capacity(prepared.len());
    let mut waiting: Vec<(usize, Vec<f32>)> = Vec::new();
    for (at, (prepared, id)) in prepared.into_iter().zip(ids(batch)?).enumerate() {
        let none = || Failure { reason: Reason::UnsupportedFormat.as_str().into(), message: "no image".into() };
        let (sha256, damaged, result) = match prepared {
            Prepared::Input { sha256, data, damaged } => {
                waiting.push((at, data));
                (Some(sha256), damaged, Ok(Vec::new()))
            }
            Prepared::Failed { sha256, failure } => (sha256, false, Err(failure)),
            Prepared::Known | Prepared::Skipped => (None, false, Err(none())),
        };
        answers.push(Answer { id, sha256, damaged, result });
    }
    for some in waiting.chunks(captioner.batch_size().max(1)) {
        let pixel_values: Vec<f32> = some.iter().flat_map(|(_, data)| data).copied().collect();
        let hashes: Vec<ContentHash> = some.iter().filter_map(|(at, _)| answers[*at].sha256).collect();
        let embeddings = captioner.encode(&pixel_values, some.len())?;
        for ((at, _), captions) in some.iter().zip(captioner.caption(&embeddings, &hashes)?) {
            answers[*at].result = captions;
        }
    }
    Ok(answers)
}

/// The first of these columns that is there.
fn column<'a>(batch: &'a RecordBatch, names: &[&str]) -> Result<&'a ArrayRef> {
    names.iter().find_map(|name| batch.column_by_name(name)).with_context(|| {
        let have: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        format!("stdin: a column {} is wanted, and it has {}", names.join(" or "), have.join(", "))
    })
}

fn ids(batch: &RecordBatch) -> Result<Vec<String>> {
    let ids = cast(column(batch, &IDS)?, &DataType::Utf8).context("stdin: ids are text or numbers")?;
    let ids: &StringArray = ids.as_string();
    Ok(ids.iter().map(|id| id.unwrap_or_default().to_string()).collect())
}

fn entries(batch: &RecordBatch) -> Result<Vec<Entry>> {
    let column = column(batch, &CONTENTS)?;
    let bytes = match column.as_struct_opt() {
        Some(parts) => parts.column_by_name("bytes").context("stdin: the column of images has no bytes")?,
        None => column,
    };
    if !matches!(bytes.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::Null) {
        bail!("stdin: the column of images is {}, not bytes", bytes.data_type());
    }
    let bytes = cast(bytes, &DataType::LargeBinary)?;
    let bytes = bytes.as_binary::<i64>();
    let entry = |row: usize| {
        let content = match bytes.is_valid(row) && column.is_valid(row) {
            true => Content::Bytes(bytes.value(row).into()),
            false => Content::Failed(Failure {
                reason: Reason::Unreadable.as_str().into(),
                message: "no bytes came with this id".into(),
            }),
        };
        Entry { image_path: String::new(), image_id: String::new(), content }
    };
    Ok((0..batch.num_rows()).map(entry).collect())
}

fn schema() -> SchemaRef {
    let field = |name: &str, kind, nullable| Field::new(name, kind, nullable);
    Arc::new(Schema::new(vec![
        field("id", DataType::Utf8, false),
        field("sha256", DataType::Utf8, true),
        field("caption_index", DataType::Int32, true),
        field("caption", DataType::Utf8, true),
        field("logprob", DataType::Float64, true),
        field("num_tokens", DataType::Int32, true),
        field("finish_reason", DataType::Utf8, true),
        field("damaged", DataType::Boolean, true),
        field("reason", DataType::Utf8, true),
        field("message", DataType::Utf8, true),
    ]))
}

/// A row of the answer: an image with one of its captions, or with its failure.
type Row<'a> = (&'a Answer, Result<(i32, &'a CaptionText), &'a Failure>);

fn rows(answers: &[Answer]) -> Result<RecordBatch> {
    let rows: Vec<Row> = answers
        .iter()
        .flat_map(|answer| match &answer.result {
            Ok(captions) => (0..).zip(captions).map(|caption| (answer, Ok(caption))).collect::<Vec<_>>(),
            Err(failure) => vec![(answer, Err(failure))],
        })
        .collect();
    let captions = || rows.iter().map(|(_, result)| result.as_ref().ok());
    let failures = || rows.iter().map(|(_, result)| result.as_ref().err());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(answer, _)| &answer.id))),
        Arc::new(rows.iter().map(|(answer, _)| answer.sha256.map(|sha256| sha256.to_string())).collect::<StringArray>()),
        Arc::new(captions().map(|caption| caption.map(|(index, _)| *index)).collect::<Int32Array>()),
        Arc::new(captions().map(|caption| caption.map(|(_, caption)| caption.text.as_str())).collect::<StringArray>()),
        Arc::new(captions().map(|caption| caption.map(|(_, caption)| caption.logprob)).collect::<Float64Array>()),
        Arc::new(captions().map(|caption| caption.map(|(_, caption)| caption.num_tokens)).collect::<Int32Array>()),
        Arc::new(captions().map(|caption| caption.map(|(_, caption)| caption.finish_reason.as_str())).collect::<StringArray>()),
        Arc::new(rows.iter().map(|(answer, result)| result.is_ok().then_some(answer.damaged)).collect::<BooleanArray>()),
        Arc::new(failures().map(|failure| failure.map(|failure| failure.reason.as_str())).collect::<StringArray>()),
        Arc::new(failures().map(|failure| failure.map(|failure| failure.message.as_str())).collect::<StringArray>()),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
