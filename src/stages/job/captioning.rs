//! A worker that captions.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::worker::{Computed, LazyModel, Task};
use super::{ShardEnd, Shards, Worker, settings_of};
use crate::generation;
use crate::pipeline::sources::Source;
use crate::pipeline::{Interrupt, Reporter, RunSettings};
use crate::stages::caption::{self, CaptionSettings, Captioner, ModelInfo, Style, TableFormat, Wording};

impl Worker<'_> {
    /// What a run of this plan is told, but for its source and its place. `threads` and `batch_size` change no result.
    ///
    /// # Errors
    /// A plan of another version, which says things differently.
    pub fn caption_settings(&self, threads: usize, batch_size: usize) -> Result<CaptionSettings> {
        let context = || self.unreadable();
        let settings = &self.plan.settings.settings;
        let decoding: generation::Settings = serde_json::from_value(settings["decoding"].clone()).with_context(context)?;
        let wording = settings.get("wording").cloned().unwrap_or_else(|| json!({}));
        let wording: Wording = serde_json::from_value(wording).with_context(context)?;
        let scoring = settings.get("scoring").cloned().map(serde_json::from_value).transpose().with_context(context)?;
        Ok(CaptionSettings {
            run: self.run_settings(threads, batch_size)?,
            format: TableFormat::Parquet,
            style: Style::default(),
            decoding,
            wording,
            scoring,
            only: None,
            split: None,
        })
    }

    /// Captions the shards. The model is loaded, for so many threads, when it is first needed, and again only for another number of them.
    ///
    /// # Errors
    /// A model that is not the plan's ([`crate::pipeline::OtherSettings`]); see [`caption::run`]. What was finished before stays finished.
    pub fn run<C: Captioner>(
        &self,
        shards: &Shards,
        settings: &CaptionSettings,
        model: &ModelInfo,
        load: impl FnMut(usize) -> Result<C>,
    ) -> Result<Vec<ShardEnd>> {
        let precision = model.identity["precision"].as_str().unwrap_or("fp32");
        let images = settings.run.reading.settings(&model.preprocess);
        let ours = settings_of(
            &model.identity["fingerprint"],
            precision,
            &settings.decoding,
            &settings.wording,
            settings.scoring.as_ref(),
            images,
        );
        self.check(&ours)?;
        self.work(shards, &mut Captioning { settings, model, once: LazyModel::new(load, model.shares_cores) })
    }
}

struct Captioning<'a, C, L> {
    settings: &'a CaptionSettings,
    model: &'a ModelInfo,
    once: LazyModel<C, L>,
}

impl<C: Captioner, L: FnMut(usize) -> Result<C>> Task for Captioning<'_, C, L> {
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
        let run = RunSettings { source, threads, out: folder.join("captions.parquet"), ..settings.run.clone() };
        let settings = CaptionSettings { run, ..settings.clone() };
        let report = caption::run(&settings, model, || once.get(threads), reporter, interrupt)?;
        let table = report.output.path().to_path_buf();
        let computed = Computed {
            counts: report.report.counts,
            output: report.output,
            table,
            ending: "captions.parquet",
            npy_fingerprint: None,
        };
        Ok(report.report.complete.then_some(computed))
    }
}
