//! `clipcap model quantize --calibrate`: static scales from a few hundred inputs, and how the captions compare.

use std::collections::{BTreeMap, BinaryHeap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::caption::{self, Captioner, Wording};
use crate::dataset::wanted::Wanted;
use crate::files::{ContentHash, temporary_beside};
use crate::generation;
use crate::image::Preprocess;
use crate::models::bundle::{Calibrated, CalibrationReport};
use crate::models::graphs::{GraphKind, build};
use crate::models::int8::{DecoderObserver, EncoderObserver, MapperObserver};
use crate::models::layers::Style;
use crate::models::{Bundle, ClipEncoder, ImageEncoder, style_for};
use crate::onnx::Model;
use crate::pipeline::sources::{Embeddings, Folder, StoredImages};
use crate::pipeline::{Content, Decode, Entry, ImageReading, Prepare, Prepared, Reporter};
use crate::runtime::{Device, Precision, Runtime, Session};
use crate::stages::loading::{Prompt, scale_to_length_1};

/// Inputs that are looked at, at most.
pub const MAX_INPUTS: usize = 512;
/// Of these, inputs that are captioned.
const MAX_CAPTIONED: usize = 64;
/// Inputs run together: every activation of a batch is held in memory.
const BATCH: usize = 8;
/// One caption in so many may change before the decoder's static scales are given up.
const MOST_CHANGED: u64 = 20;
/// Tokens of a caption that is looked at, at most.
const MAX_TOKENS: usize = 24;

/// Settings of `model quantize`.
pub struct QuantizeSettings {
    pub bundle: PathBuf,
    /// Images, a dataset that stores its images, or embeddings.
    pub calibrate: Option<PathBuf>,
    pub out: PathBuf,
    pub overwrite: bool,
    pub threads: Option<usize>,
}

/// What calibration looks at.
struct Inputs {
    kind: &'static str,
    /// In the order of their names.
    entries: Vec<Entry>,
    decode: Decode,
}

/// Makes a bundle with 8-bit weights; with `calibrate`, static ones. Returns it, and what there is to say of how it was made.
pub fn quantize(settings: &QuantizeSettings, reporter: &dyn Reporter) -> Result<(Bundle, Option<String>)> {
    let bundle = Bundle::open(&settings.bundle)?;
    let Some(path) = &settings.calibrate else {
        return Ok((bundle.quantized(&settings.out, settings.overwrite, None)?, None));
    };
    let inputs = Inputs::open(path, &bundle)?;
    let runtime = Runtime::start(Device::Cpu, Precision::Fp32, settings.threads)?;
    let (mut calibrated, embeddings, hashes) = calibrate(&bundle, &runtime, &inputs, reporter)?;
    let mut made = bundle.quantized(&settings.out, settings.overwrite, Some(&calibrated))?;
    reporter.note("comparing with float32");
    let compared = |made: &Bundle| compare(&bundle, made, settings.threads, &inputs, &embeddings, &hashes);
    let mut report = compared(&made)?;
    // A decoder feeds itself, so its errors add up. A scale for each row costs it little time and saves what static ones lose.
    if report.captions_changed > report.captions_compared / MOST_CHANGED
        && let Some(decoder) = calibrated.parts.remove("decoder")
    {
        made = bundle.quantized(&settings.out, true, Some(&calibrated))?;
        let by_rows = compared(&made)?;
        let (before, after) = (report.captions_changed, by_rows.captions_changed);
        if after < before {
            let of = report.captions_compared;
            reporter.note(&format!(
                "static scales in the decoder change {before} of {of} captions, a scale for each row {after}: it takes those"
            ));
            report = by_rows;
        } else {
            calibrated.parts.insert("decoder", decoder);
            made = bundle.quantized(&settings.out, true, Some(&calibrated))?;
        }
    }
    let made = made.record_report(report.clone())?;
    let text = report_text(&calibrated, &report, reporter);
    check_joined(&made, &runtime, &calibrated, reporter)?;
    Ok((made, Some(text)))
}

/// Looks into the graphs as ONNX Runtime computes them: every product that is to be in 8 bits must be computed in integers.
fn check_joined(made: &Bundle, runtime: &Runtime, calibrated: &Calibrated, reporter: &dyn Reporter) -> Result<()> {
    let style = Style { int8: true, ..style_for(runtime) };
    for part in [
        GraphKind::ImageEncoder(made.clip_config()),
        GraphKind::Mapper(made.mapper_config()),
        GraphKind::InPlaceDecoder(made.decoder_config()),
    ] {
        let Some(decisions) = calibrated.parts.get(part.name()) else { continue };
        let model = build(made.path(), part, style)?;
        let dump = temporary_beside(made.path());
        let written = Session::write_optimized(runtime, part.name(), &model.to_bytes(), made.path(), &dump);
        let computed = written.map_err(anyhow::Error::from).and_then(|()| Ok(Model::computed(&dump)?));
        let _ = std::fs::remove_file(&dump);
        let computed = computed?;
        for weight in &computed.in_float {
            reporter.detail(&format!("{}: {weight} is multiplied in float", part.name()));
        }
        let (wanted, found) = (decisions.in_8_bits.len(), computed.in_integers.len());
        reporter.detail(&format!("{}: {found} products in integers on ONNX Runtime's CPU provider", part.name()));
        if found < wanted {
            let text = format!(
                "{}: ONNX Runtime computes only {found} of {wanted} products in integers: slower, not wrong",
                part.name()
            );
            reporter.warn(&text);
        }
    }
    Ok(())
}

impl Inputs {
    fn open(path: &Path, bundle: &Bundle) -> Result<Self> {
        let decode = Decode::new(Preprocess::from_file(&bundle.preprocessor_path())?, ImageReading::default());
        let is_embeddings = path.is_file() && path.extension().is_some_and(|e| e == "npy" || e == "parquet")
            || path.join("part-00000.parquet").is_file()
            || path.join("img_emb").is_dir();
        let (kind, entries) = if is_embeddings {
            let embeddings = Embeddings::open(path)?;
            let wanted = bundle.clip_config().projection_dim;
            if embeddings.embedding_dim != wanted {
                bail!("{}: embeddings of {}, and this bundle's mapper takes {wanted}", path.display(), embeddings.embedding_dim);
            }
            ("embeddings", chosen(embeddings.entries())?)
        } else if StoredImages::is_dataset(path) || path.join("captions.parquet").is_file() {
            ("images", chosen(StoredImages::open(path)?.entries())?)
        } else {
            ("images", chosen(Folder::new(&[path.into()], &[], decode.reading.limits.max_bytes, &Wanted::default())?.entries())?)
        };
        if entries.is_empty() {
            bail!("--calibrate {}: nothing to look at in there", path.display());
        }
        Ok(Self { kind, entries, decode })
    }

    fn are_images(&self) -> bool {
        self.kind == "images"
    }

    /// Pixels or embeddings of a few entries; what cannot be read is passed over.
    fn prepare(&self, entries: &[Entry]) -> Vec<(ContentHash, Vec<f32>)> {
        let prepared = entries.par_iter().map(|entry| match &entry.content {
            Content::Embedding { values, sha256, .. } => Some((*sha256, values.clone())),
            _ => match self.decode.prepare(entry, &mut |_| false) {
                Prepared::Input { sha256, data, .. } => Some((sha256, data)),
                _ => None,
            },
        });
        prepared.collect::<Vec<_>>().into_iter().flatten().collect()
    }
}

/// An entry by the hash of its name, the greatest first.
struct ByHash(ContentHash, Entry);

impl PartialEq for ByHash {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for ByHash {}

impl PartialOrd for ByHash {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByHash {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// Up to [`MAX_INPUTS`] entries from all over the list, always the same ones, in the order of their names.
fn chosen(entries: impl Iterator<Item = Result<Entry>>) -> Result<Vec<Entry>> {
    let mut heap = BinaryHeap::new();
    for entry in entries {
        let entry = entry?;
        if matches!(entry.content, Content::File { .. } | Content::Bytes(_) | Content::Embedding { .. }) {
            heap.push(ByHash(ContentHash::of(&entry.image_path), entry));
            if heap.len() > MAX_INPUTS {
                heap.pop();
            }
        }
    }
    let mut chosen: Vec<Entry> = heap.into_iter().map(|ByHash(_, entry)| entry).collect();
    chosen.sort_by(|a, b| a.image_path.cmp(&b.image_path));
    Ok(chosen)
}

/// Runs the float graphs over the inputs and decides. Also returns the inputs' embeddings [inputs, D] and hashes.
fn calibrate(
    bundle: &Bundle,
    runtime: &Runtime,
    inputs: &Inputs,
    reporter: &dyn Reporter,
) -> Result<(Calibrated, Vec<f32>, Vec<ContentHash>)> {
    let folder = bundle.path();
    let mut encoder = match inputs.are_images() {
        true => Some(EncoderObserver::load(runtime, folder, bundle.clip_config())?),
        false => None,
    };
    let (mut embeddings, mut hashes) = (Vec::<f32>::new(), Vec::new());
    for entries in inputs.entries.chunks(BATCH) {
        let prepared = inputs.prepare(entries);
        let data = prepared.iter().flat_map(|(_, data)| data).copied().collect::<Vec<f32>>();
        hashes.extend(prepared.iter().map(|(sha256, _)| *sha256));
        match &mut encoder {
            Some(encoder) if !prepared.is_empty() => embeddings.extend(encoder.encode(&data, prepared.len())?),
            Some(_) => {}
            None => embeddings.extend(data),
        }
    }
    if hashes.is_empty() {
        bail!("--calibrate: none of {} files can be read as an image", inputs.entries.len());
    }
    if hashes.len() < inputs.entries.len() {
        reporter.note(&format!(
            "{} of {} files are not images or cannot be read",
            inputs.entries.len() - hashes.len(),
            inputs.entries.len()
        ));
    }
    reporter.note(&format!("calibrating on {} {}", hashes.len(), inputs.kind));
    let mut parts = BTreeMap::new();
    if let Some(encoder) = encoder {
        parts.insert("image_encoder", bundle.decide("clip", &encoder.finish())?);
    }
    let width = embeddings.len() / hashes.len();
    let mut mapper = MapperObserver::load(runtime, folder, bundle.mapper_config())?;
    let mut decoder = DecoderObserver::load(runtime, folder, bundle.decoder_config())?;
    let tokenizer = bundle.tokenizer()?;
    let prompt = Prompt::new(bundle.prompt(), bundle, &tokenizer)?;
    let max_tokens = caption::max_new_tokens(bundle, &Wording::new(bundle, None, None))?.min(MAX_TOKENS);
    for (index, batch) in embeddings.chunks(BATCH * width).enumerate() {
        let mut batch = batch.to_vec();
        if bundle.normalized() {
            batch.chunks_exact_mut(width).for_each(scale_to_length_1);
        }
        let rows = batch.len() / width;
        let prefixes = mapper.map(&batch, rows)?;
        if index * BATCH < MAX_CAPTIONED {
            let prefixes: Vec<f32> = prefixes.chunks(prefixes.len() / rows).flat_map(|prefix| prompt.behind(prefix)).collect();
            decoder.caption(&prefixes, rows, tokenizer.ends(), max_tokens)?;
        }
    }
    parts.insert("mapper", bundle.decide("mapper", &mapper.finish())?);
    parts.insert("decoder", bundle.decide("gpt2", &decoder.finish())?);
    let mut hasher = Sha256::new();
    hashes.iter().for_each(|hash| hasher.update(hash.bytes()));
    let fingerprint = ContentHash::from(hasher).to_string();
    let calibrated = Calibrated { kind: inputs.kind, count: hashes.len() as u64, fingerprint, parts };
    Ok((calibrated, embeddings, hashes))
}

/// Embeddings and greedy captions of both bundles on the CPU provider.
fn compare(
    float: &Bundle,
    small: &Bundle,
    threads: Option<usize>,
    inputs: &Inputs,
    embeddings: &[f32],
    hashes: &[ContentHash],
) -> Result<CalibrationReport> {
    let runtime = Runtime::start(Device::Cpu, Precision::Int8, threads)?;
    let width = embeddings.len() / hashes.len().max(1);
    let mut rounded = embeddings.to_vec();
    let (mut mean, mut least) = (None, None);
    if inputs.are_images() {
        let mut encoder = ClipEncoder::load(&runtime, small.path(), small.clip_config(), BATCH)?;
        rounded.clear();
        for entries in inputs.entries.chunks(BATCH) {
            let prepared = inputs.prepare(entries);
            if !prepared.is_empty() {
                let data = prepared.iter().flat_map(|(_, data)| data).copied().collect::<Vec<f32>>();
                rounded.extend(encoder.encode(&data, prepared.len())?);
            }
        }
        let cosines: Vec<f64> =
            embeddings.chunks_exact(width).zip(rounded.chunks_exact(width)).map(|(a, b)| cosine(a, b)).collect();
        mean = Some(cosines.iter().sum::<f64>() / cosines.len().max(1) as f64);
        least = cosines.into_iter().reduce(f64::min);
    }
    let count = hashes.len().min(MAX_CAPTIONED);
    let captions = |bundle: &Bundle, precision, embeddings: &[f32]| -> Result<Vec<Option<String>>> {
        let runtime = Runtime::start(Device::Cpu, precision, threads)?;
        let wording = Wording::new(bundle, None, None);
        let limit = caption::max_new_tokens(bundle, &wording)?.min(MAX_TOKENS);
        let decoding = generation::Settings { max_new_tokens: limit, ..generation::Settings::default() };
        let mut model = caption::load(bundle, &runtime, &decoding, &wording, BATCH, true)?;
        let captions = model.caption(&embeddings[..count * width], &hashes[..count])?;
        Ok(captions.into_iter().map(|c| Some(c.ok()?.first()?.text.clone())).collect())
    };
    let before = captions(float, Precision::Fp32, embeddings).context("cannot caption with the float weights")?;
    let after = captions(small, Precision::Int8, &rounded).context("cannot caption with the 8-bit weights")?;
    let rounded = |value: f64| (value * 1e5).floor() / 1e5;
    Ok(CalibrationReport {
        cosine_mean: mean.map(rounded),
        cosine_least: least.map(rounded),
        captions_compared: count as u64,
        captions_changed: before.iter().zip(&after).filter(|(before, after)| before != after).count() as u64,
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// The report for people; which products are how, with `-v`.
fn report_text(calibrated: &Calibrated, report: &CalibrationReport, reporter: &dyn Reporter) -> String {
    let mut text = format!("\ncalibrated on {} {}\n", calibrated.count, calibrated.kind);
    for (name, decisions) in &calibrated.parts {
        let (in_8_bits, in_float) = (decisions.in_8_bits.len(), decisions.in_float.len());
        text += &format!("{name:<14} {in_8_bits} products in 8 bits, {in_float} in float");
        let names: Vec<&str> = decisions.in_float.keys().map(String::as_str).collect();
        text += &if names.is_empty() { "\n".into() } else { format!(": {}\n", shortened(&names)) };
        for (weight, (_, decision)) in &decisions.in_8_bits {
            let shared = decision.smoothing.as_ref().map_or(String::new(), |(strength, _)| format!(", shared {strength}"));
            let (scale, zero, noise) = (decision.rounding.scale, decision.rounding.zero_point, decision.noise);
            reporter.detail(&format!("{weight}: scale {scale:.6}, zero {zero}, noise {noise:.1e}{shared}"));
        }
    }
    if !calibrated.parts.contains_key("decoder") {
        text += "decoder        a scale for each row of its activations\n";
    }
    if let (Some(mean), Some(least)) = (report.cosine_mean, report.cosine_least) {
        text += &format!("embeddings     cosine to float32 {mean:.5} on average, {least:.5} at worst\n");
    }
    text += &format!("captions       {} of {} changed (greedy)\n", report.captions_changed, report.captions_compared);
    text
}

fn shortened(names: &[&str]) -> String {
    const MAX: usize = 6;
    let more = names.len().saturating_sub(MAX);
    let shown = names[..names.len().min(MAX)].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
