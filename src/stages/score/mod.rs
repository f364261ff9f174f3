//! `clipcap score`: how well captions fit their images, as a CLIP with a text tower sees it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde_json::{Value as Json, json};

mod images;
mod pairs;
mod scorer;
mod writer;

pub use images::{Embedded, Images};
pub use pairs::PairOptions;
pub use scorer::{Scorer, ScorerModel, exact, fit, rounded};

use images::failure;
use pairs::{Pairs, text_column};
use writer::Writer;

use crate::dataset::wanted::Wanted;
use crate::image::Reason;
use crate::pipeline::{ErrorsTable, ImageReading, Interrupt, Output, Reporter, Tick};
use crate::runtime::Runtime;
use crate::stages::Outcome;
use crate::stages::summary::errors_line;

/// The column that is added.
pub const COLUMN: &str = "clip_score";

/// Where a table says which CLIP scored it.
const SCORER_KEY: &str = "clip_scorer";

/// Where the images are.
#[derive(Debug, Clone)]
pub enum Source {
    Images(Vec<PathBuf>),
    Embeddings(PathBuf),
}

/// A scoring run.
#[derive(Debug, Clone)]
pub struct ScoreSettings {
    /// A dataset, a table, or a caption file.
    pub table: PathBuf,
    pub pairs: PairOptions,
    pub source: Source,
    /// A bundle, or anything `--clip` takes, with a text tower.
    pub scorer: PathBuf,
    pub out: PathBuf,
    /// A `.csv` begins with a byte order mark.
    pub bom: bool,
    /// Of folders, which files.
    pub wanted: Wanted,
    pub reading: ImageReading,
    pub batch_size: usize,
    pub overwrite: bool,
}

/// How a scoring run ended.
#[derive(Debug)]
pub struct ScoreReport {
    pub outcome: Outcome,
    out: PathBuf,
    pairs: u64,
    scores: Vec<f32>,
    failed: BTreeMap<String, u64>,
    errors: Option<PathBuf>,
}

/// Scores every pair of a table.
///
/// # Errors
/// A table, a scorer or images that cannot be used; a pair whose image is not there has no score and is told in the errors table.
pub fn run(settings: &ScoreSettings, runtime: &Runtime, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<ScoreReport> {
    if settings.out.symlink_metadata().is_ok() && !settings.overwrite {
        bail!("{} exists; --overwrite replaces it", settings.out.display());
    }
    let pairs = Pairs::open(&settings.table, &settings.pairs, reporter)?;
    let batch = matches!(settings.source, Source::Images(_)).then_some(settings.batch_size);
    let model = Arc::new(ScorerModel::open(&settings.scorer)?);
    let mut scorer = model.load(runtime, batch)?;
    let images = Images::open(&settings.source, &model, &settings.wanted, settings.reading)?;
    let finder = images.finder();
    let matcher = finder.matcher();
    let schema = with_column(&pairs.schema);
    let format = pairs.format.clone().unwrap_or_else(|| "scored/1".into());
    let footer = [(SCORER_KEY, model.fingerprint.clone())];
    let mut writer = Writer::create(&settings.out, schema.clone(), &format, &footer, settings.bom)?;
    let (mut scores, mut num_pairs) = (vec![], 0u64);
    let mut failures: BTreeMap<String, crate::pipeline::Failure> = BTreeMap::new();
    // Images of neighbouring batches are often the same.
    let mut before: HashMap<usize, Embedded> = HashMap::new();
    for batch in pairs.batches {
        if interrupt.is_set() {
            let out = settings.out.clone();
            return Ok(ScoreReport {
                outcome: Outcome::Interrupted,
                out,
                pairs: num_pairs,
                scores,
                failed: BTreeMap::new(),
                errors: None,
            });
        }
        let batch = batch?;
        let references = text_column(&batch, &pairs.image)?;
        let captions = text_column(&batch, "caption")?;
        let found: Vec<Option<usize>> = references.iter().map(|name| Some(matcher.find(name?)?.at)).collect();
        let needed: BTreeSet<usize> = found.iter().flatten().copied().collect();
        before.retain(|number, _| needed.contains(number));
        let missing: Vec<usize> = needed.iter().copied().filter(|number| !before.contains_key(number)).collect();
        before.extend(finder.embed(&missing, &mut scorer)?);
        let texts: Vec<&str> = captions.iter().map(Option::unwrap_or_default).collect();
        let embedded = scorer.captions(&texts)?;
        let mut column: Vec<Option<f32>> = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            num_pairs += 1;
            let name = if references.is_null(row) { "" } else { references.value(row) };
            let image = found[row].and_then(|number| before.get(&number));
            let score = match image {
                _ if captions.is_null(row) => None,
                None => {
                    let text = match &settings.source {
                        Source::Images(_) => "no image under --images has that name",
                        Source::Embeddings(_) => "no embedding is called so",
                    };
                    failures.entry(name.into()).or_insert_with(|| failure(Reason::Vanished, text));
                    None
                }
                Some(Err(why)) => {
                    failures.entry(name.into()).or_insert_with(|| why.clone());
                    None
                }
                Some(Ok(image)) => fit(image, embedded[row].as_ref()),
            };
            scores.extend(score);
            column.push(score);
        }
        writer.write(&scored(&batch, schema.clone(), column)?)?;
        reporter.tick(&Tick { label: "scoring", done: num_pairs, ..Tick::default() });
    }
    let errors = Output::file(&settings.out).errors();
    if failures.is_empty() {
        let _ = std::fs::remove_file(&errors);
    } else {
        let mut table = ErrorsTable::new(errors.clone());
        failures.iter().try_for_each(|(name, failure)| table.add(name, failure))?;
        table.finish()?;
    }
    model.cut_note().iter().for_each(|note| reporter.warn(note));
    writer.finish().with_context(|| format!("cannot write {}", settings.out.display()))?;
    let outcome = match (scores.is_empty(), failures.is_empty()) {
        (true, false) => Outcome::TooManyFailed,
        (false, false) => Outcome::SomeFailed,
        (_, true) => Outcome::Complete,
    };
    let mut failed = BTreeMap::new();
    failures.values().for_each(|failure| *failed.entry(failure.reason.clone()).or_default() += 1);
    let errors = (!failures.is_empty()).then_some(errors);
    Ok(ScoreReport { outcome, out: settings.out.clone(), pairs: num_pairs, scores, failed, errors })
}

/// The table's columns and `clip_score`, in place of one it had.
fn with_column(schema: &SchemaRef) -> SchemaRef {
    let kept = schema.fields().iter().filter(|field| field.name() != COLUMN).cloned();
    let fields: Vec<Arc<Field>> = kept.chain([Arc::new(Field::new(COLUMN, DataType::Float32, true))]).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn scored(batch: &RecordBatch, schema: SchemaRef, scores: Vec<Option<f32>>) -> Result<RecordBatch> {
    let names = schema.fields().iter().map(|field| field.name()).filter(|name| *name != COLUMN);
    let mut columns: Vec<ArrayRef> = names.filter_map(|name| batch.column_by_name(name).cloned()).collect();
    columns.push(Arc::new(Float32Array::from(scores)));
    Ok(RecordBatch::try_new(schema, columns)?)
}

impl ScoreReport {
    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let facts = Distribution::of(&self.scores);
        let failed: u64 = self.failed.values().sum();
        let mut text = format!("{} pairs: {} scored", self.pairs, self.scores.len());
        if self.outcome == Outcome::Interrupted {
            text = "interrupted: nothing was written (`embed` can be resumed: give its output with --embeddings)".into();
        }
        if failed > 0 {
            let reasons: Vec<String> =
                self.failed.iter().map(|(reason, count)| format!("{count} {}", reason.replace('_', " "))).collect();
            text += &format!("; {failed} images without an embedding ({})", reasons.join(", "));
        }
        text.push('\n');
        if let Some(Distribution { mean, low, middle, high }) = facts {
            text +=
                &format!("{COLUMN}  mean {mean:.4}; a tenth below {low:.4}, half below {middle:.4}, a tenth above {high:.4}\n");
        }
        if self.outcome != Outcome::Interrupted {
            text += &format!("output   {}\n", self.out.display());
        }
        text += &errors_line(self.errors.as_deref());
        let json = json!({
            "command": "score",
            "exit_status": self.outcome.exit_code(),
            "counts": {"pairs": self.pairs, "scored": self.scores.len(), "images_failed": failed},
            "clip_score": facts.map(|f| json!({"mean": f.mean, "p10": f.low, "p50": f.middle, "p90": f.high})),
            "out": self.out,
            "errors": self.errors,
        });
        (text, json)
    }
}

/// How scores are spread.
#[derive(Debug, Clone, Copy)]
struct Distribution {
    mean: f64,
    low: f32,
    middle: f32,
    high: f32,
}

impl Distribution {
    fn of(scores: &[f32]) -> Option<Self> {
        let mut sorted = scores.to_vec();
        sorted.sort_by(f32::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len() - 1) as f64 * share).round() as usize).copied();
        if sorted.is_empty() {
            return None;
        }
        let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64;
        Some(Self { mean, low: at(0.1)?, middle: at(0.5)?, high: at(0.9)? })
    }
}

/// The kinds of table that are written, by their names' ends.
pub fn is_known(out: &Path) -> bool {
    Writer::kind(out).is_some()
}
