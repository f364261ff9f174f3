//! A worker that embeds.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

use super::worker::{Computed, LazyModel, Task};
use super::{ShardEnd, Shards, Worker};
use crate::models::ImageEncoder;
use crate::pipeline::npy::FloatType;
use crate::pipeline::sources::Source;
use crate::pipeline::{Interrupt, Reporter, RunSettings, Settings};
use crate::stages::embed::{self, EmbedSettings, EncoderInfo, Layout};

/// What an embedding job's results depend on, but for the device, its runtime and the CPU's type.
pub fn embedding_settings_of(
    fingerprint: &Json,
    precision: &str,
    images: Json,
    dtype: FloatType,
    normalize: bool,
    embedding_dim: usize,
) -> Settings {
    let model = json!({"fingerprint": fingerprint, "precision": precision});
    embed::embedding(&model, images, embed::written(Layout::Parquet, dtype, normalize, false, embedding_dim))
}

impl Worker<'_> {
    /// What a run of this plan is told, but for its source and its place. `threads` and `batch_size` change no result.
    ///
    /// # Errors
    /// A plan of another version, which says things differently.
    pub fn embed_settings(&self, threads: usize, batch_size: usize) -> Result<EmbedSettings> {
        let context = || self.unreadable();
        let output = &self.plan.settings.settings["output"];
        let dtype = output["dtype"].as_str().and_then(|name| name.parse().ok()).with_context(context)?;
        Ok(EmbedSettings {
            run: self.run_settings(threads, batch_size)?,
            layout: Layout::OneFile,
            dtype,
            normalize: output["normalized"].as_bool().with_context(context)?,
            save_images: false,
        })
    }

    /// Embeds the shards. The encoder is loaded, for so many threads, when it is first needed, and again only for another number of them.
    ///
    /// # Errors
    /// An encoder that is not the plan's ([`crate::pipeline::OtherSettings`]); see [`embed::run`]. What was finished before stays finished.
    pub fn embed<E: ImageEncoder>(
        &self,
        shards: &Shards,
        settings: &EmbedSettings,
        model: &EncoderInfo,
        load: impl FnMut(usize) -> Result<E>,
    ) -> Result<Vec<ShardEnd>> {
        let precision = model.identity["precision"].as_str().unwrap_or("fp32");
        let (images, dim) = (settings.run.reading.settings(&model.preprocess), model.embedding_dim);
        let fingerprint = &model.identity["fingerprint"];
        self.check(&embedding_settings_of(fingerprint, precision, images, settings.dtype, settings.normalize, dim))?;
        self.work(shards, &mut Embedding { settings, model, once: LazyModel::new(load, model.shares_cores) })
    }
}

struct Embedding<'a, E, L> {
    settings: &'a EmbedSettings,
    model: &'a EncoderInfo,
    once: LazyModel<E, L>,
}

impl<E: ImageEncoder, L: FnMut(usize) -> Result<E>> Task for Embedding<'_, E, L> {
    fn shard(
        &mut self,
        source: Source,
        folder: &Path,
        threads: Option<usize>,
        reporter: &dyn Reporter,
        interrupt: &Interrupt,
    ) -> Result<Option<Computed>> {
        let Self { settings, model, once } = self;
        let threads = threads.unwrap_or(settings.run.threads);
        let run = RunSettings { source, threads, out: folder.join("embeddings"), ..settings.run.clone() };
        let settings = EmbedSettings { run, ..settings.clone() };
        let report = embed::run(&settings, model, || once.get(threads), reporter, interrupt)?;
        let table = report.output.path().join("part-00000.parquet");
        let npy_fingerprint = Some(embed::fingerprint_as(&settings, model, Layout::Npy));
        let (counts, output, ending) = (report.report.counts, report.output, "embeddings.parquet");
        let computed = Computed { counts, output, table, ending, npy_fingerprint };
        Ok(report.report.complete.then_some(computed))
    }
}
